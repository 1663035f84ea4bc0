"""Scores a model on CulturalBench plainly, in character, by example and with tuned prompts.

The command itself is `jaxalign cultural-bench` (`jaxalign.commands.cultural_bench`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("cultural-bench")
