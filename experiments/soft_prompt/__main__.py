"""Soft prompts tuned by Differential Evolution until survey answers give a country's six scores.

The command itself is `jaxalign soft-prompt` (`jaxalign.commands.soft_prompt`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("soft-prompt")
