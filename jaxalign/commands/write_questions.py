"""New survey questions that a model writes after a survey's own: step 1 of CultureSPA.

    python -m experiments.write_questions --per-topic 20 --out runs/questions     # the pocket Llama
    python -m experiments.write_questions --model /path/to/Meta-Llama-3-8B-Instruct \\
        --survey culturespa_data/ --per-topic 1000 --out runs/questions

Writes `replies.jsonl` (every reply, with why it was refused), `questions.json` (the survey that is
left after the filters, for `--survey` of other commands) and `result.json` (counts). A run that was
stopped goes on with --resume and asks nothing twice. Method: Xu et al. 2025 (CultureSPA, arXiv
2410.12971): 1,000 questions on each of 13 topics at temperature 0.9, top-p 0.95, up to 256 tokens.

The pocket Llama has learnt to vary the simulated survey's questions; what it writes is a test of
this program and no material for a survey.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, weights_sha256
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.generate import Sampling
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.filters import Count, apply_filters
from jaxalign.methods.culturespa.parsing import from_item
from jaxalign.methods.culturespa.questions import (
    QuestionSet,
    load_prompt,
    make_instrument,
    write_questions,
)
from jaxalign.methods.culturespa.topics import Writing
from jaxalign.methods.culturespa.writer import check_room, make_writer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.runs import Run, check_run, may_change
from jaxalign.runs.console import Progress, print_table
from jaxalign.surveys.formats import read_questionnaire
from jaxalign.surveys.survey import Survey, to_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Have a model write survey questions on each topic of a survey."""

    out: Path = may_change(Path("runs/questions"))
    """Directory of the run."""
    resume: bool = may_change(False)
    """Continue the run in --out; it ends with the same questions as one never stopped."""
    model: Path | None = None
    """Folder of a Hugging Face Llama; default: the pocket Llama that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto: float32 for the pocket Llama, bfloat16 for others."""
    survey: Path | None = None
    """Survey whose questions are the seeds, with topics (CultureSPA's folder, an instrument
    file); default: the simulated society's."""
    prompt: Path | None = None
    """Your file with the request's text (jinja2); default: the package's question.jinja."""
    writing: Annotated[Writing, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Writing(per_topic=20)
    )
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Sampling(max_new_tokens=256, temperature=0.9, top_p=0.95)
    )
    batch_size: int = may_change(64)
    """Replies written at a time; in float32 they do not depend on it."""
    quiet: bool = may_change(False)
    """No progress bar."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What the settings name, read and checked; everything but the weights."""

    folder: Path
    llama: LlamaConfig
    tokens: Tokenizer
    survey: Survey
    prompt: str

    def facts(self) -> dict[str, str]:
        """Hashes and texts that a resumed run must find unchanged."""
        return {
            "model_sha256": weights_sha256(self.folder),
            "tokenizer_sha256": self.tokens.sha256,
            "survey_sha256": self.survey.sha256,
            "prompt": self.prompt,
        }


def run(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    check_run(config.out, config, config.resume)
    study = read_study(config)
    topics = len({item.topic for item in study.survey.items})
    print(f"model {study.folder}: {study.llama.num_hidden_layers} layers, {study.llama.dtype}")
    print(f"seeds: {study.survey.name}, {len(study.survey.items)} questions on {topics} topics")
    facts = study.facts()
    with Run.create(config.out, config, facts, config.resume) as claimed:
        for note in claimed.notes:
            print(note)
        params = load_checkpoint(study.folder, study.llama)
        found = ask(config, study, params, topics)
        kept, counts = apply_filters(found.written, map(from_item, study.survey.items))
        claimed.write("result.json", make_result(found, counts))
        show(found, counts)
        model = "the pocket Llama" if config.model is None else study.folder.resolve().name
        source = f"written by {model}, weights {facts['model_sha256'][:12]}"
        survey = make_instrument(kept, f"questions after {study.survey.name}", source)
        claimed.write("questions.json", to_json(survey))
    print(f"{len(survey.items)} questions in {config.out / 'questions.json'}")


def read_study(config: Config) -> Study:
    """Read and check everything that is quick to check. UserError for whatever is wrong."""
    if config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size}: give at least 1")
    folder = config.model or MODEL_FOLDER
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if config.model is None else "bfloat16"
    survey = held_out_survey()
    if config.survey is not None:
        survey = read_questionnaire(config.survey, "survey")
    llama = read_config(folder, dtype)
    tokens = Tokenizer.load(folder)
    check_vocabulary(tokens, llama)
    study = Study(folder, llama, tokens, survey, load_prompt(config.prompt))
    check_room(
        survey, study.prompt, config.writing.examples, llama, tokens, config.sampling,
        "give fewer --examples or --max-new-tokens",
    )  # fmt: skip
    return study


def ask(config: Config, study: Study, params: Params, topics: int) -> QuestionSet:
    """Ask for all questions; replies go to `replies.jsonl`."""
    progress = Progress(
        config.writing.per_topic * topics, step="question", unit="questions", quiet=config.quiet
    )
    done: int = 0
    fields: Mapping[str, str] = {}

    def saved(questions: int, said: Mapping[str, str]) -> None:
        nonlocal done, fields
        done, fields = questions, said
        progress.update(done, fields)

    def replied(replies: int) -> None:
        progress.update(done, {**fields, "new replies": f"{replies}"})

    with progress:
        return write_questions(
            study.survey,
            make_writer(
                study.llama,
                params,
                study.tokens,
                config.sampling,
                config.writing.seed,
                config.batch_size,
                on_batch=replied,
            ),
            study.prompt,
            config.writing,
            config.out / "replies.jsonl",
            save_every=4 * config.batch_size,
            on_save=saved,
        )


def make_result(found: QuestionSet, counts: Mapping[str, Count]) -> dict[str, Any]:
    """Counts per topic and per filter, and the notes."""
    return {
        "topics": found.topics,
        "refused": refusals(found),
        "written": len(found.written),
        "filters": counts,
        "notes": found.notes,
    }


def refusals(found: QuestionSet) -> dict[str, int]:
    """Replies that were no question, by reason, the most frequent first."""
    total = sum((Counter(topic.refused) for topic in found.topics), Counter())
    return dict(total.most_common())


def show(found: QuestionSet, counts: Mapping[str, Count]) -> None:
    """What became of the requests, topic by topic, and of the questions, filter by filter."""
    rows = [[t.topic, t.requests, sum(t.refused.values()), t.accepted] for t in found.topics]
    total = ["all", *(sum(row[i] for row in rows) for i in (1, 2, 3))]
    print_table("Requests", ("topic", "requests", "refused", "questions"), [*rows, total])
    if refused := refusals(found):
        print_table("Refused replies", ("reason", "replies"), list(map(list, refused.items())))
    show_filters(len(found.written), counts)
    for note in found.notes:
        print(f"note: {note}")


def show_filters(written: int, counts: Mapping[str, Count]) -> None:
    """A row per filter."""
    rows: Sequence[Sequence[object]] = [
        ["written", None, None, written],
        *([n.replace("_", " "), c.removed, c.changed, c.left] for n, c in counts.items()),
    ]
    print_table("Filters", ("filter", "removed", "changed", "left"), rows)
