"""Report of `experiments.soft_prompt`: what tuning reached, and what that is evidence for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.commands.reports import soft_prompt_parts as parts
from jaxalign.commands.reports.soft_prompt_search import convergence_figure
from jaxalign.report.common import provenance
from jaxalign.report.document import Document, Estimate, Listing, Note, Section, Text, section
from jaxalign.report.render import write_report
from jaxalign.report.wording import chance_of_many, joined, tally

_POCKET = (
    "Simulated: the model is the pocket Llama, a small model trained on a made-up society. No "
    "number here is a finding about people or about Llama-3."
)
_SIMULATED = (
    "The held-out survey is simulated: its countries answer as a made-up society does. The "
    "held-out scores say nothing about people."
)
_LIMITS = (
    "A low loss on the tuned survey is weak evidence of cultural alignment. The six scores come "
    "from 12 differences of answers, and very many answer patterns reach the same six numbers.",
    "The search saw the target: the tuned survey measures how well the optimiser works. Whether "
    "anything about the country was learned shows on the held-out survey, against the other "
    "countries' prompts.",
    "The constant C is free. Losses with another C, another edition of the published scores, or a "
    "mean in place of a sum cannot be compared with these.",
    "Intervals resample the held-out items. They speak for other questions like these, not for "
    "other seeds, other wordings or other models.",
    "Published country scores are averages over people of one time and sample. Meeting them says "
    "nothing about any person.",
)


def soft_prompt_report(result: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into `out`, a run's directory.

    `result` is the content of its `result.json`. `metrics.jsonl`, `convergence.png` and
    `radar.png` are used where they lie there. Returns the paths of the two reports.
    """
    document = Document(
        title="Soft prompts tuned to country scores",
        summary=_summary(result),
        labels=_labels(result),
        sections=(
            _in_short(result),
            _losses(result, out),
            section("The six scores", parts.radar_figure(result, out)),
            _held_out(result, out),
            section("The search", convergence_figure(result, out)),
            section("What a low loss does not prove", Listing(_LIMITS)),
            provenance(result),
        ),
    )
    return write_report(_without_empty(document), out)


def _summary(result: Mapping[str, Any]) -> str:
    countries = list(result["countries"])
    each = "each of " if len(countries) > 1 else ""
    algorithm = result["settings"].get("strategy.algorithm", "DifferentialEvolution")
    if algorithm == "DifferentialEvolution":
        algorithm = "Differential Evolution"
    return (
        f"One soft prompt for {each}{joined(countries)}, tuned by {algorithm} so that the model's "
        "survey answers give the country's published scores."
    )


def _without_empty(document: Document) -> Document:
    kept = tuple(s for s in document.sections if s.blocks)
    return Document(document.title, document.summary, document.labels, kept)


def _labels(result: Mapping[str, Any]) -> tuple[Note, ...]:
    """What a reader must know before any number."""
    if is_pocket(result):
        return (Note(_POCKET, "label"),)
    if result["held_out"].get("simulated"):
        return (Note(_SIMULATED, "label"),)
    return ()


def is_pocket(result: Mapping[str, Any]) -> bool:
    """No `--model` was given."""
    return result["settings"].get("model") is None


def _in_short(result: Mapping[str, Any]) -> Section:
    entries = result["countries"].values()
    differences = {
        name: [Estimate.read(e["held_out"].get(f"after_minus_{name}")) for e in entries]
        for name in ("before", "permuted")
    }
    found = [
        _loss_statement(result),
        "Held-out survey, tuned prompt against the plain question: "
        + tally(differences["before"], "nearer to the country", "further away") + ".",
    ]  # fmt: skip
    if "gradient" in parts.methods(result):
        found.insert(1, _control_statement(result))
    if len(entries) > 1:
        found += [
            "Held-out survey, own prompt against the other countries' prompts: "
            + tally(differences["permuted"], "nearer", "further away") + ".",
            parts.permutation_words(result["held_out"].get("permutation_test")),
        ]  # fmt: skip
    return section(
        "In short",
        parts.headline_table(result),
        Listing(tuple(found), "What came out"),
        Listing(_what_was_measured(result), "What was measured"),
    )


def _loss_statement(result: Mapping[str, Any]) -> str:
    entries, trivial = result["countries"], result["trivial"]
    tuned, _ = parts.readings(result)

    def below(loss_of: Any) -> str:
        wins = sum(e["tuned"][tuned]["loss"] < loss_of(c, e) for c, e in entries.items())
        return f"{wins} of {len(entries)}"

    return (
        f"Loss on the tuned survey ({parts.reading_words(tuned)} reading): the tuned prompt is "
        f"below the plain question in {below(lambda c, e: e['naive'][tuned]['loss'])} countries, "
        f"below examples in context in {below(lambda c, e: e['icl'][tuned]['loss'])}, and below "
        f"answering 3 to everything in {below(lambda c, e: trivial[c]['all_middle'])}."
    )


def _control_statement(result: Mapping[str, Any]) -> str:
    entries, (tuned, _) = result["countries"].values(), parts.readings(result)
    wins = sum(e["gradient"][tuned]["loss"] < e["tuned"][tuned]["loss"] for e in entries)
    how = "" if tuned == "expected" else " in the expected reading (the most likely has none)"
    return (
        f"Control: the same prompts tuned by gradients{how} have a lower loss in the "
        f"{parts.reading_words(tuned)} reading in {wins} of {len(entries)} countries."
    )


def _what_was_measured(result: Mapping[str, Any]) -> tuple[str, ...]:
    settings, held_out = result["settings"], result["held_out"]
    model = "the pocket Llama" if is_pocket(result) else Path(settings["model"]).name
    own = settings.get("instrument") is not None
    survey = "simulated" if held_out.get("simulated") else "real answers from the user's file"
    return (
        f"Model: {model}.",
        "Tuned survey: " + ("the user's own wording of the 24 values items." if own else
        "the 24 values items in our paraphrase, not the official wording."),
        f"Published scores: edition {settings.get('edition', 'not recorded')}. "
        f"{parts.constants_words(result)}",
        f"Held-out survey: {held_out.get('survey', 'unnamed')}, {held_out.get('items', 'some')} "
        f"items, {survey}.",
    )  # fmt: skip


def _losses(result: Mapping[str, Any], out: Path) -> Section:
    used = [d.upper() for d in parts.used_dimensions(result)]
    return section(
        "Loss on the tuned survey",
        Text(
            f"The loss is the sum of the absolute differences between the model's scores and the "
            f"published ones over {joined(used)}, in points; 0 is best. "
            f"{parts.constants_words(result)} The expected reading takes each item's mean answer "
            "over its option probabilities; the most likely reading takes one option per item, so "
            "that scores move in steps of 25 to 40 points and cannot come nearer than the line "
            "“best whole answers”."
        ),
        parts.loss_figure(result, out),
        parts.loss_table(result, parts.readings(result)[1]),
        parts.valid_table(result),
    )


def _held_out(result: Mapping[str, Any], out: Path) -> Section:
    survey = result["held_out"]
    test = survey.get("permutation_test")
    differences = parts.differences_table(result)
    shown = [cell for row in differences.rows for cell in row if isinstance(cell, Estimate)]
    many = chance_of_many(sum(difference.has_interval for difference in shown))
    return section(
        "Held-out survey: does it follow?",
        Text(
            "Nothing was tuned on these items. The score is the "
            f"{survey.get('score', 'mean similarity over items')}: 1 where the answers are the "
            f"country's own. Intervals: {survey.get('interval', 'not recorded')}. {many}"
        ),
        parts.held_out_figure(result, out),
        differences,
        parts.transfer_figure(result, out),
        Text(parts.permutation_words(test)) if test and len(result["countries"]) > 1 else None,
    )
