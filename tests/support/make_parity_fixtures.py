"""Freeze the logits of transformers for `test_transformer.py`. Needs torch; run from the root:

    python -m tests.support.make_parity_fixtures

Run it again after a change of `parity_cases.py` only: the point of a frozen number is that it does
not follow the code.
"""

from __future__ import annotations

import numpy as np

from tests.support.parity_cases import CASES, FIXTURES, transformers_logits


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    logits = {case.name: transformers_logits(case) for case in CASES}
    np.savez_compressed(FIXTURES / "parity_logits.npz", **logits)
    for name, values in logits.items():
        print(f"{name}: {values.shape}, largest {np.abs(values).max():.3f}")


if __name__ == "__main__":
    main()
