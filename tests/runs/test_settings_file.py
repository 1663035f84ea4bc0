"""`--config FILE`: what it reads, what goes before it, and what it refuses in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from jaxalign import cli
from jaxalign.commands import COMMANDS, load
from jaxalign.core.errors import UserError
from jaxalign.runs import Run, settings_of
from jaxalign.runs.console import main
from jaxalign.runs.settings import also_called
from jaxalign.runs.settings_file import read_settings_file
from tests.commands.test_resume import RUNS


@dataclasses.dataclass(frozen=True)
class Strategy:
    population: int = 64
    options: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """Tune."""

    folder: tyro.conf.Positional[Path] = Path("default")
    countries: tuple[str, ...] = ("USA",)
    rate: float | None = None
    dtype: Literal["auto", "float32"] = "auto"
    log_steps: bool = False
    seeds: Annotated[tuple[int, ...], also_called("seed")] = (0,)
    strategy: Annotated[Strategy, tyro.conf.arg(name="")] = Strategy()
    inner: Strategy = Strategy()
    resume: bool = False
    out: Path | None = None


TOML = """
countries = ["NO", "SWE"]
rate = 1e-4
log-steps = true
seed = [3, 4]
population = 6
folder = "from the file"

[inner]
population = 7
options = [["std", -0.5]]
"""
YAML = """
countries: [NO, SWE]
rate: 1e-4
log_steps: true
seeds: [3, 4]
strategy: {population: 6}
folder: from the file
inner.population: 7
inner: {options: [[std, -0.5]]}
"""
WANTED = Config(
    folder=Path("from the file"),
    countries=("NO", "SWE"),
    rate=1e-4,
    log_steps=True,
    seeds=(3, 4),
    strategy=Strategy(6),
    inner=Strategy(7, (("std", -0.5),)),
)


def read(*args: str) -> Config:
    found: list[Config] = []
    main(found.append, Config, args)
    return found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", TOML),
        ("a.yaml", YAML),
        ("a.json", json.dumps(settings_of(WANTED))),
    ],
)
def test_all_settings_come_from_a_file_and_the_command_line_goes_first(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read("--config", str(path)) == WANTED
    words = ["--no-log-steps", "--countries", "USA", f"--config={path}", "--seed", "9"]
    assert read(*words, "--inner.population=8", "here") == dataclasses.replace(
        WANTED,
        folder=Path("here"),
        countries=("USA",),
        log_steps=False,
        seeds=(9,),
        inner=Strategy(8, (("std", -0.5),)),
    )


def test_what_a_run_has_recorded_is_read_but_for_its_directory(tmp_path):
    wanted = dataclasses.replace(WANTED, rate=None, out=tmp_path / "run")
    Run.create(tmp_path / "run", wanted, {"model_sha256": "ab"}).close()
    found = read("--config", str(tmp_path / "run" / "config.json"), "--out", "again")
    assert found == dataclasses.replace(wanted, out=Path("again"))


@pytest.mark.parametrize("name", RUNS)
def test_the_record_of_every_command_is_read(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings_of(RUNS[name])))
    found = read_settings_file(load(COMMANDS[name])[1], path)
    assert found == json.loads(path.read_text())


REFUSED = [
    ("a.toml", "populaton = 3", "unknown setting populaton; did you mean strategy.population? kno"),
    ("a.toml", "[x]\nzz = 3", "unknown setting x.zz; known: folder, countries, rate, "),
    ("a.toml", "[train]", "unknown setting train; known: folder"),
    ("a.toml", 'population = "many"', 'population is "many" and must be a whole number'),
    ("a.toml", 'population = "64"', 'population is "64" and must be a whole number'),
    ("a.toml", "population = 2.5", "population is 2.5 and must be a whole number"),
    ("a.toml", "population = true", "population is true and must be a whole number"),
    ("a.toml", "population = [3]", "population is [3] and must be a whole number"),
    ("a.toml", 'log_steps = "yes"', 'log_steps is "yes" and must be true or false'),
    ("a.toml", 'countries = "USA"', 'countries is "USA" and must be a list, each a text'),
    ("a.toml", 'dtype = "int8"', 'dtype is "int8" and must be one of auto, float32'),
    ("a.toml", "rate = 2020-01-01", 'rate is "2020-01-01" and must be a number or null'),
    ("a.toml", "rate = inf", 'rate is "inf" and must be a number or null'),
    ("a.toml", "out = 3", "out is 3 and must be a path or null"),
    ("a.toml", "seed = [1]\nseeds = [2]", "the setting seeds is given twice"),
    ("a.toml", "rate = ", "Invalid value"),
    ("a.yaml", "rate: [1", "while parsing"),
    ("a.json", '{"rate": 1, "rate": 2}', "key 'rate' appears twice"),
    ("a.json", "[1]", "holds no settings by name"),
    ("a.ini", "", "give a file that ends with .toml, .yaml, .yml, .json"),
]


@pytest.mark.parametrize(("name", "text", "words"), REFUSED)
def test_what_is_wrong_is_one_line_with_key_and_file(tmp_path, capsys, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SystemExit) as leaving:
        read("--config", str(path))
    out, said = capsys.readouterr()
    assert (leaving.value.code, out, said.count("\n")) == (2, "", 1)
    assert said.startswith(f"error: --config {path}: {words}")


def test_a_missing_file_and_a_missing_name_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--config .*none\.toml: No such file"):
        read_settings_file(Config, tmp_path / "none.toml")
    for words in (["--config"], ["--config", "a.toml", "--config", "b.toml"]):
        with pytest.raises(SystemExit):
            read(*words)


def test_every_command_says_that_it_reads_a_file(capsys):
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert "--config FILE reads settings from a TOML, YAML or JSON file" in capsys.readouterr().out
