"""Settings of a run as named values, and which of them a resumed run may change."""

from __future__ import annotations

import dataclasses
import json
import re
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
    _refuse_difference(out, fixed, then, lambda name: f"`{name}`")


def refuse_other_program(out: Path, config: Any, recorded: Mapping[str, Any]) -> None:
    """UserError where the recorded settings are hardly those of `config`: those of a version before
    or after have most names in common with it."""
    names = settings_of(config).keys()
    if 2 * len(names & recorded.keys()) < len(names):
        raise UserError(f"`out` {out}: holds a run of another program; give another `out`")


def flags(config_class: type) -> dict[str, str]:
    """Return how the command line spells each setting of a config dataclass.

    Args:
        config_class: The dataclass that `console.main` reads from the command line.

    Returns:
        Flag by setting, in the order of the fields: {"countries": "--countries", "prompt.length":
        "--prompt.length"}. A positional argument has no flag and is spelled by its name. Fields of
        a nested dataclass that tyro names "" are settings "outer.inner" with the flag "--inner".
    """
    spelled: dict[str, str] = {}
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        marks = getattr(hints[field.name], "__metadata__", ())
        kind = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        name = names[0] if names else field.name.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            inner = flags(kind)
            prefix = f"--{name}." if name else "--"
            spelled |= {
                f"{field.name}.{key}": flag.replace("--", prefix, 1) for key, flag in inner.items()
            }
        elif any(repr(mark) == "Positional" for mark in marks):
            spelled[field.name] = field.name
        else:
            spelled[field.name] = f"--{name}"
    return spelled


_BACKTICKED = re.compile(r"`([A-Za-z_][A-Za-z0-9_.]*)`")


def with_flags(message: str, config_class: type) -> str:
    """Return a message with the settings that it names in backticks spelled as flags.

    "`icl_examples` 7: ..." becomes "--icl-examples 7: ...". A setting of a nested dataclass may be
    named in full (`prompt.length`) or by its last part (`length`) if only one setting has it.
    Backticked names that are no settings are left as they are.
    """
    spelled = flags(config_class)
    by_last_part: dict[str, list[str]] = {}
    for setting, flag in spelled.items():
        by_last_part.setdefault(setting.rpartition(".")[2], []).append(flag)

    def flag_of(match: re.Match[str]) -> str:
        name = match[1]
        if name in spelled:
            return spelled[name]
        candidates = by_last_part.get(name, [])
        return candidates[0] if len(candidates) == 1 else match[0]

    return _BACKTICKED.sub(flag_of, message)


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
                f"`resume` {out}: {spell(name)} was {_short(old)} and is {_short(new)} now; "
                "give the old value, or another `out`"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
