"""What the settings of `jaxalign ask` name, read and checked: surveys, texts, and who is asked.

Nothing here takes long or writes a file, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.answering.partial import digest
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig
from jaxalign.lm.model import ModelFiles
from jaxalign.methods.ask import Questions, adapter_digest, encode_conditions
from jaxalign.methods.ask_survey.settings import (
    VSM,
    WITHOUT_COUNTRY,
    AnyStyle,
    AskSettings,
    needs_examples,
)
from jaxalign.methods.base import ICL, METHODS, NAIVE, PERSONA, Condition
from jaxalign.methods.conditions import InContext, Persona, Plain, WithPrompt, draw_examples
from jaxalign.methods.culturespa.conditions import InStyle
from jaxalign.methods.culturespa.inputs import make_style_prompts
from jaxalign.methods.culturespa.similar import Ranking
from jaxalign.methods.culturespa.styles import STYLES, StylePrompts, Texts, group_name, load_texts
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.prompts import untranslated
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats import read_answered, read_any
from jaxalign.surveys.presentations import PUBLISHED, default_presentations
from jaxalign.surveys.survey import Item, Survey, vsm
from jaxalign.surveys.tables import make_tables, option_table

MODEL = "model"  # key of the unchanged model


@dataclasses.dataclass(frozen=True)
class Voice:
    """Who answers: the model itself, or with an adapter or a soft prompt.

    Attributes:
        group: The only group that it speaks for; None if it speaks for any.
        adapter: Folder of its adapter.
        prompt: Its soft prompt.
    """

    group: str | None = None
    adapter: Path | None = None
    prompt: SoftPrompt | None = None


@dataclasses.dataclass(frozen=True)
class System:
    """Voices that are reported together: one for all groups, or one for each.

    Attributes:
        key: Name in results and files.
        title: Name in words.
        voices: The voices.
        styles: The styles that they are asked in.
    """

    key: str
    title: str
    voices: tuple[Voice, ...]
    styles: tuple[AnyStyle, ...]

    @property
    def is_soft(self) -> bool:
        """Whether these are soft prompts."""
        return self.voices[0].prompt is not None


@dataclasses.dataclass(frozen=True)
class Row:
    """A system under one style: a row of the overview.

    Attributes:
        system: The system.
        style: The style.
        groups: The groups that are spoken as; (None,) where none is named.
    """

    system: System
    style: AnyStyle
    groups: tuple[str | None, ...]

    @property
    def key(self) -> str:
        """Name in results and files."""
        return f"{self.system.key}-{self.style}"

    @property
    def title(self) -> str:
        """Name in words."""
        style = METHODS[self.style].title
        return style if self.system.key == MODEL else f"{self.system.title}, {style}"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One condition: who is asked, and for which row and group."""

    row: Row
    group: str | None
    condition: Condition


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of the same weights, in one program.

    Attributes:
        adapter: Folder of the adapter beside the weights, if there is one.
        lora: Its settings.
        digest: Hash of its weights.
        asked: The conditions.
        questions: The items under them, as token ids.
    """

    adapter: Path | None
    lora: LoraConfig | None
    digest: str | None
    asked: tuple[Asked, ...]
    questions: Questions


@dataclasses.dataclass(frozen=True)
class AskInputs:
    """Everything that the settings name; everything but the weights.

    Attributes:
        files: The model's config and tokenizer.
        survey: The survey that is asked; of a test, its questions as a survey without answers.
        test: The test, if questions have right answers.
        countries: The groups to speak as and to compare with.
        texts: The prompt texts.
        presentations: The forms in which items are shown.
        rows: The rows of the overview.
        jobs: What is asked, by the weights that are needed.
        shows_test: Whether prompts that hold answers of countries hold those of this survey.
        notes: What the user should know before the long work.
        facts: Hashes and texts that a resumed run must find unchanged.
    """

    files: ModelFiles
    survey: Survey
    test: ChoiceTest | None
    countries: tuple[str, ...]
    presentations: tuple[str, ...]
    texts: Texts
    rows: tuple[Row, ...]
    jobs: tuple[Job, ...]
    shows_test: bool
    notes: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def has_answers(self) -> bool:
        """Whether the survey says how the countries answered."""
        return bool(self.survey.distributions)


def read_inputs(settings: AskSettings, files: ModelFiles) -> AskInputs:
    """Read and check everything that is quick to check.

    Args:
        settings: The run's settings.
        files: The model that they name.

    Raises:
        UserError: For a file that cannot be used, a survey that lacks a group, prompts and adapters
            made for another model, and questions that are longer than the model can read.
    """
    survey, test = _read_survey(settings)
    if test is None:
        survey = survey.spread(settings.limit)
    systems = _read_systems(settings, survey)
    styles = {style for system in systems for style in system.styles}
    countries = _countries(settings, survey, test, styles)
    presentations = settings.presentations or default_presentations(files.is_pocket)
    if settings.answer != "number" and settings.presentations is None:
        presentations = (PUBLISHED,)  # the options are not listed
    settings = dataclasses.replace(settings, countries=countries, presentations=presentations)
    source = _read_source(settings, styles)
    worded = _Wording(settings, survey, source, files, styles)
    rows, by_adapter = [], {}
    for system in systems:
        for style in system.styles:
            row = Row(system, style, _groups(system, style, countries))
            rows.append(row)
            for group in row.groups:
                voice = _voice_of(system, group, style)
                condition = worded.condition(style, group)
                if voice.prompt is not None:
                    name = f"{system.key} {condition.name}"
                    condition = WithPrompt(voice.prompt, condition, name)
                by_adapter.setdefault(voice.adapter, []).append(Asked(row, group, condition))
    jobs = tuple(_job(settings, files, worded.texts, survey, *a) for a in by_adapter.items())
    facts = _facts(settings, files, survey, test, source, worded, systems, jobs)
    return AskInputs(
        files=files,
        survey=survey,
        test=test,
        countries=countries,
        presentations=presentations,
        texts=worded.texts,
        rows=tuple(rows),
        jobs=jobs,
        shows_test=settings.examples == "paper",
        notes=tuple(_notes(settings, files, survey, systems, styles)),
        facts=facts,
    )


def _notes(
    settings: AskSettings,
    files: ModelFiles,
    survey: Survey,
    systems: Sequence[System],
    styles: set[AnyStyle],
) -> list[str]:
    notes = []
    if note := untranslated(settings.language, survey):
        notes.append(note)
    shown = [s for s in STYLES if s in styles and needs_examples(s)]
    if settings.examples == "paper" and shown:
        notes.append(
            f"{', '.join(shown)} read answers of the very survey that is asked, as published; "
            "`examples` leak_free takes them from another one"
        )
    for system in systems:
        for voice in system.voices:
            made_for = voice.prompt.model_sha256 if voice.prompt else None
            if made_for not in (None, files.sha256):
                notes.append(
                    f"{system.title} {voice.group or ''}".strip()
                    + ": tuned for other weights than these"
                )
    return notes


def _read_survey(settings: AskSettings) -> tuple[Survey, ChoiceTest | None]:
    """Return the survey; of a test with right answers, both its questions and the test."""
    if settings.survey is None:
        return held_out_survey(), None
    if settings.survey == VSM:
        return vsm(), None
    read = read_any(Path(settings.survey), distributions=settings.distributions, options=settings)
    if isinstance(read, ChoiceTest):
        read = read.spread(settings.limit)
        # Items of a test may share ids between its questions; a survey's may not.
        items = tuple(
            dataclasses.replace(item, id=f"{n + 1} {item.id}") for n, item in enumerate(read.items)
        )
        return Survey(read.name, "", read.source, "official", items), read
    if missing := read.items_without_wording():
        raise UserError(
            f"`survey` {settings.survey}: {len(missing)} of {len(read.items)} items have no "
            f"wording, such as {missing[0]!r}, so there is nothing to ask a model; give "
            "CultureSPA's folder, or your own JSON or CSV that has the questions, or add these as "
            "`wording`"
        )
    option_table(read)  # refuses codes that float32 cannot hold
    return read, None


def _read_source(settings: AskSettings, styles: set[AnyStyle]) -> Survey | None:
    """Return the survey that examples are taken from, if it is another one."""
    if settings.examples != "leak_free" and ICL.key not in styles:
        return None
    if settings.source is None:
        return society_values_module()
    return read_answered(
        settings.source,
        "source",
        settings.source_distributions,
        "source_distributions",
        options=settings,
        is_main=False,
    )


def _countries(
    settings: AskSettings, survey: Survey, test: ChoiceTest | None, styles: set[AnyStyle]
) -> tuple[str, ...]:
    """Return the groups to speak as and to compare with."""
    if settings.countries is not None:
        if survey.distributions:
            make_tables(survey, settings.countries)  # refuses groups that the survey lacks
        return settings.countries
    if survey.distributions:
        return tuple(survey.distributions)
    named = sorted(styles - set(WITHOUT_COUNTRY))
    if settings.styles is None or not named:
        return ()
    kind = "test" if test is not None else "survey"
    raise UserError(
        f"`countries`: the {kind} {survey.name!r} does not say how any country answered, so that "
        f"the style {named[0]} needs to be told whom to speak as"
    )


def _groups(system: System, style: AnyStyle, countries: tuple[str, ...]) -> tuple[str | None, ...]:
    """Return the groups that a system speaks as under a style, (None,) where none is named."""
    spoken = tuple(voice.group for voice in system.voices)
    if spoken != (None,):
        return spoken
    return (None,) if style in WITHOUT_COUNTRY else countries


def _voice_of(system: System, group: str | None, style: AnyStyle) -> Voice:
    if len(system.voices) == 1 and system.voices[0].group is None:
        return system.voices[0]
    return next(voice for voice in system.voices if voice.group == group)


# Who is asked


def _read_systems(settings: AskSettings, survey: Survey) -> tuple[System, ...]:
    """Return the model, its adapters and its soft prompts, grouped as they are reported."""
    known = settings.countries or tuple(survey.distributions)
    styles = settings.all_styles
    if settings.styles is None and not known:  # nobody to speak as
        styles = tuple(style for style in styles if style in WITHOUT_COUNTRY)
    systems = [System(MODEL, "the model", (Voice(),), styles)] if settings.unchanged else []
    single: dict[str, list[Voice]] = {}
    for given in settings.adapter:
        name, path = _named(given, known)
        if name in known:
            single.setdefault("adapters", []).append(Voice(name, adapter=path))
        else:
            key = name or _unique(path.name or path.resolve().name, systems)
            systems.append(System(key, f"adapter {key}", (Voice(adapter=path),), styles))
    for given in settings.prompt:
        name, path = _named(given, known)
        prompt = SoftPrompt.load(path)
        group = name if name in known else prompt.group if name is None else None
        if group is not None and known and group not in known:
            raise UserError(
                f"`prompt` {given}: tuned for {group}, which is not among the countries"
            )
        if group is not None:
            single.setdefault("prompts", []).append(Voice(group, prompt=prompt))
        else:
            key = name or _unique(path.stem, systems)
            systems.append(
                System(key, f"soft prompt {key}", (Voice(prompt=prompt),), settings.prompt_styles)
            )
    titles = {"adapters": "each country's adapter", "prompts": "each country's soft prompt"}
    for kind, voices in single.items():
        groups = [voice.group for voice in voices]
        if twice := sorted({group for group in groups if groups.count(group) > 1}):
            raise UserError(
                f"`{kind[:-1]}`: two speak for {twice[0]}; ask them one after the other, in two "
                "runs, or name one of them with NAME="
            )
        of_kind = settings.prompt_styles if kind == "prompts" else styles
        systems.append(System(kind, titles[kind], tuple(voices), of_kind))
    keys = [system.key for system in systems]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(
            f"`adapter` and `prompt`: two are called {twice[0]!r}; name them with NAME="
        )
    return tuple(systems)


def _named(given: str, known: Sequence[str]) -> tuple[str | None, Path]:
    """Return the name in NAME=PATH, None without one, and the path; names of groups come first."""
    for name in sorted(known, key=len, reverse=True):  # "DEU:region=Bayern" has the sign itself
        if given.startswith(f"{name}="):
            return name, Path(given.removeprefix(f"{name}="))
    if Path(given).exists() or "=" not in given:
        return None, Path(given)
    name, path = given.split("=", 1)
    if not name or set(name) & set("/\\"):
        raise UserError(f"{given}: give NAME=PATH, with a name that can be part of a file name")
    return name, Path(path)


def _unique(name: str, systems: list[System]) -> str:
    """Return a name that no other system has: folders of runs are often called alike."""
    keys, number, wanted = {system.key for system in systems}, 2, name
    while name in keys:
        name, number = f"{wanted}-{number}", number + 1
    return name


# How they are asked


class _Wording:
    """The conditions of every style and group, with the texts and surveys that they need."""

    def __init__(
        self,
        settings: AskSettings,
        survey: Survey,
        source: Survey | None,
        files: ModelFiles,
        styles: set[AnyStyle],
    ) -> None:
        self._source, self.shown = source, None
        self.texts = load_texts(
            settings.texts, language=settings.language, model_folder=files.folder
        )
        self.examples: tuple[Item, ...] = ()
        if any(needs_examples(style) and style != ICL.key for style in styles):
            pocket = files.is_pocket
            followed = dataclasses.replace(
                settings,
                p3_choice=settings.p3_choice or ("topics" if pocket else "similar"),
                p3_form=settings.p3_form or ("turns" if pocket else "one_message"),
            )
            self.style_prompts = make_style_prompts(followed, survey, files.folder)
            self.shown = self.style_prompts.shown
        else:
            self.style_prompts = StylePrompts(self.texts, survey, settings.countries)
            if source is not None:  # refuses one that shares questions with the survey
                StylePrompts(self.texts, survey, settings.countries, "leak_free", source)
        if ICL.key in styles:
            self.examples = draw_examples(
                source, settings.countries, settings.icl_examples, settings.seed
            )

    def condition(self, style: AnyStyle, group: str | None) -> Condition:
        if style == NAIVE.key:
            return Plain()
        if style == PERSONA.key:
            return Persona(group, group_name(group))
        if style == ICL.key:
            return InContext(group, self._source, self.examples, described_as=group_name(group))
        return InStyle(style, self.style_prompts, None if style in WITHOUT_COUNTRY else group)


def _job(
    settings: AskSettings,
    files: ModelFiles,
    texts: Texts,
    survey: Survey,
    adapter: Path | None,
    asked: list[Asked],
) -> Job:
    conditions = [one.condition for one in asked]
    questions = encode_conditions(
        files, texts.prompts, conditions, survey.items, settings.presentations, settings.answer
    )
    if adapter is None:
        return Job(None, None, None, tuple(asked), questions)
    loaded = Adapter.load(adapter, files)
    return Job(adapter, loaded.config, adapter_digest(loaded), tuple(asked), questions)


def _facts(
    settings: AskSettings,
    files: ModelFiles,
    survey: Survey,
    test: ChoiceTest | None,
    source: Survey | None,
    worded: _Wording,
    systems: Sequence[System],
    jobs: Sequence[Job],
) -> dict[str, Any]:
    """Return hashes and texts that a resumed run must find unchanged."""
    prompts = {
        f"{system.key} {voice.group or ''}".strip(): digest(voice.prompt.embeddings_MxD)
        for system in systems
        for voice in system.voices
        if voice.prompt is not None
    }
    ranking = worded.style_prompts.similarity
    return {
        **files.facts(),
        "survey": survey.name,
        "survey_sha256": survey.sha256 if test is None else test.sha256,
        "simulated": survey.simulated,
        "source_sha256": None if source is None else source.sha256,
        "countries": list(settings.countries),
        "presentations": list(settings.presentations),
        "icl_examples": [item.id for item in worded.examples],
        "texts": dataclasses.asdict(worded.texts),
        "p3_ranking_sha256": ranking.sha256 if isinstance(ranking, Ranking) else None,
        "adapters": {str(job.adapter): job.digest for job in jobs if job.adapter is not None},
        "prompts": prompts,
    }
