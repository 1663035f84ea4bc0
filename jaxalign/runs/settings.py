"""Settings of a run as named values, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.files import Plain, plain

_MAY_CHANGE = "may_change"


def may_change(default: Any) -> Any:
    """A config field that a resumed run may set anew, as it cannot alter what was computed before:
    the output directory, `resume` itself, the progress bar, the number of devices."""
    return dataclasses.field(default=default, metadata={_MAY_CHANGE: True})


def settings_of(config: Any, fixed_only: bool = False) -> dict[str, Plain]:
    """A config dataclass as flat `outer.inner: value`, the command line's own names.

    `fixed_only` leaves out the fields made by `may_change`.
    """
    flat: dict[str, Plain] = {}
    for field in dataclasses.fields(config):
        if fixed_only and field.metadata.get(_MAY_CHANGE):
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = settings_of(value, fixed_only)
            flat |= {f"{field.name}.{name}": v for name, v in inner.items()}
        else:
            flat[field.name] = plain(value, field.name)
    return flat


def refuse_changed_settings(out: Path, config: Any, recorded: Mapping[str, Any]) -> None:
    """UserError naming the first setting whose value is not the recorded one."""
    refuse_other_program(out, config, recorded)
    fixed = settings_of(config, fixed_only=True)
    free = settings_of(config).keys() - fixed.keys()
    then = {name: value for name, value in recorded.items() if name not in free}
    _refuse_difference(out, fixed, then, lambda name: _option(config, name))


def refuse_other_program(out: Path, config: Any, recorded: Mapping[str, Any]) -> None:
    """UserError where the recorded settings are hardly those of `config`: those of a version before
    or after have most names in common with it."""
    names = settings_of(config).keys()
    if 2 * len(names & recorded.keys()) < len(names):
        raise UserError(f"--out {out}: holds a run of another program; give another --out")


def _option(config: Any, name: str) -> str:
    """A setting as the command line spells it: a part that tyro names "" adds nothing there."""
    part, _, inner = name.partition(".")
    kind = typing.get_type_hints(type(config), include_extras=True).get(part)
    unnamed = any(getattr(mark, "name", None) == "" for mark in getattr(kind, "__metadata__", ()))
    return "--" + (inner if inner and unnamed else name).replace("_", "-")


def refuse_changed_facts(out: Path, facts: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """UserError naming the first fact (a hash, say) that is not the recorded one."""
    _refuse_difference(out, facts, recorded, str)


def _refuse_difference(
    out: Path, now: Mapping[str, Any], then: Mapping[str, Any], spell: Callable[[str], str]
) -> None:
    for name in sorted(now.keys() | then.keys()):
        new, old = now.get(name), then.get(name)
        if new != old:
            raise UserError(
                f"--resume {out}: {spell(name)} was {_short(old)} and is {_short(new)} now; "
                "give the old value, or another --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
