"""Scores free-text replies to a survey, from any tool, against how countries answered it.

The command itself is `jaxalign score` (`jaxalign.commands.score`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("score")
