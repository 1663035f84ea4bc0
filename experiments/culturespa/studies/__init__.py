"""Studies of a finished CultureSPA run."""
