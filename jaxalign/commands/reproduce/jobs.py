"""The runs that a paper's page takes its values from: what they are, making them, naming them.

The released answers of 18 countries are the user's (`--data`). With them, every cell of CultureSPA
that people's answers are needed for is measured; without, countries that the simulated society does
not have name the command.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tyro

from jaxalign.commands import COMMANDS, load
from jaxalign.commands.reproduce.published import PaperName
from jaxalign.commands.reproduce.runs import MODELS, FinishedRun, ModelName, read_run
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.lm.model import open_model
from jaxalign.pocket.society import held_out_survey
from jaxalign.runs import with_flags
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.survey import Item, Survey, to_json

Study = Callable[[Path], None]  # reads a run's directory and writes a file into it
GUARD = Path(__file__).with_name("guard.csv")  # 24 easy questions, for models that know words

_log = logging.getLogger("jaxalign")

# Countries of the second paper of which the simulated society has people.
_SIMULATED = "USA CAN BOL BRA GBR NLD DEU UKR CHN RUS IND THA NGA AUS NZL"
_NOT_SIMULATED = ("KEN", "ETH", "ZWE")
_ALL = " ".join(culturespa.COUNTRIES)
# Files that studies of a run leave in its directory, and the studies.
STUDIES = {
    "matrices.json": "experiments.culturespa.studies.matrices",
    "fractions.json": "experiments.culturespa.studies.fractions",
    "prompting.json": "experiments.culturespa.prompting",
}
# What the rows of a table are taken from, if that is no run of the paper's own command.
_BY_STUDY = {"correlations": "matrices.json", "quantity": "fractions.json"}


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        folder: Its directory, inside that of the page.
        command: The command.
        arguments: Its options. {survey} and {countries} are the shortest item of every topic and
            the 18 countries of the released files, or else of the simulated society and its
            countries; {guard} is `GUARD`.
        of_people: Whether it is left out where the released files are missing.
    """

    folder: str
    command: str
    arguments: str
    of_people: bool = False


# SmolLM2's runs are as small as they can be and still say something. Its batch and learning rate
# are not the paper's, which with a hundred examples would take no step worth the name.
JOBS: Mapping[PaperName, Mapping[ModelName, tuple[Job, ...]]] = {
    "soft-prompt-de": {
        "pocket": (Job("pocket", "soft-prompt", "--countries SAU USA CHN IND"),),
        "smollm2": (
            Job(
                "smollm2",
                "soft-prompt",
                "--model smollm2 --countries SAU USA CHN IND --population 6 --generations 8 "
                "--save-every 2 --gradient-steps 6 --gradient-rate 0.02 --presentations A",
            ),
        ),
    },
    "culturespa": {
        "pocket": (
            Job("pocket", "culturespa", f"--countries {_SIMULATED} --seeds 2 --prompting True"),
            Job(
                "pocket-people",
                "culturespa",
                "--survey {survey} --countries {countries} --seeds 2",
                of_people=True,
            ),
        ),
        "smollm2": (
            Job(
                "smollm2",
                "culturespa",
                "--model smollm2 --survey {survey} --countries {countries} --guard {guard} "
                "--per-topic 3 --constrain --presentations A --prompting True "
                "--train.batch 8 --train.learning-rate 1e-3",
            ),
        ),
    },
}


def shortest_items(survey: Survey, count: int = 1) -> Survey:
    """Return a survey of the shortest items of every topic, which nobody has chosen.

    Args:
        survey: The survey.
        count: Number of items of each topic. Length is that of the texts of an item and its
            options.
    """
    by_topic: dict[str, list[Item]] = {}
    for item in survey.items:
        by_topic.setdefault(item.topic, []).append(item)
    chosen = {i.id for items in by_topic.values() for i in sorted(items, key=_length)[:count]}
    return dataclasses.replace(survey.subset(chosen), name=f"{survey.name}: shortest items")


def _length(item: Item) -> int:
    return sum(map(len, (item.stem, item.text, *item.options)))


def make_runs(
    paper: PaperName,
    models: Sequence[ModelName],
    out: Path,
    studies: Mapping[str, Study],
    tables: Path | None = None,
    quiet: bool = False,
) -> list[FinishedRun]:
    """Make the runs of a paper that are not finished, then the studies of them.

    Args:
        paper: The paper.
        models: The models.
        out: Folder in which each run has a directory.
        studies: Studies by the file that they leave in a run.
        tables: Folder of the released tables of answers by country, if there is one.
        quiet: Whether to hide progress bars.

    Raises:
        UserError: A model is missing, before anything is run; or a run fails.
    """
    for model in models:  # before the long work
        open_model(None if model == "pocket" else model)
    runs = []
    for job in (job for model in models for job in JOBS[paper][model]):
        if job.of_people and tables is None:
            continue
        folder = out / job.folder
        if not (folder / "result.json").exists():
            words = [*shlex.split(_filled_in(job, out, tables)), "--out", str(folder)]
            words += ["--resume"] * (folder / "config.json").exists() + ["--quiet"] * quiet
            _log.info(f"jaxalign {job.command} {shlex.join(words)}")
            _run_command(job.command, words)
        run = read_run(folder)
        if run is None:
            raise UserError(f"`out` {out}: {folder} is not a run of this command")
        for name, study in studies.items():
            if paper == "culturespa" and not (folder / name).exists():
                study(folder)
        runs.append(run)
    return runs


def _filled_in(job: Job, out: Path, tables: Path | None) -> str:
    """Return a job's options; writes the survey that they name, if they name one."""
    names = {"guard": shlex.quote(str(GUARD)), "countries": _SIMULATED, "survey": ""}
    if "{survey}" in job.arguments:
        path, survey = out / "simulated.json", held_out_survey()
        if tables is not None:
            path, survey = out / "people.json", culturespa.read(tables)
            names["countries"] = _ALL
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, to_json(shortest_items(survey)))
        names["survey"] = shlex.quote(str(path))
    return job.arguments.format(**names)


def _run_command(command: str, words: Sequence[str]) -> None:
    """Run another command in this process."""
    function, config_class = load(COMMANDS[command])
    config = tyro.cli(config_class, args=list(words), prog=f"jaxalign {command}")
    try:
        function(config)
    except UserError as error:  # in the words of that command
        raise UserError(with_flags(str(error), config_class)) from None


def command_for(
    paper: PaperName, table: str, row: str, model: str, runs: Sequence[FinishedRun]
) -> str:
    """Return the command that measures a row which no run has.

    Args:
        paper: The paper.
        table: Key of the table.
        row: Key of the row.
        model: The model, as the page calls it.
        runs: The runs of that model.
    """
    own = [run for run in runs if run.command == JOBS[paper]["pocket"][0].command]
    name = next((name for name, label in MODELS.items() if label == model), None)
    given = {"pocket": "", "smollm2": "--model smollm2 "}.get(name or "", f"--model {model} ")
    job = JOBS[paper][name or "pocket"][0]
    arguments = job.arguments if name else given + job.arguments
    if "{survey}" in arguments:  # the page's own command writes the survey
        makes = "jaxalign reproduce culturespa --data CULTURESPA_FOLDER"
    else:
        country = row.rpartition(".")[2]
        if country in _NOT_SIMULATED:
            arguments = f"{given}--survey CULTURESPA_FOLDER --countries {_ALL}"
        elif country in _SIMULATED.split() and country not in arguments.split():
            arguments = f"{given}--countries {_SIMULATED}"
        makes = f"jaxalign {job.command} {arguments}".strip()
    then = _what_follows(paper, table, row, given)
    if not then:
        return makes
    return f"{then} {own[0].path}" if own else f"{makes} --out RUN, then {then} RUN"


def _what_follows(paper: PaperName, table: str, row: str, given: str) -> str:
    """Return what has to be made of a run for a row, without the run; "" for the run's own rows."""
    if table == "bench":
        return f"jaxalign cultural-bench {given}--easy FILE --hard FILE --run"
    if table in _BY_STUDY and row != "share.1":
        return f"python -m {STUDIES[_BY_STUDY[table]]}"
    if paper == "culturespa" and table == "main" and "." in row:
        return f"python -m {STUDIES['prompting.json']}"
    return ""
