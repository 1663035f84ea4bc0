"""CultureSPA from start to end: write questions, answer, select, fine-tune, measure.

This is the command `jaxalign culturespa`; see `jaxalign.commands.culturespa`.
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("culturespa")
