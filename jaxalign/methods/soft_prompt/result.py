"""What a soft-prompt run found out: the content of its `result.json`.

    warnings                                              what to know before any number: records
                                                          of `stats.result_warnings`, kind and text
    presentations.{tuned,untuned}                         names; scores without a presentation
                                                          are of the tuned ones, averaged
    seeds                                                 the seeds, in order
    countries.USA.target                                  six published scores (null: not used)
    countries.USA.METHOD.READING.{scores,loss}            under the tuned presentations
    countries.USA.METHOD.valid_mass                       probability that a reply begins with
                                                          an option
    countries.USA.METHOD.presentations.A.READING.{scores,loss}
    countries.USA.METHOD.presentations.A.{valid_mass,held_out}
                                                          under each presentation alone, tuned
                                                          or not
    countries.USA.METHOD.untuned.READING.{scores,loss}    under the others, averaged; left out
                                                          if there are none
    countries.USA.METHOD.{readable,counts}                sampled reading: share of the replies
                                                          that name an option; why others do not
    countries.USA.seeds.0.METHOD                          the same of one seed; for start, tuned
                                                          and gradient
    countries.USA.seeds.0.{fitness,held_out}              the search's own value; its prompts'
                                                          held-out scores by method
    countries.USA.held_out.{before,start,after,gradient,persona,icl,permuted}.{mean,low,high}
    countries.USA.held_out.after_minus_{before,start,permuted,strongest}.{mean,low,high}
                                                          paired by item; strongest: the baseline
                                                          of the country with the highest score
    held_out.{matrix,permutation_test,...}                tuned prompts x countries
    held_out.respondents.USA.{number,effective}           of a survey that has respondents
    held_out.presentations                                those it was asked in: explicit orders
                                                          of the tuned survey do not fit it
    trivial.USA.{all_middle,uniform_random,smallest_integer,mean_of_others,another_country}
                                                          losses without any model
    constants                                             C by dimension (null: not used)
    dimensions, mas_weight, settings, sources, facts, versions

    answer_examples                                       a few answers in full
                                                          (`stats.answer_examples`)
    measure.validity, .validity_tuned                     the gate, of personas' answers to the
                                                          held-out survey over all presentations
                                                          that were asked, and over the tuned
    measure.dispersion.METHOD                             spread between countries against that
                                                          of people; persona, icl, tuned,
                                                          gradient
    measure.lines.USA.{uniform,midpoint,mean_of_others,own_mean,random_respondent}
                                                          held-out scores that need no model
    measure.correlation.{tuned_survey,held_out}.METHOD    item means under A with those under B
    measure.constant.METHOD.A                             the mark that is answered most often
    measure.gain.METHOD.USA                               loss of the plain question less that
                                                          of tuned or gradient, on tuned and
                                                          untuned presentations
    measure.spread.{loss,held_out}.USA.METHOD             under each presentation, with the
                                                          spread between them
    measure.seeds.USA.{loss,held_out,after_minus_before}  over seeds and items; `seeds` is
                                                          null for one seed
    measure.agreement.METHOD                              sampled reading: how far repeated
                                                          questionnaires agree
    measure.gap.USA                                       tuned loss and held-out score of the
                                                          best prompt so far, over generations

METHOD is naive, persona, icl, start, tuned or gradient; READING is expected or most_likely, and
sampled where replies were drawn. With several seeds, what stands under a country's METHOD is the
mean over seeds. Under `measure` stand the records of `jaxalign.stats`: `Validity`,
`PersonaDispersion`, `ConstantAnswers`, `Gain`, `FormSpread`, `SeedSummary`, `ReplicateAgreement`,
intervals, and `gap_over_generations`; null where there is nothing to measure.

A loss is the objective's: for "vsm" the sum of absolute score differences over the dimensions used,
in points. What other objectives have in place of `scores`, `target`, `trivial`, `constants`,
`dimensions` and `mas_weight` is their own. `start` is the soft prompt before tuning, `tuned` the
best one that the search found, whatever the algorithm. `gradient` is the same prompt tuned by Adam,
unless that was left out; it always tunes the expected reading, because the others have no gradient.
Held-out scores are in [0, 1], 1 where the answers are the country's own; they are of the exact
answers. The loss of averaged answers is not the average of losses: probabilities are averaged over
presentations, and the loss is that of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.methods.base import METHODS
from jaxalign.methods.soft_prompt.measures import (
    measure_record,
    own_scores,
    similarities,
)
from jaxalign.methods.soft_prompt.method_answers import SEEDED, SurveyAnswers, reply_counts
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.methods.soft_prompt.result_warnings import warnings_of
from jaxalign.methods.soft_prompt.settings import setting_sources
from jaxalign.runs import settings_of, versions
from jaxalign.stats.answer_examples import answer_examples
from jaxalign.stats.held_out import held_out_record, permutation_test, strongest_baseline
from jaxalign.stats.intervals import Interval, widened
from jaxalign.stats.objectives import Objective
from jaxalign.stats.vsm import READINGS


def readings(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reading that was tuned, and another one to compare it with."""
    tuned = result["settings"].get("reading", "expected")
    return tuned, "most_likely" if tuned == "expected" else "expected"


def reading_words(reading: str) -> str:
    """Return a reading in words."""
    return reading.replace("_", " ")


def make_result(
    problem: Problem,
    objective: Objective,
    facts: Mapping[str, Any],
    answers: tuple[SurveyAnswers, SurveyAnswers],
    fitness_C: np.ndarray,
    history: tuple[SurveyAnswers, SurveyAnswers] | None = None,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Return the content of `result.json`.

    Args:
        problem: What was searched.
        objective: The objective of all countries.
        facts: What the result depends on besides the settings.
        answers: The answers of all methods to the tuned survey, and to the held-out one.
        fitness_C: What the search found each entry's best prompt to be worth.
        history: The same answers under the best prompts of earlier generations; each "method" is
            a generation.
        on_progress: Called with the number of parts that are done: each country, then all together.
    """
    tuned, held_out = answers
    settings, survey = problem.settings, problem.held_out_survey
    countries, seeds, C = settings.countries, settings.seeds, len(settings.countries)
    # Losses are needed several times over, so each is measured once.
    measured = _Measured(objective, tuned, _readings(tuned))
    averaged, by_form = similarities(held_out, countries)
    # matrix[p, c]: score of the prompt tuned for country p against country c.
    matrix_SxCxC = np.nanmean(averaged["tuned"], axis=-1)
    # What needs no model stands beside each country's scores.
    entries, trivial = {}, {}
    for c, country in enumerate(countries):
        on_progress(Progress("scores, part", c, C + 1, "parts"))
        group = objective.group_record(c)
        trivial[country] = group["trivial"]
        record = {
            name: measured.method_record(name, c, _form_scores(by_form[name], held_out, c))
            for name in tuned.methods
        }
        entries[country] = {
            "target": group["target"],
            **record,
            "seeds": {
                str(seed): _seed_record(
                    measured, (averaged, by_form), held_out, c, s, fitness_C[s * C + c]
                )
                for s, seed in enumerate(seeds)
            },
            "held_out": _held_out(averaged, by_form, held_out, countries, c, settings.seed),
        }
    on_progress(Progress("scores, part", C, C + 1, "parts"))
    # What the answers are worth is said in the reading that was tuned.
    reading = settings.reading
    measure = measure_record(
        tuned,
        held_out,
        countries,
        {name: measured.losses(name, reading) for name in tuned.methods},
        measured.averaged_losses("tuned", reading),
        (averaged, by_form),
        settings.seed,
        _gaps(problem, measured, averaged, history, objective),
    )
    on_progress(Progress("scores, part", C + 1, C + 1, "parts"))
    return {
        "warnings": warnings_of(problem, tuned, held_out),
        "presentations": {
            "tuned": [tuned.names[f] for f in tuned.tuned],
            "untuned": [tuned.names[f] for f in tuned.untuned],
        },
        "seeds": list(seeds),
        "countries": entries,
        "trivial": trivial,
        "held_out": {
            "survey": survey.name,
            "simulated": problem.simulated,
            "items": len(survey.items),
            **survey.respondents_record(settings.countries),
            "presentations": list(held_out.names),
            "score": "mean over items of 1 - ordinal Wasserstein (nominal: 1 - total variation)",
            "interval": _interval_words(len(seeds), len(held_out.tuned)),
            "matrix": matrix_SxCxC.mean(axis=0).tolist(),
            "permutation_test": permutation_test(matrix_SxCxC, settings.seed),
        },
        "measure": finite_or_none(measure),
        "answer_examples": _examples(settings.countries, tuned, held_out),
        **objective.record(),
        "settings": settings_of(settings, fixed_only=True),
        "sources": setting_sources(settings),
        "facts": dict(facts),
        "versions": versions(),
    }


def _examples(
    countries: Sequence[str], tuned: SurveyAnswers, held_out: SurveyAnswers
) -> list[dict[str, Any]]:
    """Return the answers that tuning changed most, under the first seed."""
    found = []
    # Averaged over the tuned presentations, as the scores are.
    for name, answers in (("tuned survey", tuned), ("held-out survey", held_out)):
        shares = {
            METHODS[method].title: np.exp(answers.log_probs(method)[0])
            for method in ("naive", "persona", "start", "tuned")
        }
        between = METHODS["naive"].title, METHODS["tuned"].title
        if answers is held_out:
            people = np.stack([answers.survey.truth_QxO(country) for country in countries])
            shares["people"] = people
        found += answer_examples(answers.survey, shares, countries, between, name=name, most=2)
    return found


class _Measured:
    """The losses and scores of all methods' answers to the tuned survey, measured once each."""

    def __init__(
        self, objective: Objective, answers: SurveyAnswers, readings: Sequence[str]
    ) -> None:
        self.answers, self.readings = answers, readings
        # Shares of replies are read as probabilities are.
        self._objectives = {
            name: objective.with_reading("expected" if name == "sampled" else name)
            for name in readings
        }
        self._known: dict[tuple, list[list[dict[str, Any]]]] = {}

    def of(
        self, method: str, reading: str, presentations: Sequence[int]
    ) -> list[list[dict[str, Any]]]:
        """Return what the objective measures under each seed for each country."""
        key = method, reading, tuple(presentations)
        if key not in self._known:
            objective = self._objectives[reading]
            # Probabilities are averaged first: the loss of the mean, not the mean of losses.
            log_probs_SxCxQxO = self.answers.log_probs(method, presentations, reading)
            self._known[key] = [
                [
                    {name: np.asarray(v) for name, v in objective.measure(x_QxO, c).items()}
                    for c, x_QxO in enumerate(x_CxQxO)
                ]
                for x_CxQxO in log_probs_SxCxQxO
            ]
        return self._known[key]

    def losses(self, method: str, reading: str) -> np.ndarray:
        """Return the losses in each presentation, float [S, C, F]."""
        # One presentation at a time, so that nothing is averaged.
        by_form_FxSxC = [
            [[float(m["loss"]) for m in row] for row in self.of(method, reading, [f])]
            for f in range(len(self.answers.names))
        ]
        return np.moveaxis(np.array(by_form_FxSxC), 0, -1)

    def averaged_losses(self, method: str, reading: str) -> np.ndarray:
        """Return the losses of the answers averaged over the tuned presentations, [S, C]."""
        found = self.of(method, reading, self.answers.tuned)
        return np.array([[float(m["loss"]) for m in row] for row in found])

    def method_record(
        self, method: str, c: int, held_out: Mapping[str, np.ndarray], s: int | None = None
    ) -> dict[str, Any]:
        """Return a method's entry for country c: the mean over seeds, or that of seed number s.

        Args:
            method: The method.
            c: The country.
            held_out: By presentation, the held-out score under each seed, [S].
            s: The seed; default: all of them.
        """
        answers, asked = self.answers, self.answers.methods[method]
        seeds = list(range(asked.seeds)) if s is None else [s]

        def under(presentations: Sequence[int]) -> dict[str, Any]:
            record: dict[str, Any] = {}
            for reading in self.readings:
                found = [self.of(method, reading, presentations)[i][c] for i in seeds]
                # The values of one seed are kept as they are, not divided by 1.
                record[reading] = {
                    name: (found[0][name] if len(found) == 1 else _mean([m[name] for m in found]))
                    for name in found[0]
                }
                record[reading] = {n: v.tolist() for n, v in record[reading].items()}
            return record

        def mass(presentations: Sequence[int]) -> float:
            # A mean over seeds, presentations and items alike.
            mass_SxFxQ = asked.valid_mass_SxCxFxQ[:, c, list(presentations)][seeds]
            return float(mass_SxFxQ.mean())

        entry = under(answers.tuned) | {"valid_mass": mass(answers.tuned)}
        entry["presentations"] = {
            name: {
                **under([f]),
                "valid_mass": mass([f]),
                "held_out": float(held_out[name][seeds].mean()) if name in held_out else None,
            }
            for f, name in enumerate(answers.names)
        }
        if answers.untuned:
            entry["untuned"] = under(answers.untuned)
        if asked.positions_NxSxCxFxQ is not None:
            # Repetitions come first; the country's own, under the seeds asked for.
            replies = asked.positions_NxSxCxFxQ[:, :, c, list(answers.tuned)][:, seeds]
            entry["readable"] = float((replies >= 0).mean())
            entry["counts"] = reply_counts(replies)
        return finite_or_none(entry)


def _readings(answers: SurveyAnswers) -> tuple[str, ...]:
    """Return the readings that are reported."""
    sampled = all(m.positions_NxSxCxFxQ is not None for m in answers.methods.values())
    return (*READINGS, "sampled") if sampled else READINGS


def _form_scores(
    similarity_FxSxCxCxQ: np.ndarray, held_out: SurveyAnswers, c: int
) -> dict[str, np.ndarray]:
    """Return country c's held-out score in each presentation, under each seed, [S]."""
    # Items that the country was not asked are NaN, and left out.
    scores_FxS = np.nanmean(own_scores(similarity_FxSxCxCxQ, c), axis=-1)
    return dict(zip(held_out.names, scores_FxS, strict=True))


def _seed_record(
    measured: _Measured,
    similarity: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    held_out: SurveyAnswers,
    c: int,
    s: int,
    fitness: float,
) -> dict[str, Any]:
    """Return the entry of country c under seed number s."""
    averaged, by_form = similarity
    methods = [name for name in SEEDED if name in measured.answers.methods]
    record: dict[str, Any] = {
        name: measured.method_record(name, c, _form_scores(by_form[name], held_out, c), s)
        for name in methods
    }
    # Of the answers averaged over the tuned presentations.
    scores = {name: float(np.nanmean(own_scores(averaged[name], c)[s])) for name in methods}
    return finite_or_none(record | {"fitness": float(fitness), "held_out": scores})


def _held_out(
    averaged: Mapping[str, np.ndarray],
    by_form: Mapping[str, np.ndarray],
    held_out: SurveyAnswers,
    countries: Sequence[str],
    c: int,
    seed: int,
) -> dict[str, Any]:
    """Return country c's held-out scores, with intervals over items, seeds and presentations."""
    record = held_out_record(averaged, countries, countries[c], seed)
    if len(held_out.tuned) < 2:
        return record
    # The same means in each presentation alone: their spread enters every interval.
    own = {name: own_scores(values, c) for name, values in averaged.items()}
    strongest = strongest_baseline(own)
    alone = [
        _held_out_means({name: values[f] for name, values in by_form.items()}, c, strongest)
        for f in held_out.tuned
    ]
    return {
        name: interval
        and widened(
            Interval(**interval), [means[name] for means in alone if name in means]
        ).record()
        for name, interval in record.items()
    }


def _held_out_means(
    similarity: Mapping[str, np.ndarray], c: int, strongest: str
) -> dict[str, float]:
    """Return the means that `held_out_record` has intervals of, for country c.

    `strongest` is the baseline that is nearest to the country over all presentations.
    """
    # The answers of each method for this country, against its own people.
    own = {name: own_scores(values, c) for name, values in similarity.items()}
    others = [similarity["tuned"][..., p, c, :] for p in range(similarity["tuned"].shape[-3])]
    del others[c]
    # Prompts tuned for the other countries, against this country's people.
    permuted = np.mean(others, axis=0) if others else np.full_like(own["tuned"], np.nan)
    values = {
        "before": own["naive"],
        "start": own["start"],
        "after": own["tuned"],
        "persona": own["persona"],
        "icl": own["icl"],
        "permuted": permuted,
        "after_minus_before": own["tuned"] - own["naive"],
        "after_minus_start": own["tuned"] - own["start"],
        "after_minus_permuted": own["tuned"] - permuted,
        "after_minus_strongest": own["tuned"] - own[strongest],
    }
    if "gradient" in own:
        values["gradient"] = own["gradient"]
    return {
        name: float(np.nanmean(v)) if not np.isnan(v).all() else float("nan")
        for name, v in values.items()
    }


def _gaps(
    problem: Problem,
    measured: _Measured,
    averaged: Mapping[str, np.ndarray],
    history: tuple[SurveyAnswers, SurveyAnswers] | None,
    objective: Objective,
) -> dict[str, tuple[Sequence[int], Sequence[float], Sequence[float]]]:
    """Return each country's series for `gap_over_generations`, mean over seeds.

    They begin with the prompt that the search starts from and end with the one that it found. All
    are read exactly, in the tuned reading, or the expected one where replies were tuned on.
    """
    settings = problem.settings
    if history is None:
        return {}
    tuned, held_out = history
    reading = "expected" if settings.reading == "sampled" else settings.reading
    earlier = _Measured(objective, tuned, (reading,))
    earlier_scores, _ = similarities(held_out, settings.countries)
    generations = (0, *map(int, tuned.methods), settings.generations)
    losses_GxSxC = [
        measured.averaged_losses("start", reading),
        *(earlier.averaged_losses(name, reading) for name in tuned.methods),
        measured.averaged_losses("tuned", reading),
    ]
    scores_GxSxCxCxQ = [
        averaged["start"],
        *(earlier_scores[name] for name in tuned.methods),
        averaged["tuned"],
    ]
    return {
        country: (
            generations,
            [float(losses_SxC[:, c].mean()) for losses_SxC in losses_GxSxC],
            [float(np.nanmean(own_scores(scores, c))) for scores in scores_GxSxCxCxQ],
        )
        for c, country in enumerate(settings.countries)
    }


def _interval_words(seeds: int, presentations: int) -> str:
    drawn = ["items"] + ["seeds"] * (seeds > 1)
    words = f"95 %, bootstrap over {' and '.join(drawn)}"
    return words + (", widened by the spread over presentations" if presentations > 1 else "")


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(values, axis=0)
