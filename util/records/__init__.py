"""What a run leaves: log, TensorBoard, clock, files."""
