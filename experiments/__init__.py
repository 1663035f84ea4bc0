"""One module per result; each docstring gives the command, hardware, time and expected numbers."""
