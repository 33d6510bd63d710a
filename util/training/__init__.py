"""One update, learning rate, batch size, memory and FLOPs of training."""
