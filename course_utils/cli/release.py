"""`course release`: the exercises, made from the solutions."""

from __future__ import annotations

from typing import Any

import click

from . import FILE


@click.command()
@click.option("--out", type=FILE, help="Write the students' bundle into this folder.")
@click.option("--zip", "archive", type=FILE, help="Write it into this zip file.")
@click.option("--zips", "archives", type=FILE, help="A zip file for each student into this folder.")
@click.option("--students", type=FILE, help="A list of names, one a line: a folder for each.")
@click.option("--roster", type=FILE, help="The class, with suspects, from course roster.")
@click.option("--suspect", "suspects", multiple=True, help="A suspect to hand out (repeat it): a name, or a folder.")
@click.option("--exercise", "exercises", multiple=True, help="Release this exercise alone (repeat it for more).")
@click.option("--solutions", "source", type=FILE, help="Release those in this folder.")
@click.option("--force", is_flag=True, help="Overwrite exercises of this checkout that have answers in them.")
def release(**options: Any) -> None:
    """Make the exercises from the solutions, without answers and hidden checks.

    Without --out, --zip and --zips the exercises/ of this checkout are made anew. With --roster or --students each gets
    a folder and one of the suspects (model-a, model-b, model-c, or those given), written into the chapter's exercise.
    For --students, who has which stands in a .roster.csv beside the bundle, for you alone and for course grade.
    """
    from ..grading.handout.release import Release, release_to

    for line in release_to(Release(**options)):
        click.echo(line)
