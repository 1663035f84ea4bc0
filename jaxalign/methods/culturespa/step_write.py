"""Step 1 of `experiments.culturespa`: questions of every seed, written and filtered.

OUT/seed0/replies.jsonl     every reply, with why it was refused
         /questions.json    what the filters left, as a survey
         /written.json      counts: requests, refusals, what each filter removed

A question that would not fit a given --train.row-length is removed too, as `too_long`: found out in
step 4, it would end a run whose long steps are done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.filters import Count, apply_filters
from jaxalign.methods.culturespa.parsing import from_item
from jaxalign.methods.culturespa.questions import QuestionSet, make_instrument, write_questions
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.study import Study, example_lengths
from jaxalign.methods.culturespa.topics import Writing
from jaxalign.methods.culturespa.writer import make_writer
from jaxalign.runs import Run
from jaxalign.runs.console import Progress
from jaxalign.surveys.survey import Survey, load, to_json


def seed_folder(out: Path, seed: int) -> Path:
    return out / f"seed{seed}"


def write_all(
    config: Config, study: Study, params: Params, run: Run
) -> tuple[dict[int, Survey], dict[int, dict[str, Any]]]:
    """Questions of each seed, and the counts of what became of the requests."""
    topics = len({item.topic for item in study.survey.items})
    per_seed, found, counts = config.per_topic * topics, {}, {}
    bar = Progress(
        per_seed * config.seeds, step="1 write: question", unit="questions", quiet=config.quiet
    )
    with bar:
        for n, seed in enumerate(config.seed_numbers):
            folder = seed_folder(run.out, seed)
            folder.mkdir(exist_ok=True)
            if not (folder / "questions.json").exists():
                _write(config, study, params, run, seed, _shifted(bar, n * per_seed))
            found[seed] = load(folder / "questions.json")
            counts[seed] = json.loads((folder / "written.json").read_text("utf-8"))
            bar.update((n + 1) * per_seed)
    return found, counts


def _shifted(bar: Progress, done: int) -> Callable[[int, Mapping[str, str]], None]:
    return lambda questions, fields: bar.update(done + questions, fields)


def _write(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    seed: int,
    on_save: Callable[[int, Mapping[str, str]], None],
) -> None:
    folder = seed_folder(run.out, seed)
    found = write_questions(
        study.survey,
        make_writer(
            study.llama, params, study.tokens, config.writing, seed, config.batch_size, study.mesh
        ),
        study.prompt,
        Writing(per_topic=config.per_topic, seed=seed),
        folder / "replies.jsonl",
        save_every=4 * config.batch_size,
        on_save=on_save,
    )
    kept, filters = apply_filters(found.written, map(from_item, study.survey.items))
    source = f"written by a model, weights {study.model_sha256[:12]}, seed {seed}"
    questions = make_instrument(kept, f"questions after {study.survey.name}", source)
    fitting = _fitting(config, study, questions)
    name = folder.name
    run.write(f"{name}/written.json", _counts(config, found, filters, len(fitting.items)))
    run.write(f"{name}/questions.json", to_json(fitting))  # last: says that the step is done


def _fitting(config: Config, study: Study, questions: Survey) -> Survey:
    """Those that can be trained on; UserError where there are none."""
    room = config.train.row_length
    if room is None:
        return questions
    lengths = example_lengths(config, study, questions.items)
    short = {item.id for item, n in zip(questions.items, lengths, strict=True) if n <= room}
    if not short:
        raise UserError(
            f"--train.row-length {room}: fits none of the {len(lengths)} questions written, whose "
            f"examples have {min(lengths)} tokens or more; give more, or leave the option out"
        )
    return questions.subset(short)


def _counts(
    config: Config, found: QuestionSet, filters: Mapping[str, Count], left: int
) -> dict[str, Any]:
    refused = sum((Counter(topic.refused) for topic in found.topics), Counter())
    return {
        "asked_for": config.per_topic * len(found.topics),
        "requests": sum(topic.requests for topic in found.topics),
        "parsed": len(found.written),
        "refused": dict(refused.most_common()),
        "removed": {name: count.removed for name, count in filters.items()}
        | {"too_long": list(filters.values())[-1].left - left},
        "changed": {name: count.changed for name, count in filters.items()},
        "left": left,
        "notes": list(found.notes),
    }
