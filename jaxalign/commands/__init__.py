"""One module per sub-command: read settings, call the library, print and write."""
