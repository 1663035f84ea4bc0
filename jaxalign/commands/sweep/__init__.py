"""Many searches from one file."""
