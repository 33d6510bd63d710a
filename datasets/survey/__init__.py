"""From layers to a survey: reference grid, tiles, statistics, scale pyramid."""
