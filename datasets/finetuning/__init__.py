"""Layers, labels and folds as batches of windows with targets."""
