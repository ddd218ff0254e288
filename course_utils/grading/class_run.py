"""What `course grade` and `course mark` do: grade, tell what was done, write feedback, statistics and exports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tqdm.auto import tqdm

from ..errors import CourseError
from . import cgroup
from .bundle import SOLUTIONS, write_folder, write_whole
from .duplicates import Alike, alike
from .duplicates import table_of as duplicates_table
from .export import FORMATS, statistics, table_of
from .feedback import write_feedback
from .grade import Report, files_in, grade, needs_sandbox, references_in, suspects_in
from .gradebook import Gradebook
from .intake import take
from .marking import Marking, mark_in_terminal
from .notebook import read
from .release import faults
from .run import Limits

GRADEBOOK = "gradebook.db"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def grade_class(
    submissions: Path | None,
    out: Path,
    *,
    exercise: str = "",
    reference: Path | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    memory: str = "4GB",
    no_sandbox: bool = False,
    cold: bool = False,
    scheduler: str = "",
    suspects: Path | None = None,
    force: bool = False,
    export: str = "",
) -> int:
    """Grade a class and tell what was done; 0 if all could be graded, 1 if something could not be run.

    Raises:
        CourseError: nothing to grade there, nothing to grade against, or no sandbox.
    """
    if submissions is None and not export:
        raise CourseError("Expected a folder or zip file of submissions, or --export; name one of them.")
    if submissions is None:
        gradebook_in(out)
    options: dict[str, Any] = {}
    if submissions is not None:
        folder = reference or SOLUTIONS
        references, found = references_in(folder), take(submissions, references_in(folder), only=exercise)
        for name in sorted({submission.exercise for submission in found.submissions}):
            if complaints := faults(read(references[name], name)):
                raise CourseError(f"{folder / name}.ipynb cannot be graded against: {complaints[0]}")
        limits = Limits(_cell_seconds(timeout), timeout, memory_bytes=bytes_of(memory))
        options = {
            "limits": limits,
            "jobs": jobs or 0,
            "sandboxed": not no_sandbox,
            "warm": not cold,
            "scheduler": scheduler,
            "force": force,
        }
        options |= {"suspects": suspects_in(suspects) if suspects else None, "beside": files_in(folder / "suspects")}
        if no_sandbox:
            click.echo(
                "No sandbox: the students' code can read and write whatever you can, secrets included.", err=True
            )
        elif not scheduler:
            needs_sandbox()
            if uncounted := cgroup.trouble():
                told = "No control groups: memory in socket buffers and page tables is not counted, for"
                click.echo(f"{told} {uncounted}", err=True)
    report = Report()
    with Gradebook(out / GRADEBOOK) as book:
        if submissions is not None:
            with tqdm(total=len(found.submissions), unit="notebook", disable=None) as bar:
                options["progress"] = bar.update
                report = grade(found, book, references, **options)
            pages = write_feedback(book, out / "feedback")
            write_whole(out / "statistics.csv", table_of(statistics(book.current())))
            duplicates = duplicates_in(book, references)
            write_whole(out / "duplicates.csv", duplicates_table(duplicates))
            _tell(report, pages, len(duplicates), out)
        if export:
            write_folder(FORMATS[export](book), out)
            click.echo(f"{export} in {out}")
    return 1 if report.broken else 0


def _cell_seconds(timeout: float) -> float:
    """A minute for a cell, or a fifth of the time for the notebook, whichever is more."""
    return max(min(60.0, timeout), timeout / 5)


def gradebook_in(out: Path) -> Path:
    """The gradebook that grading left in a folder.

    Raises:
        CourseError: there is none.
    """
    path = out / GRADEBOOK
    if not path.is_file():
        raise CourseError(f"Expected a gradebook in {out}, found none; make one: course grade SUBMISSIONS --out {out}.")
    return path


def mark_class(
    out: Path,
    *,
    exercise: str = "",
    reference: Path | None = None,
    who: str = "",
    names: bool = False,
    everything: bool,
) -> None:
    """Have a person read in the terminal what only a person can, then write feedback anew.

    Raises:
        CourseError: no gradebook or no solutions there.
    """
    references = references_in(reference or SOLUTIONS)
    if exercise and exercise not in references:
        raise CourseError(f"Expected one of {', '.join(references)}, got {exercise!r}.")
    with Gradebook(gradebook_in(out)) as book:
        mark_in_terminal(Marking(book, references, exercise, who, everything), names)
        write_feedback(book, out / "feedback")


def duplicates_in(book: Gradebook, references: Mapping[str, bytes]) -> list[Alike]:
    """Answers in a gradebook that resemble each other, exercise by exercise."""
    found: list[Alike] = []
    for exercise, reference in references.items():
        notebooks = ((graded.student, book.notebook(graded.result)) for graded in book.current(exercise))
        found += alike(notebooks, read(reference), exercise)
    return found


def _tell(report: Report, pages: int, duplicates: int, out: Path) -> None:
    for told in (*report.left, *report.broken):
        click.echo(f"note: {told}", err=True)
    for change in report.changes:
        click.echo(
            f"{change.student}, {change.exercise}, {change.check}: {change.before:g} before, {change.after:g} now"
        )
    graded = f"{report.graded} graded, {report.known} had their marks, {len(report.left)} files left"
    click.echo(f"{graded}, {len(report.broken)} could not be run; feedback for {pages} in {out / 'feedback'}")
    if duplicates:
        click.echo(f"{duplicates} groups of answers resemble each other: look at {out / 'duplicates.csv'}")


def bytes_of(size: str) -> int:
    """A number of bytes: "4GB", "500 MB".

    Raises:
        CourseError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)B?\s*", size, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise CourseError(f"Expected a size such as 4GB or 500MB, got {size!r}.")
    return int(float(found[1]) * _UNITS[found[2].upper()])
