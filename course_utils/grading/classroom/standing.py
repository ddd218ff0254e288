"""How things stand: what each student has for each exercise, what the run said, and what a person added."""

from __future__ import annotations

import os
from dataclasses import dataclass
from getpass import getuser

from ..marks import READ, Mark
from ..result import BROKEN
from ..rubric import Tick


def this_person() -> str:
    """The name of who uses this machine; where they have no account, as in a container, their number."""
    try:
        return getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


@dataclass(frozen=True)
class Override:
    """What a person says that a check is worth, whatever the run says."""

    points: float  # what stands, at most what the check is worth
    machine: float  # what the run gave
    reason: str  # why, for the student to read
    who: str
    at: str
    is_earlier: bool = False  # whether it was said of an earlier submission than the one that counts now


@dataclass(frozen=True)
class Entry:
    """One mark as it stands: what the run said, and what a person added."""

    mark: Mark  # of a manual item that was read, `earned` is what the person gave; of one that was overridden likewise
    hidden: bool = False  # whether students do not see the check
    comment: str = ""  # the person's
    who: str = ""  # who that was
    override: Override | None = None  # where a person has overridden what the run said
    ticks: tuple[Tick, ...] = ()  # the criteria by which a person gave the points, if they did

    @property
    def status(self) -> str:
        """What people are told of it: the run's status, but "read" of what somebody has read."""
        return "read" if self.mark.status == READ and self.mark.earned is not None else self.mark.status


@dataclass(frozen=True)
class Graded:
    """A student's exercise as it stands: the latest result of the latest submission."""

    student: str
    exercise: str
    number: str  # the learning platform's for the student
    late: bool  # whether the platform says so
    status: str  # of the run
    seconds: float
    repairs: tuple[str, ...]
    messages: tuple[str, ...]
    entries: tuple[Entry, ...]  # one for each check and manual item
    result: int
    label: str = ""  # the learning platform's own name for what was handed in
    handed_in: str = ""  # when, "" where that is not known
    penalty: float = 0.0  # the share of the points that being late costs
    why: str = ""  # it costs that, "" where there is nothing to say
    turn: int = 0  # of two that were handed in, the later has the larger one

    @property
    def subtracted(self) -> float:
        """Points that being late costs: of those earned, never more than these."""
        return min(self.earned, round(self.penalty * self.points, 2))

    @property
    def total(self) -> float:
        """Points earned without those subtracted."""
        return self.earned - self.subtracted

    @property
    def earned(self) -> float:
        """Points so far."""
        return sum(entry.mark.earned or 0.0 for entry in self.entries)

    @property
    def points(self) -> float:
        """Points there are."""
        return sum(entry.mark.points for entry in self.entries)

    @property
    def is_unmarked(self) -> bool:
        """Whether it could not be run, and nobody has given it marks by hand."""
        return self.status == BROKEN and not any(entry.override for entry in self.entries)

    @property
    def unread(self) -> int:
        """How many items wait for a person: none of what could not be run."""
        return 0 if self.is_unmarked else sum(entry.mark.earned is None for entry in self.entries)


@dataclass(frozen=True)
class Change:
    """A mark, or the total without what being late costs, that came out otherwise than before on one submission."""

    student: str
    exercise: str
    check: str
    before: float
    after: float
