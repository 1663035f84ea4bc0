"""CultureSPA: align a model to cultures by its own answers (Xu et al., NAACL 2025).

A model writes survey questions, answers them plainly and in the name of each culture, and is
fine-tuned on the answers that naming the culture changes. `run_culturespa` does all of it; the
steps can be used by themselves:

    write_questions     new questions after those of a survey          (`write`, `questions`)
    filter_questions    the published filters                          (`filters`)
    StylePrompts        whom the model speaks as                       (`styles`)
    crqpc, rds, cds     which answers to train on                      (`select`)
    to_rows, to_examples  training data for other trainers and ours    (`dataset`)
"""

from jaxalign.methods.culturespa.dataset import to_examples, to_rows
from jaxalign.methods.culturespa.filters import FilteredQuestions, filter_questions
from jaxalign.methods.culturespa.pipeline import run_culturespa
from jaxalign.methods.culturespa.questions import Question, read_questions, to_survey
from jaxalign.methods.culturespa.result import CultureSPAResult
from jaxalign.methods.culturespa.select import Pair, Selection, cds, crqpc, rds
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import StylePrompts
from jaxalign.methods.culturespa.write import WritingSettings, WrittenQuestions, write_questions

__all__ = [
    "CultureSPAResult",
    "CultureSPASettings",
    "FilteredQuestions",
    "Pair",
    "Question",
    "Selection",
    "StylePrompts",
    "WritingSettings",
    "WrittenQuestions",
    "cds",
    "crqpc",
    "filter_questions",
    "rds",
    "read_questions",
    "run_culturespa",
    "to_examples",
    "to_rows",
    "to_survey",
    "write_questions",
]
