"""Which entries each device holds: all that its candidates belong to, and hardly more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.optim.shares import Shares


@given(st.integers(1, 20), st.integers(1, 70), st.integers(1, 64))
def test_every_candidate_lies_with_its_entry(entries, population, devices):
    shares = Shares(entries, population, devices)
    for device in range(devices):
        begin = device * shares.rows
        rows = np.arange(begin, min(begin + shares.rows, entries * population))
        held = shares.entry_NxK[device, : shares.count_N[device]]
        np.testing.assert_array_equal(np.unique(rows // population), held)
    # Each entry is found again at the place that is said to hold it first.
    np.testing.assert_array_equal(shares.entry_NxK.reshape(-1)[shares.place_C], np.arange(entries))
    assert shares.held <= math.ceil(shares.rows / population) + 1
    if shares.in_order:
        np.testing.assert_array_equal(shares.entry_NxK.reshape(-1), np.arange(entries))


@pytest.mark.parametrize(
    ("population", "devices", "held"),
    [(16, 1, 18), (16, 2, 9), (16, 4, 5), (16, 8, 3), (16, 16, 2), (64, 128, 2), (16, 288, 1)],
)
def test_eighteen_countries(population, devices, held):
    """What a device holds falls with the number of devices; more than one entry only at borders."""
    assert Shares(18, population, devices).held == held


def test_entries_that_divide_among_the_devices_are_held_once():
    assert Shares(18, 16, 6).in_order
    assert not Shares(18, 16, 4).in_order
