"""Rasters on disk to batches: layers, validity, tiles; knows nothing of models or training."""
