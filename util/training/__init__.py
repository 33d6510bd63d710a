"""One update, schedule, batch size, memory and cost of training."""
