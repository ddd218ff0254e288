"""One page for whoever teaches: who has what, how each item did; whole in itself, without scripts.

Of each item it says how many passed and how well it tells those who did well elsewhere in the exercise from those who
did not: its correlation with the rest of the points (corrected point-biserial; Pearson's where points are in between).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import StatisticsError, correlation, mean

from ..._files import write_whole
from ..marks import BLANK, READ, UNANSWERED, UNREACHED, Mark
from ..result import BROKEN
from .feedback import html_page
from .gradebook import Gradebook
from .standing import Entry, Graded

_FEWEST = 10  # students below whom a correlation says nothing
_MISTAKES = 3
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --page: #fff; --quiet: #595959; --line: #d0d0d0; --bar: #cfe3f6;
  --bad: #a3211b; --head: #f3f3f3 }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --page: #181818; --quiet: #adadad; --line: #444;
  --bar: #24425e; --bad: #ff9a90; --head: #262626 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; padding: 1rem;
  max-width: 75rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
.wide { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: .3rem }
.wide:focus-visible { outline: 2px solid }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-top: 1px solid var(--line) }
thead th { background: var(--head); vertical-align: bottom } tbody th { font-weight: 600 }
td.n { text-align: right; white-space: nowrap } th.n { text-align: right; min-width: 4.5rem }
.who th[scope=row], .who thead th:first-child { position: sticky; left: 0; background: var(--page); min-width: 7rem;
  max-width: 12rem; overflow-wrap: break-word } .who thead th:first-child { background: var(--head) }
.share { background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)) }
.quiet, small { color: var(--quiet) } .bad { color: var(--bad) } ol { margin: 0; padding-left: 1.2rem }
ol.told li { overflow-wrap: anywhere; min-width: 14rem }
"""


@dataclass(frozen=True)
class Item:
    """How a class did in one check or manual item."""

    exercise: str
    check: str
    points: float  # what it is worth
    is_hidden: bool
    is_read: bool
    marks: int  # how many have a mark in it: not those that could not be run, nor those still to be read
    answered: int  # how many of these answered
    share: float  # of its points, the mean that these earned from the run or from who read it, overrides left aside
    passed: float  # the share of these that earned all of its points
    discrimination: float | None  # correlation with the rest of the points; None: too few students, or all have one
    mistakes: tuple[tuple[str, int], ...]  # the commonest messages, and how many got each


def items(found: Iterable[Graded]) -> list[Item]:
    """How a class did in each item, in order; who could not be run does not count."""
    exercises: dict[str, list[Graded]] = {}
    for graded in found:
        if graded.status != BROKEN:
            exercises.setdefault(graded.exercise, []).append(graded)
    return [item for exercise, those in exercises.items() for item in _items(exercise, those)]


def _items(exercise: str, found: Sequence[Graded]) -> list[Item]:
    """The items of one exercise."""
    names = {entry.mark.check: None for graded in found for entry in graded.entries}  # in order
    totals = [sum(_earned(entry) or 0.0 for entry in graded.entries) for graded in found]
    return [_item(exercise, name, found, totals) for name in names]


def _item(exercise: str, name: str, found: Sequence[Graded], totals: Sequence[float]) -> Item:
    both = zip(found, totals, strict=True)
    entries = [(entry, total) for graded, total in both for entry in graded.entries if entry.mark.check == name]
    judged = [(entry, total, got) for entry, total in entries if (got := _earned(entry)) is not None]
    answered = [entry.mark for entry, _, _ in judged if _is_answered(entry.mark)]
    told = Counter(mark.message for mark in answered if not mark.passed and mark.message)
    last = entries[-1][0]
    return Item(
        exercise,
        name,
        last.mark.points,
        last.hidden,
        last.mark.status == READ,
        marks=len(judged),
        answered=len(answered),
        share=mean(_share(entry, got) for entry, _, got in judged) if judged else 0.0,
        passed=mean(_share(entry, got) >= 1 for entry, _, got in judged) if judged else 0.0,
        discrimination=_correlation([got for _, _, got in judged], [total - got for _, total, got in judged]),
        mistakes=tuple(told.most_common(_MISTAKES)),
    )


def _is_answered(mark: Mark) -> bool:
    return mark.status not in (UNANSWERED, UNREACHED) and mark.message != BLANK


def _earned(entry: Entry) -> float | None:
    """What the run gave, or whoever read it: what a person overrides says nothing about the check."""
    return entry.override.machine if entry.override else entry.mark.earned


def _share(entry: Entry, earned: float) -> float:
    """The share of an item's points; what is worth nothing is passed or not."""
    return earned / entry.mark.points if entry.mark.points else float(entry.mark.passed)


def _correlation(earned: Sequence[float], rest: Sequence[float]) -> float | None:
    if len(earned) < _FEWEST:
        return None
    try:
        return correlation(earned, rest)
    except StatisticsError:  # all have the same
        return None


def write_overview(book: Gradebook, out: Path) -> None:
    """Write the page of a gradebook, with those of the last roster who handed in nothing, into a folder."""
    everybody = json.loads(book.setting("students") or "[]")
    write_whole(out / "overview.html", overview(list(book.current()), everybody))


def overview(found: Sequence[Graded], everybody: Iterable[str] = ()) -> bytes:
    """The page, with a row for each of these students, too."""
    students = sorted({graded.student for graded in found} | {*everybody})
    exercises = sorted({graded.exercise for graded in found})
    unread = sum(graded.unread for graded in found)
    waiting = f", {unread} answers to be read (<code>course mark</code>)" if unread else ""
    body = (
        f"<h1>Overview of the class</h1><p>{_count(len(students), 'student')}, {_count(len(exercises), 'exercise')}"
        f"{waiting}. For those who teach: it names students and tells of hidden checks.</p>"
        + _marks(students, exercises, found)
        + _about_items(items(found))
    )
    return html_page("Overview of the class", _STYLE, body)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _marks(students: Sequence[str], exercises: Sequence[str], found: Sequence[Graded]) -> str:
    """The table of students and exercises, with the mean of each exercise below."""
    by = {(graded.student, graded.exercise): graded for graded in found}
    names = [escape(exercise).replace("_", "_<wbr>") for exercise in exercises]  # where a narrow screen may break them
    columns = "".join(f'<th scope="col" class="n">{name}</th>' for name in names)
    rows = ""
    for student in students:
        own = [by.get((student, exercise)) for exercise in exercises]
        total = f"{sum(graded.total for graded in own if graded):g}"
        cells = "".join(map(_cell, own)) + f'<td class="n">{total}</td>'
        rows += f'<tr><th scope="row">{escape(student)}</th>{cells}</tr>'
    means = "".join(_mean([graded for graded in found if graded.exercise == exercise]) for exercise in exercises)
    legend = "Points; the bar is the share of all there are. “To read”: so many wait for a person, and count 0 so far."
    return f"<p>{legend}</p>" + _scrolling(
        "Students and exercises",
        "<thead><tr>"
        f'<th scope="col">Student</th>{columns}<th scope="col" class="n">Together</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">Mean of those handed in</th>{means}<td></td></tr></tfoot>',
        "who",
    )


def _cell(graded: Graded | None) -> str:
    if graded is None:
        return '<td class="n quiet">not handed in</td>'
    notes = [f"{graded.subtracted:g} subtracted, late"] if graded.subtracted else ["late"] if graded.late else []
    notes += [f"{graded.unread} to read"] if graded.unread else []
    notes += ["by hand"] if any(entry.override for entry in graded.entries) else []
    notes += [graded.status] if graded.status != "done" else []
    told = f"<br><small>{escape(', '.join(notes))}</small>" if notes else ""
    return f"<td{_bar(graded.total, graded.points)}>{graded.total:g} of {graded.points:g}{told}</td>"


def _bar(part: float, whole: float) -> str:
    share = max(0.0, min(1.0, part / whole)) if whole else 0.0
    return f' class="n share" style="--share: {share:.0%}"'


def _mean(found: Sequence[Graded]) -> str:
    return f'<td class="n">{mean(graded.total for graded in found):.3g} of {found[-1].points:g}</td>'


def _about_items(found: Sequence[Item]) -> str:
    """For each exercise a table of its items."""
    exercises = {item.exercise: [other for other in found if other.exercise == item.exercise] for item in found}
    legend = (
        "<h2>Items</h2><p>As the run saw them, overrides left aside; of what a person reads, those that are read. "
        "<em>Tells apart</em> is the discrimination: the correlation of an item’s points with the rest of the points "
        "in its exercise (corrected point-biserial). Above 0.3 is good; near 0, the item has little to do with the "
        f"rest; below 0, those who do well elsewhere fail it: look at the check. It takes {_FEWEST} students.</p>"
    )
    return legend + "".join(_table(exercise, own) for exercise, own in exercises.items()) if found else ""


def _table(exercise: str, found: Sequence[Item]) -> str:
    numbers = ("Points", "Answered", "All points", "Mean", "Tells apart")
    header = '<th scope="col">Item</th>' + "".join(f'<th scope="col" class="n">{name}</th>' for name in numbers)
    header += '<th scope="col">Commonest mistakes</th>'
    body = f"<thead><tr>{header}</tr></thead><tbody>{''.join(map(_row, found))}</tbody>"
    return f"<h3>{escape(exercise)}</h3>" + _scrolling(f"Items of {exercise}", body, "items")


def _row(item: Item) -> str:
    kind = " <small>hidden</small>" if item.is_hidden else " <small>read by a person</small>" if item.is_read else ""
    mistakes = "".join(f"<li>{escape(told)} <small>({count})</small></li>" for told, count in item.mistakes)
    mistakes = f'<ol class="told">{mistakes}</ol>' if mistakes else ""
    rate = f"<td{_bar(item.passed, 1)}>{item.passed:.0%}</td>" if item.marks else '<td class="n">–</td>'
    return (
        f'<tr><th scope="row">{escape(item.check)}{kind}</th><td class="n">{item.points:g}</td>'
        f'<td class="n">{item.answered} of {item.marks}</td>{rate}'
        f'<td class="n">{f"{item.share * item.points:.3g}" if item.marks else "–"}</td>{_told(item.discrimination)}'
        f"<td>{mistakes}</td></tr>"
    )


def _told(discrimination: float | None) -> str:
    if discrimination is None:
        return '<td class="n quiet">–</td>'
    look = " bad" if discrimination < 0 else ""
    return f'<td class="n{look}">{discrimination:.2f}{" look at it" if look else ""}</td>'.replace("-", "−")


def _scrolling(label: str, table: str, look: str) -> str:
    """A table that can be pushed sideways where the screen is narrow, with the keyboard too."""
    region = f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">'
    return f'{region}<table class="{look}">{table}</table></div>'
