"""Progress events and the speed that is derived from them."""

from __future__ import annotations

import dataclasses

import pytest

from jaxalign.core.progress import Progress, Speed, ignore


def test_an_event_cannot_be_changed_and_has_defaults() -> None:
    event = Progress("step", 1, 3)
    assert (event.unit, event.units_per_step, dict(event.fields)) == ("steps", 1, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.done = 2  # type: ignore[misc]
    assert ignore(event) is None


def test_speed_counts_from_the_first_update() -> None:
    now = [0.0]
    speed = Speed(clock=lambda: now[0])
    assert speed.per_second() is None
    now[0] = 60.0  # compilation
    speed.update(10)
    assert speed.per_second() is None
    assert speed.seconds_left(40) is None
    now[0] = 62.0
    speed.update(20)
    assert speed.per_second() == 5.0
    assert speed.seconds_left(40) == 4.0
    now[0] = 65.0
    assert speed.seconds_left(40) == 1.0  # counts down between updates
    now[0] = 99.0
    assert speed.seconds_left(40) == 0.0


def test_speed_forgets_old_updates() -> None:
    now = [0.0]
    speed = Speed(clock=lambda: now[0], window=2)
    for at, done in ((0.0, 0), (100.0, 1), (101.0, 11)):
        now[0] = at
        speed.update(done)
    assert speed.updates == 2
    assert speed.per_second() == 10.0
