"""The grading desk: what only a person can judge, in a notebook, with the keyboard alone if you like."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from threading import Timer
from typing import Any

from ipywidgets import HTML, Button, Checkbox, HBox, Layout, Text, VBox
from nbformat import from_dict

from ...errors import CourseError
from ..handout.release import SOLUTIONS
from ..limited import within
from ..notebook import write
from ..rubric import ticked
from .commands import duplicates_in, gradebook_in
from .export import statistics
from .feedback import markdown_html, notebook_html, write_feedback
from .grade import references_in
from .gradebook import Gradebook
from .marking import HELP, Answer, Marking
from .overview import write_overview
from .similarity import rows_of

_BUTTONS = 10  # points up to which each has a button
_PATIENCE = 0.5  # seconds after Enter in which a line that changed has come


class Desk(VBox):  # type: ignore[misc]  # ipywidgets has no types
    """One answer, its question, its rubric, and a line to type points and a comment into; Enter saves and goes on."""

    def __init__(self, marking: Marking, names: bool = False) -> None:
        self._marking, self._names = marking, names
        self.answer, self.status = HTML(), HTML()
        self.line = Text(placeholder=f"{HELP}; Enter saves", continuous_update=False, layout=Layout(width="98%"))
        self.line.on_msg(self._message)
        self.line.observe(self._changed, names="value")
        self._pressed = False  # Enter, and what the line held then is still to come
        self.boxes = VBox()  # a checkbox for each criterion of the rubric
        self.buttons = HBox(layout=Layout(flex_flow="row wrap"))
        super().__init__([self.answer, self.boxes, self.line, self.buttons, self.status])
        self._show()

    def _message(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Enter was pressed: the browser says so first, and then sends the line, if it is another than before."""
        if content.get("event") == "submit":
            self._pressed = True
            Timer(_PATIENCE, self._changed).start()

    def _changed(self, _: Any = None) -> None:
        if self._pressed:  # and not merely left the line
            self._pressed = False
            self.enter(self.line.value)

    def enter(self, line: str) -> None:
        """Do what a line says, and show what comes next; a line that says nothing stays, with a sentence.

        A line that is no more than a comment goes with the criteria that are ticked.
        """
        ticks = self._ticks()
        if ticks and line.strip() not in ("s", "skip", "b", "back") and not line.strip()[:1].isdigit():
            line = line if line.strip().startswith("+") else f"{ticks} {line}"
        try:
            done = self._marking.enter(line)
        except CourseError as error:
            self.status.value = f"<strong>Not saved.</strong> {escape(str(error))}"
        else:
            self.line.value = ""
            self._show()
            self.status.value = escape(done)
        self.line.focus()

    def _ticks(self) -> str:
        """The criteria that are ticked, as they are typed."""
        return " ".join(f"+{k}" for k, box in enumerate(self.boxes.children, start=1) if box.value)

    def _show(self) -> None:
        answer = self._marking.answer()
        self.answer.value = self._page(answer)
        self.boxes.children = [] if answer is None else self._checkboxes(answer)
        actions = {"back": "b", "skip": "s"}
        if answer is not None:
            actions |= {"save what is ticked": "+"} if answer.criteria else {}
            whole = range(int(answer.points) + 1) if answer.points <= _BUTTONS else (0, answer.points)
            actions |= {f"{points:g}": f"{points:g}" for points in whole}
        self.buttons.children = [self._button(label, does) for label, does in actions.items()]

    def _checkboxes(self, answer: Answer) -> list[Checkbox]:
        had = [bool(tick.given) for tick in answer.ticks] or [False] * len(answer.criteria)
        boxes = [
            Checkbox(
                value=ticked, description=f"{k} {one.name} ({one.points:g})", indent=False, layout=Layout(width="auto")
            )
            for k, (one, ticked) in enumerate(zip(answer.criteria, had, strict=False), start=1)
        ]
        for box in boxes:
            box.observe(lambda _: self._tell_points(answer), names="value")
        return boxes

    def _tell_points(self, answer: Answer) -> None:
        """Say what the ticked criteria come to."""
        found = ticked(self._ticks() or "+0", answer.criteria, answer.points)
        self.status.value = f"{found[0] if found else 0:g} of {answer.points:g}, not saved yet"

    def _button(self, label: str, does: str) -> Button:
        button = Button(description=label, layout=Layout(width="auto", min_width="3rem"))
        button.on_click(lambda _: self._press(does))
        return button

    def _press(self, does: str) -> None:
        if does == "+":
            self.enter(f"{self._ticks() or '+0'} {self.line.value}")
        else:
            self.enter(does if does in ("b", "s") else f"{does} {self.line.value}")

    def _page(self, answer: Answer | None) -> str:
        if answer is None:
            return "<p><strong>Everything has been read.</strong></p>"
        place = f"{self._marking.place + 1} of {len(self._marking)}"
        who = f", {escape(answer.graded.student)}" if self._names else ""
        about = f", about {escape(answer.suspect)}" if answer.suspect else ""
        had = "" if answer.given is None else f"<p><em>It has {answer.given:g}: {escape(answer.comment)}</em></p>"
        text = _untrusted(answer.text, markdown_html, answer.text, answer.pictures)
        if answer.cell is not None and answer.text:
            text = _untrusted(answer.text, notebook_html, write(from_dict({**answer.notebook, "cells": [answer.cell]})))
        model = markdown_html(answer.model) if answer.cell is None else f"<pre>{escape(answer.model)}</pre>"
        text = text or "<p><em>Nothing was written.</em></p>"
        others = _untrusted("", notebook_html, write(answer.notebook))
        return (
            f'<div style="max-height: 65vh; overflow: auto; line-height: 1.5"><p>'
            f"<strong>{escape(answer.graded.exercise)}, {escape(answer.check)}, {answer.points:g} points</strong>"
            f" ({place}{who}{about})</p>{_folded('Question', markdown_html(answer.question))}"
            f"{_folded('Model answer', model)}"
            f"{_folded('Rubric', markdown_html(answer.rubric), is_open=True)}"
            f'<div style="border-left: 3px solid #888; padding-left: 1em">{text}</div>{had}'
            f"{_folded('The whole notebook, as it was run', others)}</div>"
        )


def _untrusted(text: str, shown: Callable[..., str], *arguments: Any) -> str:
    """A student's own as HTML; where that cannot be made of it, why, and the text as it is."""
    try:
        return within(shown, *arguments)
    except CourseError as error:
        return f"<p><em>{escape(str(error))}</em></p><pre>{escape(text)}</pre>"


def _folded(title: str, body: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{title}</summary>{body}</details>"


def desk(
    grades: Path | str,
    *,
    exercise: str = "",
    reference: Path | str = SOLUTIONS,
    who: str = "",
    names: bool = False,
    everything: bool = False,
) -> VBox:
    """The grading desk over the gradebook in a folder; where there is none, a sentence.

    Args:
        grades: the folder that `course grade` wrote into.
        exercise: read this one alone.
        reference: the folder of the solutions, for questions and rubrics.
        who: your name, for the record; by default that of your account.
        names: show whose answer it is.
        everything: also what was read before.

    >>> desk("grades")  # doctest: +SKIP
    Desk(...)
    """
    try:
        book = Gradebook(gradebook_in(Path(grades)))
        return Desk(Marking(book, references_in(Path(reference)), exercise, who, everything), names)
    except CourseError as error:
        return VBox([HTML(escape(str(error)))])


def class_page(grades: Path | str, reference: Path | str = SOLUTIONS) -> HTML:
    """How the class did: each check with its pass rate and most common mistake, and answers that resemble each other.

    >>> class_page("grades")  # doctest: +SKIP
    HTML(...)
    """
    try:
        with Gradebook(gradebook_in(Path(grades))) as book:
            found, alike = statistics(book.current()), duplicates_in(book, references_in(Path(reference)))
    except CourseError as error:
        return HTML(escape(str(error)))
    checks = [
        [s.exercise, s.check, f"{s.attempts} of {s.students}", f"{s.passed:.0%}", f"{s.seconds:.1f}", s.mistake]
        for s in found
    ]
    header, *copies = rows_of(alike)
    return HTML(
        _table(["exercise", "check", "answered", "passed", "seconds", "most common mistake"], checks)
        + f"<p>{sum(each.compared for each in alike)} groups of answers resemble each other or the solution.</p>"
        + (_table(header, copies) if copies else "")
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th style="text-align: left; padding-right: 1em">{escape(cell)}</th>' for cell in header)
    cells = ("".join(f'<td style="padding-right: 1em">{escape(cell)}</td>' for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def feedback_again(grades: Path | str) -> None:
    """Write every student's feedback once more, with the marks and comments given since, and say so."""
    folder = Path(grades)
    try:
        with Gradebook(gradebook_in(folder)) as book:
            print(f"{write_feedback(book, folder / 'feedback')} pages in {folder / 'feedback'}")
            write_overview(book, folder)
    except CourseError as error:
        print(error)
