"""Surveys as data: items, how people answered them, published scores, and files of all these.

Pure Python and numpy: nothing here knows a model or a tokenizer.
"""

from __future__ import annotations

from jaxalign.surveys.check import SurveyCheck, check_survey
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats import read_survey
from jaxalign.surveys.hofstede import DIMENSIONS, country_scores
from jaxalign.surveys.names import country_name, demonym, with_article
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey, vsm
from jaxalign.surveys.wording import add_wording

__all__ = [
    "DIMENSIONS",
    "ChoiceTest",
    "Item",
    "Responses",
    "Survey",
    "SurveyCheck",
    "add_wording",
    "check_survey",
    "country_name",
    "country_scores",
    "demonym",
    "read_survey",
    "vsm",
    "with_article",
]
