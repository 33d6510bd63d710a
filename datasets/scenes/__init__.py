"""Image data sets in place of a survey: tables, images, statistics."""
