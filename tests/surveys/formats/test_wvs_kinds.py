"""World Values Survey files as other programs write them, beside what those programs read back."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyreadstat
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import culturespa as cs
from jaxalign.surveys.formats import read_survey, recognise
from jaxalign.surveys.formats.wvs import ITEMS, iter_blocks, open_file, read_wvs
from jaxalign.surveys.formats.wvs_cells import MISSING
from jaxalign.surveys.formats.wvs_scales import published_codes, scale_of
from jaxalign.surveys.survey import Survey

FUZZ = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HEADER = ["B_COUNTRY_ALPHA", "W_WEIGHT", "Q1", "Q2", "NOTE"]
Row = tuple[str, float, int, int | None, str]

rows_of_people = st.lists(
    st.tuples(
        st.sampled_from(["USA", "CHN", "NAM"]),
        st.integers(0, 400).map(lambda n: n / 128),
        st.sampled_from((-5, -1, 1, 2, 3, 4)),
        st.sampled_from((None, -5, -1, 1, 2, 3, 4)),
        st.text("ab \"',;\n\r\t9é", max_size=8),
    ),
    min_size=1,
    max_size=30,
)


def read(path: Path, **options: Any) -> Survey:
    return read_wvs(path, **({"min_respondents": 1, "use_cache": False} | options))


def shares_of(rows: list[Row]) -> dict[str, dict[str, list[float]]]:
    """Return the weighted shares, counted in plain Python."""
    out: dict[str, dict[str, list[float]]] = {}
    for name, at in (("Q1", 2), ("Q2", 3)):
        for country in {row[0] for row in rows}:
            weights = [
                sum(r[1] for r in rows if r[0] == country and r[at] == code) for code in range(1, 5)
            ]
            people = [r for r in rows if r[0] == country and (r[at] or 0) in range(1, 5)]
            if people and sum(weights):
                out.setdefault(country, {})[name] = [w / sum(weights) for w in weights]
    return out


def check_shares(path: Path, rows: list[Row]) -> None:
    expected = shares_of(rows)
    if not expected:
        with pytest.raises(UserError, match=r"no item can be used|no country has"):
            read(path)
        return
    found = read(path).distributions
    assert found.keys() == expected.keys()
    for country, answers in expected.items():
        assert found[country].keys() == answers.keys()
        for item, shares in answers.items():
            np.testing.assert_allclose(found[country][item], shares, atol=1e-12)


def text_of(rows: list[Row], delimiter: str = ",", missing: str = "", comma: bool = False) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(HEADER)
    for country, weight, a, b, note in rows:
        number = repr(weight).replace(".", ",") if comma else repr(weight)
        codes = [missing if b is None else f"{b},0" if comma else str(b)]
        writer.writerow([country, number, a, *codes, note])
    return out.getvalue()


def as_write_table(rows: list[Row]) -> str:
    """Return a table as R's write.table does: spaces, quoted texts, row names without a header."""
    lines = [" ".join(f'"{name}"' for name in HEADER)]
    for i, (country, weight, a, b, _) in enumerate(rows, 1):
        lines.append(f'"{i}" "{country}" {weight!r} {a} {"NA" if b is None else b} "a b"')
    return "\n".join(lines) + "\n"


SPELLINGS: dict[str, Callable[[list[Row]], str | bytes]] = {
    "plain": text_of,
    "R": lambda rows: text_of(rows, missing="NA"),
    "Stata": lambda rows: text_of(rows, missing="."),
    "Stata's other missing values": lambda rows: text_of(rows, missing=".b"),
    "pandas": lambda rows: text_of(rows, missing="nan"),
    "databases": lambda rows: text_of(rows, missing="NULL"),
    "SPSS": lambda rows: text_of(rows, missing="#NULL!"),
    "tabs": lambda rows: text_of(rows, "\t"),
    "decimal commas": lambda rows: text_of(rows, ";", comma=True),
    "Excel's first line": lambda rows: "sep=;\r\n" + text_of(rows, ";"),
    "byte order mark": lambda rows: "\ufeff" + text_of(rows),
    "both": lambda rows: "\ufeffsep=;\n" + text_of(rows, ";", "NA"),
    "lower case": lambda rows: text_of(rows).replace(",".join(HEADER), ",".join(HEADER).lower()),
    "old line ends": lambda rows: text_of([(*r[:4], "x") for r in rows]).replace("\r\n", "\r"),
    "bars": lambda rows: text_of(rows, "|"),
    "write.table of R": as_write_table,
    "Excel's Unicode text": lambda rows: text_of(rows, "\t").encode("utf-16"),
    "UTF-16, the other way round": lambda rows: b"\xfe\xff" + text_of(rows).encode("utf-16-be"),
    "blank lines": lambda rows: text_of(rows) + "\r\n\r\n,,,,\r\n",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@FUZZ
@given(rows=rows_of_people)
def test_the_same_table_as_other_programs_save_it(
    tmp_path: Path, spell: Callable[[list[Row]], str | bytes], rows: list[Row]
) -> None:
    path, content = tmp_path / "wvs.csv", spell(rows)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert recognise(path) == "wvs"
    check_shares(path, rows)


@FUZZ
@given(rows=rows_of_people)
def test_row_names_that_r_writes_under_no_header(tmp_path: Path, rows: list[Row]) -> None:
    lines = text_of([(*r[:4], "x") for r in rows]).split("\r\n")
    named = [lines[0], *(f'"{i}",{line}' for i, line in enumerate(lines[1:-1], 1))]
    path = tmp_path / "wvs.csv"
    path.write_text("\n".join(named) + "\n")
    check_shares(path, rows)
    path.write_text("\n".join([lines[0], *(f"{line}," for line in lines[1:-1])]) + "\n")
    check_shares(path, rows)


cells_of_text = st.lists(st.text('ab"12 ,', max_size=6), min_size=1, max_size=25)


@FUZZ
@given(notes=cells_of_text, seed=st.integers(0, 2**32 - 1))
def test_quotation_marks_within_cells_mean_what_the_csv_module_says(
    tmp_path: Path, notes: list[str], seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(1, 5, len(notes))
    lines = [f"USA,1,{note},{code}" for note, code in zip(notes, codes, strict=True)]
    path = tmp_path / "wvs.csv"
    path.write_text("\n".join(["B_COUNTRY_ALPHA,W_WEIGHT,NOTE,Q1", *lines]) + "\n")
    with open(path, newline="") as file:
        rows = list(csv.reader(file))[1:]
    regular = all(len(row) == 4 and row[3] in tuple("1234") and row[0] == "USA" for row in rows)
    try:
        blocks = list(iter_blocks(open_file(path), ["Q1"]))
    except UserError:
        assert not regular
        return
    assert regular
    found = np.concatenate([block.codes_RxQ for block in blocks])[:, 0]
    assert found.tolist() == [int(row[3]) for row in rows]


def test_a_quotation_mark_within_a_cell_swallows_no_respondent(tmp_path: Path) -> None:
    cells = ['1,9" wall', "2,x", "2,x", '2,12" wall', "1,x", "2,x"]
    path = tmp_path / "wvs.csv"
    path.write_text("\n".join(["B_COUNTRY_ALPHA,W_WEIGHT,Q1,NOTE", *(f"USA,1,{c}" for c in cells)]))
    np.testing.assert_allclose(read(path).distributions["USA"]["Q1"], [1 / 3, 2 / 3, 0, 0])


@pytest.mark.parametrize("suffix", [".sav", ".zsav", ".dta", ".xpt"])
@settings(FUZZ, max_examples=8)
@given(rows=rows_of_people)
def test_statistics_programs_files(tmp_path: Path, suffix: str, rows: list[Row]) -> None:
    path = tmp_path / f"wvs{suffix}"
    table = pd.DataFrame(rows, columns=HEADER)
    table["Q2"] = table["Q2"].astype("float64")
    # A long string is several variables in a .sav; in an .xpt it has at most 200 characters.
    table["NOTE"] = table["NOTE"] + "x" * (180 if suffix == ".xpt" else 300)
    if suffix == ".dta":
        table = table.rename(columns=str.lower)
        pyreadstat.write_dta(table, str(path))
    elif suffix == ".xpt":
        pyreadstat.write_xport(table, str(path), file_format_version=8)
    else:
        pyreadstat.write_sav(table, str(path), compress=suffix == ".zsav")
    check_shares(path, rows)
    readers = {".dta": pyreadstat.read_dta, ".xpt": pyreadstat.read_xport}
    reader = readers.get(suffix, pyreadstat.read_sav)
    again, _ = reader(str(path))
    blocks = list(iter_blocks(open_file(path), ["Q1", "Q2"], chunk_rows=7))
    found = np.concatenate([block.codes_RxQ for block in blocks])
    theirs = again[[c for c in again.columns if c.lower() in ("q1", "q2")]].to_numpy(np.float64)
    np.testing.assert_array_equal(found, np.where(theirs >= 0, theirs, MISSING))


# -- scales ---------------------------------------------------------------------------------------


def people(*codes_of: tuple[str, list[int]], extra: str = "") -> str:
    names = [name for name, _ in codes_of]
    rows = zip(*(codes for _, codes in codes_of), strict=True)
    lines = [f"AND,1,{','.join(map(str, row))}" for row in rows]
    return "\n".join([f"B_COUNTRY_ALPHA,W_WEIGHT,{','.join(names)}", *lines]) + "\n" + extra


def test_a_scale_keeps_the_codes_that_nobody_chose(tmp_path: Path) -> None:
    path = tmp_path / "wvs.csv"
    path.write_text(
        people(("Q179", [7, 10, 1, 2]), ("Q138", [2, 3, 4, 2]), ("Q122", [2, 2, 1, -1]))
    )
    survey = read(path)
    assert {item.id: item.codes for item in survey.items} == {
        "Q122": (0, 1, 2),
        "Q138": (1, 2, 3, 4),
        "Q179": tuple(range(1, 11)),
    }
    assert survey.distributions["AND"]["Q138"] == (0, 0.5, 0.25, 0.25)
    assert "Q122 (0), Q138 (1), Q179 (3, 4, 5, 6, 8, 9)" in " ".join(survey.notes)


def test_codes_outside_a_published_scale(tmp_path: Path) -> None:
    path = tmp_path / "wvs.csv"
    path.write_text(people(("Q1", [1] * 19 + [9]), ("Q2", [1, 9] * 10), ("Q3", [-4] * 20)))
    survey = read(path)
    assert [item.id for item in survey.items] == ["Q1"]
    assert survey.distributions["AND"]["Q1"] == (1, 0, 0, 0)
    notes = "\n".join(survey.notes)
    assert "left out 1 item nobody answered: Q3" in notes
    assert "left out 1 item with many answers outside the published scale: Q2 (9)" in notes
    assert "counted as missing, because no option has the code: Q1 (9: 1 answers)" in notes


def test_the_table_of_scales_is_complete() -> None:
    assert all(len(published_codes(name)) >= 2 for name in ITEMS)
    assert [published_codes(name) for name in ("Q223", "Q260", "Q0", "Q33_3")] == [()] * 4
    assert scale_of("Q152") == "nominal"
    assert scale_of("Q234A") == scale_of("Q151A") == "ordinal"


@pytest.mark.user_data
def test_the_table_of_scales_is_culturespas() -> None:
    survey = cs.read(Path(os.environ["JAXALIGN_CULTURESPA_DATA"]))
    scales = {item.id: (item.codes, item.scale) for item in survey.items}
    assert len(scales) == 259
    assert scales == {name: (published_codes(name), scale_of(name)) for name in scales}


# -- editions and odd files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cell", "version"),
    [
        ("WVS_Wave_7_Andland_Csv_v5.0.csv", "1-5-0 (2020-11-16)", "5-0"),
        ("WVS_Cross-National_Wave_7_csv_v6_0.csv", "6-0-0 (2024-01-01)", "6-0"),
        ("renamed.csv", "6-0-0", "6-0"),
        ("renamed_v2.csv", "6-0-0", "6-0"),
        ("renamed_v5_0.csv", "", "5-0"),
        ("renamed.csv", "", "unknown"),
    ],
)
def test_versions(tmp_path: Path, name: str, cell: str, version: str) -> None:
    path = tmp_path / name
    path.write_text(f'version;B_COUNTRY_ALPHA;W_WEIGHT;Q1\n"{cell}";AND;1;1\n"{cell}";AND;1;2\n')
    assert read(path).version == version


def test_the_excel_edition_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wvs.csv"
    path.write_text(
        '"B_COUNTRY_ALPHA: ISO 3166-1 alpha-3","W_WEIGHT: Weight","Q1: Family"\nUSA,1,x\n'
    )
    assert recognise(path) == "wvs"
    book = tmp_path / "wvs.xlsx"
    with zipfile.ZipFile(book, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", "<si><t>B_COUNTRY_ALPHA: ISO 3166-1</t></si>")
    for file in (path, book):
        with pytest.raises(UserError, match=r"Excel edition, .*; download the CSV, SPSS or Stata"):
            read_survey(file)


def test_labels_instead_of_codes(tmp_path: Path) -> None:
    path = tmp_path / "wvs.csv"
    path.write_text("B_COUNTRY_ALPHA,W_WEIGHT,Q1\nUSA,1,Very important\n")
    with pytest.raises(UserError, match=r"row 2, column 'Q1': 'Very important' .*codes, not with"):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".sav", ".dta"])
def test_an_interview_is_judged_on_its_whole_row(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {
            "D_INTERVIEW": [1.0, 1.0, 2.0],
            "B_COUNTRY_ALPHA": ["USA"] * 3,
            "W_WEIGHT": [1.0] * 3,
            "Q1": [1.0, 1.0, 2.0],
            "Q2": [1.0, 3.0, 2.0],
        }
    )
    path = tmp_path / f"wvs{suffix}"

    def write(table: Any) -> None:
        if suffix == ".csv":
            table.to_csv(path)  # with row numbers, which say nothing
        else:
            getattr(pyreadstat, f"write_{suffix[1:]}")(table, str(path))

    write(table)
    np.testing.assert_allclose(read(path, items=["Q1"]).distributions["USA"]["Q1"][0], 2 / 3)
    write(pd.concat([table, table.iloc[1:2]], ignore_index=True))
    with pytest.raises(UserError, match=r"row 5, column 'D_INTERVIEW': .*in row 3 already"):
        read(path, items=["Q1"])


def test_an_unclosed_quotation_mark_in_the_last_column(tmp_path: Path) -> None:
    for end in ("", '"'):
        path = tmp_path / "wvs.csv"
        path.write_text(f'B_COUNTRY_ALPHA,W_WEIGHT,Q1,NOTE\nUSA,1,1,"a\nUSA,1,2,b\nUSA,1,2,c{end}')
        with pytest.raises(UserError, match="row 2: a quotation mark is opened and never closed"):
            read(path)


def test_bytes_that_are_no_text_in_a_label(tmp_path: Path) -> None:
    table = pd.DataFrame({"B_COUNTRY_ALPHA": ["DEU"] * 2, "W_WEIGHT": [1.0, 3.0], "Q1": [1.0, 2.0]})
    for suffix in (".sav", ".dta"):
        path = tmp_path / f"wvs{suffix}"
        write = getattr(pyreadstat, f"write_{suffix[1:]}")
        write(table, str(path), column_labels=["", "Gewicht", "Koeln"])
        content = path.read_bytes()
        assert content.count(b"Koeln") == 1
        path.write_bytes(content.replace(b"Koeln", b"K\xf6lnx"))
        assert read(path).distributions["DEU"]["Q1"] == (0.25, 0.75, 0, 0)


def test_the_sas_edition_is_read_by_pyreadstat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyreadstat writes no .sas7bdat, so that a .sav stands in for one."""
    table = pd.DataFrame({"B_COUNTRY_ALPHA": ["DEU"] * 2, "W_WEIGHT": [1.0, 3.0], "Q1": [1.0, 2.0]})
    pyreadstat.write_sav(table, str(tmp_path / "wvs.sas7bdat"))
    monkeypatch.setattr(pyreadstat, "read_sas7bdat", pyreadstat.read_sav)
    assert recognise(tmp_path / "wvs.sas7bdat") == "wvs"
    assert read(tmp_path / "wvs.sas7bdat").distributions["DEU"]["Q1"] == (0.25, 0.75, 0, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("S002VS,COUNTRY_ALPHA,S017,A001", "the time series of all waves"),
        ("studyno,cntry_AN,gwght,A001", "the joint file of EVS and WVS"),
        ("V1,B_COUNTRY_ALPHA,V4,V258", "'V1' are those of an earlier wave"),
    ],
)
def test_other_files_of_the_survey_are_named(tmp_path: Path, header: str, message: str) -> None:
    for name in ("wvs.csv", "wvs.sav"):
        path = tmp_path / name
        if name.endswith(".csv"):
            path.write_text(f"{header}\n{','.join('1' * len(header.split(',')))}\n")
        else:
            columns = {column: [1.0] for column in header.split(",")}
            pyreadstat.write_sav(pd.DataFrame(columns), str(path))
        with pytest.raises(UserError, match=message):
            read_survey(path)
