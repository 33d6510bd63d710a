"""Skill, interpolation baselines, scores of predictions."""
