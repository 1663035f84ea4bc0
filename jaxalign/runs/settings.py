"""Settings of a run by name: which of them a resumed run may change, and their flags."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.files import Plain, plain

_MAY_CHANGE = "may_change"
_TOLD = 8  # differences that a message tells, at most


def may_change(default: Any) -> Any:
    """Return a dataclass field that a resumed run may set to another value.

    For settings that cannot alter what was computed before: the output directory, `resume`
    itself, the progress bar, the number of devices.
    """
    return dataclasses.field(default=default, metadata={_MAY_CHANGE: True})


def also_called(name: str) -> Any:
    """Return a mark for a field whose flag may be spelled by another name as well.

    For `Annotated[...]`, in the command line alone: a setting has one name in records.
    """
    import tyro

    return tyro.conf.arg(aliases=[f"--{name.replace('_', '-')}"])


def settings_of(config: Any, fixed_only: bool = False) -> dict[str, Plain]:
    """Return the settings of a config dataclass by name, nested ones as "outer.inner".

    Args:
        config: The dataclass; its values must have a JSON form (`jaxalign.core.files.plain`).
        fixed_only: Whether to leave out the fields made by `may_change`.
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


def identity_of(config: Any, *parts: Plain) -> str:
    """Return sixteen hexadecimal digits for what a run's checkpoints depend on.

    Args:
        config: The settings; those that may change on resuming do not count.
        parts: Whatever else decides what is saved.
    """
    text = json.dumps([settings_of(config, fixed_only=True), *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Against what a run has recorded


def check_settings(out: Path, config: Any, recorded: Mapping[str, Any]) -> None:
    """Check that a resumed run has the settings it began with.

    Raises:
        UserError: A setting differs from the recorded one, and no field made by `may_change` holds
            it; the message names every such setting.
    """
    check_same_program(out, config, recorded)
    fixed = settings_of(config, fixed_only=True)
    changeable = settings_of(config).keys() - fixed.keys()
    then = {name: value for name, value in recorded.items() if name not in changeable}
    _check_equal(out, fixed, then, "`{}`")


def check_same_program(out: Path, config: Any, recorded: Mapping[str, Any]) -> None:
    """Check that recorded settings are those of the same program.

    Another version of the program still shares most names with `config`; another program does not.

    Raises:
        UserError: Fewer than half of the settings of `config` are among the recorded ones.
    """
    names = settings_of(config).keys()
    if 2 * len(names & recorded.keys()) < len(names):
        raise UserError(f"`out` {out}: holds a run of another program; give another `out`")


def check_facts(out: Path, facts: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Check that what a result depends on besides the settings (hashes, say) is unchanged.

    Raises:
        UserError: A fact differs from the recorded one; the message names every such fact.
    """
    _check_equal(out, facts, recorded, "{}")


def _check_equal(out: Path, now: Mapping[str, Any], then: Mapping[str, Any], spelling: str) -> None:
    """Check that two mappings are equal; all differences are told at once."""
    names = [n for n in sorted(now.keys() | then.keys()) if now.get(n) != then.get(n)]
    if not names:
        return
    changes = [
        f"{spelling.format(n)} was {_short(then.get(n))} and is {_short(now.get(n))} now"
        for n in names[:_TOLD]
    ]
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    values = "value" if len(names) == 1 else "values"
    raise UserError(
        f"`resume` {out}: {'; '.join(changes)}{more}; give the old {values}, which config.json "
        "records, or another `out`"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


# As the command line spells them


@dataclasses.dataclass(frozen=True)
class Spelled:
    """How the command line spells a setting.

    Attributes:
        flag: The flag, such as "--prompt.length"; of a positional argument its name.
        aliases: Further flags.
        kind: The type of its value.
    """

    flag: str
    aliases: tuple[str, ...]
    kind: Any

    def names(self) -> set[str]:
        """Return every flag that sets it, those that say no to it among them."""
        flags = {self.flag, *self.aliases}
        # tyro spells "no" before the last part of a name.
        return flags | ({_negated(flag) for flag in flags} if self.kind is bool else set())


def _negated(flag: str) -> str:
    prefix, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{prefix}{dot}no-{last}"


def spelled(config_class: type) -> dict[str, Spelled]:
    """Return how the command line spells each setting, in the order of the fields.

    Args:
        config_class: The dataclass that `console.main` reads from the command line.
    """
    found: dict[str, Spelled] = {}
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        marks = getattr(hints[field.name], "__metadata__", ())
        kind = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        name = names[0] if names else field.name.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            prefix = f"--{name}." if name else "--"
            for inner, each in spelled(kind).items():
                found[f"{field.name}.{inner}"] = dataclasses.replace(
                    each,
                    flag=each.flag.replace("--", prefix, 1),
                    aliases=tuple(alias.replace("--", prefix, 1) for alias in each.aliases),
                )
        elif any(repr(mark) == "Positional" for mark in marks):  # so tyro need not be imported
            found[field.name] = Spelled(field.name, (), kind)
        else:
            aliases = [a for mark in marks for a in getattr(mark, "aliases", None) or ()]
            found[field.name] = Spelled(f"--{name}", tuple(aliases), kind)
    return found


def flags(config_class: type) -> dict[str, str]:
    """Return how the command line spells each setting of a config dataclass.

    Args:
        config_class: The dataclass that `console.main` reads from the command line.

    Returns:
        Flag by setting, in the order of the fields: {"countries": "--countries", "prompt.length":
        "--prompt.length"}. A positional argument has no flag and is spelled by its name. Fields of
        a nested dataclass that tyro names "" are settings "outer.inner" with the flag "--inner".
    """
    return {name: each.flag for name, each in spelled(config_class).items()}


def arguments_of(config_class: type, settings: Mapping[str, Plain]) -> list[str]:
    """Return the command line that sets recorded settings, as `settings_of` returns them.

    Args:
        config_class: The dataclass that `console.main` reads from the command line.
        settings: Value by setting. Settings that are left out keep their defaults.

    Raises:
        UserError: The class has no setting of a recorded name.
    """
    known, positional, arguments = spelled(config_class), [], []
    if unknown := sorted(settings.keys() - known.keys()):
        raise UserError(f"the setting {unknown[0]} of this run is unknown to this version")
    for name, each in known.items():
        if name not in settings:
            continue
        value, flag = settings[name], each.flag
        if not flag.startswith("--"):
            positional += _words(value)
        elif isinstance(value, bool) and each.kind is bool:
            arguments.append(flag if value else _negated(flag))
        elif isinstance(value, list | dict):
            arguments += [flag, *_words(value)]
        else:
            arguments.append(f"{flag}={_words(value)[0]}")
    return [*positional, *arguments]


def _words(value: Plain) -> list[str]:
    """Return a value as the words of a command line."""
    if isinstance(value, dict):
        return [word for pair in value.items() for each in pair for word in _words(each)]
    if isinstance(value, list):
        return [word for each in value for word in _words(each)]
    return ["None" if value is None else str(value)]


_BACKTICKED = re.compile(r"`([A-Za-z_][A-Za-z0-9_.]*)`")


def with_flags(message: str, config_class: type) -> str:
    """Return a message with the settings that it names in backticks spelled as flags.

    "`icl_examples` 7: ..." becomes "--icl-examples 7: ...". A setting of a nested dataclass may be
    named in full (`prompt.length`) or by its last part (`length`) if only one setting has it.
    Backticked names that are no settings are left as they are.
    """
    known = flags(config_class)
    by_last_part: dict[str, list[str]] = {}
    for setting, flag in known.items():
        by_last_part.setdefault(setting.rpartition(".")[2], []).append(flag)

    def flag_of(match: re.Match[str]) -> str:
        name = match[1]
        if name in known:
            return known[name]
        candidates = by_last_part.get(name, [])
        return candidates[0] if len(candidates) == 1 else match[0]

    return _BACKTICKED.sub(flag_of, message)
