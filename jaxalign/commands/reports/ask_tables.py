"""Tables of the report of `jaxalign ask`, each made from the run's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.report.document import Cell, Estimate, Table
from jaxalign.report.wording import IDENTICAL, NO_DIFFERENCE, NO_SIGNAL, number, with_bounds
from jaxalign.stats.alignment import LINES
from jaxalign.surveys.hofstede import DIMENSIONS

Record = Mapping[str, Any]
VERDICTS = {
    "above": "higher",
    "below": "lower",
    NO_DIFFERENCE: f"{NO_DIFFERENCE} (the interval contains zero)",
    IDENTICAL: IDENTICAL,
    "no answers": "no answers",
    NO_SIGNAL: NO_SIGNAL,
}
_MEAN = "Mean"


def title_of(record: Record, key: str) -> str:
    """Return what a row is called; a mean over some of the countries says over how many."""
    row, count = record["rows"][key], len(record["countries"])
    spoken = len(row["countries"] or record["countries"])
    return row["title"] if spoken == count else f"{row['title']} ({spoken} of {count} countries)"


def ranking_table(entries: Sequence[tuple[str, bool, Estimate | None]], count: str) -> Table:
    """Return the numbers of the ranking of ways of asking and baselines."""
    rows = tuple((name, "model" if is_model else "baseline", v) for name, is_model, v in entries)
    return Table(f"Mean score over {count}", ("Answers", "Kind", "Score"), rows, digits=2)


def overview_table(record: Record) -> Table | None:
    """Return the mean of every way of asking, and what it is set beside."""
    if not record["lines"]:
        return None
    first = {}
    for difference in record["differences"]:
        first.setdefault(difference["a"], difference)
    rows = []
    for key, row in record["rows"].items():
        difference = first.get(key)
        shares = [c["share"] for c in row["constant"].values() if c]
        rows.append(
            (
                title_of(record, key),
                Estimate.read(row["mean"]),
                Estimate.read(difference),
                record["rows"][difference["b"]]["title"] if difference else None,
                VERDICTS[difference["verdict"]] if difference else None,
                sum(shares) / len(shares) if shares else None,
                None if row["valid_mass"] is None else 100 * row["valid_mass"],
            )
        )
    columns = (
        "Asked as",
        "Mean score",
        "Difference",
        "Against",
        "It is",
        "Same number, % of answers",
        "Reply begins with an option, %",
    )
    caption = "Every way of asking: scores in points, with 95 % intervals over questions"
    return Table(caption, columns, tuple(rows), (2, 2, 2, 2, 2, 1, 1), ("Difference",))


def scores_table(record: Record) -> Table | None:
    """Return the score of every way of asking against each country, beside the baselines."""
    if not record["lines"]:
        return None
    rows: list[tuple[Cell, ...]] = []
    for country in (_MEAN, *record["countries"]):
        mean = country == _MEAN
        rows.append(
            (
                country,
                *(
                    Estimate.read(row["mean"] if mean else row["scores"].get(country))
                    for row in record["rows"].values()
                ),
                *(
                    line["mean"] if mean else line["countries"].get(country)
                    for line in record["lines"].values()
                ),
            )
        )
    columns = (
        "Country",
        *(title_of(record, key) for key in record["rows"]),
        *(f"Baseline: {LINES[name]}" for name in record["lines"]),
    )
    return Table("Score by country, in points, beside the baselines", columns, tuple(rows), 2)


def differences_table(record: Record) -> Table | None:
    """Return the differences of means, paired by question."""
    titles = {key: row["title"] for key, row in record["rows"].items()}
    rows = tuple(
        (titles[d["a"]], titles[d["b"]], Estimate.read(d), VERDICTS[d["verdict"]])
        for d in record["differences"]
    )
    columns = ("First", "Second", "First minus second", "The first is")
    caption = "Differences of mean scores in points, paired by question and country"
    return Table(caption, columns, rows, 2, columns[2:3]) if rows else None


def differences_by_country(record: Record) -> Table | None:
    """Return the differences against each country."""
    if not record["differences"]:
        return None
    titles = {key: row["title"] for key, row in record["rows"].items()}
    columns = tuple(f"{titles[d['a']]} minus {titles[d['b']]}" for d in record["differences"])
    rows = tuple(
        (c, *(Estimate.read(d["countries"].get(c)) for d in record["differences"]))
        for c in record["countries"]
    )
    caption = "The same by country"
    return Table(caption, ("Country", *columns), rows, 2, columns, folded=True)


def replies_table(record: Record) -> Table | None:
    """Return how many replies named no option; only sampled ones can."""
    if record["settings"]["reading"] == "exact":
        return None
    counts = ("replies", "unreadable", "out_of_range", "option_lists")
    rows = tuple(
        (row["title"], *(row["replies"][name] for name in counts))
        for row in record["rows"].values()
    )
    columns = ("Asked as", "Replies", "No number", "Number of no option", "Only a list of options")
    return Table("Replies that gave no answer", columns, rows)


# Questions with right answers


def test_statements(record: Record) -> list[str]:
    """State how many questions are answered rightly, beside what needs no model."""
    test = record["test"]
    if test is None:
        return []
    best = max(test["lines"]["constant"].items(), key=lambda pair: pair[1])
    said = [
        f"Without a model: {number(test['lines']['chance'])} % right by chance, "
        f"{number(best[1])} % with option {best[0]} throughout."
    ]
    for key, by_group in test["accuracy"].items():
        for group, accuracy in by_group.items():
            name = _name(record, key, group)
            said.append(f"{name}: {with_bounds(Estimate.read(accuracy))} % right.")
    return said


def test_tables(record: Record) -> list[Table]:
    """Return the shares of right answers, and the same by place."""
    test = record["test"]
    if test is None:
        return []
    asked = [(key, g, a) for key, row in test["accuracy"].items() for g, a in row.items()]
    rows = [
        (_name(record, key, g), Estimate.read(a), Estimate.read(a["minus_first"]))
        for key, g, a in asked
    ]
    rows += [("chance", test["lines"]["chance"], None)]
    rows += [(f"option {n} throughout", s, None) for n, s in test["lines"]["constant"].items()]
    first = _name(record, *asked[0][:2])
    columns = ("Asked as", "Right, %", f"Minus {first}")
    found = [
        Table(
            f"Right answers to {test['questions']} questions, with 95 % intervals over questions",
            columns,
            tuple(rows),
            1,
            columns[2:],
        )
    ]
    if test["places"]:
        by_place = tuple(
            (
                place,
                asked[0][2]["places"][place]["questions"],
                *(Estimate.read(a["places"][place]) for _, _, a in asked),
            )
            for place in test["places"]
        )
        names = (_name(record, key, g) for key, g, _ in asked)
        head = ("Place", "Questions", *names)
        found.append(
            Table("Right answers by place, %", head, by_place, 1, folded=len(by_place) > 20)
        )
    return found


# The six scores of the VSM


def vsm_statements(record: Record) -> list[str]:
    """State the constant, and how near the scores come to published ones."""
    vsm = record["vsm"]
    if vsm is None:
        return []
    said = [
        f"The six scores hold a free constant C = {number(vsm['constant'], 0)}; only differences "
        "are free of it."
    ]
    for key, by_country in vsm["distance"].items():
        if by_country:
            mean = sum(by_country.values()) / len(by_country)
            middle = [vsm["lines"][country]["all_middle"] for country in by_country]
            said.append(
                f"{record['rows'][key]['title']}: {number(mean)} points from the published scores "
                f"({vsm['edition']}), summed over dimensions, mean over {len(by_country)} "
                f"countries; answering 3 to everything: {number(sum(middle) / len(middle))}."
            )
    return said


def vsm_tables(record: Record) -> list[Table]:
    """Return the six scores, and their distance from the published ones."""
    vsm = record["vsm"]
    if vsm is None:
        return []
    rows: list[tuple[Cell, ...]] = [
        (_name(record, key, group), *(scores[d] for d in DIMENSIONS))
        for key, by_group in vsm["scores"].items()
        for group, scores in by_group.items()
    ]
    rows += [
        (f"published, {country}", *(scores.get(d) for d in DIMENSIONS))
        for country, scores in vsm["published"].items()
    ]
    columns = ("Asked as", *(d.upper() for d in DIMENSIONS))
    caption = f"Scores in points (C = {number(vsm['constant'], 0)}; edition {vsm['edition']})"
    found = [Table(caption, columns, tuple(rows), 1)]
    if vsm["published"]:
        keys = [key for key, by_country in vsm["distance"].items() if by_country]
        names = {
            "all_middle": "Answering 3 to everything",
            "uniform_random": "Random answers",
            "smallest_integer": "Least with one integer per question",
        }
        distances = tuple(
            (
                country,
                *(vsm["distance"][key].get(country) for key in keys),
                *(lines[name] for name in names),
            )
            for country, lines in vsm["lines"].items()
        )
        head = ("Country", *(record["rows"][key]["title"] for key in keys), *names.values())
        caption = "Distance from the published scores, sum of absolute differences in points"
        found.append(Table(caption, head, distances, 1))
    return found


def _name(record: Record, key: str, group: str) -> str:
    title = record["rows"][key]["title"]
    return f"{title}, {group}" if group else title
