"""`course roster`: the class, with a suspect for each."""

from __future__ import annotations

from pathlib import Path

import click

from . import FILE


@click.command()
@click.argument("source", type=FILE)
@click.option("--out", type=FILE, default=Path("roster.csv"), show_default=True)
@click.option("--suspect", "suspects", multiple=True, help="A suspect to hand out (repeat it): a name, or a folder.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def roster(source: Path, out: Path, suspects: tuple[str, ...], force: bool) -> None:
    """Make the roster of a class: one CSV file that binds platforms' names, suspects, sections and extensions.

    SOURCE is a list of names (one a line), Canvas's gradebook export, Moodle's grading worksheet or list of
    participants, or a roster to be filled up. Everybody gets a suspect. Write extensions into it by hand: a number of
    days, or a time such as 2026-12-01T23:59.
    """
    from ..grading.handout.release import make_roster

    click.echo(make_roster(source, out, suspects, force=force))
