"""Apply the published filters to a file of generated questions.

This is the command `jaxalign filter-questions`; see `jaxalign.commands.filter_questions`.
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("filter-questions")
