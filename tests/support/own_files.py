"""Survey files as a user would write them."""

from __future__ import annotations

from pathlib import Path


def own_csv(folder: Path, countries: tuple[str, ...]) -> dict[str, Path]:
    """Write a survey of three items as CSV, and how countries answered it as a second one."""
    rows = [f"q{i},Is made-up thing {i} right?,1=no|2=perhaps|3=yes,things" for i in range(3)]
    (folder / "own.csv").write_text("\n".join(["id,text,options,topic", *rows]) + "\n", "utf-8")
    shares = [
        f"{c},q{i},{code},{share}"
        for n, c in enumerate(countries)
        for i in range(3)
        for code, share in ((1 + (n + i) % 3, 0.7), (1 + (n + i + 1) % 3, 0.3))
    ]
    text = "\n".join(["country,item,code,share", *shares]) + "\n"
    (folder / "shares.csv").write_text(text, "utf-8")
    return {"survey": folder / "own.csv", "distributions": folder / "shares.csv"}


def wvs_csv(folder: Path) -> Path:
    """Write a World Values Survey file of two countries and two items, which holds codes alone."""
    rows = [
        f"6-0-0,{i},{country},1,{1 + i % 4},{1 + i % 2}"
        for c, country in enumerate(("USA", "CHN"))
        for i in range(60 * c, 60 * c + 60)
    ]
    header = "version,D_INTERVIEW,B_COUNTRY_ALPHA,W_WEIGHT,Q1,Q2"
    path = folder / "wvs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return path


def wvs_people(folder: Path, people: dict[str, int]) -> Path:
    """Write a World Values Survey file with some women and men of each country.

    Args:
        folder: Where to write it.
        people: Number of respondents by group, such as {"USA:female": 60}.
    """
    rows = []
    for group, count in people.items():
        country, sex = group.split(":")
        code = {"male": 1, "female": 2}[sex]
        rows += [f"{country},1,{code},{1 + (i + code) % 4},{1 + i % 3}" for i in range(count)]
    path = folder / "wvs_people.csv"
    path.write_text("\n".join(["B_COUNTRY_ALPHA,W_WEIGHT,Q260,Q1,Q2", *rows]) + "\n", "utf-8")
    return path
