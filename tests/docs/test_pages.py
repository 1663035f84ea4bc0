"""Test what the documentation says about itself: length, links, commands and options."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from jaxalign import cli
from jaxalign.core.terms import TERMS
from jaxalign.methods.base import METHODS
from tests.docs.pages import PAGES, ROOT, blocks, name

README = ROOT / "README.md"


def test_the_readme_is_short_and_shows_python():
    assert len(README.read_text().split()) <= 900
    code = "".join(b.code for b in blocks(README) if b.language == "python")
    lines = [x for x in code.splitlines() if x.strip() and not x.strip().startswith("#")]
    assert len(lines) >= 12


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    """mkdocs checks the links inside the site; this also checks those of the other pages."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def commands(page: Path) -> list[str]:
    """Return the shell commands of a page: of its code blocks, and inline ones."""
    text = page.read_text()
    inline = re.findall(r"`((?:jaxalign|python -m|make) [^`]+)`", re.sub(r"```.*?```", "", text))
    fenced = [
        re.sub(r"\s+#\s.*", "", line).strip()
        for block in blocks(page)
        if block.language in ("", "bash", "sh")
        for line in block.code.replace("\\\n", " ").splitlines()
    ]
    return [command for command in inline + fenced if command]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_exists(page: Path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands(page):
        words = command.split()
        where = f"{name(page)}: {command}"
        if words[0] == "jaxalign" and words[1] != "COMMAND":
            assert words[1] in cli.COMMANDS, where
        elif words[:2] == ["python", "-m"]:
            check_module(words[2], where)
        elif words[0] == "make":
            assert words[1] in targets, where


def check_module(module: str, where: str) -> None:
    """Fail if `python -m module` would not start."""
    if module in ("MODULE", "experiments.NAME"):  # stands for any
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None, where
    if spec.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None, where


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of every sub-command, from its help text."""
    import contextlib
    import io

    found = {}
    for command in cli.COMMANDS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main([command, "--help"])
        found[command] = set(re.findall(r"--[a-z][\w.-]*", out.getvalue()))
        assert found[command], f"jaxalign {command} --help names no option"
    return found


EXPERIMENTS = {
    "experiments.soft_prompt": "soft-prompt",
    "experiments.culturespa": "culturespa",
    "experiments.sweep": "sweep",
    "experiments.fine_tune": "fine-tune",
    "experiments.write_questions": "write-questions",
    "experiments.filter_questions": "filter-questions",
    "experiments.score_replies": "score",
    "experiments.survey_check": "check",
    "experiments.reproduce": "reproduce",
    "tpu.plan": "plan",
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_of_a_command_exists(page: Path, options):
    for line in commands(page):
        words = line.split()
        command = words[1] if words[0] == "jaxalign" else EXPERIMENTS.get(" ".join(words[2:3]))
        if command not in options or words[0] not in ("jaxalign", "python"):
            continue
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", line):
            assert option in options[command] | {"--help"}, f"{name(page)}: {line}"


def test_options_that_a_page_explains_exist(options):
    """The how-to pages explain options in the text; each is one of some command."""
    known = set().union(*options.values()) | {"--help", "--dry-run", "--log_samples"}
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and page.name != "benchmarks.md":
            for option in re.findall(r"`(--[a-z][\w.-]*)", page.read_text()):
                assert option in known, f"{name(page)} names {option}"


def test_the_table_of_experiments_has_a_row_for_each_module():
    table = (ROOT / "experiments" / "README.md").read_text()
    folders = [ROOT / "experiments", *(ROOT / "experiments").glob("*/"), *studies()]
    for folder in folders:
        for path in [*folder.glob("*.py"), *folder.glob("*/__main__.py")]:
            module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
            module = module.removesuffix(".__main__")
            if 'if __name__ == "__main__"' in path.read_text() and "worker" not in module:
                assert f"`{module}`" in table or module in INTERNAL, f"no row for {module}"


INTERNAL = {"experiments.bench.survey.reader"}


def studies() -> list[Path]:
    """Return the folder of the studies, which is one level deeper than the other experiments."""
    return [ROOT / "experiments" / "culturespa" / "studies"]


def test_the_site_needs_no_network():
    config = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in config
    assert "http" not in re.sub(r"#.*", "", config)


def test_the_glossary_has_every_abbreviation_in_the_words_of_reports():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.+?) \| .+ \|$", text, re.M))
    assert rows == rows | {term.short: term.meaning for term in TERMS}
    names = re.findall(r"^\| (.+?) \| (.+?) \| `(\w+)`.* \| .+ \|$", text, re.M)
    assert len(names) >= 12
    for title, label, key in names:
        assert title == METHODS[key].title
        assert label.startswith("DE, ") or label == METHODS[key].label
