"""Whether a survey file can be used, and everything that is wrong with it.

The command itself is `jaxalign check` (`jaxalign.commands.check`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("check")
