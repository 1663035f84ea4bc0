"""Have a model write new survey questions after those of a survey: step 1 of CultureSPA.

    jaxalign write-questions --per-topic 20 --out runs/questions     # the pocket model
    jaxalign write-questions --model /path/to/Meta-Llama-3-8B-Instruct \\
        --survey culturespa_data/ --per-topic 1000 --out runs/questions

With `--generator URL --generator-model NAME`, the questions are written by a server that speaks
OpenAI's chat protocol, such as vLLM's; nothing is loaded here then, and each of its replies is also
kept in `endpoint.jsonl` as it comes. Its key is read from OPENAI_API_KEY.

Writes `replies.jsonl` (every reply, with the reason if it was refused), `questions.json` (the
survey that the filters leave, for `--survey` of other commands) and `result.json` (counts). A run
that was interrupted continues with `--resume` and repeats no request. With `--constrain` every
reply that ends is JSON of the form asked for. Source: Xu et al. 2025 (CultureSPA, arXiv
2410.12971): 1,000 questions on each of 13 topics at temperature 0.9, top-p 0.95, up to 256 tokens.

The pocket model has learned to vary the simulated survey's questions. What it writes tests this
program and is no material for a survey.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxalign.core.errors import UserError
from jaxalign.lm.generate import Sampling
from jaxalign.lm.model import ModelFiles, load_model, open_model
from jaxalign.methods.culturespa import (
    FilteredQuestions,
    WritingSettings,
    WrittenQuestions,
    filter_questions,
    to_survey,
    write_questions,
)
from jaxalign.methods.culturespa.filters import FilterCount
from jaxalign.methods.culturespa.questions import from_item
from jaxalign.methods.culturespa.write import (
    PUBLISHED_SAMPLING,
    check_batch_size,
    check_requests_fit,
    load_request,
    make_topics,
)
from jaxalign.methods.endpoint import Endpoint
from jaxalign.pocket.society import held_out_survey
from jaxalign.runs import Run, check_run, may_change
from jaxalign.runs.console import print_table, progress_bars
from jaxalign.surveys.formats import read_questionnaire
from jaxalign.surveys.options import SurveyOptions, check_options
from jaxalign.surveys.survey import Survey, to_json


@dataclasses.dataclass(frozen=True)
class Settings(SurveyOptions):
    """Have a model write survey questions on each topic of a survey."""

    out: Path = may_change(Path("runs/questions"))
    """Directory of the run."""
    resume: bool = may_change(False)
    """Continue the run in the output directory; it ends with the same questions as one that was
    never interrupted."""
    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id such as
    meta-llama/Meta-Llama-3-8B-Instruct, or smollm2; default: the pocket model that ships with the
    package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations; auto: float32 for the pocket model, bfloat16 for others."""
    survey: Path | None = None
    """Survey with topics whose questions are the examples (CultureSPA's folder, a survey file);
    default: the simulated society's."""
    prompt: Path | None = None
    """File with a request text of your own (jinja2); default: the model's own, else the package's
    question.jinja."""
    constrain: bool = False
    """Let the model write nothing but JSON of the requested form: tokens that cannot continue it
    are never drawn."""
    generator: str | None = may_change(None)
    """Address of a server that writes instead of a model: any that speaks OpenAI's chat protocol,
    such as vLLM's at http://localhost:8000/v1. Its key is read from OPENAI_API_KEY."""
    generator_model: str | None = None
    """Name by which that server knows its model."""
    writing: Annotated[WritingSettings, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: WritingSettings(per_topic=20)
    )
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: PUBLISHED_SAMPLING
    )
    batch_size: int = may_change(64)
    """Largest number of replies written at a time, fewer if memory is short; in float32 the
    questions do not depend on it."""
    quiet: bool = may_change(False)
    """Show no progress bar."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the settings name, read and checked; everything but the weights."""

    writer: ModelFiles | Endpoint
    survey: Survey
    prompt: str

    def facts(self) -> dict[str, str]:
        """Return hashes and texts that a resumed run must find unchanged."""
        served = isinstance(self.writer, Endpoint)
        return {
            **({} if served else self.writer.facts()),
            "survey_sha256": self.survey.sha256,
            "prompt": self.prompt,
        }


def run(settings: Settings) -> None:
    """Write questions, filter them, and print what became of requests and questions."""
    recorded = check_run(settings.out, settings, settings.resume)
    inputs = read_inputs(settings, recorded.get("model_revision"))
    writer, seeds = inputs.writer, inputs.survey
    topics = len({item.topic for item in seeds.items})
    if isinstance(writer, Endpoint):
        print(f"model {writer.model} at {writer.url}")
        source = f"written by {writer.model}"
    else:
        config = writer.config
        print(f"model {writer.name}: {config.num_hidden_layers} layers, {config.dtype}")
        model = "the pocket Llama" if settings.model is None else Path(writer.name).name
        source = f"written by {model}, weights {writer.sha256[:12]}"
    print(f"seeds: {seeds.name}, {len(seeds.items)} questions on {topics} topics")
    with Run.create(settings.out, settings, inputs.facts(), settings.resume) as claimed:
        for note in claimed.notes:
            print(note)
        lm = writer if isinstance(writer, Endpoint) else load_model(writer)
        with progress_bars(quiet=settings.quiet) as on_progress:
            written = write_questions(
                lm,
                seeds,
                writing=settings.writing,
                sampling=settings.sampling,
                prompt=inputs.prompt,
                batch_size=settings.batch_size,
                replies=settings.out / "replies.jsonl",
                constrain=settings.constrain,
                on_progress=on_progress,
            )
        filtered = filter_questions(written.questions, map(from_item, seeds.items))
        claimed.write("result.json", make_result(written, filtered))
        survey = to_survey(filtered.questions, f"questions after {seeds.name}", source)
        claimed.write("questions.json", to_json(survey))
    show(written, filtered)
    print(f"{len(survey.items)} questions in {settings.out / 'questions.json'}")


def read_inputs(settings: Settings, revision: str | None = None) -> Inputs:
    """Read and check everything that is quick to check.

    Args:
        settings: The run's settings.
        revision: Commit of a model from the hub that a resumed run has recorded.

    Raises:
        UserError: For whatever is wrong.
    """
    check_batch_size(settings.batch_size)
    check_options(settings, {"survey": settings.survey is not None})
    endpoint = Endpoint.of(settings.generator, settings.generator_model, settings.constrain)
    if endpoint is not None and settings.model is not None:
        raise UserError(
            f"`model` {settings.model}: nothing is loaded with `generator`; leave one of them out"
        )
    survey = held_out_survey()
    if settings.survey is not None:
        survey = read_questionnaire(settings.survey, "survey", settings)
    if endpoint is not None:
        endpoint.check()
        make_topics(survey)  # refuses questions without one
        return Inputs(endpoint, survey, load_request(settings.prompt))
    files = open_model(settings.model, settings.dtype, revision=revision)
    request = load_request(settings.prompt, model_folder=files.folder)
    inputs = Inputs(files, survey, request)
    check_requests_fit(files, survey, inputs.prompt, settings.writing, settings.sampling)
    return inputs


def make_result(written: WrittenQuestions, filtered: FilteredQuestions) -> dict[str, Any]:
    """Return `result.json`: counts by topic and by filter, and the notes."""
    return {
        "topics": written.topics,
        "refused": written.refused,
        "written": len(written.questions),
        "filters": filtered.counts,
        "notes": written.notes,
    }


def show(written: WrittenQuestions, filtered: FilteredQuestions) -> None:
    """Print what became of the requests by topic, and of the questions by filter."""
    rows = [[t.topic, t.requests, sum(t.refused.values()), t.accepted] for t in written.topics]
    total = ["all", *(sum(row[i] for row in rows) for i in (1, 2, 3))]
    columns = ("topic", "requests", "replies refused", "questions")
    print_table("Requests", columns, [*rows, total])
    if refused := list(map(list, written.refused.items())):
        print_table("Refused replies", ("reason", "replies"), refused)
    show_filters(len(written.questions), filtered.counts)
    for note in written.notes:
        print(f"note: {note}")


def show_filters(written: int, counts: Mapping[str, FilterCount]) -> None:
    """Print how many questions each filter removed and changed, and how many it left."""
    rows: list[list[object]] = [["written", None, None, written]]
    rows += [[n.replace("_", " "), c.removed, c.changed, c.left] for n, c in counts.items()]
    print_table("Filters, in the order applied", ("filter", "removed", "changed", "left"), rows)
