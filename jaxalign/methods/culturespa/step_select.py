"""Step 3 of `experiments.culturespa`: which pairs of question and country are trained on.

    OUT/seed0/selected/joint.jsonl, rds.jsonl, cds.jsonl, cct.jsonl    conversations to train on
                      /dataset_info.json                               for LLaMA-Factory
                      /pairs.json                                      country, question, answer

`joint` is CRQPC on the culture-aware prompt (P1); `cct` is CRQPC on cross-culture thinking (P2),
answered and trained under it. `rds` and `cds` have the sizes of `joint`, country by country.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.core.files import write_json_lines
from jaxalign.methods.culturespa.ask import Replies
from jaxalign.methods.culturespa.dataset import (
    to_examples,
    to_rows,
    write_dataset_info,
)
from jaxalign.methods.culturespa.select import Selection, cds, changed, crqpc, expected_noise, rds
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.study import Study
from jaxalign.methods.culturespa.styles import Style
from jaxalign.runs import Run
from jaxalign.surveys.survey import Survey
from jaxalign.training.packing import Example

TRAINED: dict[str, Style] = {"joint": "p1", "cct": "p2", "rds": "p1", "cds": "p1"}


def select(
    config: Config, questions: Survey, replies: Mapping[Style, Replies], seed: int
) -> dict[str, Selection]:
    """The pairs of each of `TRAINED`."""
    countries, items = config.countries, questions.items
    unaware_1xQ = replies["unaware"].answered.most_likely_CxQ
    p1_CxQ, p2_CxQ = (replies[s].answered.most_likely_CxQ for s in ("p1", "p2"))
    joint = crqpc(changed(unaware_1xQ, p1_CxQ), p1_CxQ, countries, items)
    return {
        "joint": joint,
        "cct": crqpc(changed(unaware_1xQ, p2_CxQ), p2_CxQ, countries, items),
        "rds": rds(p1_CxQ, countries, items, joint.sizes, seed),
        "cds": cds(unaware_1xQ, p1_CxQ, countries, items, joint.sizes, seed),
    }


def describe(
    config: Config,
    questions: Survey,
    replies: Mapping[Style, Replies],
    selected: Mapping[str, Selection],
) -> dict[str, Any]:
    """Counts of a seed's selection. `changed_share` is of the questions answered both ways; `noise`
    is the chance that two draws from the unaware model's distribution differ: what sampling, rather
    than the culture, would select. None where there are no answers."""
    unaware_QxO = replies["unaware"].answered.distribution_CxQxO[0]
    unaware_1xQ, p1_CxQ = (replies[s].answered.most_likely_CxQ for s in ("unaware", "p1"))
    both_C = ((unaware_1xQ >= 0) & (p1_CxQ >= 0)).sum(axis=1)
    noise_Q = expected_noise(unaware_QxO)
    noise_Q = noise_Q[~np.isnan(noise_Q)]
    return {
        "questions": len(questions.items),
        "pairs": {name: some.sizes for name, some in selected.items()},
        "missing": {name: dict(some.missing) for name, some in selected.items()},
        "changed_share": {
            c: selected["joint"].sizes.get(c, 0) / int(both) if both else None
            for c, both in zip(config.countries, both_C, strict=True)
        },
        "noise": float(noise_Q.mean()) if len(noise_Q) else None,
    }


def write_selected(
    study: Study, questions: Survey, selected: Mapping[str, Selection], run: Run, name: str
) -> None:
    """The data of a seed's folder `name`, `pairs.json` last: it says that the step is done."""
    folder = run.out / name / "selected"
    if not run.writes or (folder / "pairs.json").exists():
        return
    for method, some in selected.items():
        rows = to_rows(some.pairs, questions.items, study.interviews, TRAINED[method])
        write_json_lines(folder / f"{method}.jsonl", rows)
    write_dataset_info(folder, {method: f"{method}.jsonl" for method in selected})
    pairs = {
        method: [dataclasses.astuple(pair) for pair in some.pairs]
        for method, some in selected.items()
    }
    run.write(f"{name}/selected/pairs.json", pairs)


def examples(
    config: Config, study: Study, questions: Survey, selection: Selection, style: Style
) -> list[Example]:
    """The pairs as tokens to train on; the target is the number, and the turn's end if asked."""
    found = to_examples(selection.pairs, questions.items, study.interviews, study.tokens, style)
    if config.end_of_turn:
        return found
    return [Example(e.tokens[:-1], e.prompt_length) for e in found]


def by_country(selection: Selection) -> dict[str, Selection]:
    """The pairs of each country that has any."""
    return {
        country: Selection(tuple(p for p in selection.pairs if p.country == country))
        for country in selection.sizes
    }
