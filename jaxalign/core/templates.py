"""The one jinja environment: prompt texts, requests and report pages are all rendered with it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.core.errors import UserError

if TYPE_CHECKING:
    import jinja2


def make_environment(
    folder: Path | None = None, *, html: bool = False, trim_blocks: bool = True
) -> jinja2.Environment:
    """Return a jinja environment in which an undefined name is an error.

    Args:
        folder: Where `get_template` looks for files; without it only `from_string` works.
        html: Whether to escape every value for HTML.
        trim_blocks: Whether a line that holds nothing but a block tag leaves no trace, neither
            its indentation nor its line break.
    """
    import jinja2

    return jinja2.Environment(
        loader=None if folder is None else jinja2.FileSystemLoader(folder),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=trim_blocks,
        lstrip_blocks=trim_blocks,
    )


def render(name: str, source: str, /, *, trim_blocks: bool = True, **values: object) -> str:
    """Render the text of a prompt and strip the white space around it.

    Args:
        name: What the text is called in messages, such as "item.jinja".
        source: The jinja source.
        trim_blocks: As in `make_environment`.
        values: The names that the source may use.

    Raises:
        UserError: The source is not valid, or uses a name that is not among `values`.
    """
    try:
        return _compile(source, trim_blocks).render(**values).strip()
    except Exception as error:  # a template may hold any expression, and that may raise anything
        raise UserError(f"prompt text {name}: {error}; correct the file") from None


@functools.lru_cache(maxsize=64)
def names_used(source: str) -> frozenset[str]:
    """Return the names that a text uses without setting them; none if it is not valid jinja."""
    import jinja2
    import jinja2.meta

    try:
        return frozenset(jinja2.meta.find_undeclared_variables(make_environment().parse(source)))
    except jinja2.TemplateError:
        return frozenset()


@functools.lru_cache(maxsize=64)  # compiling takes far longer than rendering a question
def _compile(source: str, trim_blocks: bool) -> jinja2.Template:
    return make_environment(trim_blocks=trim_blocks).from_string(source)
