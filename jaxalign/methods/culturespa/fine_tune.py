"""Step 4 of CultureSPA: the adapters of all seeds, trained side by side in two programs.

    OUT/training/steps.json                     sizes of the steps (`training_steps`)
                /shared/, specific/             checkpoints, from which a killed run continues
                /shared.jsonl, specific.jsonl   loss, gradient norm and learning rate of each step
    OUT/seed0/adapters/joint, cct, rds, cds, specific-USA, ...   adapters for PEFT

"shared" models are trained on all groups, "specific" models on one group each. A group without a
single selected pair has no specific model; the unchanged model stands in for it.
"""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxalign.core.files import MetricsFile
from jaxalign.core.progress import Progress
from jaxalign.core.seals import change, sealed
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import ModelFiles
from jaxalign.lm.peft import CONFIG, WEIGHTS
from jaxalign.methods.culturespa.dataset import TrainingTokens, training_tokens
from jaxalign.methods.culturespa.inputs import Experiment, seed_folder
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Selection
from jaxalign.methods.culturespa.training_steps import FOLDER, Steps, train_settings
from jaxalign.runs import identity_of
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.surveys.survey import Survey
from jaxalign.training.packing import Examples
from jaxalign.training.shape import Shape
from jaxalign.training.trainer import HeldOutLoss, Trainer, fit

ModelName = tuple[int, str]  # the seed, and "joint", "cct", "rds", "cds" or "specific-USA"
Program = Literal["shared", "specific"]

_ADAPTER_FILES = (WEIGHTS, CONFIG)  # the second is written last
_SPECIFIC = "specific-"
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
) -> AdapterFiles:
    """Fine-tune the models of every seed.

    Args:
        experiment: The run.
        questions: The written questions by seed.
        selected: The pairs to train on, by seed and model.
        steps: The sizes of the steps whose programs were checked; default: chosen now.

    Returns:
        The adapters of all models that have any pairs.
    """
    shared, specifics = {}, {}
    experiment.on_progress(Progress("4 fine-tune: encode seed", 0, len(selected), "seeds"))
    for done, (seed, selections) in enumerate(selected.items(), 1):
        tokens = seed_tokens(experiment, questions[seed])
        for model, style in TRAINED_UNDER.items():
            shared[seed, model] = tokens.examples(selections[model], style)
        for group, selection in selections["joint"].by_group().items():
            specifics[seed, specific(group)] = tokens.examples(selection, TRAINED_UNDER["joint"])
        experiment.on_progress(Progress("4 fine-tune: encode seed", done, len(selected), "seeds"))
    _log.info("4 fine-tune: joint, CCT and the selection's controls")
    adapters_of = fine_tune(experiment, "shared", shared, steps and steps.shared)
    _log.info("4 fine-tune: one model for each country")
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
    experiment: Experiment, questions: Survey, selection: Selection, model: str
) -> Examples:
    """Return selected pairs as tokens, under the style that the model is trained on."""
    return seed_tokens(experiment, questions).examples(selection, TRAINED_UNDER[model])


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
    """
    examples = {name: rows for name, rows in examples.items() if rows}
    folders = {name: adapter_folder(experiment.out, name) for name in examples}
    if not all([_is_whole(folder) for folder in folders.values()]):
        trained = train(experiment, program, examples, shape=shape)
        for name, folder in folders.items():
            with sealed(*(folder / file for file in _ADAPTER_FILES)):
                trained[name].save_peft(folder)
    return AdapterFiles(folders, experiment.lm.files)


def _is_whole(folder: Path) -> bool:
    """Return whether an adapter is there, as it was written; say so if it has changed."""
    paths = [folder / file for file in _ADAPTER_FILES]
    for path in paths:
        if (what := change(path)) is not None:
            _log.info(f"{path}: {what}; made again from the last checkpoint")
            return False
    return all(path.exists() for path in paths)


def train(
    experiment: Experiment,
    program: Program,
    examples: Mapping[ModelName, Examples],
    rates: Mapping[ModelName, float] | None = None,
    held_out: Mapping[ModelName, Examples] | None = None,
    shape: Shape | None = None,
) -> dict[ModelName, Adapter]:
    """Train several models at once, from the last checkpoint.

    Args:
        experiment: The run.
        program: The folder of checkpoints; decides how many examples a step has.
        examples: Training data of each model.
        rates: Highest learning rate of each model. Given rates, the models of a seed start alike
            and see their examples in one order, so that they differ in nothing else.
        held_out: Examples of each model whose loss is logged beside that of the training data.
        shape: The sizes of a step; default: chosen for the examples.
    """
    settings = experiment.settings
    folder = experiment.out / FOLDER
    folder.mkdir(exist_ok=True)
    drawn_as = {name: label((name[0], program)) for name in rates or {}}
    trainer = Trainer(
        experiment.lm.config,
        train_settings(settings, program == "specific"),
        settings.lora,
        _by_label(examples),
        experiment.lm.mesh,
        _by_label(rates or {}),
        _by_label(drawn_as),
        shape=shape,
        checkpoints=folder / program,
    )
    _log.info(trainer.describe())
    log = MetricsFile(folder / f"{program}.jsonl", "step")
    identity = identity_of(settings, program, sorted(map(list, drawn_as)))
    with Checkpoints(folder / program, identity=identity) as checkpoints:
        weights = fit(
            trainer,
            experiment.lm.params,
            checkpoints,
            settings.save_every,
            begin=lambda step: log.rewind(step or -1),
            log=log.append,
            held_out=HeldOutLoss(trainer, _by_label(held_out)) if held_out else None,
            on_progress=experiment.reporting(f"4 fine-tune {program}"),
        )
    lm = experiment.lm
    return {
        name: Adapter(weights[label(name)], settings.lora, lm.config, lm.name) for name in examples
    }


def _by_label(values: Mapping[ModelName, Any]) -> dict[str, Any]:
    return {label(name): value for name, value in values.items()}
