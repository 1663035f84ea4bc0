"""Say whether a survey file can be used, and what is wrong with it.

The command itself is `jaxalign check` (`jaxalign.commands.check`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("check")
