"""The report of a soft-prompt run: what tuning reached, and what that is evidence for."""

from __future__ import annotations

from pathlib import Path

from jaxalign.commands.reports import soft_prompt_parts as parts
from jaxalign.commands.reports.presentations import named
from jaxalign.commands.reports.soft_prompt_measure import (
    answer_blocks,
    gap_figure,
    held_out_spread_table,
    lines_table,
    presentation_blocks,
    readings_table,
    seeds_tables,
)
from jaxalign.commands.reports.soft_prompt_presentations import (
    means_table,
    methods_table,
    sides_figure,
)
from jaxalign.commands.reports.soft_prompt_record import (
    Result,
    constants_words,
    has_scores,
    never_tuned_on,
    shows_signal,
    tuned_on,
    used_dimensions,
)
from jaxalign.commands.reports.soft_prompt_statements import (
    permutation_words,
    statements,
    verdict_notes,
)
from jaxalign.commands.reports.tuned_prompts import prompts_table
from jaxalign.commands.reports.validity import gate_blocks
from jaxalign.commands.reports.warnings import warning_notes
from jaxalign.commands.reports.what_it_says import CHAT_WITH_RUN, what_it_says
from jaxalign.core.terms import meaning
from jaxalign.methods.soft_prompt.settings import CHOSEN_ON_POCKET
from jaxalign.report.common import provenance
from jaxalign.report.document import (
    Document,
    Estimate,
    Listing,
    Section,
    Table,
    Text,
    section,
)
from jaxalign.report.render import write_report
from jaxalign.report.wording import chance_of_many, groups_note, joined

_LIMITS = (
    "A low loss on the tuned survey is weak evidence of cultural alignment. The six scores come "
    "from 12 differences of answers, and very many answer patterns reach the same six numbers.",
    "The search saw the target: the tuned survey measures how well the optimiser works. Whether "
    "anything about the country was learned shows on the held-out survey, against the other "
    "countries' prompts.",
    "A prompt can learn which numbers to say and lower the loss without any change in meaning. "
    "Whether it did shows on presentations that were not tuned on.",
    "The constant C is free. Losses with another C, another edition of the published scores, or a "
    "mean in place of a sum cannot be compared with these.",
    "Intervals speak for what they resample: items, and seeds and presentations where there are "
    "several. They do not speak for other wordings or other models.",
    "Published country scores are averages over people of one time and sample. Meeting them says "
    "nothing about any person.",
)


def soft_prompt_report(result: Result, out: Path) -> tuple[Path, Path]:
    """Write `report.md`, `report.html` and `figures/*.png` into `out`, a run's directory.

    Args:
        result: The content of the run's `result.json`.
        out: The run's directory. `metrics.jsonl`, `convergence.png` and `radar.png` are used if
            they are there.

    Returns:
        The paths of the two reports.
    """
    document = Document(
        title="Soft prompts tuned to country scores",
        summary=_summary(result),
        labels=(*warning_notes(result), *verdict_notes(result)),
        sections=tuple(s for s in _sections(result, out) if s.blocks),
    )
    return write_report(document, out)


def _sections(result: Result, out: Path) -> list[Section]:
    return [
        _in_short(result),
        what_it_says(result, CHAT_WITH_RUN),
        _losses(result, out),
        section("What the gain owes to the presentation", *presentation_blocks(result)),
        section(
            "Validity gate: does the survey measure anything on this model?",
            *gate_blocks(_gates(result)),
        ),
        section("What the answers are like", *answer_blocks(result)),
        section("The six scores", parts.radar_figure(result, out)),
        section("The factor scores", parts.factors_table(result)),
        _held_out(result, out),
        section("The search", parts.convergence_figure(result, out), gap_figure(result, out)),
        section("Seeds", seeds_tables(result)),
        section("What the prompts have become", *_prompts(out)),
        section("What a low loss does not prove", Listing(_LIMITS)),
        provenance(result),
    ]


def _gates(result: Result) -> dict[str, Result]:
    """Return the validity gate over all presentations, and over those that were tuned on."""
    gates = [result["measure"][name] for name in ("validity", "validity_tuned")]
    return {f"Over {', '.join(gate['presentations'])}": gate for gate in gates if gate}


def _summary(result: Result) -> str:
    countries = list(result["countries"])
    each = "each of " if len(countries) > 1 else ""
    algorithm = result["settings"].get("strategy.algorithm", "DifferentialEvolution")
    if algorithm == "DifferentialEvolution":
        algorithm = "Differential Evolution"
    goal = "survey answers give the country's published scores"
    if not has_scores(result):
        goal = f"survey answers lower the loss of the objective {result['settings']['objective']}"
    return (
        f"One soft prompt for {each}{joined(countries)}, tuned by {algorithm} so that the model's "
        f"{goal}."
        f"{groups_note(countries)}"
    )


def _prompts(out: Path) -> tuple[Table | Text, ...]:
    """Return where the tuned prompts lie among the vocabulary; nothing if that is not known."""
    if (table := prompts_table(out)) is None:
        return ()
    return (
        Text(
            "A tuned prompt is a row of vectors that no text has. How far they have moved, and "
            "which tokens they are near, says where they lie and not what they do; jaxalign "
            "inspect names the tokens."
        ),
        table,
    )


def is_pocket(result: Result) -> bool:
    """Return whether the run used the pocket model: no other was given."""
    return result["settings"].get("model") is None


def _in_short(result: Result) -> Section:
    return section(
        "In short",
        means_table(result),
        parts.headline_table(result),
        Listing(statements(result), "What came out"),
        Listing(_what_was_measured(result), "What was measured"),
    )


_ANSWERS = {
    "number": "the number of the option",
    "label": "the option's text, by the log-likelihood of all its tokens",
    "label-per-token": "the option's text, by the mean log-likelihood of its tokens",
    "label-against-prior": "the option's text, by its log-likelihood less that after a neutral "
    "question",
}


def _what_was_measured(result: Result) -> tuple[str, ...]:
    settings, held_out = result["settings"], result["held_out"]
    model = "the pocket Llama" if is_pocket(result) else Path(settings["model"]).name
    answers = "simulated" if held_out.get("simulated") else "real answers from the user's file"
    survey = "the 24 values items in our paraphrase, not the official wording."
    if settings.get("instrument") is not None:
        survey = "the user's own wording."
    objective = f"Objective: {settings['objective']}."
    if factors := result.get("factors"):
        objective = f"Objective: {joined(factors)} of the user's file ({result['factor_scores']})."
    elif has_scores(result):
        edition = settings.get("edition", "not recorded")
        objective = f"Published scores: edition {edition}. {constants_words(result)} MAS weight: "
        objective += f"{settings.get('mas_weight', 35)}."
    return (
        f"Model: {model}.",
        f"Tuned survey: {survey}",
        objective,
        f"Answers: {_ANSWERS[settings['answer']]}. {_presentation_words(result)}",
        *([f"Seeds: {joined(map(str, seeds))}."] if len(seeds := result["seeds"]) > 1 else []),
        f"Held-out survey: {held_out.get('survey', 'unnamed')}, {held_out.get('items', 'some')} "
        f"items, {answers}.",
        *_unpublished(result),
    )


def _unpublished(result: Result) -> list[str]:
    """Return which settings of a real model's run were chosen on the pocket model."""
    chosen = [
        f"{name} {result['settings'][name]}"
        for name, source in result.get("sources", {}).items()
        if source == CHOSEN_ON_POCKET
    ]
    if is_pocket(result) or not chosen:
        return []
    why = "Settings chosen on the pocket model, since nobody has published a value"
    return [f"{why}: {joined(chosen)}."]


def _presentation_words(result: Result) -> str:
    tuned, others = tuned_on(result), never_tuned_on(result)
    words = f"Tuned on {named(tuned)}"
    words += ", whose answers are averaged" if len(tuned) > 1 else ""
    return f"{words}; {f'also asked in {named(others)}' if others else 'no other was asked'}."


def _losses(result: Result, out: Path) -> Section:
    if has_scores(result):
        used = [f"{d.upper()} ({meaning(d.upper())})" for d in used_dimensions(result)]
        explanation = (
            f"The loss is the sum of the absolute differences between the model's scores and the "
            f"published ones over {joined(used)}, in points; 0 is best. {constants_words(result)} "
        )
    else:
        explanation = f"The loss is that of the objective {result['settings']['objective']}. "
    explanation += (
        "The expected reading takes each item's mean answer over its option probabilities; the "
        "most likely reading takes one option per item"
    )
    whole = ", so that it cannot get below the line “best whole answers”."
    explanation += whole if has_scores(result) else "."
    if "sampled" in next(iter(result["countries"].values()))["naive"]:
        explanation += " The sampled reading takes replies that are drawn and read as users do."
    sides = tuned_on(result), never_tuned_on(result)
    if any(len(names) > 1 for names in sides):
        explanation += (
            " Of several presentations, “mean” is the mean of their losses, and “averaged” the "
            "loss of their averaged answers"
        )
        explanation += ", which is what was minimised." if len(sides[0]) > 1 else "."
    return section(
        "Loss on the tuned survey",
        Text(explanation),
        sides_figure(result, out),
        methods_table(result),
        readings_table(result),
        parts.trivial_table(result),
    )


def _held_out(result: Result, out: Path) -> Section:
    survey = result["held_out"]
    test = survey.get("permutation_test")
    differences = parts.differences_table(result)
    shown = [cell for row in differences.rows for cell in row if isinstance(cell, Estimate)]
    by_chance = chance_of_many(sum(difference.has_interval for difference in shown))
    return section(
        "Held-out survey: does the improvement carry over?",
        Text(
            f"Nothing was tuned on these items, which are asked as the tuned ones: "
            f"{named(tuned_on(result))}. The score is the "
            f"{survey.get('score', 'mean similarity over items')}: 1 where the answers are the "
            f"country's own. Intervals: {survey.get('interval', 'not recorded')}. {by_chance}"
        ),
        parts.held_out_figure(result, out),
        lines_table(result),
        held_out_spread_table(result),
        differences,
        parts.transfer_figure(result, out),
        Text(permutation_words(test, shows_signal(result)))
        if test and len(result["countries"]) > 1
        else None,
    )
