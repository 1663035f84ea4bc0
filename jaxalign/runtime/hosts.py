"""Many hosts, one program: every worker runs the same command, told by the environment who it is.

    JAXALIGN_HOSTS=auto               TPU pod, SLURM, Open MPI, Kubernetes: JAX finds the others
    JAXALIGN_HOSTS=HOST:PORT/N/I      process I of N; process 0 listens on HOST:PORT

Without the variable a process is alone. Only process 0 writes records and prints.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.core.errors import UserError

VARIABLE = "JAXALIGN_HOSTS"
T = TypeVar("T")
_EXPLICIT = re.compile(r"(?P<address>[^/\s]+:\d+)/(?P<count>\d+)/(?P<index>\d+)")


def join() -> None:
    """Join the other processes, if there are any; all but process 0 fall silent.

    Must come before anything that starts JAX's back ends. UserError for a variable that cannot be
    read and where the others cannot be found.
    """
    said = os.environ.get(VARIABLE)
    if not said:
        return
    arguments = read_hosts(said)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{VARIABLE}={said}: {' '.join(str(error).split())}") from None
    if jax.process_index() != 0:
        # Only what is meant for people: errors still go to standard error.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)


def joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def agreed(value: int) -> int:
    """Process 0's value, from 0 to 2**64 - 1, on every process: for choices by a measurement."""
    if not joined():
        return value
    # Eight bytes, since JAX would cut a 64-bit integer down to 32 bits.
    said = np.frombuffer(value.to_bytes(8, "big"), np.uint8)
    return int.from_bytes(np.asarray(multihost_utils.broadcast_one_to_all(said)).tobytes(), "big")


def agreed_text(text: str) -> str:
    """Process 0's text on every process."""
    if not joined():
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    said = np.zeros(agreed(own.size), np.uint8)
    if not said.size:
        return ""
    if jax.process_index() == 0:
        said[:] = own
    return np.asarray(multihost_utils.broadcast_one_to_all(said)).tobytes().decode()


def agreed_choice(choices: Sequence[T], chosen: T) -> T:
    """What process 0 chose, on every process."""
    return choices[agreed(choices.index(chosen))]


def read_hosts(said: str) -> dict[str, str | int]:
    """Arguments of `jax.distributed.initialize`; none of them where JAX finds them itself."""
    if said == "auto":
        return {}
    found = _EXPLICIT.fullmatch(said)
    if not found or int(found["index"]) >= int(found["count"]):
        raise UserError(f"{VARIABLE}={said}: 'auto' or HOST:PORT/PROCESSES/THIS_PROCESS")
    return {
        "coordinator_address": found["address"],
        "num_processes": int(found["count"]),
        "process_id": int(found["index"]),
    }
