"""Version of the programs."""

VERSION = "0.1.0"
"""Printed by --version and stored in every checkpoint."""
