"""The sizes of the training steps of a CultureSPA run, chosen before anything is written.

    OUT/training/steps.json   the sizes, from the start of the run on

Step 4 of a run trains in two compiled programs, whose sizes depend on the lengths of the examples.
These are not known when a run begins, so the sizes are chosen from texts like them, with room for
longer ones, and the run then trains in exactly the programs that were checked. If the model writes
longer questions than there is room for, sizes are chosen again as soon as they are written, and
checked before anything is answered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.core.json_text import read_object
from jaxalign.core.seals import check_sealed, sealed
from jaxalign.methods.culturespa.dataset import training_tokens
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.questions import MOST_OPTIONS
from jaxalign.methods.culturespa.select import TRAINED_UNDER
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.surveys.survey import Survey
from jaxalign.training.program import expected_shape
from jaxalign.training.shape import Shape
from jaxalign.training.step import TrainConfig

FOLDER = "training"  # in a run's directory
_FILE = "steps.json"
# A written question may make a quarter longer an example than the survey's own longest one.
_ROOM = 1.25


@dataclasses.dataclass(frozen=True)
class Steps:
    """The sizes of a step of the models of all countries, and of those of single countries."""

    shared: Shape
    specific: Shape


def train_settings(settings: CultureSPASettings, specific: bool) -> TrainConfig:
    """Return how the models of single countries, or those of all countries, are trained."""
    batch = settings.specific_batch if specific else settings.train.batch
    return dataclasses.replace(settings.train, batch=batch)


def model_counts(settings: CultureSPASettings) -> tuple[int, int]:
    """Return the number of models of all countries, and of single ones, over all seeds."""
    return len(TRAINED_UNDER) * settings.seeds, len(settings.countries) * settings.seeds


def plan_steps(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    questions: Mapping[int, Survey],
) -> Steps:
    """Choose the sizes of the steps from questions like those that will be trained on.

    Args:
        settings: The run's settings, resolved.
        inputs: What they name.
        mesh: The devices, which may be only described.
        available: Bytes that programs may use on a device; None if that is not known.
        questions: The written questions by seed, or what stands in for them.
    """
    lengths, answers, _ = _examples(settings, inputs, questions)
    options = _options(settings, questions)
    window = settings.train.longest_example
    if window is None:
        window = 32 * math.ceil(_ROOM * int(lengths.max()) / 32)

    def shape(specific: bool, adapters: int) -> Shape:
        train = train_settings(settings, specific)
        return expected_shape(
            inputs.files.config,
            dataclasses.replace(train, longest_example=window),
            settings.lora,
            mesh,
            np.minimum(lengths, window),
            answers,
            adapters,
            available,
            options and max(options, MOST_OPTIONS),
        )

    shared, specific = model_counts(settings)
    return Steps(shape(False, shared), shape(True, specific))


def are_held(
    steps: Steps, settings: CultureSPASettings, inputs: Inputs, questions: Mapping[int, Survey]
) -> bool:
    """Return whether any example that the questions can become fits into the steps."""
    lengths, _, share = _examples(settings, inputs, questions)
    options = _options(settings, questions)
    return all(s.holds(int(lengths.max()), share, options) for s in (steps.shared, steps.specific))


def _examples(
    settings: CultureSPASettings, inputs: Inputs, questions: Mapping[int, Survey]
) -> tuple[np.ndarray, int, float]:
    """Return the lengths of all possible examples, each with its item's longest answer; the tokens
    of the longest answer; and the largest share of an example that its answer takes."""
    lengths, answers, share = [], 1, 0.0
    for survey in questions.values():
        tokens = training_tokens(
            survey.items,
            settings.countries,
            inputs.prompts,
            inputs.files.tokenizer,
            end_of_turn=settings.end_of_turn,
            presentations=inputs.presentations,
        )
        answers_FxQ = tokens.answers_FxQ
        answers_FxSxCxQ = answers_FxQ[:, None, None]
        lengths_FxSxCxQ = tokens.prompts_FxSxCxQ + answers_FxSxCxQ
        lengths.append(lengths_FxSxCxQ.reshape(-1))
        answers = max(answers, int(answers_FxQ.max()))
        share = max(share, float((answers_FxSxCxQ / lengths_FxSxCxQ).max()))
    return np.concatenate(lengths), answers, share


def _options(settings: CultureSPASettings, questions: Mapping[int, Survey]) -> int:
    """Return the most options of a question; 0 if the target is one option."""
    if settings.train.target == "option":
        return 0
    return max(len(item.options) for survey in questions.values() for item in survey.items)


def has_chosen(out: Path) -> bool:
    """Return whether the run in a directory has chosen how it trains."""
    return (out / FOLDER).exists()


def write_steps(out: Path, steps: Steps) -> None:
    """Keep the sizes in a run's directory, so that a resumed run trains in the same programs."""
    (out / FOLDER).mkdir(exist_ok=True)
    with sealed(out / FOLDER / _FILE):
        write_json(out / FOLDER / _FILE, dataclasses.asdict(steps))


def read_steps(out: Path) -> Steps | None:
    """Return the sizes that a run has kept; None if the trainer is to choose them."""
    path = out / FOLDER / _FILE
    check_sealed(path)
    if not path.exists():
        return None
    shapes = read_object(path)
    try:
        steps = Steps(**{name: Shape(**sizes) for name, sizes in shapes.items()})
    except TypeError:
        steps = None
    if steps is None or any(type(n) is not int for s in shapes.values() for n in s.values()):
        raise UserError(f"{path}: not the sizes of training steps; restore it, or start a new run")
    return steps
