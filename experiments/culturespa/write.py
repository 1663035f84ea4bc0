"""Step 1 of `experiments.culturespa`: questions of every seed, written and filtered.

OUT/seed0/replies.jsonl     every reply, with why it was refused
         /questions.json    what the filters left, as a survey
         /written.json      counts: requests, refusals, what each filter removed
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.culturespa.study import Config, Study
from jaxalign.console import Progress
from jaxalign.culturespa.filters import apply_filters
from jaxalign.culturespa.parsing import from_item
from jaxalign.culturespa.question_topics import Writing
from jaxalign.culturespa.questions import QuestionSet, Writer, make_instrument, write_questions
from jaxalign.decode import generate, padded_length
from jaxalign.llama.weights import Params
from jaxalign.prompts import Message
from jaxalign.records import Run
from jaxalign.survey.instrument import Instrument, load, to_json


def seed_folder(out: Path, seed: int) -> Path:
    return out / f"seed{seed}"


def write_all(
    config: Config, study: Study, params: Params, run: Run
) -> tuple[dict[int, Instrument], dict[int, dict[str, Any]]]:
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
        make_writer(config, study, params, seed),
        study.prompt,
        Writing(per_topic=config.per_topic, seed=seed),
        folder / "replies.jsonl",
        save_every=4 * config.batch_size,
        on_save=on_save,
    )
    kept, filters = apply_filters(found.written, map(from_item, study.survey.items))
    source = f"written by a model, weights {study.model_sha256[:12]}, seed {seed}"
    questions = make_instrument(kept, f"questions after {study.survey.name}", source)
    name = folder.name
    run.write(f"{name}/written.json", _counts(config, found, filters))
    run.write(f"{name}/questions.json", to_json(questions))  # last: says that the step is done


def _counts(config: Config, found: QuestionSet, filters: Mapping[str, Any]) -> dict[str, Any]:
    refused = sum((Counter(topic.refused) for topic in found.topics), Counter())
    return {
        "asked_for": config.per_topic * len(found.topics),
        "requests": sum(topic.requests for topic in found.topics),
        "parsed": len(found.written),
        "refused": dict(refused.most_common()),
        "removed": {name: count.removed for name, count in filters.items()},
        "changed": {name: count.changed for name, count in filters.items()},
        "left": list(filters.values())[-1].left,
        "notes": list(found.notes),
    }


def make_writer(config: Config, study: Study, params: Params, seed: int) -> Writer:
    """Replies of the model; None to a conversation that it has no room for."""
    room = study.llama.max_position_embeddings - config.writing.max_new_tokens

    def write(conversations: list[list[Message]], ids: list[int]) -> list[str | None]:
        prompts = [study.tokens.encode_chat(messages) for messages in conversations]
        asked = _in_full_batches(prompts, room, config.batch_size)
        tokens = generate(
            study.llama, params, [prompts[i] for i in asked], config.writing,
            study.tokens.stop_ids, seed, [ids[i] for i in asked], config.batch_size,
            mesh=study.mesh,
        )  # fmt: skip
        said = dict(zip(asked, map(study.tokens.decode, tokens), strict=True))
        return [said.get(i) for i in range(len(prompts))]

    return write


def _in_full_batches(prompts: list[list[int]], room: int, batch: int) -> list[int]:
    """Indices of the prompts that fit; those of a padded length repeated until they fill whole
    batches. A reply does not depend on its neighbours, and every number of rows would be another
    program to compile."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if len(prompt) <= room:
            by_length.setdefault(padded_length(len(prompt)), []).append(i)
    return [i for some in by_length.values() for i in [*some, *some[:1] * (-len(some) % batch)]]
