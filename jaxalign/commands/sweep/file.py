"""The file that describes a sweep: TOML, axes and settings, every key checked by name and type.

    countries = ["USA", "CHN"]       # ISO 3166 alpha-3 codes
    seeds = 5                        # 0 to 4; or a list: [7, 11]
    models = ["pocket"]              # as --model has them; "pocket" is the one shipped
    prompt_lengths = [4, 16]
    generations = 40                 # any name in SETTINGS, as `jaxalign soft-prompt` has it

    [prompt]                         # any field of the soft prompt but its length
    projection = "principal"

    [[strategies]]                   # a name, and any field of jaxalign.optim.strategy.Strategy
    name = "de16"
    population = 16

What is left out has the default of `jaxalign soft-prompt`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import plain, settings_of
from jaxalign.runs.settings import check_same_program

POCKET = "pocket"
AXES = ("countries", "seeds", "models", "prompt_lengths", "strategies")
SETTINGS = (
    "anchor",
    "answer",
    "attention",
    "chunk",
    "constant",
    "dimensions",
    "dtype",
    "edition",
    "generations",
    "held_out",
    "held_out_distributions",
    "instrument",
    "language",
    "mas_weight",
    "model_parallel",
    "objective",
    "penalty",
    "presentations",
    "prompts",
    "reading",
    "replies",
    "report_sampled",
    "save_every",
    "scores",
    "test_presentations",
)

_Fields = TypeVar("_Fields")
_TOML_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path in quotes",
    tuple: "a list",
    dict: "a table",
}


@dataclasses.dataclass(frozen=True)
class NamedStrategy:
    """A strategy, and the name that its cells carry."""

    name: str
    strategy: Strategy


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep file: five axes, and the settings that all cells share."""

    countries: tuple[str, ...]
    seeds: tuple[int, ...]
    models: tuple[str, ...]
    prompt_lengths: tuple[int, ...]
    strategies: tuple[NamedStrategy, ...]
    base_config: Settings

    def settings(self, model: str, strategy: Strategy, length: int) -> Settings:
        """Return the settings of a soft-prompt run for these cells, whose seeds differ."""
        base = self.base_config
        return dataclasses.replace(
            base,
            model=None if model == POCKET else model,
            strategy=strategy,
            prompt=dataclasses.replace(base.prompt, length=length),
        )


_SHOWN = 80  # characters of a key in a message


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; UserError for the first thing that is wrong with it."""
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a sweep file (TOML)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:  # a number of thousands of digits is none of TOML's own errors
        raise UserError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not TOML: nested too deeply") from None
    try:
        return _sweep(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sweep(fields: dict[str, Any]) -> Sweep:
    _check_known(fields, (*AXES, *SETTINGS, "prompt"), "")
    if "length" in _table(fields, "prompt"):
        raise UserError("prompt.length: lengths are an axis; give them as prompt_lengths")
    seeds = fields.get("seeds", [0])
    if type(seeds) is int:
        seeds = list(range(seeds))
    seeds = _axis(seeds, "seeds", int)
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"seeds: {wrong[0]} must lie between 0 and 2**32 - 1")
    base = Settings(icl_examples=0, gradient_steps=0)  # a cell is a search without comparison
    countries = _axis(fields.get("countries"), "countries", str, base.countries)
    settings = {name: fields[name] for name in SETTINGS if name in fields}
    base = _fill(base, settings, "")
    prompt = _fill(base.prompt, _table(fields, "prompt"), "prompt.")
    return Sweep(
        countries=countries,
        seeds=seeds,
        models=_axis(fields.get("models"), "models", str, (POCKET,)),
        prompt_lengths=_axis(
            fields.get("prompt_lengths"), "prompt_lengths", int, (SoftPromptConfig.length,)
        ),
        strategies=_strategies(fields.get("strategies", [{}]), base.strategy),
        base_config=dataclasses.replace(base, prompt=prompt, countries=countries),
    )


def _strategies(tables: Any, base: Strategy) -> tuple[NamedStrategy, ...]:
    """Return the strategies of the file, each with its name; the default is its algorithm."""
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError("strategies: give each as a table under [[strategies]]")
    if not tables:
        raise UserError("strategies = []: give at least one, or leave it out")
    strategies = []
    for i, table in enumerate(tables):
        where = f"strategies[{i}]."
        known = [field.name for field in dataclasses.fields(Strategy)]
        _check_known(table, ("name", *known), where)
        strategy = _fill(base, {k: v for k, v in table.items() if k != "name"}, where)
        name = _convert(table.get("name", strategy.algorithm), str, f"{where}name")
        if not re.fullmatch(r"[A-Za-z0-9_.+]+", name):
            raise UserError(f"{where}name = {name!r}: use letters, digits and _ . + only")
        strategies.append(NamedStrategy(name, strategy))
    names = [named.name for named in strategies]
    _check_once(names, "strategies", "give each its own name")
    return tuple(strategies)


def _axis(
    values: Any, name: str, kind: type, default: tuple[Any, ...] | None = None
) -> tuple[Any, ...]:
    """Return the values of an axis: one or more, each listed once."""
    if values is None and default is not None:
        return default
    axis = _convert(values, tuple[kind, ...], name)
    if not axis:
        raise UserError(f"{name}: give at least one")
    _check_once(axis, name, "list each once")
    return axis


def _check_once(values: Sequence[Any], name: str, remedy: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{name}: {value!r} is there more than once; {remedy}")


def _table(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _convert(fields.get(name, {}), dict, name)


def _check_known(fields: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UserError for the first unknown key, naming the known key nearest to it."""
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise UserError(f"unknown key {where}{key[:_SHOWN]}; {hint}")


def _fill(base: _Fields, values: Mapping[str, Any], where: str) -> _Fields:
    """Return a copy of a settings dataclass with these values, each of its field's type."""
    kinds = typing.get_type_hints(type(base))
    _check_known(values, list(kinds), where)
    given = {name: _convert(v, kinds[name], where + name) for name, v in values.items()}
    return dataclasses.replace(base, **given)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Return a TOML value as a field of type `kind`; UserError if it has another type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
    if origin is types.UnionType:  # Path | None; TOML has no null
        return _convert(value, arguments[0], where)
    pairs = origin is tuple and get_origin(arguments[0]) is tuple
    if origin is tuple and not pairs and isinstance(value, list):
        return tuple(_convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if pairs and isinstance(value, dict):  # names and numbers, such as a strategy's options
        return tuple((name, _convert(v, float, f"{where}.{name}")) for name, v in value.items())
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:  # a bool is no int here
        return value
    wanted = dict if pairs else get_origin(kind) or kind
    raise UserError(f"{where} = {value!r} must be {_TOML_NAMES[wanted]}")


def check_unchanged(path: Path, out: Path, sweep: Sweep) -> None:
    """Raise UserError naming the first value that the sweep in `out` did not begin with."""
    try:
        recorded = parse_json((out / "config.json").read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing there yet, or nothing of ours, which `check_run` reports
    check_same_program(out, sweep, recorded)
    now, then = _flat(settings_of(sweep, fixed_only=True)), _flat(recorded)
    for name in now:
        if now[name] != then.get(name):
            key = name.removeprefix("base_config.")
            raise UserError(
                f"{path}: {key} was {then.get(name)!r} when the sweep in {out} began and is "
                f"{now[name]!r} now; put back what its config.json records, or give another `out`"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested objects and lists as `name.inner[0]: value`, without nesting."""
    value = plain(value)
    if isinstance(value, dict):
        parts = {f"{name}.{k}" if name else k: v for k, v in value.items()}
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        parts = {f"{name}[{i}]": v for i, v in enumerate(value)}
    else:
        return {name: value}
    return {k: v for part, inner in parts.items() for k, v in _flat(inner, part).items()}
