"""What every room may use: errors, files that survive a kill, progress events."""
