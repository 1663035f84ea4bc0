"""The one exception whose message is written for users.

A message is one line: the parameter in backticks, the offending value, what is wrong, and what to
do about it. For example::

    `icl_examples` 7: survey 'x' has 5 items that USA answered; ask for fewer

The library speaks of parameters. A command line shows the flag in place of the backticked name
(`jaxalign.runs.console`).
"""


class UserError(ValueError):
    """Bad input. A command prints the message on one line and exits with code 2.

    Example:
        >>> import jaxalign as ja
        >>> try:
        ...     ja.country_scores("XYZ")
        ... except ja.UserError as error:
        ...     print(error)
        country 'XYZ' is unknown; use a three-letter code, ...
    """
