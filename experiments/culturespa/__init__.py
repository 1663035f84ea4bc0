"""CultureSPA, whole; its steps; and studies that read a finished run."""
