"""The conversations of several prompt styles as tokens, style by style and country by country."""

from __future__ import annotations

from collections.abc import Sequence

from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import encode
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.styles import Interviews, Style
from jaxalign.surveys.survey import Item

NOBODY = ("",)  # the country of a style that names none


def asked_of(style: Style, countries: Sequence[str]) -> tuple[str, ...]:
    """Whom a style is put to: `countries`, or nobody where it names none and is asked once."""
    return NOBODY if style == "unaware" else tuple(countries)


def encode_styles(
    tokens: Tokenizer,
    interviews: Interviews,
    styles: Sequence[Style],
    countries: Sequence[str],
    items: Sequence[Item],
) -> Conversations:
    """Every item in every style to every country of `asked_of`, style by style and country by
    country; a style's results reshape to [C, Q]."""
    lead_ins, pairs = [], []
    for style in styles:
        groups = interviews.groups(style, items)
        for country in asked_of(style, countries):
            place = {}
            for group in groups:
                place |= {q: len(lead_ins) for q in group}
                lead_ins.append(interviews.lead_in(style, country, items[group[0]]))
            pairs += [(place[q], q) for q in range(len(items))]
    return encode(tokens, interviews.texts.prompts, lead_ins, items, pairs)
