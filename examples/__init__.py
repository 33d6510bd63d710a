"""Loops of your own around the model: short, to be copied and changed."""
