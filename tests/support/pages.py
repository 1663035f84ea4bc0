"""Checks of a report's page and Markdown: well-formed, complete, and loading nothing."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

# A name that is markup in HTML and in Markdown: it must appear in a report as plain text.
HOSTILE = "<script>alert(1)</script> & | `$x^2$`"
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags of a page, checked for balance; its figures with what stands inside each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.figures: list[dict[str, list]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "figure":
            self.figures.append({"alts": [], "tags": []})
        if "figure" in self.open:
            self.figures[-1]["tags"].append(tag)
            fields = dict(attrs)
            if fields.get("role") == "img":
                self.figures[-1]["alts"].append(fields.get("aria-label", ""))
        if tag == "th":
            assert dict(attrs).get("scope") in ("col", "row")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def check_page(path: Path) -> Page:
    """A page that stands alone: balanced, nothing loaded, no script, no identifier used twice.

    What it links to is a file beside it: figures and tables for other programs.
    """
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert not set(page.tags) & {"script", "link", "iframe", "object", "image"}
    assert "://" not in text
    for name, value in page.attributes:
        if name == "src" or (name == "href" and not value.startswith("#")):
            beside = name == "href" and (path.parent / unquote(value)).is_file()
            assert beside or value.startswith("data:image/png;base64,"), value
    assert len(page.ids) == len(set(page.ids))
    anchors = {v[1:] for n, v in page.attributes if n == "href" and v.startswith("#")} | set(
        re.findall(r"url\(#(.*?)\)", text)
    )
    assert anchors <= set(page.ids)
    assert page.figures
    for figure in page.figures:
        assert len(figure["alts"]) == 1
        assert len(figure["alts"][0]) > 20
        assert {"svg", "figcaption", "details", "table", "caption"} <= set(figure["tags"])
    check_files(path.parent, page)
    return page


def check_files(folder: Path, page: Page) -> None:
    """Each table of a page is linked as CSV and LaTeX, each figure as SVG too, and can be read."""
    links = {unquote(v) for n, v in page.attributes if n == "href"}
    for kind in ("csv", "tex"):
        linked = [link for link in links if link.endswith(f".{kind}")]
        assert len(linked) == page.tags.count("table")
    assert sum(link.endswith(".svg") for link in links) == len(page.figures)
    for link in (link for link in links if link.endswith(".csv")):
        with (folder / link).open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert all(len(row) == len(head) for row in rows), link
        latex = (folder / link).with_suffix(".tex").read_text("utf-8")
        body = re.sub(r"\\[{}\\]", "", latex)
        assert body.count("{") == body.count("}"), link
        cells = [line.count(" & ") for line in latex.splitlines() if line.endswith(r" \\")]
        assert len(set(cells) - ({0} if "longtable" in latex else set())) <= 1, link


def check_markdown(path: Path) -> str:
    """Pictures exist, with words in place of each; rows of a table are equally long."""
    text = path.read_text("utf-8")
    pictures = re.findall(r"!\[(.*?)\]\(<(.*?)>\)", text)
    assert pictures
    for alt, link in pictures:
        assert len(alt) > 20
        assert (path.parent / link).read_bytes()[:4] == b"\x89PNG"
    assert text.count("<details>") == text.count("</details>") >= len(pictures)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(cells)) == 1, table
        assert re.fullmatch(r"\|( (---|---:) \|)+", table.splitlines()[1])
    return text


def check_report(out: Path) -> None:
    """Check both forms of the report in `out`; no hostile name and no missing value leaks."""
    check_page(out / "report.html")
    text = check_markdown(out / "report.md")
    for content in (text, (out / "report.html").read_text("utf-8")):
        assert "<script>" not in content
        assert "NaN" not in content
        assert not re.search(r"\b(nan|None)\b", content)
