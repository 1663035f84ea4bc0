"""Building blocks that every other room may use: errors, files, progress, registries, templates."""
