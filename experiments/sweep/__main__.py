"""A sweep: countries x seeds x strategies x prompt lengths x models, from one file.

The command itself is `jaxalign sweep` (`jaxalign.commands.sweep.command`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("sweep")
