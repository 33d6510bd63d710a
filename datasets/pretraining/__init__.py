"""Data of pre-training: masked batches of tiles, and the held-out tiles."""
