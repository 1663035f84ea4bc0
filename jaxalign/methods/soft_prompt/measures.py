"""What a run's answers are worth: the content of `measure` in `result.json`.

Everything is computed by `jaxalign.stats` from the answers of all methods, seeds and presentations;
`jaxalign.methods.soft_prompt.result` says what stands where.

Letters: S seed, C country, F presentation, Q item, O option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.methods.soft_prompt.method_answers import SurveyAnswers
from jaxalign.stats.agreement import persona_dispersion, replicate_agreement
from jaxalign.stats.held_out import gap_over_generations, similarity_by_item
from jaxalign.stats.lines import similarity_lines
from jaxalign.stats.presentations import (
    constant_answers,
    form_correlation,
    gain_over_forms,
    item_positions,
    spread_over_forms,
)
from jaxalign.stats.seeds import over_seeds
from jaxalign.stats.validity import validity_gate
from jaxalign.surveys.tables import Tables, make_tables

TUNED_METHODS = ("tuned", "gradient")
_DISPERSED = ("persona", "icl", "tuned", "gradient")

Losses = Mapping[str, np.ndarray]
"""By method: the loss under each seed, for each country, in each presentation, [S, C, F]."""


def similarities(
    answers: SurveyAnswers, countries: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compare every method's answers with every country's people, item by item.

    Returns:
        By method: of the answers averaged over the tuned presentations [S, C, C, Q] (the axis of
        the answers' country first), and of each presentation alone [F, S, C, C, Q].
    """

    def compare(log_probs_xQxO: np.ndarray) -> np.ndarray:
        # Seeds, countries and presentations in one axis, and apart again afterwards.
        leading = log_probs_xQxO.shape[:-2]
        flat = log_probs_xQxO.reshape(-1, *log_probs_xQxO.shape[-2:])
        found_PxCxQ = similarity_by_item(answers.survey, countries, flat)
        return found_PxCxQ.reshape(*leading, *found_PxCxQ.shape[1:])

    averaged = {name: compare(answers.log_probs(name)) for name in answers.methods}
    # The presentation comes first, as in all that is said of it.
    by_form = {
        name: np.moveaxis(compare(answers.by_presentation(name)), 2, 0) for name in answers.methods
    }
    return averaged, by_form


def own_scores(similarity_xCxCxQ: np.ndarray, c: int) -> np.ndarray:
    """Return the scores of country c's answers against its own people, [..., Q]."""
    return similarity_xCxCxQ[..., c, c, :]


def measure_record(
    tuned: SurveyAnswers,
    held_out: SurveyAnswers,
    countries: Sequence[str],
    losses: Losses,
    seed_losses_SxC: np.ndarray,
    scores: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    seed: int,
    gaps: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]],
) -> dict[str, Any]:
    """Return the content of `measure`.

    Args:
        tuned: Answers to the tuned survey.
        held_out: Answers to the held-out survey.
        countries: The C countries.
        losses: The tuned reading's losses in each presentation.
        seed_losses_SxC: The tuned reading's loss of the tuned prompts' averaged answers.
        scores: What `similarities` returns for the held-out survey.
        seed: Seed of the resamples.
        gaps: By country, generations, the tuned loss at each and the held-out score at each.
    """
    averaged, by_form = scores
    tables = make_tables(held_out.survey, countries)
    personas_FxCxQxO = _persona_shares(held_out, tables)
    # The gate twice: over all that was asked, and over what the search averaged.
    kept = list(held_out.tuned)
    gates = {
        "validity": (personas_FxCxQxO, held_out.names),
        "validity_tuned": (personas_FxCxQxO[kept], [held_out.names[f] for f in kept]),
    }
    # All groups of the survey are a country's others, not only those that are tuned for.
    lines = similarity_lines(make_tables(held_out.survey), countries)
    return {
        **{
            name: validity_gate(shares, tables, names, seed=seed).record()
            for name, (shares, names) in gates.items()
        },
        "dispersion": {
            name: _dispersion(held_out, tables, name, seed)
            for name in _DISPERSED
            if name in held_out.methods
        },
        "lines": {
            country: {name: _mean(values_CxQ[c]) for name, values_CxQ in lines.items()}
            for c, country in enumerate(countries)
        },
        "correlation": {
            "tuned_survey": _correlations(tuned, seed),
            "held_out": _correlations(held_out, seed),
        },
        "constant": {name: _constants(tuned, name) for name in tuned.methods},
        "gain": {
            name: {c: _gain(tuned, losses, name, i, seed) for i, c in enumerate(countries)}
            for name in TUNED_METHODS
            if name in tuned.methods
        },
        "spread": {
            "loss": {
                country: {
                    name: spread_over_forms(
                        np.moveaxis(losses[name][:, c], 1, 0)[..., None], tuned.names, seed
                    ).record()
                    for name in tuned.methods
                }
                for c, country in enumerate(countries)
            },
            "held_out": {
                country: {
                    name: spread_over_forms(
                        own_scores(by_form[name], c), held_out.names, seed
                    ).record()
                    for name in held_out.methods
                }
                for c, country in enumerate(countries)
            },
        },
        "seeds": _seeds(seed_losses_SxC, averaged, countries, seed),
        "agreement": _agreement(tuned),
        "gap": {country: gap_over_generations(*series) for country, series in gaps.items()},
    }


def _persona_shares(answers: SurveyAnswers, tables: Tables) -> np.ndarray:
    """Return the personas' probabilities in each presentation, [F, C, Q, O]."""
    # A persona has no seed: its answers stand under the first one alone.
    log_probs_CxFxQxO = answers.by_presentation("persona")[0]
    return np.exp(np.moveaxis(log_probs_CxFxQxO, 1, 0))[..., : tables.valid_QxO.shape[1]]


def _dispersion(
    answers: SurveyAnswers, tables: Tables, method: str, seed: int
) -> dict[str, Any] | None:
    # Mean over seeds; options past those of the held-out survey's items are cut off.
    shares_CxQxO = np.exp(answers.log_probs(method)).mean(axis=0)[..., : tables.valid_QxO.shape[1]]
    found = persona_dispersion(
        item_positions(shares_CxQxO, tables.range_Q),
        item_positions(tables.truth_CxQxO, tables.range_Q),
        seed,
    )
    return found and found.record()


def _correlations(answers: SurveyAnswers, seed: int) -> dict[str, dict[str, float] | None]:
    """Return the correlation of item means between presentations A and B, by method."""
    if not {"A", "B"} <= set(answers.names):
        return dict.fromkeys(answers.methods)
    range_Q = np.array([len(item.options) - 1 for item in answers.survey.items], np.float32)
    found = {}
    for name in answers.methods:
        shares_SxCxFxQxO = np.exp(answers.by_presentation(name))
        first, second = (
            item_positions(shares_SxCxFxQxO[:, :, answers.names.index(form)], range_Q)
            for form in ("A", "B")
        )
        # Every seed and country is a row: the correlation is within each, then averaged.
        items = first.shape[-1]
        interval = form_correlation(first.reshape(-1, items), second.reshape(-1, items), seed)
        found[name] = interval and interval.record()
    return found


def _constants(answers: SurveyAnswers, method: str) -> dict[str, dict[str, Any] | None]:
    """Return the mark that a method answers most often, by presentation.

    Of the replies where they were drawn, else of the most likely options.
    """
    asked = answers.methods[method]
    if answers.asked.answer != "number":
        return dict.fromkeys(answers.names)  # no mark is shown
    # What was said, if replies were drawn; else what is most likely to be said.
    positions_xCxFxQ = asked.positions_NxSxCxFxQ
    if positions_xCxFxQ is None:
        positions_xCxFxQ = asked.log_probs_SxCxFxQxO.argmax(axis=-1)
    found = {}
    for f, name in enumerate(answers.names):
        constant = constant_answers(positions_xCxFxQ[..., f, :], answers.marks(f))
        found[name] = constant and constant.record()
    return found


def _gain(answers: SurveyAnswers, losses: Losses, method: str, c: int, seed: int) -> dict[str, Any]:
    before, after = (
        {name: losses[m][:, c, f] for f, name in enumerate(answers.names)}
        for m in ("naive", method)
    )
    # The plain question is the same under every seed, and is paired with each.
    tuned = [answers.names[f] for f in answers.tuned]
    return gain_over_forms(before, after, tuned, seed).record()


def _seeds(
    losses_SxC: np.ndarray,
    averaged: Mapping[str, np.ndarray],
    countries: Sequence[str],
    seed: int,
) -> dict[str, Any] | None:
    """Return how certain the tuned prompts' results are over seeds; None for one seed."""
    if len(losses_SxC) < 2:
        return None
    found = {}
    for c, country in enumerate(countries):
        # The difference is paired by item; the plain question has one row for all seeds.
        own_SxQ, naive_SxQ = (own_scores(averaged[m], c) for m in ("tuned", "naive"))
        values = {
            "loss": losses_SxC[:, c, None],
            "held_out": own_SxQ,
            "after_minus_before": own_SxQ - naive_SxQ,
        }
        summaries = {name: over_seeds(value, seed) for name, value in values.items()}
        found[country] = {name: summary and summary.record() for name, summary in summaries.items()}
    return found


def _agreement(answers: SurveyAnswers) -> dict[str, Any] | None:
    """Return how far repeated sampled questionnaires agree, by method; None without replies."""
    if any(asked.positions_NxSxCxFxQ is None for asked in answers.methods.values()):
        return None
    range_Q = np.array([len(item.options) - 1 for item in answers.survey.items], np.float32)
    found = {}
    for name, asked in answers.methods.items():
        # Items of every seed, country and presentation are columns; repetitions are rows.
        positions = asked.positions_NxSxCxFxQ[:, :, :, list(answers.tuned)]
        columns = positions[0].size // len(range_Q)
        agreement = replicate_agreement(
            positions.reshape(len(positions), -1), np.tile(range_Q, columns)
        )
        found[name] = agreement and agreement.record()
    return found


def _mean(values_Q: np.ndarray) -> float | None:
    return None if np.isnan(values_Q).all() else float(np.nanmean(values_Q))
