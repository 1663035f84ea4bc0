"""What a CulturalBench run found out: the content of its `result.json`.

    warnings                                               what to know before any number: kind and
                                                           text (`jaxalign.stats.result_warnings`)
    sets.{easy,hard}.name, sha256, questions, items        the questions that were asked
    sets.easy.countries.USA.{name,region,questions,examples}
                                                           by ISO 3166 code, or by the file's name
                                                           where that is unknown; `examples` are the
                                                           labels of questions shown in context
    sets.easy.unknown_countries                            names that CulturalBench does not use
    sets.easy.notes                                        what the file's reader has to be told
    sets.easy.trivial.{chance,chance_items,constant,constant_items,one_true}
                                                           what needs no model; `constant` holds a
                                                           number per option
    sets.easy.gate.{passes,best,above}                     whether a way of asking that is not tuned
                                                           is above the `best` answer that needs no
                                                           model, with its whole interval; `above`:
                                                           which ones
    sets.easy.methods.{naive,persona,icl,tuned,permuted,adapted,adapted_persona}:
        accuracy.{mean,low,high,questions}                 share of questions right; all four rows
                                                           for Hard; Wilson's interval
        items.{mean,low,high,questions}                    Hard: share of rows right; bootstrap
        picked.{mean,low,high,questions,minus}             Hard, exact: share of questions whose
                                                           true row is the likeliest to be called
                                                           true
        mean_over_countries                                mean of the countries' accuracies
        minus.naive.{mean,low,high,questions,value,other}  paired by question; `value` and `other`
                                                           are the accuracies on these questions
        answers.{most_common,share,unreadable}             share of the answer given most often
        valid_mass                                         probability that a reply begins with an
                                                           option (exact)
        countries.USA.{mean,low,high,questions,minus}      accuracy by country
        regions.Africa...                                  likewise by CulturalBench's regions
    presentation, reading, examples                        how questions are shown and read
    answer_examples                                        a few answers in full
                                                           (`jaxalign.stats.answer_examples`)
    notes                                                  what a reader of the result should know
    model, settings, facts, versions

`permuted` are the other countries' tuned prompts, each scored by itself and then averaged; `tuned`
is compared with it too (`minus.permuted`), and `adapted_persona` with `persona`. Methods differ in
which questions they were asked (`icl` is not scored on its examples, `tuned` only on countries that
have a prompt), so methods are compared by `minus`, which is paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.core.files import finite_or_none
from jaxalign.methods.base import ADAPTED_PERSONA, ICL, METHODS, NAIVE, PERMUTED, PERSONA, TUNED
from jaxalign.methods.cultural_bench.questions import Bench, MethodAnswers
from jaxalign.methods.cultural_bench.sets import BenchSet
from jaxalign.stats import result_warnings as warn
from jaxalign.stats.answer_examples import answer_examples
from jaxalign.stats.choice_scores import (
    NOT_ASKED,
    TrivialAnswers,
    by_label,
    choice_scores,
    paired_difference,
    picked_right,
    questions_of,
    share_interval,
    trivial_answers,
)
from jaxalign.stats.presentations import constant_answers
from jaxalign.surveys.formats.cultural_bench import region_of
from jaxalign.surveys.survey import Item, Survey

# What a method is compared with besides the plain question.
_ALSO_AGAINST = {TUNED.key: PERMUTED.key, ADAPTED_PERSONA.key: PERSONA.key}
_LEVEL = 0.95


def make_result(
    bench: Bench,
    answers: Sequence[Mapping[str, MethodAnswers]],
    *,
    reading: str,
    resamples: int,
    seed: int,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of `result.json`, but for settings, facts and versions.

    Args:
        bench: What was asked.
        answers: Of each set, the answers by method.
        reading: How answers were read, "exact" or "sampled".
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
        notes: What a reader of the result should know.
    """
    sets = zip(bench.sets, answers, strict=True)
    return {
        "warnings": [w for each in sets for w in _warnings(*each)],
        "sets": {
            bench_set.key: _set_record(bench_set, by_method, resamples, seed)
            for bench_set, by_method in zip(bench.sets, answers, strict=True)
        },
        "presentation": "options in the order of the file, numbered from 1; one presentation, so "
        "a preference for a number is part of every score",
        "answer_examples": _examples(bench.sets[0], answers[0]),
        "reading": {
            "exact": "the option whose number is the likeliest reply",
            "sampled": "the first integer of each sampled reply, each scored by itself",
        }[reading],
        "examples": "other questions of the same set about the same country, with their right "
        "answers (of Hard a true and a false row each); they do not count in the score of ICL",
        "level": _LEVEL,
        "notes": list(notes),
    }


def _examples(bench_set: BenchSet, answers: Mapping[str, MethodAnswers]) -> list[dict[str, Any]]:
    """Return a few answers of the first set in full, beside the right ones."""
    items = bench_set.items
    most = max(len(item.options) for item in items)
    shares = {}
    for key, given in answers.items():
        if given.log_probs_SxQxO is not None and key != PERMUTED.key:
            with np.errstate(invalid="ignore"):
                probs_SxQxO = np.exp(given.log_probs_SxQxO[..., :most])
            known_SxQx1 = ~np.isnan(probs_SxQxO).any(axis=-1, keepdims=True)
            total_QxO = np.where(known_SxQx1, probs_SxQxO, 0.0).sum(axis=0)
            count_Qx1 = known_SxQx1.sum(axis=0)
            mean_QxO = np.where(count_Qx1 > 0, total_QxO / np.maximum(count_Qx1, 1), np.nan)
            shares[METHODS[key].title] = mean_QxO[None]
    if not shares:
        return []
    shares["right"] = np.eye(most)[list(bench_set.test.answers)][None]
    survey = Survey(
        bench_set.test.name,
        "",
        bench_set.test.source,
        "official",
        tuple(dataclasses.replace(item, id=f"{n + 1} {item.id}") for n, item in enumerate(items)),
    )
    between = None
    if {NAIVE.key, TUNED.key} <= answers.keys():
        between = NAIVE.title, TUNED.title
    return answer_examples(survey, shares, [""], between)


def _warnings(bench_set: BenchSet, answers: Mapping[str, MethodAnswers]) -> list[dict[str, Any]]:
    """Return what a reader must know before any accuracy of a set."""
    name, items = bench_set.test.name, bench_set.test.items
    titles = {key: f"{name}, {METHODS[key].title}" for key in answers}
    marks_Q = [_marks(item) for item in items]
    constants, same = {}, {}
    for key, given in answers.items():
        was_asked_SxQ = given.positions_SxQ != NOT_ASKED
        constants[titles[key]] = {"": constant_answers(given.positions_SxQ, marks_Q)}
        same[titles[key]] = np.where(was_asked_SxQ, given.positions_SxQ, np.nan)
    return warn.warning_records(
        [
            warn.no_option({titles[key]: given.valid_mass for key, given in answers.items()}),
            warn.one_option(constants),
            warn.identical(same),
            warn.few_items(len(questions_of(bench_set.test)[0]), f"set {name}"),
            *(
                warn.unread(
                    titles[key],
                    int((given.positions_SxQ >= 0).sum()),
                    int((given.positions_SxQ != NOT_ASKED).sum()),
                )
                for key, given in answers.items()
                if given.valid_mass is None
            ),
        ]
    )


def _marks(item: Item) -> tuple[str, ...]:
    """Return what an answer is called: true or false of a row of Hard, else the option's number."""
    if len(item.options) == 2:
        return item.options
    return tuple(str(number + 1) for number in range(len(item.options)))


def _set_record(
    bench_set: BenchSet, answers: Mapping[str, MethodAnswers], resamples: int, seed: int
) -> dict[str, Any]:
    test = bench_set.test
    labels, question_Q = questions_of(test)
    first_Q = [int(np.flatnonzero(question_Q == g)[0]) for g in range(len(labels))]
    countries_G = [bench_set.countries_Q[q] for q in first_Q]
    names = {bench_set.countries_Q[q]: test.countries[q] for q in first_Q}
    regions_G = [region_of(test.countries[q]) or "other" for q in first_Q]
    by_country = dict(sorted(by_label(countries_G).items(), key=lambda item: names[item[0]]))
    by_region = by_label(regions_G)
    examples = {
        code: list(dict.fromkeys(test.groups[q] for q in rows))
        for code, rows in bench_set.examples.items()
    }
    scores = {key: choice_scores(test, given.positions_SxQ) for key, given in answers.items()}
    right = {key: score.right_G for key, score in scores.items()}
    is_hard = len(labels) < len(test.items)

    def differences(key: str, where: np.ndarray) -> dict[str, Any]:
        return {
            other: _difference(right[key][where], right[other][where], resamples, seed)
            for other in (NAIVE.key, _ALSO_AGAINST.get(key))
            if other in right and other != key
        }

    def picked(key: str) -> dict[str, Any] | None:
        picked_G = {
            name: picked_right(test, answers[name].first_probs_SxQ)
            for name in {key, NAIVE.key, _ALSO_AGAINST.get(key)} & answers.keys()
        }
        minus = {
            other: _difference(picked_G[key], picked_G[other], resamples, seed)
            for other in (NAIVE.key, _ALSO_AGAINST.get(key))
            if other in picked_G and other != key
        }
        found = _accuracy(picked_G[key])
        return None if found is None else found | {"minus": minus}

    def groups(key: str, by: Mapping[str, np.ndarray]) -> dict[str, Any]:
        found = {}
        for name, where in by.items():
            if (accuracy := _accuracy(right[key][where])) is not None:
                found[name] = accuracy | {"minus": differences(key, where)}
        return found

    every = np.ones(len(labels), bool)
    methods = {}
    for key, score in scores.items():
        of_countries = groups(key, by_country)
        given = answers[key]
        methods[key] = {
            "accuracy": _accuracy(score.right_G),
            "items": _mean(score.items_G, resamples, seed) if is_hard else None,
            "picked": picked(key) if is_hard and given.first_probs_SxQ is not None else None,
            "mean_over_countries": float(np.mean([c["mean"] for c in of_countries.values()])),
            "minus": differences(key, every),
            "answers": {
                "most_common": test.items[0].options[score.most_common]
                if is_hard
                else str(score.most_common + 1),
                "share": score.most_common_share,
                "unreadable": score.unreadable_share,
            },
            "valid_mass": given.valid_mass,
            "countries": of_countries,
            "regions": groups(key, by_region),
        }
    lines = trivial_answers(test)
    return finite_or_none(
        {
            "name": test.name,
            "sha256": test.sha256,
            "questions": len(labels),
            "items": len(test.items),
            "countries": {
                code: {
                    "name": names[code],
                    "region": region_of(names[code]),
                    "questions": int(where.sum()),
                    "examples": examples.get(code, []),
                }
                for code, where in by_country.items()
            },
            "unknown_countries": list(bench_set.unknown_countries),
            "notes": list(test.notes),
            "trivial": {
                "chance": lines.chance,
                "chance_items": lines.chance_items,
                "constant": list(lines.constant),
                "constant_items": list(lines.constant_items),
                "one_true": lines.one_true,
            },
            "gate": _gate(methods, lines, is_hard),
            "methods": methods,
        }
    )


def _gate(methods: Mapping[str, Any], lines: TrivialAnswers, is_hard: bool) -> dict[str, Any]:
    """Return whether the questions measure anything on this model before it is tuned.

    Of Hard, the share of questions whose true row is the likeliest counts where it is known,
    against one in four: the accuracy moves with how often a model says true at all.
    """
    untuned = {key: methods[key] for key in (NAIVE.key, PERSONA.key, ICL.key) if key in methods}
    if is_hard and all(method["picked"] for method in untuned.values()):
        best, found = 0.25, {key: method["picked"] for key, method in untuned.items()}
    else:
        best = max(lines.chance, *lines.constant, lines.one_true or 0)
        found = {key: method["accuracy"] for key, method in untuned.items()}
    above = [key for key, share in found.items() if share["low"] > best]
    return {"passes": bool(above), "best": best, "above": above}


def question_records(
    bench_set: BenchSet, answers: Mapping[str, MethodAnswers]
) -> list[dict[str, Any]]:
    """Return one record for each item: its label, country, right answer, and the answers given.

    Answers are numbers of options, counted from 1; 0 is a reply that names none. A method with
    several voices (replies, prompts) has a list, a method that was not asked the item has none.
    """
    records = []
    for q, (item, right) in enumerate(zip(bench_set.items, bench_set.test.answers, strict=True)):
        given = {}
        for key, method in answers.items():
            if voices := [int(p) for p in method.positions_SxQ[:, q] if p > -9]:
                numbers = [max(p + 1, 0) for p in voices]
                given[key] = numbers[0] if len(method.positions_SxQ) == 1 else numbers
        records.append(
            {
                "question": bench_set.test.groups[q],
                "item": item.id,
                "country": bench_set.countries_Q[q],
                "right": right + 1,
                "answers": given,
            }
        )
    return records


def _accuracy(right_G: np.ndarray) -> dict[str, Any] | None:
    found = share_interval(right_G, _LEVEL)
    return None if found is None else found[0].record() | {"questions": found[1]}


def _mean(values_G: np.ndarray, resamples: int, seed: int) -> dict[str, Any] | None:
    found = paired_difference(values_G, np.zeros_like(values_G), resamples, seed, _LEVEL)
    return None if found is None else found[0].record() | {"questions": found[1]}


def _difference(
    values_G: np.ndarray, others_G: np.ndarray, resamples: int, seed: int
) -> dict[str, Any] | None:
    found = paired_difference(values_G, others_G, resamples, seed, _LEVEL)
    if found is None:
        return None
    interval, count = found
    both = ~np.isnan(values_G - others_G)
    means = {"value": float(values_G[both].mean()), "other": float(others_G[both].mean())}
    return interval.record() | {"questions": count} | means
