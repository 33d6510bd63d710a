"""Spatial folds: blocks of ground, with a buffer, that are trained on, validated and tested."""
