"""Answers that a person reads, one after the other: what `course mark` and the grading desk have in common."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

import click
from nbformat import NotebookNode

from ...errors import CourseError
from ..handout.release import suspect_of
from ..marks import READ
from ..notebook import (
    LOCKED,
    REGIONS,
    STUB,
    TASK,
    grade_id,
    item_of,
    kind,
    mark_scheme,
    model_answer,
    read,
    stubbed,
    without_regions,
    write,
)
from ..rubric import Criterion, Tick, criteria, ticked
from .gradebook import Gradebook
from .standing import Entry, Graded, this_person

HELP = "points and a comment, as in “3.5 names the word, but no edit”; s to skip, b to go back"
TICKING = "criteria and a comment, as in “+1 +3=0.5 names the word”, or "
_ENTRY = re.compile(r"(\d+(?:[.,]\d+)?)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """An answer to be read, with what is needed to judge it."""

    graded: Graded  # whose it is, and the rest of their result
    check: str  # the name of its cell
    points: float  # what it is worth
    given: float | None  # what it has, None if nobody has read it
    comment: str  # of whoever read it
    question: str  # Markdown of the course's own
    rubric: str  # Markdown of the course's own
    model: str  # the model answer, Markdown of the course's own
    criteria: tuple[Criterion, ...]  # those of the rubric, which can be ticked
    ticks: tuple[Tick, ...]  # those that somebody has ticked before, or not
    suspect: str  # which one this student was given, "" for none
    text: str  # Markdown of the student's: untrusted
    pictures: Mapping[str, Mapping[str, str]]  # what was pasted into it, by name and kind
    cell: NotebookNode | None = field(repr=False)  # the student's, as it was run, where code is asked for: untrusted
    notebook: NotebookNode = field(repr=False)  # all that they handed in, as it was run: untrusted


class Marking:
    """A walk through the answers that nobody has read, question by question; each entry is saved at once.

    The students of a question come in an order that has nothing to do with their names, and is another for each. By
    default this machine's user reads, all exercises; `everything`: also what was read before.
    """

    def __init__(
        self,
        book: Gradebook,
        references: Mapping[str, bytes],
        exercise: str = "",
        who: str = "",
        everything: bool = False,
    ) -> None:
        self.book, self.who = book, who or this_person()
        self._references = {name: read(content, name) for name, content in references.items()}
        found = [
            (graded.exercise, number, _shuffled(graded.student, entry.mark.check), graded.student, entry.mark.check)
            for graded in book.current(exercise)
            for number, entry in enumerate(graded.entries)
            if entry.mark.status == READ and (everything or entry.mark.earned is None) and not graded.is_unmarked
        ]
        self._list = [(exercise, student, check) for exercise, _, _, student, check in sorted(found)]
        self._visited: set[int] = set()
        self._everything = everything
        self.place = 0

    def __len__(self) -> int:
        return len(self._list)

    @property
    def left(self) -> int:
        """How many are still to come, this one with them."""
        return len(self._list) - self.place

    def answer(self) -> Answer | None:
        """The one to read now; None after the last. What somebody else has read meanwhile is passed over."""
        while self.place < len(self._list):
            exercise, student, check = self._list[self.place]
            for graded in self.book.current(exercise, student):
                for entry in graded.entries:
                    unread = entry.mark.earned is None or self._everything or self.place in self._visited
                    if entry.mark.check == check and entry.mark.status == READ and unread:
                        self._visited.add(self.place)
                        return self._answer(graded, entry)
            self.place += 1
        return None

    def _answer(self, graded: Graded, entry: Entry) -> Answer:
        check, mark = entry.mark.check, entry.mark
        notebook, reference = self.book.notebook(graded.result), self._references.get(graded.exercise)
        own = next((cell for cell in notebook.cells if grade_id(cell) == check and kind(cell) != TASK), None)
        text = own.source.strip() if own else ""
        cells = {grade_id(cell): cell for cell in (reference.cells if reference else [])}
        source = cells[check].source if check in cells else ""
        asked = [
            c.source for c in cells.values() if source and kind(c) == LOCKED and item_of(c) == item_of(cells[check])
        ]
        rubric = mark_scheme(cells[check]) if source else ""
        return Answer(
            graded,
            check,
            mark.points,
            mark.earned,
            entry.comment,
            question="\n\n".join(asked) or without_regions(source, REGIONS),
            rubric=rubric,
            model=model_answer(source),
            criteria=criteria(rubric),
            ticks=entry.ticks,
            suspect=suspect_of(write(notebook)),
            text="" if text in (STUB, stubbed(cells[check]).strip() if source else "") else text,
            pictures=own.get("attachments", {}) if own else {},
            cell=own if own and own.cell_type == "code" else None,
            notebook=notebook,
        )

    def enter(self, line: str) -> str:
        """Do what a line says with the answer to be read now; what was done. A CourseError where it says nothing."""
        line = line.strip()
        if line in ("b", "back"):
            self.place = max(0, self.place - 1)
            self._visited.add(self.place)
            return "one back"
        answer = self.answer()
        if answer is None:
            raise CourseError("Everything has been read; b goes back.")
        if line in ("s", "skip"):
            self.place += 1
            return "skipped"
        if (by_criteria := ticked(line, answer.criteria, answer.points)) is not None:
            points, comment, ticks = by_criteria
        elif found := _ENTRY.fullmatch(line):
            points, comment, ticks = float(found[1].replace(",", ".")), (found[2] or "").strip(), ()
        else:
            raise CourseError(f"Expected {TICKING if answer.criteria else ''}{HELP}; got {line[:40]!r}.")
        self.book.give(answer.graded, answer.check, points, comment, self.who, ticks=ticks)
        self.place += 1
        return f"saved: {points:g} of {answer.points:g}"


def mark_in_terminal(marking: Marking, names: bool = False) -> None:
    """Show one answer after the other and ask for points, until all are read or somebody says q."""
    question = ""
    while (answer := marking.answer()) is not None:
        if question != f"{answer.graded.exercise} {answer.check}":
            question = f"{answer.graded.exercise} {answer.check}"
            click.secho(f"\n{answer.graded.exercise}, {answer.check}: {answer.points:g} points", bold=True)
            _ask(answer)
        who = answer.graded.student if names else "an answer"
        about = f", about {shown(answer.suspect)}" if answer.suspect else ""
        click.secho(f"\n--- {shown(who)}{about} ({marking.left} left)", bold=True)
        click.echo(shown(answer.text) or "(nothing written)")
        if answer.pictures:
            click.echo(f"({len(answer.pictures)} pictures pasted: see the feedback page, or the grading desk)")
        if drawn := sum("image/png" in output.get("data", {}) for output in (answer.cell or {}).get("outputs", ())):
            click.echo(f"({drawn} figures drawn: see the feedback page, or the grading desk)")
        if answer.given is not None:
            click.echo(f"It has {answer.given:g}: {shown(answer.comment)}")
        had = [f"; it has {tick.given:g}" for tick in answer.ticks] or [""] * len(answer.criteria)
        for number, (one, has) in enumerate(zip(answer.criteria, had, strict=False), start=1):
            click.secho(f"+{number}  {one.name} ({one.points:g}{has})", fg="cyan")
        try:
            wanted = "criteria or points" if answer.criteria else "points"
            line = click.prompt(f"{wanted}, comment (s, b, q)", prompt_suffix=" > ")
        except click.Abort:  # Ctrl-C, or nobody there
            line = "q"
        if line.strip() in ("q", "quit"):
            break
        try:
            click.echo(marking.enter(line))
        except CourseError as error:
            click.secho(str(error), fg="red")
    click.echo(f"{marking.left} left to read.")


def _ask(answer: Answer) -> None:
    """Show what all answers to one question have in common."""
    click.echo(f"{answer.question}\n")
    if answer.model:
        click.secho("Model answer", fg="green", bold=True)
        click.secho(f"{answer.model}\n", fg="green")
    click.secho(answer.rubric, fg="cyan")


def shown(text: str) -> str:
    """A text that does nothing to a terminal but fill it."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter)[0] != "C" else "�" for letter in text)


def _shuffled(student: str, check: str) -> str:
    return hashlib.sha256(f"{check}\0{student}".encode("utf-8", "replace")).hexdigest()
