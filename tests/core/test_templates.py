"""The one jinja environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.templates import make_environment, render


def test_lines_of_block_tags_leave_no_trace_and_white_space_is_stripped() -> None:
    source = "\n  {% for x in values %}\n  - {{ x }}\n  {% endfor %}\n"
    assert render("list.jinja", source, values=[1, 2]) == "- 1\n  - 2"
    untrimmed = render("list.jinja", source, trim_blocks=False, values=[1, 2])
    assert untrimmed == "- 1\n  \n  - 2"


def test_a_value_may_be_called_name_or_source() -> None:
    assert render("x", "{{ name }} {{ source }}", name="a", source="b") == "a b"


@pytest.mark.parametrize("source", ["{{ absent }}", "{% if %}", "{{ 1 / 0 }}", "{{ x.y.z }}"])
def test_what_cannot_be_rendered_is_a_user_error(source: str) -> None:
    with pytest.raises(UserError, match=r"prompt text item\.jinja: .*correct the file"):
        render("item.jinja", source, x={})


def test_html_is_escaped_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "page.jinja").write_text("{{ text }}")
    page = make_environment(tmp_path, html=True).get_template("page.jinja")
    assert page.render(text="<b>") == "&lt;b&gt;"
    assert make_environment().from_string("{{ text }}").render(text="<b>") == "<b>"
