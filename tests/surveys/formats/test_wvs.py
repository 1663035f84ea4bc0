"""World Values Survey files written by the tests: shares counted by hand, and every refusal."""

from __future__ import annotations

import builtins
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.bench.survey.synthetic_wvs import column_names, sav_header, write_csv, write_sav
from jaxalign.core.errors import UserError
from jaxalign.surveys.formats import read_survey, wvs, wvs_stat, wvs_text
from jaxalign.surveys.formats.wvs import ITEMS, iter_blocks, read_wvs
from jaxalign.surveys.survey import Item, Survey

HEADER = "version,D_INTERVIEW,B_COUNTRY_ALPHA,W_WEIGHT,Q1,Q2,Q3"
ROWS = (
    "6-0-0,1,USA,1.5,1,2,4",
    "6-0-0,2,USA,0.5,2,2,-1",
    "6-0-0,3,USA,2,2,-5,4",
    "6-0-0,4,CHN,1,4,1,3",
    "6-0-0,5,CHN,3,1,1,-2",
)
ASKED = ("Q1", "Q2", "Q3")


def items(*codes: tuple[int, ...]) -> Survey:
    made = [
        Item(f"Q{i}", f"Question {i}?", tuple(f"answer {c}" for c in cs), cs)
        for i, cs in enumerate(codes, 1)
    ]
    return Survey("own", "1", "this test", "paraphrase", tuple(made))


OWN = items((1, 2, 3, 4), (2, 1), (1, 2, 3, 4))


def csv_file(folder: Path, text: str | None = None, name: str = "wvs.csv") -> Path:
    path = folder / name
    path.write_bytes((text if text is not None else "\n".join([HEADER, *ROWS]) + "\n").encode())
    return path


def read(path: Path, **options: Any) -> Survey:
    settings = {"items": ASKED, "min_respondents": 1, "use_cache": False} | options
    return read_wvs(path, **settings)


def check_by_hand(survey: Survey) -> None:
    usa, chn = survey.distributions["USA"], survey.distributions["CHN"]
    np.testing.assert_allclose(usa["Q1"], [1.5 / 4, 2.5 / 4, 0, 0])
    np.testing.assert_allclose(usa["Q2"], [1, 0])  # in the order of the options: 2, then 1
    np.testing.assert_allclose(usa["Q3"], [0, 0, 0, 1])
    np.testing.assert_allclose(chn["Q1"], [3 / 4, 0, 0, 1 / 4])
    np.testing.assert_allclose(chn["Q2"], [0, 1])
    np.testing.assert_allclose(chn["Q3"], [0, 0, 1, 0])


def test_weights_missing_codes_and_order_of_options(tmp_path: Path) -> None:
    survey = read(csv_file(tmp_path), wording=OWN)
    check_by_hand(survey)
    assert survey.items == OWN.items


@pytest.mark.parametrize("end", ["\n", "\r\n", "", "\n\n\r\n"])
@pytest.mark.parametrize("block_bytes", [60, 64, 77, 1 << 20])
def test_blocks_may_end_anywhere(tmp_path: Path, end: str, block_bytes: int) -> None:
    lines = "\r\n" if "\r" in end else "\n"
    path = csv_file(tmp_path, lines.join([HEADER, *ROWS]) + end)
    blocks = list(iter_blocks(wvs_text.open_text(path), ASKED, block_bytes=block_bytes))
    codes = np.concatenate([block.codes_RxQ for block in blocks])
    np.testing.assert_array_equal(codes, [[1, 2, 4], [2, 2, -1], [2, -1, 4], [4, 1, 3], [1, 1, -1]])
    rows = np.cumsum([0, *(len(block.weight_R) for block in blocks)])[:-1] + 2
    assert [block.first_row for block in blocks] == rows.tolist()


def semicolons(text: str) -> str:
    return text.replace(",", ";").replace("1.5", "1,5")


def quoted(text: str) -> str:
    return "\n".join(",".join(f'"{c}"' for c in row.split(",")) for row in text.split("\n"))


def floats(text: str) -> str:
    head, *rows = text.split("\n")
    return "\n".join([head, *(row[:-5] + row[-5:].replace(",", ".0,") + ".0" for row in rows)])


def with_texts(text: str) -> str:
    head, *rows = text.split("\n")
    return "\n".join([head + ",note", *(row + ',"a ""b"", c\nd"' for row in rows)])


SPELLINGS = {
    "semicolons and decimal commas": semicolons,
    "quoted": quoted,
    "codes as floats": floats,
    "texts with line breaks": with_texts,
    "byte order mark": lambda text: "\ufeff" + text,
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_other_spellings_of_the_same_file(tmp_path: Path, spell: Any) -> None:
    path = csv_file(tmp_path, spell("\n".join([HEADER, *ROWS])))
    check_by_hand(read(path, wording=OWN))


def test_an_empty_cell_is_missing_in_any_column(tmp_path: Path) -> None:
    text = "Q1,B_COUNTRY_ALPHA,W_WEIGHT\n,USA,1\n2,USA,1\n,USA,12\n1,USA,1\n,USA,1\n"
    path = csv_file(tmp_path, text)
    for block_bytes in range(40, 60):
        blocks = iter_blocks(wvs_text.open_text(path), ["Q1"], block_bytes=block_bytes)
        codes = np.concatenate([block.codes_RxQ for block in blocks])
        np.testing.assert_array_equal(codes[:, 0], [-1, 2, -1, 1, -1])


def test_without_wording_items_have_their_published_scales(tmp_path: Path) -> None:
    survey = read(csv_file(tmp_path))
    assert [(item.text, item.codes, item.topic) for item in survey.items] == [
        (f"Q{i}", (1, 2, 3, 4), "social values") for i in (1, 2, 3)
    ]
    np.testing.assert_allclose(survey.distributions["USA"]["Q1"], [1.5 / 4, 2.5 / 4, 0, 0])
    assert survey.version == "6-0"
    assert read(csv_file(tmp_path), items=None).sha256 == survey.sha256, "all that are there"
    assert len(ITEMS) == 259
    assert "Q223" not in ITEMS


def test_a_cell_with_few_respondents_is_absent(tmp_path: Path) -> None:
    survey = read(csv_file(tmp_path), min_respondents=2)
    assert set(survey.distributions["USA"]) == {"Q1", "Q2", "Q3"}
    assert set(survey.distributions["CHN"]) == {"Q1", "Q2"}
    assert set(read(csv_file(tmp_path), min_respondents=3).distributions) == {"USA"}
    with pytest.raises(UserError, match="no country has 4 answers"):
        read(csv_file(tmp_path), min_respondents=4)


def test_unknown_codes_may_be_dropped(tmp_path: Path) -> None:
    narrow = items((1, 2), (2, 1), (1, 2, 3, 4))
    with pytest.raises(UserError, match=r"code 4 is not one of .*\[1, 2\]; .*drop_unknown_codes"):
        read(csv_file(tmp_path), wording=narrow)
    survey = read(csv_file(tmp_path), wording=narrow, drop_unknown_codes=True)
    assert survey.distributions["CHN"]["Q1"] == (1, 0)
    np.testing.assert_allclose(survey.distributions["USA"]["Q1"], [1.5 / 4, 2.5 / 4])


def test_countries_that_the_file_lacks(tmp_path: Path) -> None:
    assert set(read(csv_file(tmp_path), countries=["CHN"]).distributions) == {"CHN"}
    with pytest.raises(UserError, match="no respondents in 'FRA'; the file has CHN USA"):
        read(csv_file(tmp_path), countries=["FRA"])
    old = csv_file(tmp_path, (HEADER + "\n" + "\n".join(ROWS)).replace("6-0-0", "5-0-0"))
    with pytest.raises(UserError, match=r"version 5 .* IND; download version 6"):
        read(old, countries=["IND"])
    unmarked = csv_file(tmp_path, "B_COUNTRY_ALPHA,W_WEIGHT,Q1\nUSA,1,1\nUSA,1,2\n", "x_v5_0.csv")
    assert read(unmarked, items=["Q1"]).version == "5-0"


def replaced(old: str, new: str) -> str:
    text = "\n".join([HEADER, *ROWS]) + "\n"
    assert old in text
    return text.replace(old, new, 1)


BAD = {
    "empty": ("", "the file is empty"),
    "blank": ("\n \n", "the file is empty"),
    "header only": (HEADER + "\n", "no respondents"),
    "no line end": (HEADER, "no rows below the header"),
    "truncated": (replaced("3,1,1,-2", "3,1"), "row 6: 5 cells where the header has 7; .*short"),
    "too long": (replaced("1,4,1,3", "1,4,1,3,9"), "row 5: 8 cells where the header has 7"),
    "quotation mark": (replaced("6-0-0,4", '"6-0-0,4'), "row 5: .*opened and never closed"),
    "tildes": (replaced("", "").replace(",", "~"), "row 1: .*neither commas, semicolons, tabs, b"),
    "an earlier wave": (replaced("W_WEIGHT", "V258"), "'V258' are those of an earlier wave"),
    "zero bytes": (replaced("USA", "U\0A"), "zero bytes"),
    "column twice": (replaced("Q2", "Q1"), "row 1, column 'Q1': the column is there twice"),
    "no weights": (replaced("W_WEIGHT", "weight"), "column 'W_WEIGHT': .*needs a weight"),
    "no country": (replaced("B_COUNTRY_ALPHA", "C"), "column 'B_COUNTRY_ALPHA': .*wave 7"),
    "no such item": (replaced("Q3", "Q4"), "column 'Q3': the column is absent"),
    "inverted": (replaced("Q3", "Q3,Q3P"), "inverted edition .*'Q3P'.*download"),
    "weight missing": (replaced("USA,2,", "USA,,"), "row 4, column 'W_WEIGHT': weight nan"),
    "weight below zero": (replaced("USA,2,", "USA,-4,"), "row 4, column 'W_WEIGHT': weight -4"),
    "weight a word": (replaced("USA,2,", "USA,two,"), "row 4, column 'W_WEIGHT': 'two'"),
    "country a number": (replaced("CHN,1", "156,1"), "row 5, column 'B_COUNTRY_ALPHA': '156'"),
    "joined": (replaced("", "") + HEADER + "\n", "row 7, column 'B_COUNTRY_ALPHA': the header"),
    "doubled": (replaced("", "") + ROWS[0] + "\n", "row 7, column 'D_INTERVIEW': .*row 2"),
    "code a word": (replaced("1.5,1,2", "1.5,no,2"), "row 2, column 'Q1': 'no' is not a code"),
    "code a half": (replaced("1.5,1,2", "1.5,1.5,2"), "row 2, column 'Q1': '1.5' is not a code"),
    "a year": (replaced("1.5,1,2", "1.5,1962,2"), "row 2, column 'Q1': '1962' is not a code"),
    "unknown code": (replaced("1,4,1,3", "1,7,1,3"), r"row 5, .*'Q1': code 7 .*\[1, 2, 3, 4\]"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_csv_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = csv_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read(path, wording=OWN, use_cache=True, cache_folder=tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists(), "nothing half-written"


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    for options, message in (
        ({"min_respondents": 0}, "min_respondents=0; at least 1"),
        ({"wording": OWN, "items": ["Q1", "Q2", "Q9"]}, "item 'Q9' is not in"),
        ({"items": []}, "no items asked for"),
        ({"items": ["Q9"], "wording": OWN}, "item 'Q9' is not in survey 'own'"),
        ({"wording": items((1, 70))}, r"codes \[1, 70\] of item 'Q1'"),
    ):
        with pytest.raises(UserError, match=message):
            read(path, **({"items": None} | options))
    with pytest.raises(UserError, match="none of the items Q1"):
        read(csv_file(tmp_path, replaced(",Q1,Q2,Q3", ",P,A,R")), items=None)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r"file type '\.xlsx'"):
        read(csv_file(tmp_path, name="wvs.xlsx"))


# -- cache ----------------------------------------------------------------------------------------


def test_the_cache_answers_for_the_same_file_and_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache" / "xla"))
    path, kept = csv_file(tmp_path), tmp_path / "cache" / "surveys"
    first = read(path, use_cache=True, wording=OWN)
    assert len(list(kept.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(wvs, "iter_blocks", None)  # would raise: nothing is parsed again
        again = read(path, use_cache=True, wording=OWN)
        fewer = read(path, use_cache=True, wording=OWN, min_respondents=2)
    assert again.sha256 == first.sha256
    assert "Q3" not in fewer.distributions["CHN"]
    assert read(path, use_cache=True).items != first.items
    path.write_text(replaced("1.5", "2.5"), encoding="utf-8")
    assert read(path, use_cache=True, wording=OWN).sha256 != first.sha256
    assert len(list(kept.iterdir())) == 3
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert read(path, use_cache=True).distributions, "a broken entry is read anew"
    assert not list(kept.glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    survey = read(csv_file(tmp_path), use_cache=True, cache_folder=tmp_path / "file")
    assert survey.distributions


# -- .sav and .dta ---------------------------------------------------------------------------------


def dta_file(path: Path, rows: list[tuple[str, float, int, int]], names: tuple[str, ...]) -> Path:
    """A Stata file of format 114: a country, a weight, and two codes."""
    columns = len(names)
    out = struct.pack("<BBBBhi", 114, 2, 1, 0, columns, len(rows)) + b"\0" * (81 + 18)
    out += bytes([3, 255, 252, 252])  # str3, double, int, int
    out += b"".join(name.encode().ljust(33, b"\0") for name in names)
    out += b"\0" * 2 * (columns + 1) + b"".join(b"%9.0g".ljust(49, b"\0") for _ in names)
    out += b"\0" * (33 + 81) * columns + b"\0" * 5
    out += b"".join(struct.pack("<3sdhh", c.encode(), w, a, b) for c, w, a, b in rows)
    path.write_bytes(out)
    return path


def test_sav_and_csv_agree(tmp_path: Path) -> None:
    write_csv(tmp_path / "wvs.csv", 300, 16, seed=3)
    write_sav(tmp_path / "wvs.sav", 300, 16, seed=3)
    asked = column_names(16)[2:]
    from_csv = read(tmp_path / "wvs.csv", items=asked)
    from_sav = read(tmp_path / "wvs.sav", items=asked)
    assert from_sav.items == from_csv.items
    assert from_sav.distributions == from_csv.distributions
    assert len(from_csv.distributions) == 64


def test_sav_is_read_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "wvs.sav"
    write_sav(path, 300, 16)
    file = wvs_stat.open_stat(path)
    whole = next(iter_blocks(file, ["Q1", "Q2"]))
    chunks = list(iter_blocks(file, ["Q1", "Q2"], chunk_rows=128))
    assert [len(chunk.weight_R) for chunk in chunks] == [128, 128, 44]
    assert [c.first_row for c in chunks[1:]] == [c.first_row + len(c.weight_R) for c in chunks[:-1]]
    np.testing.assert_array_equal(np.concatenate([c.codes_RxQ for c in chunks]), whole.codes_RxQ)


def plain_sav(path: Path, rows: list[tuple[str, float, float]]) -> Path:
    """A .sav without compression, whose third column declares 1 ... 2 and 9 missing."""
    write_sav(path, 64, 8)
    head = bytearray(sav_header(len(rows), ("B_COUNTRY_ALPHA", "W_WEIGHT", "Q1")))
    head[72:76] = struct.pack("<i", 0)
    third = 176 + 2 * 32
    head[third + 12 : third + 16] = struct.pack("<i", -3)
    head[third + 32 : third + 32] = struct.pack("<3d", 1, 2, 9)
    cells = (c.encode().ljust(8) + struct.pack("<2d", w, code) for c, w, code in rows)
    path.write_bytes(bytes(head) + b"".join(cells))
    return path


def test_sav_without_compression_and_with_declared_missing_values(tmp_path: Path) -> None:
    rows = [("USA", 1.0, code) for code in (1, 2, 9, 3, 4, 4, -1.7976931348623157e308)]
    survey = read(plain_sav(tmp_path / "wvs.sav", rows), items=["Q1"])
    assert survey.items[0].codes == (1, 2, 3, 4)
    np.testing.assert_allclose(survey.distributions["USA"]["Q1"], [0, 0, 1 / 3, 2 / 3])
    with pytest.raises(UserError, match=r"row 4, column 'Q1': 4\.5 is not a code"):
        read(plain_sav(tmp_path / "wvs.sav", [*rows[3:5], ("USA", 1.0, 4.5)]), items=["Q1"])
    with pytest.raises(UserError, match="row 3, column 'B_COUNTRY_ALPHA': ''"):
        read(plain_sav(tmp_path / "wvs.sav", [rows[3], ("", 1.0, 4)]), items=["Q1"])


def test_dta(tmp_path: Path) -> None:
    rows = [("USA", 1.5, 1, 2), ("USA", 0.5, 2, -1), ("CHN", 1.0, 32745, 1)]  # 32745: missing
    names = ("B_COUNTRY_ALPHA", "W_WEIGHT", "Q1", "Q2")
    path = dta_file(tmp_path / "wvs.dta", rows, names)
    survey = read_survey(path, items=["Q1", "Q2"], min_respondents=1, use_cache=False)
    np.testing.assert_allclose(survey.distributions["USA"]["Q1"], [0.75, 0.25, 0, 0])
    assert survey.distributions["USA"]["Q2"] == (0, 1, 0, 0)
    assert set(survey.distributions["CHN"]) == {"Q2"}
    for wrong, message in (
        (("usa", 1.0, 1, 1), "row 2, column 'B_COUNTRY_ALPHA'"),
        (("USA", -1.0, 1, 1), "row 2, column 'W_WEIGHT'"),
        (("USA", 1.0, 900, 1), "row 2, column 'Q1': 900 is not a code"),
    ):
        with pytest.raises(UserError, match=message):
            read(dta_file(path, [wrong, *rows], names), items=["Q1"])
    with pytest.raises(UserError, match="inverted edition"):
        read(dta_file(path, rows, ("B_COUNTRY_ALPHA", "W_WEIGHT", "Q1", "Q1P")), items=["Q1"])


def test_a_sav_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "wvs.sav"
    write_sav(path, 300, 16)
    whole = path.read_bytes()
    for size in (0, 3, 100, 400, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"empty|not readable|cut short"):
            read(path, items=["Q1"])


@pytest.mark.parametrize(("suffix", "package"), [(".dta", "pyreadstat"), (".csv", "pyarrow")])
def test_without_its_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str
) -> None:
    path = csv_file(tmp_path, name=f"wvs{suffix}")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"needs {package}; pip install 'jaxalign\[survey\]'"):
        read(path)


# -- fuzzing --------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=4
)


def mutated(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for where, cut, new in changes:
        at = int(where * len(content))
        content = content[:at] + new + content[at + cut :]
    return content


def only_user_errors(path: Path, content: bytes, **options: Any) -> None:
    path.write_bytes(content)
    said, distributions = "", {}
    try:
        distributions = read(path, **options).distributions
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    for answers in distributions.values():
        for shares in answers.values():
            assert abs(sum(shares) - 1) < 1e-6


FUZZ = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(changes=edits, keep=st.floats(0, 1))
def test_a_damaged_csv_is_refused_or_read(tmp_path: Path, changes: Any, keep: float) -> None:
    content = mutated(("\n".join([HEADER, *ROWS]) + "\n").encode(), changes)
    only_user_errors(tmp_path / "wvs.csv", content)
    only_user_errors(tmp_path / "wvs.csv", content[: int(keep * len(content))], wording=OWN)


@FUZZ
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("wvs.csv", "wvs.sav", "wvs.dta"):
        only_user_errors(tmp_path / name, content)
    only_user_errors(tmp_path / "wvs.csv", (HEADER + "\n").encode() + content)


@settings(FUZZ, max_examples=40)
@given(changes=edits, keep=st.floats(0, 1))
def test_a_damaged_sav_or_dta_is_refused_or_read(tmp_path: Path, changes: Any, keep: float) -> None:
    write_sav(tmp_path / "wvs.sav", 64, 8)
    names = ("B_COUNTRY_ALPHA", "W_WEIGHT", "Q1", "Q2")
    dta_file(tmp_path / "wvs.dta", [("USA", 1.0, 1, 2), ("USA", 1.0, 2, 2)], names)
    for name in ("wvs.sav", "wvs.dta"):
        whole = (tmp_path / name).read_bytes()
        only_user_errors(tmp_path / name, whole[: int(keep * len(whole))], items=["Q1"])
        content = mutated(whole, changes)
        only_user_errors(tmp_path / name, content, items=["Q1"])
