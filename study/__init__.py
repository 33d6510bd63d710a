"""The study "is multi-scale pre-training worth its cost?": what is run, and what follows from the results."""
