"""Settings from a file: `--config FILE` of every command.

    jaxalign soft-prompt --config mine.toml --generations 40
    jaxalign soft-prompt --config runs/soft_prompt-20261130-120000/config.json --out runs/again

TOML, YAML or JSON, with settings by the names that they have in records ("strategy.population", or
a table `strategy` with `population`) or on the command line ("population", "icl-examples"). Of the
`config.json` of a run every setting counts but where it was written to and whether it was resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.files import Plain, plain
from jaxalign.core.json_text import parse_json, reason
from jaxalign.runs.settings import Spelled, arguments_of, spelled

FLAG = "--config"
_RUN_FORMAT = "jaxalign run"  # how the format of a run's config.json begins, whatever its version
_OF_THE_RUN = ("out", "resume")
_SUFFIXES = (".toml", ".yaml", ".yml", ".json")


def split_arguments(config_class: type, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line with the settings of the file that it names.

    Args:
        config_class: The dataclass that is read from the command line.
        args: The command line; without `--config` it is returned as it is.

    Returns:
        The positional arguments that the file gives, and all other arguments: the file's, less
        those that the command line gives too, and then the command line's.

    Raises:
        UserError: The file cannot be read, or has a setting that is unknown or of another type.
    """
    rest, paths = [], []
    words = iter(args)
    for word in words:
        if word == FLAG or word.startswith(f"{FLAG}="):
            path = word.removeprefix(f"{FLAG}=") if "=" in word else next(words, "")
            paths.append(path)
        else:
            rest.append(word)
    if not paths:
        return [], rest
    if len(paths) > 1 or not paths[0]:
        raise UserError(f"{FLAG}: give one file")
    settings = read_settings_file(config_class, Path(paths[0]))
    flags = {word.partition("=")[0].replace("_", "-") for word in rest if word[:2] == "--"}
    known = spelled(config_class)
    left = {
        name: value
        for name, value in settings.items()
        if not flags & {flag.replace("_", "-") for flag in known[name].names()}
    }
    positional = {name: v for name, v in left.items() if not known[name].flag.startswith("--")}
    others = {name: v for name, v in left.items() if name not in positional}
    return arguments_of(config_class, positional), [*arguments_of(config_class, others), *rest]


def read_settings_file(config_class: type, path: Path) -> dict[str, Plain]:
    """Read the settings of a command from a file.

    Args:
        config_class: The dataclass of the settings.
        path: The file.

    Returns:
        Value by setting, as `settings_of` names them.

    Raises:
        UserError: The file cannot be read, or has a setting that is unknown or of another type; the
            message names it, the file, and what is known.
    """
    content = _content(path)
    if str(content.get("format", "")).startswith(_RUN_FORMAT):
        recorded = content.get("settings")
        content = {k: v for k, v in dict(recorded or {}).items() if k not in _OF_THE_RUN}
    known = spelled(config_class)
    by_name = {_usual(name): name for name in known}
    for name, each in known.items():
        for flag in (each.flag, *each.aliases):
            by_name.setdefault(_usual(flag), name)
    found: dict[str, Plain] = {}
    for key, value in _flat(content, by_name):
        name = by_name.get(_usual(key))
        if name is None:
            near = difflib.get_close_matches(_usual(key), by_name, n=1)
            hint = f"did you mean {by_name[near[0]]}? " if near else ""
            raise UserError(
                f"{FLAG} {path}: unknown setting {key}; {hint}known: {', '.join(known)}"
            )
        if name in found:
            raise UserError(f"{FLAG} {path}: the setting {name} is given twice")
        try:
            found[name] = plain(value)
        except (TypeError, ValueError):  # a date, or an infinity
            raise _wrong(path, key, str(value), known[name]) from None
        if not _has_type(found[name], known[name]):
            raise _wrong(path, key, found[name], known[name])
    return found


def _usual(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _flat(
    content: Mapping[str, Any], by_name: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield settings and values; a table is one value where a setting of its name exists."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and _usual(name) not in by_name:
            if not value:
                yield name, value
            yield from _flat(value, by_name, f"{name}.")
        else:
            yield name, value


# Files


def _content(path: Path) -> dict[str, Any]:
    """Return the table in a file."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{FLAG} {path}: give a file that ends with {', '.join(_SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{FLAG} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{FLAG} {path}: {reason(error)}") from None
    try:
        if path.suffix.lower() == ".toml":
            content = tomllib.loads(text)
        elif path.suffix.lower() == ".json":
            content = parse_json(text)
        else:
            content = _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{FLAG} {path}: {' '.join(reason(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{FLAG} {path}: holds no settings by name")
    return content


def _parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; ValueError where it is none.

    Words and numbers are read as in YAML 1.2: 1e-4 is a number, and NO is Norway. (PyYAML reads
    1.1, where one is a text and the other false.)
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: typing.ClassVar = {
            first: [(tag, pattern) for tag, pattern in pairs if tag not in _OTHERWISE]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    for tag, (pattern, first) in _OTHERWISE.items():
        Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))
    try:
        return yaml.load(text, Loader)  # a SafeLoader: makes nothing but plain values
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


# By tag: how its words look in YAML 1.2, and how they begin.
_OTHERWISE = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.inf)$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:timestamp": (r"^$a", ""),
}


# Types


def _has_type(value: Plain, each: Spelled) -> bool:
    """Return whether the command line takes a value, and as what it is in the file."""
    import tyro

    if each.kind is bool:
        return isinstance(value, bool)
    one = dataclasses.make_dataclass("One", [("value", each.kind)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            read = tyro.cli(one, args=arguments_of(one, {"value": value})).value
    except SystemExit:
        return False
    return _is_alike(plain(read), value)


def _is_alike(a: Plain, b: Plain) -> bool:
    """Return whether two values are of one kind, and all values within them."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return all(map(_is_alike, a.values(), b.values()))
    return _kind(a) is _kind(b)


def _kind(value: Plain) -> type:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float if is_number else type(value)


def _wrong(path: Path, key: str, value: Plain, each: Spelled) -> UserError:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return UserError(f"{FLAG} {path}: {key} is {shown} and must be {_words_of(each.kind)}")


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
    types.NoneType: "null",
}


def _words_of(kind: Any) -> str:
    """Return what values of a type are, in plain words."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if kind in _WORDS:
        return _WORDS[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words_of(each) for each in inner)
    if origin is tuple and inner[-1:] == (...,):
        return f"a list, each {_words_of(inner[0])}"
    if origin is tuple:
        return f"a list of {' and '.join(_words_of(each) for each in inner)}"
    return f"a table of {_words_of(inner[-1])}" if origin is dict and inner else "something else"
