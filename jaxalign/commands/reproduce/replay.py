"""What is public of the two papers, computed again: replies, questions, tables, the adapter.

The files are the user's: CultureSPA's come without a license and are in no repository of ours. A
folder of them is a clone of the published repository, or holds the same files in any folders below.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands.filter_questions import read_seeds
from jaxalign.commands.reproduce.published import Check, Paper
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import read_object
from jaxalign.lm.config import PRESETS
from jaxalign.lm.peft import CONFIG, WEIGHTS, load_lora
from jaxalign.lm.safetensors_io import read_spans
from jaxalign.methods.culturespa import filter_questions, read_questions
from jaxalign.stats.alignment import between_countries
from jaxalign.stats.analysis import score_replies
from jaxalign.stats.vsm import trivial_lines
from jaxalign.surveys.formats import culturespa
from jaxalign.surveys.hofstede import targets
from jaxalign.surveys.tables import make_tables

_TOPICS = 13
_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A check and what came out.

    Attributes:
        check: The check.
        value: What came out; None if something is missing.
        missing: What is missing, in words.
    """

    check: Check
    value: float | None = None
    missing: str = ""

    @property
    def within(self) -> bool | None:
        """Whether it is within the tolerance; None if it was not computed."""
        if self.value is None:
            return None
        # Half a unit of the last digit, rounded itself.
        return abs(self.value - self.check.expected) <= self.check.tolerance + 1e-9


def replay(paper: Paper, folder: Path | None, adapter: Path | None) -> list[Replayed]:
    """Compute every check of a paper that its public files allow.

    Args:
        paper: The paper.
        folder: Folder with the files that CultureSPA released.
        adapter: Folder of its published adapter; default: one below `folder`.

    Raises:
        UserError: A folder that was given is not there, or a file in it is damaged.
    """
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for key, constant in (("all_middle_0", 0.0), ("all_middle_50", 50.0)):
        values[key] = _all_middle(constant)
    found = None if folder is None else released_tables(folder)
    if found is not None and any(check.key == "p1" for check in paper.replay):
        for part in (_scores, _similarity, _questions):
            computed, absent = part(folder, found)
            values |= computed
            missing |= absent
    if folder is not None and adapter is None:
        adapter = _below(folder, CONFIG)
    if adapter is not None:
        values |= _adapter(adapter)
    nowhere = "no folder with the released files was given"
    replayed = []
    for check in paper.replay:
        why = missing.get(check.key, nowhere if folder is None else "not among the files")
        if check.label.startswith("Published adapter"):
            why = "no folder with the adapter (on the hub: beiweixiaoxu/CultureSPA) was given"
        value = values.get(check.key)
        replayed.append(Replayed(check, value, "" if value is not None else why))
    return replayed


def released_tables(folder: Path) -> Path:
    """Return the folder with the released tables, in a folder or below; UserError if none has."""
    found = _below(folder, culturespa.QUESTIONS)
    if found is None:
        raise UserError(f"`data` {folder}: no {culturespa.QUESTIONS} in it or below")
    return found


def _below(folder: Path, name: str) -> Path | None:
    """Return the first folder in `folder` or below that holds a file; None if none does."""
    if not folder.is_dir():
        raise UserError(f"`data` {folder}: no such folder")
    return min((path.parent for path in folder.rglob(name)), default=None)


def _all_middle(constant: float) -> float:
    target_1x6, used_6 = targets(["USA"])
    return trivial_lines(target_1x6[0], used_6, np.full(6, constant))["all_middle"]


def _scores(folder: Path, tables: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Score the released replies, and what needs no model."""
    wanted = [f"wvs_result_culture_aware_{c}_0.json" for c in culturespa.COUNTRIES]
    wanted.append("wvs_result_culture_unaware_0.json")
    files = {path.name: path for path in sorted(folder.rglob("wvs_result_culture_*_0.json"))}
    replies = [files[name] for name in wanted if name in files]
    if not replies:
        return {}, {}
    _log.info(f"scoring {len(replies)} files of released replies")
    analysis = score_replies(tables, replies, resamples=1)
    values: dict[str, float] = {}
    for country, row in analysis["scores"].items():
        for key, name in (("p1", "aware"), ("unaware", "unaware")):
            if row[name] is not None:
                values[f"{key}.{country}"] = row[name]
    means = analysis["means"]["all"]
    values |= means["lines"]
    missing = {}
    absent = [name[-10:-7] for name in wanted[:-1] if name not in files]
    if absent:
        missing["p1"] = f"no replies of {', '.join(absent)}"
    else:
        values["p1"] = means["aware"]
    if means["unaware"] is not None:
        values["unaware"] = means["unaware"]
    return values, missing


def _similarity(folder: Path, tables: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Compare the published similarities of countries with ours."""
    place = _below(folder, "country_similarity.json")
    if place is None:
        return {}, {}
    survey = culturespa.read(tables)
    answers = make_tables(survey, culturespa.COUNTRIES)
    ours_CxC = 100 * between_countries(answers).astype(np.float64)
    row = {name: n for n, name in enumerate(culturespa.COUNTRIES)}
    apart = [
        abs(ours_CxC[row[a], row[b]] - value)
        for a, others in read_object(place / "country_similarity.json").items()
        for b, value in others.items()
        if a in row and b in row
    ]
    return {"similarity": max(apart)}, {}


def _questions(folder: Path, tables: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Put the released questions through the filters."""
    files = sorted(folder.rglob("generated_questions_topic_*_from_all_seed.json"))
    keys = ("written", "duplicates", "undefined", "left")
    if len(files) != _TOPICS:
        why = f"questions on {len(files)} of {_TOPICS} topics are among the files"
        return {}, dict.fromkeys(keys, why)
    written = [question for path in files for question in read_questions(path)[0]]
    counts = filter_questions(written, read_seeds(tables)).counts
    left = [counts[name].left for name in ("duplicates", "undefined_scales", "half_labelled")]
    return dict(zip(keys, map(float, (len(written), *left)), strict=True)), {}


def _adapter(folder: Path) -> dict[str, float]:
    """Read the published adapter as one of Llama-3-8B; UserError if it is none."""
    lora, _ = load_lora(folder, PRESETS["llama3-8b"])
    fields: Mapping[str, Any] = read_object(folder / CONFIG)
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "dropout": fields.get("lora_dropout", 0.0),
        "kinds": len(lora.targets),
        "tensors": len(read_spans(folder / WEIGHTS)),
    }
