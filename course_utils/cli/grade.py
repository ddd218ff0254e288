"""`course grade`: a class's notebooks, run and marked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from . import FILE

EXPORTS = ["csv", "canvas", "moodle", "history", "canvas-feedback", "moodle-feedback"]


@click.command()
@click.argument("submissions", required=False, type=FILE)
@click.option("--exercise", default="", help="Grade this exercise alone.")
@click.option("--reference", type=FILE, help="The folder of the solutions.")
@click.option("--out", type=FILE, default=Path("grades"), show_default=True, help="Marks go here.")
@click.option("--jobs", type=click.IntRange(1), help="How many run at once (as many as there are processors).")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds for a notebook; a cell has 60 of the processor's, or a fifth of these if that is more.",
)
@click.option("--memory", default="4GB", show_default=True, help="What a notebook's kernel may use.")
@click.option("--no-sandbox", is_flag=True, help="Run the students' code with all of your own rights.")
@click.option("--cold", is_flag=True, help="Start each kernel from nothing, not from one that has done the imports.")
@click.option("--scheduler", default="", metavar="tcp://HOST:PORT", help="Let the workers of this Dask cluster do it.")
@click.option("--roster", type=FILE, help="The class, from course roster.")
@click.option("--suspects", type=FILE, help="The same as --roster.")
@click.option(
    "--late", default="", metavar="RULE", help='"10% per day, at most 50%", "20% once", "none"; kept for later.'
)
@click.option("--due", multiple=True, metavar="[NAME=]TIME", help="When all, or one, was due: 2026-12-01T23:59; kept.")
@click.option("--force", is_flag=True, help="Grade what has marks already, too.")
@click.option("--against", type=FILE, help="Look for copies from this folder of last year, too.")
@click.option("--export", type=click.Choice(EXPORTS), help="Write the marks, or feedback to upload, so.")
@click.option("--title", "titles", multiple=True, metavar="NAME=TITLE", help='As in Canvas: "Token attribution (123)".')
def grade(submissions: Path | None, out: Path, export: str | None, **options: Any) -> None:
    """Grade a class: the notebooks in a folder or zip file, each in a sandbox, into OUT/course-gradebook.sqlite.

    SUBMISSIONS holds student/NAME.ipynb, nbgrader's submitted/, or is a download of Canvas or Moodle. What has marks is
    not run again, so a run that was stopped goes on where it was. Each student's feedback is in OUT/feedback/. Without
    SUBMISSIONS nothing is run: use that with --export, --late and --due. Late work loses a share of the points that the
    exercise is worth, for each day begun; the time is the file's, or Canvas's mark.
    """
    from ..grading.classroom.commands import grade_class

    sys.exit(grade_class(submissions, out, export=export or "", **options))
