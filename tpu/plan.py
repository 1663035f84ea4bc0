"""What a program needs on a TPU slice or GPUs that are not at hand, from compiling it for them.

The command itself is `jaxalign plan` (`jaxalign.commands.plan.command`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("plan")
