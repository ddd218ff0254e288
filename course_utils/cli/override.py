"""`course override`: other points than the run gave, with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import FILE


@click.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a number, and told to be too small
@click.argument("student")
@click.argument("exercise")
@click.argument("check")
@click.argument("points", required=False, type=float)
@click.option("--reason", default="", help="Why: the student reads it.")
@click.option("--who", default="", help="Your name, for the record (that of your account).")
@click.option("--clear", is_flag=True, help="Take an override back: what the run gave stands again.")
@click.option("--out", type=FILE, default=Path("grades"), show_default=True, help="What grade made.")
def override(student: str, exercise: str, check: str, points: float | None, out: Path, **options: Any) -> None:
    """Give STUDENT other POINTS for a CHECK of an EXERCISE than the run did.

    For example: course override ada 08_3_probing folds-check 2 --reason "right, in a form that the check does not know"

    It stands however often you grade again, also for a later hand-in (grade then tells you to look again). The
    feedback, the csv export and the history say so.
    """
    from ..grading.classroom.commands import override_mark

    click.echo(override_mark(out, (student, exercise, check), points, **options))
