"""Which exercise a file is a copy of, by its name, to which browsers, file managers and learners add."""

from __future__ import annotations

import re
from collections.abc import Collection

from ...lesson.own import PREFIX
from ..people.owners import plain_text

_COPY = re.compile(r"[_(](?:copy|final|version|v|[0-9]|[_().])*")  # after the name of an exercise
_LONGEST = 1000  # characters


def exercise_named(given: str, exercises: Collection[str]) -> str:
    """The exercise that a name stands for, or stands for a copy of; "" for none.

    >>> exercise_named("exercise_08_1_token_attribution (1).ipynb", ["08_1_token_attribution"])
    '08_1_token_attribution'
    """
    if len(given) > _LONGEST:
        return ""
    stem = _plain(given[:-6] if given.lower().endswith(".ipynb") else given).removeprefix(PREFIX)
    for exercise in sorted(exercises, key=len, reverse=True):
        plain = _plain(exercise)
        if stem == plain or (stem.startswith(plain) and _COPY.fullmatch(stem, len(plain))):
            return exercise
    return ""


def _plain(name: str) -> str:
    """A file's name as it is compared: one Unicode form, no case, one kind of gap."""
    return re.sub(r"[\s_-]+", "_", plain_text(name)).strip("_")
