"""`course reset`: a notebook of the learner's begun anew."""

from __future__ import annotations

import click

from ..lesson.own import reset as begin_anew
from ..lesson.start import write_start


@click.command()
@click.argument("name")
def reset(name: str) -> None:
    """Begin a notebook of my/ anew: NAME or its beginning, such as 08_1 or exercise_08_1.

    Yours is kept in my/before/.
    """
    old = begin_anew(name)
    write_start()
    click.echo(f"Begun anew. Yours is {old}." if old else "Begun anew.")
