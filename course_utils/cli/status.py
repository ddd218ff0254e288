"""`course status` and `course reset`: how far a learner is, and a notebook begun anew."""

from __future__ import annotations

import click

from ..lesson.own import EXERCISE, bring_up_to_date, standings
from ..lesson.own import reset as begin_anew


@click.command()
def status() -> None:
    """Show how far you are: each lesson and exercise in my/, and what comes next."""
    from rich.console import Console
    from rich.table import Table

    for sentence in bring_up_to_date():
        click.echo(sentence, err=True)
    found = standings()
    table = Table(box=None, pad_edge=False)
    for name in ("", "notebook in my/", "minutes", "done"):
        table.add_column(name, justify="right" if name == "minutes" else "left")
    for one in found:
        unit = "checks passed" if one.name.startswith(EXERCISE) else "lines right"
        done = f"{one.done} of {one.of} {unit}" if one.of else "not checked yet" if one.begun else ""
        table.add_row("✓" if one.finished else "…" if one.begun else "", one.name, str(one.minutes or ""), done)
    Console(highlight=False, emoji=False, markup=False).print(table)
    following = next((one for one in found if not one.finished), None)
    click.echo(f"Next: {following.name}, “{following.title}”" if following else "All done.")


@click.command()
@click.argument("name")
def reset(name: str) -> None:
    """Begin a notebook of my/ anew: NAME or its beginning, such as 08_1 or exercise_08_1.

    Yours is kept in my/before/.
    """
    old = begin_anew(name)
    click.echo(f"Begun anew. Yours is {old}." if old else "Begun anew.")
