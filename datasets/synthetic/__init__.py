"""The synthetic sample survey and its forward model."""
