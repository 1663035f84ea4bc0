"""The CultureSPA experiment: the method from start to end, and studies of a finished run."""
