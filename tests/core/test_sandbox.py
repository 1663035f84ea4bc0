"""Templates of strangers: neither reach out nor run for long nor fill the memory."""

from __future__ import annotations

import datetime
import tracemalloc

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from jaxalign.core import sandbox
from jaxalign.core.errors import UserError
from jaxalign.core.templates import render, render_chat

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is {100000} % 50000 of <b>tea</b>\nbetter than 'coffee'?"},
]
TODAY = datetime.date(2024, 7, 26)

GROWING = "{% set n = namespace(x='abcdefgh') %}{% for i in range(60) %}GROW{% endfor %}"
HOSTILE = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(80) }}",
    "endless recursion": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "product": "{{ 'x' * 10**9 }}",
    "product of lists": "{{ [[1] * 1000] * 1000 * 1000 * 1000 }}",
    "power": "{{ 9 ** 999999999 }}",
    "range": "{{ range(10**12) | list }}",
    "doubling ~": GROWING.replace("GROW", "{% set n.x = n.x ~ n.x %}"),
    "doubling +": GROWING.replace("GROW", "{% set n.x = n.x + n.x %}"),
    "doubling block": GROWING.replace("GROW", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "width of %": "{{ '%1000000000d' % 1 }}",
    "width from an argument of %": "{{ '%*d' % (1000000000, 1) }}",
    "width of the filter format": "{{ '%1000000000d' | format(1) }}",
    "width of str.format": "{{ '{:1000000000d}'.format(1) }}",
    "width from an argument of str.format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "padding": "{{ 'x'.ljust(10**9) }}",
    "padding by a filter": "{{ 'x' | center(1000000000) }}",
    "indentation": "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "replacement": "{{ ('a' * 9999).replace('a', 'b' * 9999) | length }}",
    "join": "{{ 'x'.join(['y' * 9999] * 99999) }}",
    "mapped filter": "{{ ['a', 'b'] | map('center', 999999999) | list }}",
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "change of the messages": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_before_it_takes_memory(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing makes a step 50 times slower: a tenth of them is enough.
    monkeypatch.setattr(sandbox, "MOST_STEPS", 30_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"prompt text a\.jinja: .+; correct the file"):
            render("a.jinja", source, messages=MESSAGES)
        with pytest.raises(Exception, match=r"."):
            render_chat(source, messages=MESSAGES, today=TODAY)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert len(MESSAGES) == 2


# What templates of the hub use, in our own words.
ORDINARY = {
    "loop controls and namespace": (
        "{% set n = namespace(first=true) %}{% for m in messages %}"
        "{% if loop.index0 > 5 %}{% break %}{% endif %}"
        "{{ '' if n.first else '|' }}{% set n.first = false %}{{ m['content'] | trim }}"
        "{% endfor %}"
    ),
    "loop attributes": (
        "{% for m in messages %}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}"
        "{{ loop.previtem.role if loop.previtem is defined }}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}",
    "names that are not set": "{% if tools %}x{% endif %}{{ bos_token }}{{ nothing }}",
    "macros and methods": (
        "{% macro turn(m) %}{{ '<|' ~ m.role.upper() ~ '|>' + m.content.replace('tea', 'cocoa') }}"
        "{% endmacro %}{% for m in messages[1:] %}{{ turn(m) }}{% endfor %}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ 3 * 'ab' }}{{ 2 ** 10 % 7 }}"
    ),
    "dicts and filters": (
        "{% for k, v in messages[0].items() %}{{ k }}={{ v | length }};{% endfor %}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages[1].content.split('\\n')[-1] }}{{ '%s-%03d' % ('a', 7) }}{{ 'a' | indent(2) }}"
    ),
    "white space": "{%- for m in messages %}\n    {{- m.role }}\n  {%- endfor %}\n\nend\n",
}


@pytest.mark.parametrize("source", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_chat_template_gives_what_transformers_gives(source: str) -> None:
    values = {"bos_token": "<s>", "date_string": "26 Jul 2024"}
    [expected], _ = render_jinja_template([MESSAGES], chat_template=source, **values)
    assert render_chat(source, messages=MESSAGES, today=TODAY, **values) == expected


def test_a_long_conversation_stays_within_the_bounds() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim }}"
        "{{ '<|im_end|>' ~ '\\n' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 2000}] * 500
    assert len(render_chat(source, messages=messages, today=TODAY)) > 4e6


def test_a_template_that_writes_the_date_writes_the_one_it_is_given() -> None:
    source = "{{ strftime_now('%d %B %Y') }}"
    assert render_chat(source, messages=[], today=TODAY) == "26 July 2024"
