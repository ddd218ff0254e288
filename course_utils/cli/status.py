"""`course status`: how far a learner is."""

from __future__ import annotations

import click

from ..lesson.own import bring_up_to_date, following, standings


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
        table.add_row(one.sign, one.name, str(one.minutes or ""), one.told)
    Console(highlight=False, emoji=False, markup=False).print(table)
    coming = following(found)
    click.echo(f"Next: {coming.name}, “{coming.title}”" if coming else "All done.")
