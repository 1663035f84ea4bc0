"""What the published filters do to a file of generated questions.

The command itself is `jaxalign filter-questions` (`jaxalign.commands.filter_questions`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("filter-questions")
