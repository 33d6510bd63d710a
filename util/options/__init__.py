"""Command-line options shared by the programs."""
