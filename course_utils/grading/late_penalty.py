"""Late work: a rule in one sentence, a time that is due, extensions; what is subtracted, and why, in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from ..errors import CourseError

UNITS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
GRAMMAR = '"10% per day", "10% per day, at most 50%", "20% once", any of these with ", after 15 minutes"'
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?) ?% (?:per|a|an|each|every) (hour|day|week)")
_ONCE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?) ?% once")
_MOST = re.compile(r"at most (\d{1,3}(?:\.\d{1,4})?) ?%")
_GRACE = re.compile(r"after (\d{1,6}) (minute|hour|day)s?")


@dataclass(frozen=True)
class Rule:
    """What late work loses, as a share of the points that the exercise is worth."""

    share: float  # lost for each unit begun
    unit: str = ""  # "hour", "day", "week", or "" for once
    most: float = 1.0  # that is lost
    grace: timedelta = timedelta()  # nothing is lost for so little


@dataclass(frozen=True)
class Penalty:
    """What one submission loses, as a share of the points that there are, and why ("" for nothing to say)."""

    share: float = 0.0
    why: str = ""


def rule_of(text: str) -> Rule | None:
    """The rule that a sentence states, None for "none"; a CourseError where it states none.

    >>> rule_of("10% per day, at most 50%").most
    0.5
    """
    parts = [" ".join(part.split()) for part in text.casefold().split(",")]
    if parts == ["none"]:
        return None
    first = _SHARE.fullmatch(parts[0]) or _ONCE.fullmatch(parts[0])
    most, grace = 1.0, timedelta()
    for part in parts[1:]:
        if limit := _MOST.fullmatch(part):
            most = float(limit[1]) / 100
        elif after := _GRACE.fullmatch(part):
            grace = timedelta(**{f"{after[2]}s": float(after[1])})
        else:
            first = None
    if first is None or not 0 < float(first[1]) <= 100 or not 0 < most <= 1:
        raise CourseError(f'Expected a rule for late work such as {GRAMMAR}, or "none", got {text!r}.')
    return Rule(float(first[1]) / 100, first[2] if first.re is _SHARE else "", most, grace)


def moment(text: str) -> datetime:
    """A time such as 2026-12-01T23:59 (this machine's zone) or 2026-12-01T23:59+01:00; a date means its last minute."""
    plain = text.strip().replace("Z", "+00:00")
    try:
        found = datetime.fromisoformat(f"{plain}T23:59" if re.fullmatch(r"\d{4}-\d\d-\d\d", plain) else plain)
        return found if found.tzinfo else found.astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise CourseError(f"Expected a time such as 2026-12-01T23:59, got {text!r}.") from error


def due_dates(given: Iterable[str], exercises: Collection[str] = ()) -> dict[str, str]:
    """When each exercise is due: of `TIME` for all ("") and `NAME=TIME` for one of these (any, if there are none)."""
    found: dict[str, str] = {}
    for one in given:
        name, told = _for_which(one, exercises)
        found[name] = moment(told).isoformat()
    return found


def _for_which(text: str, exercises: Collection[str]) -> tuple[str, str]:
    """Of `NAME=…` the exercise and what is said of it, of anything else "" and that; a CourseError for no exercise."""
    name, told = text.split("=", 1) if "=" in text else ("", text)
    if name and exercises and name not in exercises:
        raise CourseError(f"Expected one of {', '.join(sorted(exercises))} before =, got {name!r}.")
    return name, told


def extensions_in(text: str, exercises: Collection[str] = ()) -> dict[str, str]:
    """The extensions that a cell of a roster grants: `3` for all exercises (""), `NAME=3` for one, `;` between several.

    Args:
        text: the cell.
        exercises: that there are; without them any name will do.

    Raises:
        CourseError: no such exercise, or neither a number of days nor a time.

    >>> extensions_in("08_1=3; 2026-12-03T12:00")
    {'08_1': '3', '': '2026-12-03T12:00'}
    """
    found: dict[str, str] = {}
    for part in filter(None, (re.sub(r"\s*=\s*", "=", part.strip(), count=1) for part in text.split(";"))):
        name, told = _for_which(part, exercises)
        extended(datetime(2026, 1, 1, tzinfo=timezone.utc), told)
        found[name] = told
    return found


def extension_of(text: str, exercise: str) -> str:
    """What a cell of a roster grants for an exercise, "" for nothing."""
    return due_of(extensions_in(text), exercise)


def extended(due: datetime, extension: str) -> datetime:
    """When it is due with an extension: "" for none, a number of days, or a time; a CourseError for any other."""
    if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", extension):
        return (_on_the_clock(due) + timedelta(days=float(extension))).astimezone()
    return max(due, moment(extension)) if extension else due


def _on_the_clock(time: datetime) -> datetime:
    """What the clock on this machine's wall shows: a day over which it is put forward or back is a day as well."""
    return time.astimezone().replace(tzinfo=None)


def penalty(rule: Rule | None, due: str, *, handed_in: str, late: bool, extension: str = "") -> Penalty:
    """What a submission loses: nothing without a rule.

    When it was due or handed in is "" where nobody knows; late is what the platform marks so.
    """
    if rule is None:
        return Penalty()
    if handed_in and due:
        return _by_time(rule, extended(moment(due), extension), moment(handed_in), extension)
    if not late:
        return Penalty()
    marked = "late by the platform's mark"
    unknown = "by how much is not known"
    if extension:
        return Penalty(0.0, f"{marked}, {unknown}, with an extension ({extension}): nothing is subtracted")
    if rule.unit:
        return Penalty(min(rule.share, rule.most), f"{marked}, {unknown}: one {rule.unit} is counted")
    return Penalty(min(rule.share, rule.most), marked)


def _by_time(rule: Rule, due: datetime, handed_in: datetime, extension: str) -> Penalty:
    over = handed_in - due
    passed = over if rule.unit == "hour" else _on_the_clock(handed_in) - _on_the_clock(due)
    granted = ", extended" if extension else ""
    told = f"{_span(passed)} after {due.strftime('%Y-%m-%d %H:%M %Z').strip()}{granted}"
    if over <= timedelta():
        return Penalty()
    if over <= rule.grace:
        return Penalty(0.0, f"{told}: within the time that costs nothing")
    count = max(1, math.ceil(passed / UNITS[rule.unit])) if rule.unit else 1
    share = min(rule.share * count, rule.most)
    begun = f"{count} {rule.unit}{'s' if count > 1 else ''} begun, " if rule.unit else ""
    most = " (the most there is)" if share < rule.share * count else ""
    return Penalty(share, f"{told}: {begun}{share * 100:g}%{most}")


def _span(time: timedelta) -> str:
    minutes = max(1, math.ceil(time.total_seconds() / 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return " ".join(f"{n} {unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if n)


def due_of(due: Mapping[str, str], exercise: str) -> str:
    """When an exercise is due, "" where nobody said."""
    return due.get(exercise) or due.get("", "")
