"""What a survey format is, and the registry of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from jaxalign.core.registry import Registry
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats.files import FileStart
from jaxalign.surveys.survey import Survey


class Format(Protocol):
    """One format of survey files. A new one is a file in this package that registers its own::

        @FORMATS.register("my-format")
        class MyFormat(Format):
            def recognises(self, start: FileStart) -> bool:
                return start.has_columns("my_question", "my_answers")

            def read(self, path: Path) -> Survey:
                ...

    Attributes:
        fallback: Whether to ask this format only about files that no other format recognises.
        takes_distributions: Whether groups' answers come in a second file, which `read` takes as
            `distributions`.
        has_respondents: Whether files hold respondents, so that `read` takes `by` and
            `min_respondents`.
    """

    fallback: bool = False
    takes_distributions: bool = False
    has_respondents: bool = False

    def recognises(self, start: FileStart) -> bool:
        """Return whether the file has this format, from its name and its first megabyte."""
        ...

    def read(self, path: Path, **options: Any) -> Survey | ChoiceTest:
        """Read the file. Raise UserError, which names row and column, for anything wrong."""
        ...

    def check(self, path: Path, **options: Any) -> tuple[list[str], Survey | ChoiceTest | None]:
        """Return everything that is wrong with the file, or else what is in it.

        This default reads the file, which stops at the first problem. A format that can find all
        of them overrides it.

        Returns:
            One line for each problem, and the survey, which is None if there are problems.

        Raises:
            UserError: A problem that hides all others, as in `read`.
        """
        return [], self.read(path, **options)


FORMATS: Registry[type[Format]] = Registry("survey format", __package__, parameter="format")
