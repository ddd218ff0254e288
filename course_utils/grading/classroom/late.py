"""What being late costs the submissions of a gradebook."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..late_penalty import due_dates, due_of, penalty, rule_of
from .gradebook import Gradebook
from .standing import Change


@dataclass(frozen=True)
class Late:
    """A rule and due times as the command line gives them, checked; what is not given is as the last run had it."""

    rule: str = ""
    due: Collection[str] = ()
    _due: Mapping[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_due", due_dates(self.due))
        rule_of(self.rule or "none")

    def settle(self, book: Gradebook) -> list[Change]:
        """Keep them in a gradebook, and write there what being late costs each submission; the totals that changed."""
        if self.rule:
            book.keep("late", self.rule)
        if self._due:
            book.keep("due", json.dumps(json.loads(book.setting("due") or "{}") | dict(self._due)))
        rule, due = rule_of(book.setting("late") or "none"), json.loads(book.setting("due") or "{}")

        def cost(exercise: str, handed_in: str, late: bool, extension: str) -> tuple[float, str]:
            found = penalty(rule, due_of(due, exercise), handed_in=handed_in, late=late, extension=extension)
            return found.share, found.why

        return book.settle_late(cost)
