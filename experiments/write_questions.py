"""New survey questions that a model writes after a survey's own: step 1 of CultureSPA.

The command itself is `jaxalign write-questions` (`jaxalign.commands.write_questions`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("write-questions")
