"""CultureSPA, whole: write questions, answer them, keep what a culture changes, fine-tune, measure.

The command itself is `jaxalign culturespa` (`jaxalign.commands.culturespa`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("culturespa")
