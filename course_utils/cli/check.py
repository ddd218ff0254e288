"""`course check`: a learner's answers against the exercise's own checks."""

from __future__ import annotations

import json
import sys

import click

from ..errors import CourseError
from ..lesson.own import MY, PREFIX, named, passed_checks
from ..lesson.start import write_start


@click.command()
@click.argument("notebooks", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def check(notebooks: tuple[str, ...], as_json: bool) -> None:
    """Check your answers: each NOTEBOOK afresh, against the exercise's own checks (all exercises without a name).

    A NOTEBOOK is a file, or the name of an exercise or its beginning, such as 08_1: your copy in my/ if you have one.
    The column s says how many seconds an answer and its check took. Your file stays as it is. Below the
    table, once all checks pass, texts that you have written get an answer to compare them with, where the solutions are
    at hand.
    """
    from ..grading.check import as_table, check_all, model_answers, summary
    from ..grading.check import notebooks as meant

    paths = meant(_own(notebooks))
    if not paths:
        raise CourseError("Expected the exercises in exercises/ or here, found none; give the path of a notebook.")
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False, emoji=False, markup=False)
    checked = []
    for one in check_all(paths):
        checked.append(one)
        if one.result is not None and one.path.parent.resolve() == MY:
            passed_checks(one.path.stem, *one.passed_of)
            write_start(MY.parent)
        if as_json:
            continue
        if one.result is not None:
            console.print(as_table(one))
            for note in (*one.result.repairs, *one.result.messages):
                console.print(f"note: {note}")
        for item, answer in model_answers(one).items():
            console.print(f"\nOne answer to {item}, to compare with yours:", style="bold")
            console.print(Markdown(answer))
        console.print(summary(one) + "\n", style="bold" if one.code == 0 else None)
    if as_json:
        click.echo(json.dumps([one.as_json() for one in checked]))
    sys.exit(max(one.code for one in checked))


def _own(names: tuple[str, ...]) -> tuple[str, ...]:
    """The learner's copies, where there are any: of all exercises, or of those that are named."""
    copies = {path.stem: str(path) for path in sorted(MY.glob(f"{PREFIX}*.ipynb"))}
    if not names:
        return tuple(copies.values())
    return tuple(name if "." in name or "/" in name or not copies else _copy(name, copies) for name in names)


def _copy(name: str, copies: dict[str, str]) -> str:
    stem = PREFIX + name.removeprefix(PREFIX)
    if not any(copy.startswith(stem) for copy in copies):
        return name  # perhaps an exercise that somebody else wrote
    return copies[named(stem, list(copies))]
