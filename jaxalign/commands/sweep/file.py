"""The file that describes a sweep: TOML, axes and settings, every key checked by name and type.

    countries = ["USA", "CHN"]       # ISO 3166 alpha-3 codes
    seeds = 5                        # 0 to 4; or a list: [7, 11]
    models = ["pocket"]              # folders of Hugging Face Llamas; "pocket" is the one shipped
    prompt_lengths = [4, 16]
    generations = 40                 # and the other names in SETTINGS: see experiments.soft_prompt

    [prompt]                         # any of --prompt.* but the length
    projection = "principal"

    [[strategies]]                   # any field of jaxalign.optim.strategy.Strategy, and a name
    name = "de16"
    population = 16

What is left out is as `python -m experiments.soft_prompt` has it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.methods.soft_prompt.study import Config
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import plain, settings_of
from jaxalign.runs.settings import check_same_program

POCKET = "pocket"
AXES = ("countries", "seeds", "models", "prompt_lengths", "strategies")
SETTINGS = (
    "anchor", "attention", "chunk", "constant", "dimensions", "dtype", "edition", "generations",
    "instrument", "model_parallel", "penalty", "prompts", "reading", "save_every",
)  # fmt: skip

_Fields = TypeVar("_Fields")
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_WORDS |= {Path: "a path in quotes", tuple: "a list", dict: "a table"}


@dataclasses.dataclass(frozen=True)
class Named:
    """A strategy and what its cells are called by."""

    name: str
    strategy: Strategy


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says: five axes, and the settings that all cells share."""

    countries: tuple[str, ...]
    seeds: tuple[int, ...]
    models: tuple[str, ...]
    prompt_lengths: tuple[int, ...]
    strategies: tuple[Named, ...]
    study: Config

    def config(self, model: str, strategy: Strategy, length: int) -> Config:
        """What `experiments.soft_prompt` would be asked to do for these cells, but the seed."""
        return dataclasses.replace(
            self.study,
            model=None if model == POCKET else Path(model),
            strategy=strategy,
            prompt=dataclasses.replace(self.study.prompt, length=length),
        )


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file. UserError for whatever is wrong with it, in one line."""
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a sweep file (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    try:
        return _sweep(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sweep(fields: dict[str, Any]) -> Sweep:
    refuse_unknown(fields, (*AXES, *SETTINGS, "prompt"), "")
    if "length" in _table(fields, "prompt"):
        raise UserError("prompt.length: lengths are an axis; give them as prompt_lengths")
    seeds = fields.get("seeds", [0])
    if type(seeds) is int:
        seeds = list(range(seeds))
    seeds = _axis(seeds, "seeds", int)
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"seeds: {wrong[0]} must lie between 0 and 2**32 - 1")
    base = Config(icl_examples=0, gradient_steps=0)
    countries = _axis(fields.get("countries"), "countries", str, base.countries)
    settings = {name: fields[name] for name in SETTINGS if name in fields}
    study = fill(base, settings, "")
    prompt = fill(study.prompt, _table(fields, "prompt"), "prompt.")
    return Sweep(
        countries=countries,
        seeds=seeds,
        models=_axis(fields.get("models"), "models", str, (POCKET,)),
        prompt_lengths=_axis(
            fields.get("prompt_lengths"), "prompt_lengths", int, (SoftPromptConfig.length,)
        ),
        strategies=_strategies(fields.get("strategies", [{}]), base.strategy),
        study=dataclasses.replace(study, prompt=prompt, countries=countries),
    )


def _strategies(tables: Any, base: Strategy) -> tuple[Named, ...]:
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError("strategies: give each as a table under [[strategies]]")
    if not tables:
        raise UserError("strategies = []: give at least one, or leave it out")
    found = []
    for i, table in enumerate(tables):
        where = f"strategies[{i}]."
        known = [field.name for field in dataclasses.fields(Strategy)]
        refuse_unknown(table, ("name", *known), where)
        strategy = fill(base, {k: v for k, v in table.items() if k != "name"}, where)
        name = _convert(table.get("name", strategy.algorithm), str, f"{where}name")
        if not re.fullmatch(r"[A-Za-z0-9_.+]+", name):
            raise UserError(f"{where}name = {name!r}: use letters, digits and _ . + only")
        found.append(Named(name, strategy))
    _refuse_twice([named.name for named in found], "strategies", "give each its own name")
    return tuple(found)


def _axis(
    values: Any, name: str, kind: type, default: tuple[Any, ...] | None = None
) -> tuple[Any, ...]:
    """Values of an axis, one or more, each once."""
    if values is None and default is not None:
        return default
    found = _convert(values, tuple[kind, ...], name)
    if not found:
        raise UserError(f"{name}: give at least one")
    _refuse_twice(found, name, "list each once")
    return found


def _refuse_twice(values: Sequence[Any], name: str, remedy: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{name}: {value!r} is there more than once; {remedy}")


def _table(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _convert(fields.get(name, {}), dict, name)


def refuse_unknown(fields: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """UserError for the first key that is not known, naming the nearest that is."""
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise UserError(f"unknown key {where}{key}; {hint}")


def fill(base: _Fields, values: Mapping[str, Any], where: str) -> _Fields:
    """A copy of a config dataclass with these values, each of its field's type."""
    kinds = typing.get_type_hints(type(base))
    refuse_unknown(values, list(kinds), where)
    given = {name: _convert(v, kinds[name], where + name) for name, v in values.items()}
    return dataclasses.replace(base, **given)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A TOML value as a field of type `kind`; UserError where it is of another."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
    pairs = origin is tuple and get_origin(arguments[0]) is tuple
    if origin is tuple and not pairs and isinstance(value, list):
        return tuple(_convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if pairs and isinstance(value, dict):  # names and numbers: a strategy's options
        return tuple((name, _convert(v, float, f"{where}.{name}")) for name, v in value.items())
    if origin is types.UnionType:  # Path | None; TOML has no null
        kind = arguments[0]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:  # a bool is no int here
        return value
    wanted = dict if pairs else get_origin(kind) or kind
    raise UserError(f"{where} = {value!r} must be {_WORDS[wanted]}")


def refuse_changed_file(path: Path, out: Path, sweep: Sweep) -> None:
    """UserError naming the first value that is not the one which the sweep in `out` began with."""
    try:
        recorded = json.loads((out / "config.json").read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing there yet, or nothing of ours: `records.check` says so
    check_same_program(out, sweep, recorded)
    now, then = _flat(settings_of(sweep, fixed_only=True)), _flat(recorded)
    for name in now:
        if now[name] != then.get(name):
            raise UserError(
                f"{path}: {name.removeprefix('study.')} was {then.get(name)!r} when the sweep in "
                f"{out} began and is {now[name]!r} now; put it back, or give another --out"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested objects and lists as `name.inner[0]: value`, each list's length under its own name."""
    value = plain(value)
    if isinstance(value, dict):
        parts = {f"{name}.{k}" if name else k: v for k, v in value.items()}
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        parts = {f"{name}[{i}]": v for i, v in enumerate(value)}
    else:
        return {name: value}
    return {k: v for part, inner in parts.items() for k, v in _flat(inner, part).items()}
