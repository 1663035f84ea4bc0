"""The `jaxalign` program: one sub-command per task, each in a module of `jaxalign.commands`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

from jaxalign.commands import COMMANDS, load
from jaxalign.core.streams import replace_what_cannot_be_printed


def main(args: Sequence[str] | None = None) -> None:
    """Run `jaxalign COMMAND ...`; without a command, list the commands.

    Args:
        args: Command-line arguments; default: those of the process.
    """
    replace_what_cannot_be_printed()
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        print(f"jaxalign {importlib.metadata.version('jaxalign')}")
        return
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        print(f"error: no command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    _check_jax()
    run_command(name, rest, program=f"jaxalign {name}")


def _check_jax() -> None:
    """Exit with one line where JAX cannot be imported, which says how to install it."""
    try:
        import jax  # noqa: F401
    except Exception as error:  # a jaxlib of another version or for another CPU raises others
        why = " ".join(str(error).split()) or type(error).__name__
        print(
            f"error: JAX cannot be imported ({why}); activate the environment that holds jaxalign "
            "(. .venv/bin/activate), or install it: pip install jaxalign for a CPU, "
            "'jaxalign[cuda]' for GPUs, 'jaxalign[tpu]' for TPUs",
            file=sys.stderr,
        )
        sys.exit(2)


def usage() -> str:
    """Return the list of sub-commands as text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    head = "usage: jaxalign COMMAND [options]   (jaxalign COMMAND --help lists the options)"
    return "\n".join([head, "       jaxalign --version", "", *lines])


def run_command(name: str, args: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run one sub-command.

    Args:
        name: Key of `COMMANDS`.
        args: Command-line arguments; default: those of the process.
        program: How the help text names the program; default: how the process was started.
    """
    from jaxalign.runs import console

    function, config_class = load(COMMANDS[name])
    console.main(function, config_class, args, program=program)
