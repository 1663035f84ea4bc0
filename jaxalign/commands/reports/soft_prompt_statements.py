"""What came out of a soft-prompt run, in sentences: for the report and for the terminal alike."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxalign.commands.reports.presentations import (
    TUNED,
    UNTUNED,
    constant_words,
    correlation_words,
    gain_note,
    named,
)
from jaxalign.commands.reports.soft_prompt_record import (
    Result,
    gate_of,
    has_scores,
    loss_digits,
    loss_under,
    mean_loss,
    methods,
    never_tuned_on,
    shows_signal,
    tuned_on,
)
from jaxalign.commands.reports.validity import agreement_words, dispersion_words, gate_note
from jaxalign.methods.base import METHODS
from jaxalign.methods.soft_prompt.result import reading_words, readings
from jaxalign.report.document import Estimate, Note, is_number
from jaxalign.report.wording import NO_SIGNAL, joined, number, tally
from jaxalign.stats.held_out import BASELINES

Loss = Callable[[str, Mapping[str, Any]], "float | None"]


def verdict_notes(result: Result) -> list[Note]:
    """Return the first lines: the validity gate, and whether the gain is kept elsewhere."""
    gains = result["measure"]["gain"]["tuned"]
    means, signal = _mean_gains(result), shows_signal(result)
    compared = {
        "the strongest baseline's": _mean_gains(result, BASELINES),
        "that of the prompt before tuning": _mean_gains(result, ("start",)),
    }
    gain = gain_note(gains, tuned_on(result), means, signal, loss_digits(result), compared)
    if gain:
        gain = dataclasses.replace(gain, text=gain.text + _averaged_gain(result))
    return [gate_note(gate_of(result)), *([gain] if gain else [])]


def _mean_gains(result: Result, others: Sequence[str] = ("naive",)) -> dict[str, float | None]:
    """Return another loss less the tuned prompt's by presentation, mean over countries.

    Args:
        result: The run's result.
        others: The methods that are compared with; of several, the one with the lowest loss.
    """
    entries, (reading, _) = list(result["countries"].values()), readings(result)
    gains = {}
    for name in (*tuned_on(result), *never_tuned_on(result)):
        pairs = [
            (
                _lowest(loss_under(e, m, name, reading) for m in others),
                loss_under(e, "tuned", name, reading),
            )
            for e in entries
        ]
        known = all(is_number(loss) for pair in pairs for loss in pair)
        gains[name] = sum(a - b for a, b in pairs) / len(pairs) if known else None
    return gains


def _lowest(losses: Iterable[float | None]) -> float | None:
    return min(filter(is_number, losses), default=None)


def _averaged_gain(result: Result) -> str:
    """Return the gain in what was minimised, where answers were averaged over presentations."""
    tuned, (reading, _) = tuned_on(result), readings(result)
    if len(tuned) < 2:
        return ""
    entries = list(result["countries"].values())
    losses = [[e[method][reading]["loss"] for method in ("naive", "tuned")] for e in entries]
    if not all(is_number(loss) for pair in losses for loss in pair):
        return ""
    gain = number(sum(a - b for a, b in losses) / len(losses), loss_digits(result), signed=True)
    return f" Of answers averaged over {joined(tuned)}, which is what was minimised: {gain}."


def statements(result: Result) -> tuple[str, ...]:
    """Return what came out, a sentence or two each."""
    entries, signal = result["countries"], shows_signal(result)
    said = [_loss_statement(result, role) for role in (TUNED, UNTUNED) if _names(result, role)]
    if "gradient" in methods(result):
        said.append(_control_statement(result))
    differences = {
        name: [Estimate.read(e["held_out"].get(f"after_minus_{name}")) for e in entries.values()]
        for name in ("strongest", "start", "permuted")
    }
    for name, words in (
        ("strongest", f"the strongest baseline ({_strongest_held_out(result)})"),
        ("start", "the prompt before tuning"),
    ):
        found = tally(differences[name], "nearer to the country", "further away", signal)
        said.append(f"Held-out survey, tuned prompt against {words}: {found}.")
    said.append(_held_out_statement(result))
    if len(entries) > 1:
        found = tally(differences["permuted"], "nearer", "further away", signal)
        said += [
            "Held-out survey, the country's own prompt against the other countries' prompts: "
            f"{found}.",
            permutation_words(result["held_out"].get("permutation_test"), signal),
        ]
    return tuple(s for s in (*said, *_measure_statements(result)) if s)


def _held_out_statement(result: Result) -> str:
    """State the held-out scores under each presentation, those never tuned on included."""
    by_country = result["measure"]["spread"]["held_out"].values()
    compared, said = methods(result), []
    for method in ("tuned", "naive"):
        found = [spreads[method]["by_presentation"] for spreads in by_country]
        means = {
            name: sum(scores[name] for scores in found) / len(found)
            for name in (*tuned_on(result), *never_tuned_on(result))
            if found and all(is_number(scores.get(name)) for scores in found)
        }
        each = ", ".join(f"{number(mean, 3)} on {name}" for name, mean in means.items())
        if each:
            said.append(f"{compared[method].label} {each}")
    if not said:
        return ""
    over = ", mean over countries" if len(result["countries"]) > 1 else ""
    return f"Held-out score by presentation{over} (tuned on: {joined(tuned_on(result))}): " + (
        f"{'; '.join(said)}."
    )


def _names(result: Result, role: str) -> list[str]:
    return tuned_on(result) if role == TUNED else never_tuned_on(result)


def _loss_statement(result: Result, role: str) -> str:
    """State in how many countries the tuned prompt's loss is below others', in one role."""
    entries, names, (reading, _) = result["countries"], _names(result, role), readings(result)

    def below(other: Loss) -> str:
        pairs = [(mean_loss(e, "tuned", names, reading), other(c, e)) for c, e in entries.items()]
        wins = sum(is_number(a) and is_number(b) and a < b for a, b in pairs)
        return f"{wins} of {len(entries)}"

    def losses(entry: Mapping[str, Any]) -> dict[str, float]:
        found = {method: mean_loss(entry, method, names, reading) for method in BASELINES}
        return {method: loss for method, loss in found.items() if is_number(loss)}

    strongest = below(lambda c, e: _lowest(losses(e).values()))
    which = [min(found, key=found.__getitem__) for e in entries.values() if (found := losses(e))]
    start = below(lambda c, e: mean_loss(e, "start", names, reading))
    statement = (
        f"Loss on {named(names)}, {role} ({reading_words(reading)} reading): the tuned prompt is "
        f"below the strongest baseline ({_counted(which)}) in {strongest} countries, below the "
        f"prompt before tuning in {start}"
    )
    if not has_scores(result):
        return f"{statement}."
    middle = below(lambda c, e: result["trivial"][c]["all_middle"])
    return f"{statement}, and below answering 3 to everything in {middle}."


def _strongest_held_out(result: Result) -> str:
    """Return which baseline has the highest held-out score, and in how many countries."""
    entry_of = {"naive": "before", "persona": "persona", "icl": "icl"}
    which = []
    for entry in result["countries"].values():
        found = {m: (entry["held_out"].get(name) or {}).get("mean") for m, name in entry_of.items()}
        known = {method: mean for method, mean in found.items() if is_number(mean)}
        if known:
            which.append(max(known, key=known.__getitem__))
    return _counted(which)


def _counted(methods: Sequence[str]) -> str:
    """Return "persona line in 3, plain question in 1"; the name alone where it is one."""
    counts = Counter(methods).most_common()
    if len(counts) == 1:
        return METHODS[counts[0][0]].title
    return ", ".join(f"{METHODS[name].title} in {count}" for name, count in counts)


def _control_statement(result: Result) -> str:
    entries, (reading, _) = result["countries"].values(), readings(result)
    names = tuned_on(result)
    pairs = [[mean_loss(e, m, names, reading) for m in ("gradient", "tuned")] for e in entries]
    wins = sum(is_number(a) and is_number(b) and a < b for a, b in pairs)
    words = reading_words(reading)
    missing = (
        "" if reading == "expected" else f" in the expected reading (the {words} one has none)"
    )
    return (
        f"Control: the same prompts tuned by gradients{missing} have a lower loss on "
        f"{named(names)} in the {words} reading in {wins} of {len(entries)} countries."
    )


def permutation_words(test: Mapping[str, Any] | None, signal: bool) -> str:
    """Return the permutation test's result as sentences; `signal` as in `wording.verdict`."""
    if not test or not is_number(test.get("others")):
        return "Permutation test: not made, because it needs two countries."
    p, count = test["p_value"], test["assignments"]
    verdict = f"{'' if p <= 0.05 else 'not '}significant at the 5 % level"
    return (
        f"Permutation test: prompts score {number(test['own'], 3)} on their own country and "
        f"{number(test['others'], 3)} on the others. Of {count:,} ways to assign prompts to "
        f"countries, a fraction p = {number(p, 3)} does as well (the smallest possible is "
        f"{number(1 / count, 3)}): {verdict if signal else NO_SIGNAL}."
    )


def _measure_statements(result: Result) -> list[str]:
    """State what the answers owe to the presentation, and whether they vary at all."""
    measure, compared = result["measure"], methods(result)
    said = []
    for method in ("naive", "tuned"):
        found = measure["correlation"]["tuned_survey"].get(method)
        if found:
            said.append(f"{_name(compared, method)}: {correlation_words(found)}")
    said.append(_constant_statement(result))
    for method in ("persona", "tuned"):
        if found := measure["dispersion"].get(method):
            said.append(dispersion_words(_name(compared, method), found, shows_signal(result)))
    for method in ("naive", "tuned"):
        if found := (measure["agreement"] or {}).get(method):
            said.append(agreement_words(_name(compared, method), found))
    return said


def _constant_statement(result: Result) -> str:
    """State in words which method answers one mark throughout, on which presentation."""
    compared = methods(result)
    by_method = result["measure"]["constant"]
    return constant_words({_name(compared, m): by for m, by in by_method.items() if m in compared})


def _name(compared: Mapping[str, Any], method: str) -> str:
    label = compared[method].label
    return label[0].upper() + label[1:]
