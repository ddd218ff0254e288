"""`course mark`: what a person has to read, one answer after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import FILE


@click.command()
@click.option("--exercise", default="", help="Read the answers to this exercise alone.")
@click.option("--out", type=FILE, default=Path("grades"), show_default=True, help="What grade made.")
@click.option("--reference", type=FILE, help="The folder of the solutions.")
@click.option("--who", default="", help="Your name, for the record (that of your account).")
@click.option("--names", is_flag=True, help="Show whose answer it is.")
@click.option("--all", "everything", is_flag=True, help="Also what has been read before.")
def mark(out: Path, **options: Any) -> None:
    """Read what a person has to read, one answer after the other; each entry is saved at once.

    Type points and a comment, s to skip, b to go back, q to stop. The same with pictures and the whole notebook beside:
    docs/grading_desk.ipynb.
    """
    from ..grading.classroom.commands import mark_class

    mark_class(out, **options)
