"""Fine-tune a Llama on conversations of your own: supervised, on the last reply of each.

The command itself is `jaxalign fine-tune` (`jaxalign.commands.fine_tune`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("fine-tune")
