"""Print what a program needs on a TPU slice or on GPUs that this machine does not have.

The same as `jaxalign plan` (`jaxalign.commands.plan.command`).
"""

from jaxalign.cli import run_command

if __name__ == "__main__":
    run_command("plan")
