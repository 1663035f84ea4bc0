"""Many processes that run one program: each runs the same command, and the environment numbers it.

    JAXALIGN_HOSTS=auto               TPU pod, SLURM, Open MPI, Kubernetes: JAX finds the others
    JAXALIGN_HOSTS=HOST:PORT/N/I      process I of N; process 0 listens on HOST:PORT

Without the variable a process is alone. Only process 0 writes files and prints.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from jaxalign.core.errors import UserError

VARIABLE = "JAXALIGN_HOSTS"
T = TypeVar("T")
_EXPLICIT = re.compile(r"(?P<address>[^/\s]+:\d+)/(?P<count>\d+)/(?P<index>\d+)")


def join() -> None:
    """Join the other processes, if there are any, and silence all but process 0.

    Must be called before anything that starts one of JAX's back ends.

    Raises:
        UserError: The variable cannot be read, or the other processes cannot be reached.
    """
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    arguments = read_hosts(setting)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{VARIABLE}={setting}: {' '.join(str(error).split())}") from None
    if jax.process_index() != 0:
        # Only what is meant for people: errors still go to standard error.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)


def joined() -> bool:
    """Return whether this process is one of several."""
    return jax.distributed.is_initialized()


def agreed(value: int) -> int:
    """Return process 0's value on every process, for choices that depend on a measurement.

    Args:
        value: An integer from 0 to 2**64 - 1.
    """
    if not joined():
        return value
    # Eight bytes, since JAX would cut a 64-bit integer down to 32 bits.
    sent_8 = np.frombuffer(value.to_bytes(8, "big"), np.uint8)
    return int.from_bytes(_from_process_0(sent_8), "big")


def agreed_text(text: str) -> str:
    """Return process 0's text on every process."""
    if not joined():
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    # Every process must send an array of one size, so the length goes first.
    sent = np.zeros(agreed(encoded.size), np.uint8)
    if not sent.size:
        return ""
    if jax.process_index() == 0:
        sent[:] = encoded
    return _from_process_0(sent).decode()


def agreed_array(array: np.ndarray) -> np.ndarray:
    """Return process 0's array on every process; all give one of the same shape and dtype."""
    if not joined():
        return array
    return np.frombuffer(_from_process_0(array), array.dtype).reshape(array.shape)


def agreed_choice(choices: Sequence[T], chosen: T) -> T:
    """Return process 0's choice among `choices` on every process."""
    return choices[agreed(choices.index(chosen))]


def _from_process_0(sent: np.ndarray) -> bytes:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def read_hosts(setting: str) -> dict[str, str | int]:
    """Return the arguments of `jax.distributed.initialize`; none where JAX finds them itself.

    Raises:
        UserError: The setting is neither "auto" nor HOST:PORT/PROCESSES/THIS_PROCESS.
    """
    if setting == "auto":
        return {}
    match = _EXPLICIT.fullmatch(setting)
    if not match or int(match["index"]) >= int(match["count"]):
        raise UserError(f"{VARIABLE}={setting}: 'auto' or HOST:PORT/PROCESSES/THIS_PROCESS")
    return {
        "coordinator_address": match["address"],
        "num_processes": int(match["count"]),
        "process_id": int(match["index"]),
    }
