"""Texts and pages from jinja templates.

Report pages ship with the package and are rendered as they are. Everything else may come from a
stranger (a model's folder, a prompt folder, a recorded run) and is rendered in a sandbox with
bounds (`jaxalign.core.sandbox`).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.core.errors import UserError

if TYPE_CHECKING:
    import jinja2


def make_environment(
    folder: Path | None = None, *, html: bool = False, trim_blocks: bool = True
) -> jinja2.Environment:
    """Return a jinja environment for the package's own pages; an undefined name is an error.

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
    from jaxalign.core.sandbox import bounded

    try:
        with bounded():
            return _compile(source, trim_blocks).render(**values).strip()
    except Exception as error:  # a template may hold any expression, and that may raise anything
        raise UserError(f"prompt text {name}: {error}; correct the file") from None


def render_chat(source: str, /, **values: object) -> str:
    """Render a model's chat template as transformers does, in a sandbox with bounds.

    Templates of the hub expect the filter `tojson`, which escapes nothing, and the functions
    `raise_exception` and `strftime_now`; names that are not set count as false.

    Args:
        source: The jinja source.
        values: The names that the source may use, such as `messages`; `today` is the date that
            `strftime_now` writes.

    Raises:
        Exception: Whatever the template raises; it may hold any expression.
    """
    from jaxalign.core.sandbox import bounded

    with bounded():
        return _compile_chat(source).render(**values)


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
    import jinja2

    from jaxalign.core.sandbox import Sandbox

    environment = Sandbox(
        undefined=jinja2.StrictUndefined, trim_blocks=trim_blocks, lstrip_blocks=trim_blocks
    )
    return environment.from_string(source)


@functools.lru_cache(maxsize=16)
def _compile_chat(source: str) -> jinja2.Template:
    import jinja2

    from jaxalign.core.sandbox import Sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    @jinja2.pass_context
    def strftime_now(context: jinja2.runtime.Context, layout: str) -> str:
        return context["today"].strftime(layout)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True)
    environment.add_filter("tojson", _to_json)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
