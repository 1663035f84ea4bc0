"""Whether a survey says what it asks: files that may not carry a wording name items by id alone."""

from __future__ import annotations

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Survey


def wordless(survey: Survey) -> list[str]:
    """Ids of the items whose text is no more than their id."""
    return [item.id for item in survey.items if item.text.strip() == item.id]


def check_wording(survey: Survey, where: str) -> None:
    """Raise UserError, which begins with `where`, unless a model can be asked every item."""
    if ids := wordless(survey):
        raise UserError(
            f"{where}: {len(ids)} of {len(survey.items)} items have no wording, such as "
            f"{ids[0]!r}, so there is nothing to ask a model (World Values Survey files hold codes "
            "alone); give CultureSPA's folder, or your own JSON or CSV that has the questions"
        )
