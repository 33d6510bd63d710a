"""Whole rasters out: embeddings, reconstruction, gap filling, superresolution, prediction."""
