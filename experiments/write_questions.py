"""Have a model write new survey questions after those of a survey: step 1 of CultureSPA.

This is the command `jaxalign write-questions`; see `jaxalign.commands.write_questions`.
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("write-questions")
