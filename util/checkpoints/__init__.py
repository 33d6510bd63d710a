"""Checkpoints: one file, a run of them, what must agree on resuming, encoder weights."""
