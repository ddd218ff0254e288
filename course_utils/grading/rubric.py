"""A rubric's criteria, out of the lines of a mark scheme, and points out of those that a person ticks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CourseError

_BULLET = re.compile(r"^ {0,3}[-*+] +(?:\[[ xX]\] +)?(?P<rest>\S.*)$")
_NUMBER = r"(?P<points>\d+(?:[.,]\d+)?)"
_FIRST = re.compile(rf"^{_NUMBER} ?(?:points?|pts?|p)\b[ .:–-]*(?P<text>.*)$", re.IGNORECASE)  # 2 points: names it
_AFTER = re.compile(rf"^(?P<text>[^()]{{1,200}}?) ?\({_NUMBER}(?: ?(?:points?|pts?|p))?\)[ .:–-]*")  # **Name** (1): …
_TICKED = re.compile(r"\+(\d{1,2})(?:=(\d+(?:[.,]\d+)?))?(?!\S)")


@dataclass(frozen=True)
class Tick:
    """One criterion of a rubric: what it is worth, and what of that was given."""

    criterion: str
    points: float
    given: float


@dataclass(frozen=True)
class Criterion:
    """One line of a rubric."""

    name: str  # what a student may read of it: what is set in bold, or before the points, or else the line
    points: float  # what it is worth


def criteria(rubric: str) -> tuple[Criterion, ...]:
    r"""The criteria of a rubric: `- **Name** (1): …`, `- [ ] 2 points: …` or `* 1 point …`; other lines say nothing.

    >>> criteria("- **Finding** (1): three words\n- [ ] 2 points: says why")
    (Criterion(name='Finding', points=1.0), Criterion(name='says why', points=2.0))
    """
    bullets = (found["rest"] for line in rubric.splitlines() if (found := _BULLET.match(line)))
    return tuple(one for rest in bullets if (one := _criterion(rest)) is not None)


def _criterion(rest: str) -> Criterion | None:
    found = _FIRST.match(rest) or _AFTER.match(rest)
    if found is None:
        return None
    bold = re.match(r"\*\*([^*]+)\*\*", found["text"])
    name = (bold[1] if bold else found["text"]).strip(" .:*_")
    return Criterion(name, _number(found["points"])) if name else None


def ticked(line: str, known: Sequence[Criterion], worth: float) -> tuple[float, str, tuple[Tick, ...]] | None:
    """Points, comment and ticks of a line such as `+1 +3=0.5 a comment`; None where it does not begin so.

    Points are those of the criteria that are ticked (`=0.5`: that much of it), at most what the item is worth; `+0`
    ticks none. A CourseError where there is no such criterion, or it is worth less.
    """
    given: dict[int, float] = {}
    rest = line.strip()
    while found := _TICKED.match(rest):
        rest = rest[found.end() :].lstrip()
        number = int(found[1])
        if number > len(known) or not known:
            there = f"a criterion from 1 to {len(known)}" if known else "points, as this rubric has no criteria to tick"
            raise CourseError(f"Expected {there}, got +{number}; type points instead.")
        if number:
            given[number] = _part(known[number - 1], found[2])
    if rest == line.strip() or rest.startswith("+"):
        return None
    ticks = (Tick(one.name, one.points, given.get(k, 0.0)) for k, one in enumerate(known, start=1))
    return min(worth, sum(given.values())), rest, tuple(ticks)


def _part(criterion: Criterion, part: str | None) -> float:
    """What is given of a criterion: all of it, or the part that is named."""
    given = criterion.points if part is None else _number(part)
    if given > criterion.points:
        raise CourseError(f"Expected 0 to {criterion.points:g} points for “{criterion.name}”, got {given:g}.")
    return given


def _number(text: str) -> float:
    return float(text.replace(",", "."))
