"""Asks a model a survey or a test under any prompt styles, without training.

The command itself is `jaxalign ask` (`jaxalign.commands.ask`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("ask")
