"""Blending of overlapping tiles into one image."""
