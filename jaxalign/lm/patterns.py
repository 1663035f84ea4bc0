"""Regular expressions from files of strangers, which must end soon.

Python's matcher tries every way in which a pattern may fit. A repeated group, as in `(a*)*b`, has
exponentially many ways, and a row of n repetitions about length ** n. The names of modules are
short, so a pattern is quick as long as it repeats no group and has few repetitions in a row.
"""

from __future__ import annotations

import re

MOST_IN_A_ROW = 4  # repetitions; four may try a few hundred thousand ways on a module's name
MOST_OPTIONAL = 10
LONGEST = 1000  # characters
_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]"  # an escape, a class of characters
    r"|\((?:\?(?:[aiLmsux-]*[:)]|P<\w+>|<?[=!]))?"  # the beginning of a group
    r"|(?:[*+?]|\{\d*,?\d*\})[?+]?"  # a repetition
    r"|.",
    re.DOTALL,
)


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a pattern that may take long, or that is no regular expression.

    >>> check_pattern(r".*\\.(self_attn\\.q|mlp\\.down)_proj")
    >>> check_pattern(r"(a*)*b")
    Traceback (most recent call last):
    ValueError: repeats a group, which may take for ever
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    if len(pattern) > LONGEST:
        raise ValueError(f"has more than {LONGEST} characters")
    # By open group: repetitions of the longest alternative so far, and of the current one.
    open_groups = [[0, 0]]
    optional, before = 0, ""
    for token in _TOKEN.findall(pattern):
        if token.startswith("("):
            open_groups.append([0, 0])
        elif token == ")":
            inner = max(open_groups.pop())
            open_groups[-1][1] += inner
        elif token == "|":
            longest, current = open_groups[-1]
            open_groups[-1] = [max(longest, current), 0]
        elif token[0] == "?":
            optional += 1
        elif token[0] in "*+" or (token[0] == "{" and len(token) > 2):
            if before == ")":
                raise ValueError("repeats a group, which may take for ever")
            open_groups[-1][1] += 1
        before = token
    if max(open_groups[0]) > MOST_IN_A_ROW or optional > MOST_OPTIONAL:
        raise ValueError(
            f"has more than {MOST_IN_A_ROW} repetitions in a row, or {MOST_OPTIONAL} optional parts"
        )
