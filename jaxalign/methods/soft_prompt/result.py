"""What a soft-prompt run found out: the content of its `result.json`.

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
    countries.USA.held_out.after_minus_{before,start,permuted}.{mean,low,high}   paired by item
    held_out.{matrix,permutation_test,...}                tuned prompts x countries
    trivial.USA.{all_middle,uniform_random,smallest_integer}
    constants                                             C by dimension (null: not used)
    dimensions, settings, facts, versions

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
in points. Other objectives have no `scores`, `target`, `trivial`, `constants` and `dimensions`
unless they say so. `start` is the soft prompt before tuning, `tuned` the best one that the search
found, whatever the algorithm. `gradient` is the same prompt tuned by Adam, unless that was left
out; it always tunes the expected reading, because the others have no gradient. Held-out scores are
in [0, 1], 1 where the answers are the country's own; they are of the exact answers. The loss of
averaged answers is not the average of losses: probabilities are averaged over presentations, and
the loss is that of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.runs import settings_of, versions
from jaxalign.stats.held_out import held_out_record, permutation_test, similarity_by_item
from jaxalign.stats.objectives import Objective
from jaxalign.stats.vsm import READINGS
from jaxalign.surveys.responses import Responses


def readings(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reading that was tuned, and the other one."""
    tuned = result["settings"].get("reading", "expected")
    return tuned, "most_likely" if tuned == "expected" else "expected"


def reading_words(reading: str) -> str:
    """Return a reading in words."""
    return reading.replace("_", " ")


def make_result(
    problem: Problem,
    objective: Objective,
    facts: Mapping[str, Any],
    tuned: Mapping[str, Responses],
    held_out: Mapping[str, Responses],
) -> dict[str, Any]:
    """Return the content of `result.json`.

    Args:
        problem: What was searched.
        objective: The objective of all countries.
        facts: What the result depends on besides the settings.
        tuned: By method, the responses to the tuned survey, one condition per country.
        held_out: By method, the responses to the held-out survey, one condition per country.
    """
    settings, survey = problem.settings, problem.held_out_survey
    # Of every method, how close each country's answers come to every country's people, by item.
    similarity = {
        method: similarity_by_item(survey, settings.countries, responses.log_probs)
        for method, responses in held_out.items()
    }
    # matrix[p, c]: score of the prompt tuned for country p against country c.
    matrix_CxC = np.nanmean(similarity["tuned"], axis=-1)
    # What needs no model stands beside each country's scores.
    entries, trivial = {}, {}
    for c, country in enumerate(settings.countries):
        group = objective.group_record(c)
        trivial[country] = group["trivial"]
        entries[country] = {
            "target": group["target"],
            **{name: _method_record(objective, tuned[name], c) for name in tuned},
            "held_out": held_out_record(similarity, settings.countries, country, settings.seed),
        }
    return {
        "countries": entries,
        "trivial": trivial,
        "held_out": {
            "survey": survey.name,
            "simulated": problem.simulated,
            "items": len(survey.items),
            "score": "mean over items of 1 - ordinal Wasserstein (nominal: 1 - total variation)",
            "interval": "95 %, bootstrap over items",
            "matrix": matrix_CxC.tolist(),
            "permutation_test": permutation_test(matrix_CxC, settings.seed),
        },
        **objective.record(),
        "settings": settings_of(settings, fixed_only=True),
        "facts": dict(facts),
        "versions": versions(),
    }


def _method_record(objective: Objective, responses: Responses, c: int) -> dict[str, Any]:
    """Return one method's scores and losses for country c, in both readings."""
    entry: dict[str, Any] = {}
    for reading in READINGS:
        measured = objective.with_reading(reading).measure(responses.log_probs[c], c)
        entry[reading] = {name: np.asarray(value).tolist() for name, value in measured.items()}
    entry["valid_mass"] = float(responses.valid_mass[c].mean())
    return finite_or_none(entry)
