"""Step 4 of CultureSPA: the adapters of all seeds, trained side by side in two programs.

    OUT/training/steps.json                     sizes of the steps (`training_steps`)
                /shared/, specific/             checkpoints, from which a killed run continues
                /shared.jsonl, specific.jsonl   loss, gradient norm and learning rate of each step
                /set_aside.json             models whose loss was not finite, if there are any
    OUT/seed0/adapters/joint, cct, rds, cds, specific-USA, ...   adapters for PEFT

"shared" models are trained on all groups, "specific" models on one group each. A group without a
single selected pair has no specific model; the unchanged model stands in for it.

A model whose loss is not finite is set aside, and the others are trained to their end. A run that
is resumed with `retry` trains what was set aside at a lower rate, with checkpoints and log under
`training/specific-retry-1e-05`. Where the sizes of the steps were planned, it does so in the same
program, and a model becomes what it would have been at that rate from the start.
"""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile, write_json
from jaxalign.core.json_text import read_object
from jaxalign.core.progress import Progress
from jaxalign.core.seals import change, check_sealed, sealed
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import ModelFiles
from jaxalign.lm.peft import CARD, CONFIG, WEIGHTS
from jaxalign.methods.culturespa.answer import BASE, ask, in_styles
from jaxalign.methods.culturespa.dataset import TrainingTokens, training_tokens
from jaxalign.methods.culturespa.inputs import Experiment, seed_folder
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Selection
from jaxalign.methods.culturespa.styles import Style
from jaxalign.methods.culturespa.training_steps import FOLDER, Steps, train_settings
from jaxalign.runs import identity_of
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey
from jaxalign.training.packing import Examples
from jaxalign.training.shape import Shape
from jaxalign.training.trainer import HeldOutLoss, Trainer, fit

ModelName = tuple[int, str]  # the seed, and "joint", "cct", "rds", "cds" or "specific-USA"
Program = Literal["shared", "specific"]

_ADAPTER_FILES = (CARD, WEIGHTS, CONFIG)  # the last one is written last
_SPECIFIC = "specific-"
_SET_ASIDE = "set_aside.json"
_NAMED = 5  # models that a message names
_log = logging.getLogger("jaxalign")


def specific(group: str) -> str:
    """Return the name of the model that is trained on one group."""
    return _SPECIFIC + group


def group_of(model: str) -> str | None:
    """Return the group of a specific model, None for a model of all groups."""
    return model.removeprefix(_SPECIFIC) if model.startswith(_SPECIFIC) else None


def label(name: ModelName) -> str:
    """Return what training logs and results call a model, such as "seed0 joint"."""
    seed, model = name
    return f"seed{seed} {model}"


def adapter_folder(out: Path, name: ModelName) -> Path:
    """Return the folder of an adapter. A group's name may hold any character, a file's may not."""
    seed, model = name
    return seed_folder(out, seed) / "adapters" / urllib.parse.quote(model, safe=" ")


def adapter_names(out: Path) -> list[ModelName]:
    """Return the names of all adapters in a run's directory."""
    return [
        (int(folder.parents[1].name.removeprefix("seed")), urllib.parse.unquote(folder.name))
        for folder in sorted(out.glob("seed*/adapters/*"))
    ]


class AdapterFiles(Mapping[ModelName, Adapter]):
    """The adapters of a run by seed and model, each read from its folder whenever it is asked for.

    90 adapters of a model of 8 billion weights are 7.5 GB; one at a time is in memory.
    """

    def __init__(self, folders: Mapping[ModelName, Path], files: ModelFiles) -> None:
        """Use the folders of adapters that belong to a model."""
        self._folders, self._files = dict(folders), files

    def __getitem__(self, name: ModelName) -> Adapter:
        return Adapter.load(self._folders[name], self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._folders  # without reading the file

    def __iter__(self) -> Iterator[ModelName]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def __or__(self, other: AdapterFiles) -> AdapterFiles:
        return AdapterFiles(self._folders | other._folders, self._files)


def fine_tune_all(
    experiment: Experiment,
    questions: Mapping[int, Survey],
    selected: Mapping[int, Mapping[str, Selection]],
    steps: Steps | None = None,
    answered: Mapping[int, Mapping[Style, Responses]] | None = None,
) -> AdapterFiles:
    """Fine-tune the models of every seed.

    Args:
        experiment: The run.
        questions: The written questions by seed.
        selected: The pairs to train on, by seed and model.
        steps: The sizes of the steps whose programs were checked; default: chosen now.
        answered: What the unchanged model answers to the written questions, by seed and style; read
            where the target is the distribution of its answers.

    Returns:
        The adapters of all models that have any pairs.
    """
    shared, specifics = {}, {}
    experiment.on_progress(Progress("4 fine-tune: encode seed", 0, len(selected), "seeds"))
    for done, (seed, selections) in enumerate(selected.items(), 1):
        tokens = seed_tokens(experiment, questions[seed])
        toward = answered[seed] if experiment.settings.train.target == "distribution" else {}
        for model, style in TRAINED_UNDER.items():
            shared[seed, model] = tokens.examples(selections[model], style, toward.get(style))
        style = TRAINED_UNDER["joint"]
        for group, selection in selections["joint"].by_group().items():
            specifics[seed, specific(group)] = tokens.examples(selection, style, toward.get(style))
        experiment.on_progress(Progress("4 fine-tune: encode seed", done, len(selected), "seeds"))
    _log.info("joint, CCT and the selection's controls")
    adapters_of = fine_tune(experiment, "shared", shared, steps and steps.shared)
    _log.info("one model for each country")
    return adapters_of | fine_tune(experiment, "specific", specifics, steps and steps.specific)


def seed_tokens(experiment: Experiment, questions: Survey) -> TrainingTokens:
    """Encode what the examples of one seed are cut from; all its models share the tokens."""
    return training_tokens(
        questions.items,
        experiment.groups,
        experiment.inputs.prompts,
        experiment.inputs.files.tokenizer,
        end_of_turn=experiment.settings.end_of_turn,
        presentations=experiment.inputs.presentations,
    )


def training_examples(
    experiment: Experiment, questions: Survey, selection: Selection, model: str, seed: int
) -> Examples:
    """Return selected pairs as tokens, under the style that the model is trained on.

    Where the target is a distribution, the unchanged model is asked the questions again, unless its
    answers are in the run's directory.
    """
    style, answered = TRAINED_UNDER[model], None
    if experiment.settings.train.target == "distribution":
        asked = in_styles(experiment.inputs, (style,), experiment.groups, questions)
        (by_style,) = ask(experiment, experiment.lm, BASE, asked, seed, experiment.on_progress)
        answered = by_style[style]
    return seed_tokens(experiment, questions).examples(selection, style, answered)


def fine_tune(
    experiment: Experiment,
    program: Program,
    examples: Mapping[ModelName, Examples],
    shape: Shape | None = None,
) -> AdapterFiles:
    """Return adapters trained on `examples`, read from the run's directory if they are there.

    Models without examples are left out.

    Args:
        experiment: The run.
        program: The folder of checkpoints; decides how many examples a step has.
        examples: Training data of each model.
        shape: The sizes of a step; default: chosen for the examples.

    Raises:
        UserError: If a model was set aside; the others are then trained and saved.
    """
    examples = {name: rows for name, rows in examples.items() if rows}
    folders = {name: adapter_folder(experiment.out, name) for name in examples}
    retry, failed = experiment.settings.retry, read_set_aside(experiment.out)[0]
    lacking = [name for name, folder in folders.items() if not _is_whole(folder)]
    again = [name for name in lacking if label(name) in failed]
    if len(again) < len(lacking):
        failed = _train_and_save(experiment, program, examples, folders, shape)
    elif again and retry is not None:
        _log.info(f"4 fine-tune: {len(again)} models again, at a learning rate of {retry:g}")
        chosen = {name: examples[name] for name in again}
        failed = _train_and_save(
            experiment, f"{program}-retry-{retry:g}", chosen, folders, shape, retry
        )
    if own := [label(name) for name in examples if label(name) in failed]:
        raise UserError(failure_message(own, failed))
    return AdapterFiles(folders, experiment.lm.files)


def _is_whole(folder: Path) -> bool:
    """Return whether an adapter is there, as it was written; say so if it has changed."""
    paths = [folder / file for file in _ADAPTER_FILES]
    for path in paths:
        if (what := change(path)) is not None:
            _log.info(f"{path}: {what}; made again from the last checkpoint")
            return False
    return all(path.exists() for path in paths)


def failure_message(models: Sequence[str], failed: Mapping[str, Any]) -> str:
    """Return what is said of models that were set aside, in one line.

    >>> failure_message(["seed0 joint"], {"seed0 joint": {"step": 7, "learning_rate": 0.1}})
    "the loss of 1 model is not finite: seed0 joint (step 7, learning rate 0.1); the others are \
    trained and kept: resume with a `retry` below 0.1 to train it again"
    """
    found = ", ".join(
        f"{name} (step {failed[name]['step']}, learning rate {failed[name]['learning_rate']:g})"
        for name in models[:_NAMED]
    )
    if len(models) > _NAMED:
        found += f" and {len(models) - _NAMED} more"
    lowest = min(failed[name]["learning_rate"] for name in models)
    many = len(models) > 1
    return (
        f"the loss of {len(models)} model{'s' if many else ''} is not finite: {found}; the others "
        f"are trained and kept: resume with a `retry` below {lowest:g} to train "
        f"{'them' if many else 'it'} again"
    )


def read_set_aside(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's models that were set aside, by label, with what is known of each.

    Returns:
        Those that have no adapter yet, and those that were trained again: "step" and
        "learning_rate" of the failure, and of the latter "trained_at", the lower rate.
    """
    path = out / FOLDER / _SET_ASIDE
    check_sealed(path)
    known = read_object(path) if path.exists() else {}
    if not all(
        isinstance(f, dict) and {"step", "learning_rate"} <= f.keys() for f in known.values()
    ):
        raise UserError(f"{path}: not a record of models; restore it, or start a new run")
    again = {name: found for name, found in known.items() if "trained_at" in found}
    return {name: found for name, found in known.items() if name not in again}, again


def _train_and_save(
    experiment: Experiment,
    program: str,
    examples: Mapping[ModelName, Examples],
    folders: Mapping[ModelName, Path],
    shape: Shape | None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Train models, save those that went well, and return those of the run that did not."""
    set_aside: dict[str, int] = {}
    rates = None if rate is None else dict.fromkeys(examples, rate)
    trained = train(experiment, program, examples, rates, shape=shape, set_aside=set_aside)
    for name, adapter in trained.items():
        with sealed(*(folders[name] / file for file in _ADAPTER_FILES)):
            adapter.save_peft(folders[name])
    failed, again = read_set_aside(experiment.out)
    if rate is None:
        rate = experiment.settings.train.learning_rate
    else:
        done = {label(name) for name in trained} & failed.keys()
        again |= {name: failed.pop(name) | {"trained_at": rate} for name in sorted(done)}
    failed |= {name: {"step": row, "learning_rate": rate} for name, row in set_aside.items()}
    if failed or again:
        path = experiment.out / FOLDER / _SET_ASIDE
        with sealed(path):
            write_json(path, failed | again)
    return failed


def train(
    experiment: Experiment,
    program: str,
    examples: Mapping[ModelName, Examples],
    rates: Mapping[ModelName, float] | None = None,
    held_out: Mapping[ModelName, Examples] | None = None,
    shape: Shape | None = None,
    set_aside: dict[str, int] | None = None,
) -> dict[ModelName, Adapter]:
    """Train several models at once, from the last checkpoint.

    Args:
        experiment: The run.
        program: The folder of checkpoints, "shared..." or "specific..."; decides how many examples
            a step has.
        examples: Training data of each model.
        rates: Highest learning rate of each model. Given rates, the models of a seed start alike
            and see their examples in one order, so that they differ in nothing else.
        held_out: Examples of each model whose loss is logged beside that of the training data.
        shape: The sizes of a step; default: chosen for the examples.
        set_aside: Gets the label of each model whose loss is not finite, with the number of the row
            where it was not; such models are not among the results.
    """
    settings = experiment.settings
    set_aside = {} if set_aside is None else set_aside
    folder = experiment.out / FOLDER
    folder.mkdir(exist_ok=True)
    # Models that are trained again begin as they did before; rates that are compared begin alike.
    compared = rates is not None and "-retry-" not in program
    drawn_as = {name: label((name[0], program)) for name in rates or {}} if compared else {}
    trainer = Trainer(
        experiment.lm.config,
        train_settings(settings, program.startswith("specific")),
        settings.lora,
        _by_label(examples),
        experiment.lm.mesh,
        _by_label(rates or {}),
        _by_label(drawn_as),
        shape=shape,
        checkpoints=folder / program,
    )
    _log.debug(trainer.describe())
    log = MetricsFile(folder / f"{program}.jsonl", "step")

    def keep(row: Mapping[str, Any]) -> None:
        log.append(row)
        if experiment.run is not None:
            experiment.run.track(row, phase=program)

    identity = identity_of(settings, program, sorted(map(list, drawn_as)))
    with Checkpoints(folder / program, identity=identity) as checkpoints:
        weights = fit(
            trainer,
            experiment.lm.params,
            checkpoints,
            settings.save_every,
            begin=lambda step: log.rewind(step or -1),
            log=keep,
            held_out=HeldOutLoss(trainer, _by_label(held_out)) if held_out else None,
            on_progress=experiment.reporting(f"4 fine-tune {program}"),
            set_aside=set_aside.__setitem__,
        )
    for name, row in set_aside.items():
        _log.warning(f"4 fine-tune: {name} is set aside: its loss is not finite in step {row}")
    lm = experiment.lm
    return {
        name: Adapter(weights[label(name)], settings.lora, lm.config, lm.name)
        for name in examples
        if label(name) in weights
    }


def _by_label(values: Mapping[ModelName, Any]) -> dict[str, Any]:
    return {label(name): value for name, value in values.items()}
