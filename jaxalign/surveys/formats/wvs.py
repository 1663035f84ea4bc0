"""World Values Survey wave 7 (all versions; text, SPSS, Stata, SAS).

The files may not be redistributed, so none is shipped: download one from the survey's site and
give its path. These columns are read: B_COUNTRY_ALPHA (three letters), W_WEIGHT, the items asked
for and, if there is one, D_INTERVIEW, by which an interview that is there twice is refused. Names
may be in lower case. Negative codes (-1 to -5), empty cells, what other programs write for them
(`NA`, `.`, `nan`) and declared missing values are dropped, and the remaining weighted shares of a
country and item sum to 1. A country has no distribution for an item with fewer than
`min_respondents` answers.

The survey's wording may not be redistributed either. To have it, give a survey as `wording` whose
items are named as the columns are (Q1, Q234A). Then a code that it does not list is refused, and
shares come in its order. Without it, an item's text is its name, and its options are the codes of
the published scale (`wvs_scales`), whether or not anybody in the file chose them.

With `by`, groups within countries take the place of the countries (`jaxalign.surveys.groups`):
weighted shares of women and men, of age bands, and so on. `respondents` holds the number and the
effective number of each group's respondents; a group of fewer than `min_respondents` is left out by
name.

What is not used is said in the survey's `notes`.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats import wvs_stat, wvs_text
from jaxalign.surveys.formats.base import FORMATS, Format
from jaxalign.surveys.formats.culturespa import topic
from jaxalign.surveys.formats.files import FileStart, bad, sha256_of_file
from jaxalign.surveys.formats.wvs_cells import (
    COUNTRY,
    INTERVIEW,
    MOST_CODES,
    OTHER_EDITIONS,
    WEIGHT,
    SurveyFile,
    check_columns,
    codes,
    columns_in_file,
    countries_of,
    excel_edition,
    interviews,
    is_blank,
    numbers,
    take,
)
from jaxalign.surveys.formats.wvs_groups import GroupColumn, group_columns, groups_of
from jaxalign.surveys.formats.wvs_scales import published_codes, scale_of
from jaxalign.surveys.formats.wvs_tally import (
    Block,
    Tally,
    cache_name,
    count,
    default_cache_folder,
    load_tally,
    save_tally,
)
from jaxalign.surveys.groups import Variable, variables_of
from jaxalign.surveys.survey import Item, Respondents, Survey

MIN_RESPONDENTS = 50
# Above this share of an item's answers, codes outside its published scale mean that the column is
# not that item, so that dropping them would make shares of something else.
MOST_OFF_SCALE = 0.1
_MOST_NAMED = 12  # items or countries that a note lists
_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")

# A column of the first line, or of the second behind `sep=;`, whatever delimits them.
_COUNTRY_COLUMN = re.compile(
    rf"(?:\"?sep=[^\r\n]*[\r\n]+)?(?:[^\r\n]*[^\w\r\n])?{COUNTRY}(?!\w)", re.IGNORECASE
)

# The 259 items with a scale: 223 asks for a party, and those after 259 are about the respondent.
ITEMS = (*(f"Q{i}" for i in range(1, 260) if i != 223), "Q234A")


@FORMATS.register("wvs")
class WorldValuesSurvey(Format):
    """The answers of each respondent, counted by country."""

    has_respondents = True

    def recognises(self, start: FileStart) -> bool:
        if start.suffix in wvs_stat.SUFFIXES:
            return not start.path.is_dir()
        if start.suffix in _WORKBOOKS:
            return _is_workbook(start.path)
        others = {name.lower() for name in OTHER_EDITIONS}
        if any(name.lower() in others for header in start.headers for name in header):
            return True
        return not start.is_json and bool(_COUNTRY_COLUMN.match(start.text))

    def read(self, path: Path, **options: Any) -> Survey:
        return read_wvs(path, **options)


def read_wvs(
    path: Path | str,
    wording: Survey | None = None,
    items: Sequence[str] | None = None,
    countries: Sequence[str] | None = None,
    min_respondents: int = MIN_RESPONDENTS,
    drop_unknown_codes: bool = False,
    cache_folder: Path | None = None,
    use_cache: bool = True,
    by: Sequence[str] = (),
) -> Survey:
    """Read how each country answered.

    The counts are cached under the hash of the file and of these settings, so that a second
    reading takes no longer than hashing the file.

    Args:
        path: The text file, or one of SPSS, Stata or SAS.
        wording: A survey with the items' wording and codes, named as the file's columns.
        items: Columns to read; default: all items of `wording`, else those of ITEMS that the file
            has.
        countries: Alpha-3 codes of the countries to read, or names of groups with `by`; default:
            all.
        min_respondents: Fewest answers from which a country's distribution is taken.
        drop_unknown_codes: Treat codes that `wording` does not list as missing, not as an error.
        cache_folder: Where counts are cached; default: the user's cache folder.
        use_cache: Whether to read and write the cache at all.
        by: Variables that divide countries into groups, as `groups.variables_of` takes them.

    Raises:
        UserError: Something is wrong with the file; the message names row and column.
    """
    path = Path(path)
    if min_respondents < 1:
        raise bad(path, f"min_respondents={min_respondents}; at least 1")
    wanted = _wanted(path, wording, items)
    allowed = [
        item.codes if item and not drop_unknown_codes else range(MOST_CODES)
        for item in wanted.values()
    ]
    variables = variables_of(by)
    tally = _tally(path, tuple(wanted), allowed, cache_folder, use_cache, variables)
    kept = _countries(path, tally, countries)
    survey = _survey(path, tally, wanted, kept, min_respondents, wording)
    return _with_respondents(survey, tally, kept, min_respondents, variables)


def _wanted(
    path: Path, wording: Survey | None, items: Sequence[str] | None
) -> dict[str, Item | None]:
    """Return the items to read by column, with their wording if there is any."""
    by_id = {item.id: item for item in wording.items} if wording else {}
    names = tuple(items) if items is not None else tuple(by_id) or _items_in_file(path)
    if wording and (unknown := [name for name in names if name not in by_id]):
        raise bad(path, f"item {unknown[0]!r} is not in survey {wording.name!r}")
    if not names:
        raise bad(path, "no items asked for; leave `items` out to read all")
    for item in by_id.values():
        if item.id in names and not all(0 <= code < MOST_CODES for code in item.codes):
            listed = list(item.codes)
            raise bad(
                path, f"codes {listed} of item {item.id!r} are not within 0...{MOST_CODES - 1}"
            )
    return {name: by_id.get(name) for name in dict.fromkeys(names)}


def _items_in_file(path: Path) -> tuple[str, ...]:
    """Return those of ITEMS that the file has."""
    columns = open_file(path).columns
    check_columns(path, columns, ())
    present = tuple(columns_in_file(columns, ITEMS))
    if not present:
        raise bad(path, f"none of the items Q1 ... Q259 is among the {len(columns)} columns")
    return present


def open_file(path: Path) -> SurveyFile:
    """Read what a file says about its columns. Raise UserError if that cannot be done."""
    suffix = path.suffix.lower()
    if suffix in wvs_stat.SUFFIXES:
        return wvs_stat.open_stat(path)
    if _is_workbook(path):
        raise excel_edition(path)
    if suffix in _WORKBOOKS:
        known = ", ".join((".csv", *wvs_stat.SUFFIXES))
        raise bad(path, f"file type {path.suffix!r}; the survey comes as {known}")
    return wvs_text.open_text(path)


def _is_workbook(path: Path) -> bool:
    """Return whether a file is a spreadsheet's workbook with the survey's columns."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("xl/sharedStrings.xml") as file:
            return COUNTRY.encode() in file.read(1 << 20)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def _tally(
    path: Path,
    items: tuple[str, ...],
    allowed: Sequence[Sequence[int]],
    cache_folder: Path | None,
    use_cache: bool,
    variables: Sequence[Variable],
) -> Tally:
    """Return the file's counts, from the cache if it has them."""
    settings: list[Any] = [[name, list(codes)] for name, codes in zip(items, allowed, strict=True)]
    cached, file, by = None, None, ()
    if variables:
        file = open_file(path)
        by = group_columns(path, file, variables)
        settings += [column.settings() for column in by]
    if use_cache:
        name = cache_name(sha256_of_file(path), path.suffix.lower(), settings)
        cached = (cache_folder or default_cache_folder()) / name
        if (tally := load_tally(cached)) is not None:
            return tally
    file = file or open_file(path)
    check_columns(path, file.columns, items)
    blocks = iter_blocks(file, items, by)
    tally = count(path, blocks, items, allowed, file.version, file.hashes)
    if cached is not None:
        save_tally(cached, tally)
    return tally


def iter_blocks(
    file: SurveyFile, items: Sequence[str], by: Sequence[GroupColumn] = (), **options: Any
) -> Iterator[Block]:
    """Yield the respondents of a file, some thousand at a time.

    Rows without any of the cells that are read, such as blank lines, are no respondents.

    Args:
        file: The file.
        items: Columns to read.
        by: What divides countries into groups.
        options: Further arguments of the file's `chunks`.
    """
    path = file.path
    name_in = columns_in_file(file.columns, (COUNTRY, WEIGHT, INTERVIEW, *items))
    read = dict.fromkeys([*name_in.values(), *(column.column for column in by)])
    for chunk in file.chunks(list(read), **options):
        divided = {column.column: chunk.columns[column.column] for column in by}
        cells, rows = {name: chunk.columns[column] for name, column in name_in.items()}, None
        blank_R = is_blank(cells[COUNTRY])
        if blank_R.any():
            blank_R = np.all([is_blank(column) for column in cells.values()], axis=0)
            if blank_R.any():
                rows = np.flatnonzero(~blank_R)
                cells = {name: take(column, rows) for name, column in cells.items()}
                divided = {name: take(column, rows) for name, column in divided.items()}
                rows = rows + chunk.first_row
        at = chunk.first_row if rows is None else rows
        # Countries first: a second header is recognised best by naming no country.
        names, country_R = countries_of(path, cells[COUNTRY], at)
        if not len(country_R):
            continue
        if by:
            names, country_R = groups_of(by, divided, names, country_R)
        yield Block(
            chunk.first_row,
            names,
            country_R,
            numbers(path, cells[WEIGHT], at, WEIGHT),
            np.stack([codes(path, cells[name], at, name) for name in items], axis=1),
            interviews(cells[INTERVIEW]) if INTERVIEW in cells else None,
            rows,
        )


def _version(path: Path, cell: str) -> str:
    """Return the version, such as "6-0".

    The survey's own file names hold it (`..._v5.0.csv`) and are right; the column `version` of a
    country's file may be older. Of a renamed file there is only the column.
    """
    in_name = re.search(r"v(\d+)[-._](\d+)", path.stem, re.IGNORECASE)
    in_cell = re.search(r"(\d+)[-._](\d+)", cell)
    named_by_survey = re.search(r"wvs|world.?values", path.stem, re.IGNORECASE)
    match = (in_name or in_cell) if named_by_survey else (in_cell or in_name)
    return f"{match[1]}-{match[2]}" if match else "unknown"


def _countries(path: Path, tally: Tally, wanted: Sequence[str] | None) -> tuple[str, ...]:
    for country in wanted or ():
        if country in tally.countries:
            continue
        if country == "IND" and _version(path, tally.version).startswith("5"):
            raise bad(path, "version 5 of wave 7 has no respondents in IND; download version 6")
        known = " ".join(tally.countries)
        raise bad(path, f"no respondents in {country!r}; the file has {known}")
    return tally.countries if wanted is None else tuple(dict.fromkeys(wanted))


def _survey(
    path: Path,
    tally: Tally,
    wanted: dict[str, Item | None],
    countries: Sequence[str],
    min_respondents: int,
    wording: Survey | None,
) -> Survey:
    notes: list[str] = []
    items, left_out = _items(tally, wanted, notes)
    kept = [(q, item) for q, item in enumerate(items) if item is not None]
    if not kept:
        raise bad(path, f"no item can be used: {'; '.join(left_out)}")
    distributions = {
        country: shares
        for country in countries
        if (shares := _shares(tally, tally.countries.index(country), kept, min_respondents))
    }
    if not distributions:
        few = f"no country has {min_respondents} answers to any item"
        raise bad(path, f"{few}; give a file with more respondents, or lower `min_respondents`")
    notes = [*left_out, *notes, *_gaps(tally, kept, countries, distributions, min_respondents)]
    kept_items = tuple(item for _, item in kept)
    if wording is not None:
        return dataclasses.replace(
            wording,
            items=kept_items,
            distributions=distributions,
            majorities={},
            simulated=False,
            notes=(*wording.notes, *notes),
        )
    return Survey(
        "World Values Survey 7",
        _version(path, tally.version),
        "World Values Survey wave 7, the user's own file; shares weighted by W_WEIGHT",
        "paraphrase",
        kept_items,
        distributions,
        notes=tuple(notes),
    )


def _with_respondents(
    survey: Survey,
    tally: Tally,
    groups: Sequence[str],
    min_respondents: int,
    variables: Sequence[Variable],
) -> Survey:
    """Return the survey with how many people each group has, and which groups are too small."""
    at = {name: c for c, name in enumerate(tally.countries)}
    numbers = {
        name: Respondents(int(tally.people_Cx3[at[name], 0]), tally.effective(at[name]))
        for name in groups
    }
    refused = {
        name: f"{people.number} respondents and no item with the {min_respondents} answers that a "
        "group needs; `min_respondents` takes fewer"
        for name, people in numbers.items()
        if name not in survey.distributions
    }
    notes = list(survey.notes)
    if variables:
        by = ", ".join(variable.name for variable in variables)
        kept = [numbers[name] for name in survey.distributions]
        least, most = min(kept), max(kept)
        notes.append(
            f"{_many(kept, 'group')} by {by}, of {least.number:,} to {most.number:,} respondents "
            f"(effective number {min(k.effective for k in kept):,.0f} to "
            f"{max(k.effective for k in kept):,.0f})"
        )
        if tally.outside:
            notes.append(
                f"{tally.outside:,} of {tally.rows:,} respondents do not say their {by} and are in "
                "no group"
            )
        if refused:
            small = [f"{name} ({numbers[name].number})" for name in refused]
            notes.append(
                f"refused {_many(small, 'group')} with fewer than {min_respondents} answers to "
                f"every item, which a lower `min_respondents` takes: {', '.join(small)}"
            )
    return dataclasses.replace(survey, notes=tuple(notes), respondents=numbers, refused=refused)


def _items(
    tally: Tally, wanted: dict[str, Item | None], notes: list[str]
) -> tuple[list[Item | None], list[str]]:
    """Return the items, None for one that cannot be used, and why those are left out.

    What is dropped from the items that stay is added to `notes`.
    """
    respondents_QxK = tally.respondents_CxQxK.sum(axis=0)
    items: list[Item | None] = []
    unasked, single, off_scale, dropped, unchosen = [], [], [], [], []
    for q, (name, item) in enumerate(wanted.items()):
        seen = np.flatnonzero(respondents_QxK[q]).tolist()
        scale = item.codes if item else published_codes(name)
        off = [code for code in seen if scale and code not in scale]
        total, strays = respondents_QxK[q].sum(), respondents_QxK[q, off].sum()
        usable = item or _plain_item(name, scale or seen)
        if not seen:
            unasked.append(name)
        elif usable is None:
            single.append(name)
        elif item is None and strays > MOST_OFF_SCALE * total:
            off_scale.append(f"{name} ({_listed(off)})")
        else:
            items.append(usable)
            dropped += [f"{name} ({_listed(off)}: {strays:,} answers)"] if off else []
            chosen_by_none = [code for code in scale if code not in seen]
            unchosen += [f"{name} ({_listed(chosen_by_none)})"] if chosen_by_none else []
            continue
        items.append(None)
    if dropped:
        notes.append(f"counted as missing, because no option has the code: {_listed(dropped)}")
    if unchosen:
        notes.append(
            f"nobody chose some options of {_many(unchosen, 'published scale')}, which stay "
            f"options: {_listed(unchosen)}"
        )
    reasons = (
        (unasked, "nobody answered"),
        (single, "without a published scale and with one code only"),
        (off_scale, "with many answers outside the published scale"),
    )
    return items, [
        f"left out {_many(names, 'item')} {reason}: {_listed(names)}"
        for names, reason in reasons
        if names
    ]


def _gaps(
    tally: Tally,
    kept: Sequence[tuple[int, Item]],
    countries: Sequence[str],
    distributions: dict[str, dict[str, tuple[float, ...]]],
    min_respondents: int,
) -> list[str]:
    """Return notes on countries, and on items of countries, without shares."""
    few = f"fewer than {min_respondents} answers"
    absent = [country for country in countries if country not in distributions]
    notes = []
    if absent and ":" not in absent[0]:  # groups are named one by one, with their numbers
        notes.append(
            f"left out {_many(absent, 'country')} with {few} to every item: {_listed(absent)}"
        )
    not_asked, too_few = [], []
    for country in distributions:
        answered_Q = tally.respondents_CxQxK[tally.countries.index(country)].sum(axis=1)
        without = [(q, item.id) for q, item in kept if item.id not in distributions[country]]
        if nobody := [name for q, name in without if not answered_Q[q]]:
            not_asked.append(f"{country} ({_listed(nobody)})")
        if some := [name for q, name in without if answered_Q[q]]:
            too_few.append(f"{country} ({_listed(some)})")
    if not_asked:
        notes.append(
            f"items that a country was not asked have no shares there: {_listed(not_asked)}"
        )
    if too_few:
        notes.append(f"items with {few} in a country have no shares there: {_listed(too_few)}")
    return notes


def _listed(names: Sequence[object]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(str, names[:_MOST_NAMED])) + more


def _many(names: Sequence[object], noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{len(names)} {noun if len(names) == 1 else plural}"


def _plain_item(name: str, codes: Sequence[int]) -> Item | None:
    """Return an item without wording; None if it has fewer than two codes."""
    if len(codes) < 2:
        return None
    labels = tuple(map(str, codes))
    return Item(name, name, labels, tuple(codes), scale_of(name), topic(name))


def _shares(
    tally: Tally, c: int, items: Sequence[tuple[int, Item]], min_respondents: int
) -> dict[str, tuple[float, ...]]:
    """Return the weighted shares of one country by item, in the order of the item's options."""
    # Codes that an item does not have (and those dropped as unknown) do not count.
    asked_QxK = np.zeros(tally.weight_CxQxK.shape[1:], bool)
    for q, item in items:
        asked_QxK[q, list(item.codes)] = True
    weight_QxK = np.where(asked_QxK, tally.weight_CxQxK[c], 0)
    # Shares are of those who gave a valid code; an item that too few answered has none.
    total_Qx1 = weight_QxK.sum(axis=1, keepdims=True)
    answers_Q = np.where(asked_QxK, tally.respondents_CxQxK[c], 0).sum(axis=1)
    enough_Q = ((answers_Q >= min_respondents) & (total_Qx1[:, 0] > 0)).tolist()
    shares_QxK = (weight_QxK / np.where(total_Qx1 > 0, total_Qx1, 1)).tolist()
    return {
        item.id: tuple([shares_QxK[q][code] for code in item.codes])
        for q, item in items
        if enough_Q[q]
    }
