"""`course book`: the course as a static site."""

from __future__ import annotations

from pathlib import Path

import click

from ..lesson.own import ROOT
from . import FILE


@click.command()
@click.option("--out", type=FILE, default=Path("book"), help="The folder of the site (book/).")
def book(out: Path) -> None:
    """Build a site of the lessons as they are stored, the exercises, all pages, and a reference of the package.

    Nothing is run and nothing is fetched. Needs the extra book. An earlier book in the folder is replaced when the new
    one is whole.
    """
    from ..book.build import build

    pages = build(ROOT, out)
    click.echo(f"{pages} pages; open {out / 'index.html'}")
