"""Join a survey that is only shares with another file's wording of its items."""

from __future__ import annotations

import dataclasses

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Item, Survey

_MOST_NAMED = 12  # items that a note lists


def add_wording(survey: Survey, wording: Survey) -> Survey:
    """Return how groups answered, with the items as another survey words them.

    Items are joined by their ids, whatever their case. World Values Survey files hold codes alone;
    CultureSPA's folder or a file of your own words the same items. The shares stay those of
    `survey`: weighted ones, if it is a World Values Survey file, in place of the unweighted tables
    that CultureSPA publishes. Options with negative codes ("don't know") are left out of the words.

    Args:
        survey: A survey that says how groups answered.
        wording: A survey whose items have their wording. Its own answers are not used.

    Returns:
        The items that both have, in the order of `survey`; `notes` says which are left out.

    Raises:
        UserError: No item is in both, or the options of one differ in number or order.

    Examples:
        >>> from jaxalign.surveys import Item, Survey, add_wording
        >>> codes = Item("q1", "q1", ("1", "2"), (1, 2))
        >>> shares = {"night owls": {"q1": (0.25, 0.75)}}
        >>> survey = Survey("codes", "1", "made up", "paraphrase", (codes,), shares)
        >>> item = Item("q1", "Is tea better than coffee?", ("yes", "no"), (1, 2))
        >>> worded = add_wording(survey, Survey("words", "1", "made up", "official", (item,)))
        >>> worded.items[0].options, worded.distributions["night owls"]["q1"]
        (('yes', 'no'), (0.25, 0.75))
    """
    words = {item.id: item for item in wording.items}
    folded = {item.id.casefold(): item for item in reversed(wording.items)}
    by_id = {
        item.id: worded
        for item in survey.items
        if (worded := words.get(item.id) or folded.get(item.id.casefold())) is not None
    }
    kept = [item.id for item in survey.items if item.id in by_id]
    if not kept:
        raise UserError(
            f"no item of {survey.name} is worded in {wording.name}: the one has "
            f"{survey.items[0].id!r}, the other {wording.items[0].id!r}; ids must be the same"
        )
    without = [item.id for item in survey.items if item.id not in by_id]
    items = {
        item.id: _joined(survey, item, wording, by_id[item.id])
        for item in survey.items
        if item.id in by_id
    }
    notes = list(survey.notes)
    if without:
        named = ", ".join(without[:_MOST_NAMED]) + (" ..." if len(without) > _MOST_NAMED else "")
        notes.append(f"left out {len(without)} items that {wording.name} does not word: {named}")
    return dataclasses.replace(
        survey.subset(set(kept)),
        name=f"{survey.name}, worded",
        source=f"{survey.source}; wording: {wording.source}",
        wording=wording.wording,
        items=tuple(items[item_id] for item_id in kept),
        notes=tuple(notes),
    )


def _joined(survey: Survey, item: Item, wording: Survey, worded: Item) -> Item:
    """Return the worded item. Raise UserError unless both have the same options in one order."""
    where = f"item {item.id}"
    # Questionnaires print "-1 = don't know" beside the options; a survey counts it as no answer.
    if min(item.codes) >= 0 and min(worded.codes) < 0 and max(worded.codes) >= 0:
        worded = _without_negative_codes(worded)
    if len(worded.options) != len(item.options):
        raise UserError(
            f"{where}: {len(worded.options)} options in {wording.name} and {len(item.options)} in "
            f"{survey.name}; correct the wording's options, or leave the item out of it"
        )
    if worded.codes != item.codes:
        raise UserError(
            f"{where}: codes {list(worded.codes)} in {wording.name} and {list(item.codes)} in "
            f"{survey.name}; give the options their codes, in the same order"
        )
    # Whether options have an order is known of the survey; a file of words may not say.
    return dataclasses.replace(
        worded, id=item.id, scale=item.scale, topic=worded.topic or item.topic
    )


def _without_negative_codes(item: Item) -> Item:
    kept = [i for i, code in enumerate(item.codes) if code >= 0]
    if len(kept) < 2:
        return item
    return dataclasses.replace(
        item,
        options=tuple(item.options[i] for i in kept),
        codes=tuple(item.codes[i] for i in kept),
    )
