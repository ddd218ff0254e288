"""What a student gets back: one HTML file with marks, likely mistakes, comments and their own figures.

Whatever a submission holds is untrusted: of its outputs only text and pictures are shown, its Markdown is sanitised,
and the page forbids scripts and everything from elsewhere. Hidden checks are named, and nothing else of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from ..._files import write_whole
from ...errors import CourseError
from ..limited import within
from ..marks import FAILED, PASSED, READ, SLOW
from ..notebook import CHECK, LOCKED, PICTURES, REGIONS, TASK, grade_id, is_hidden, kind, read, without_regions, write
from ..people.names import fitting
from ..result import BROKEN, REFUSED
from .gradebook import Gradebook
from .standing import Entry, Graded

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONGEST = 20_000  # characters of one output
_LONGEST_NAME = 160  # bytes of a file's, without what tells it from another
_UNSEEN = {
    FAILED: "It fails on inputs that you do not see: think of cases that are not in the notebook.",
    SLOW: "It takes too long on inputs that you do not see.",
}
_PROSE = "p br hr h1 h2 h3 h4 h5 h6 em strong del code pre blockquote ul ol li details summary"
_TAGS = frozenset([*_PROSE.split(), "table", "thead", "tbody", "tr", "th", "td"])
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid #8886 } td.n { text-align: right; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; border-radius: .3rem }
img { max-width: 100%; background: #fff } .passed { color: #0a7a2f } .failed { color: #b3261e } .quiet { color: #666 }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #181818 } .passed { color: #6fd08c }
  .failed { color: #ff8a80 } .quiet { color: #aaa } }
"""


def write_feedback(book: Gradebook, folder: Path) -> int:
    """Write a page for each student into a folder; how many."""
    students: dict[str, list[Graded]] = {}
    for graded in book.current():
        students.setdefault(graded.student, []).append(graded)
    stems = {student: _stem(student) for student in students}
    often = Counter(stem.casefold() for stem in stems.values())
    for student, exercises in students.items():
        name = stems[student]
        if often[name.casefold()] > 1 or name != student:  # a name that no other student's can be
            name += f" #{hashlib.sha256(student.encode('utf-8', 'replace')).hexdigest()[:8]}"
        write_whole(folder / f"{name}.html", page_of(book, student, exercises))
    return len(students)


def _stem(student: str) -> str:
    """A student as a file may be called; disks count bytes, of which a letter has up to four."""
    fits = fitting(student, "_").strip(". ")
    return fits.encode()[:_LONGEST_NAME].decode(errors="ignore").strip() or "student"


def page_of(book: Gradebook, student: str, exercises: Sequence[Graded]) -> bytes:
    """The page of one student; where a notebook cannot be shown, it has the marks and says so."""
    try:
        return within(page, student, [(graded, write(book.notebook(graded.result))) for graded in exercises])
    except CourseError as error:
        note = f"Your notebook cannot be shown here: {error}"
        return page(student, [(replace(graded, messages=(*graded.messages, note)), b"") for graded in exercises])


def page(student: str, exercises: Sequence[tuple[Graded, bytes]]) -> bytes:
    """The page of one student, whole in itself, from each result and its notebook (b"" where it is not shown)."""
    body = "".join(_exercise(graded, notebook) for graded, notebook in exercises)
    return html_page(student, _STYLE, f"<h1>{escape(student)}</h1>{body}")


def html_page(title: str, style: str, body: str) -> bytes:
    """A page that is whole in itself, runs nothing and loads nothing."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head += f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    whole = f'<!DOCTYPE html><html lang="en"><head>{head}<style>{style}</style></head><body><main>{body}</main></body>'
    return f"{whole}</html>\n".encode("utf-8", "backslashreplace")


def _exercise(graded: Graded, notebook: bytes) -> str:
    waiting = f", {graded.unread} to be read" if graded.unread else ""
    rows = "".join(map(_row, graded.entries))
    standing = "no marks yet" if graded.is_unmarked else f"{graded.total:g} of {graded.points:g} points{waiting}"
    messages = ["It could not be run."] if graded.status == BROKEN else graded.messages  # ours to know why
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*graded.repairs, *messages))
    shown = ""
    if notebook and graded.status not in (BROKEN, REFUSED):  # else it is the exercise's, of which nothing was run
        shown = f"<details><summary>Your notebook, as it was run</summary>{notebook_html(notebook)}</details>"
    return (
        f"<h2>{escape(graded.exercise)}: {standing}</h2>{_late(graded)}"
        f"<table><tr><th>Item</th><th>Result</th><th>Points</th><th>What to look at</th></tr>{rows}</table>"
        f"{f'<ul>{notes}</ul>' if notes else ''}{shown}"
    )


def _late(graded: Graded) -> str:
    """What was subtracted, and why."""
    cost = "Nothing subtracted"
    if graded.subtracted:
        cost = f"{graded.earned:g} points earned, {graded.subtracted:g} subtracted"
    return f"<p>{cost}: {escape(graded.why)}.</p>" if graded.why else ""


def _row(entry: Entry) -> str:
    mark = entry.mark
    told = "" if mark.passed else _UNSEEN.get(mark.status, "") if entry.hidden else escape(mark.message)
    if not entry.hidden and (mark.expected or mark.received):
        told += f"<br>expected <code>{escape(mark.expected)}</code><br>received <code>{escape(mark.received)}</code>"
    told += _by_a_person(entry)
    if entry.comment:
        told += f"<p><em>{escape(entry.comment)}</em></p>"
    look = "passed" if mark.status == PASSED else "quiet" if mark.status == READ else "failed"
    earned = "" if mark.earned is None else f"{mark.earned:g}"
    name = f"{escape(mark.item)}{' (further checks)' if entry.hidden else ''}"
    cells = f'<td class="{look}">{entry.status}</td><td class="n">{earned} / {mark.points:g}</td><td>{told}</td>'
    return f"<tr><td>{name}</td>{cells}</tr>"


def _by_a_person(entry: Entry) -> str:
    """An override with its reason, and the criteria of a rubric, given or not."""
    told = ""
    if (said := entry.override) is not None:
        of = " of an earlier hand-in" if said.is_earlier else ""
        told = f"<p>{said.points:g} instead of {said.machine:g}{of}: <em>{escape(said.reason)}</em>"
        told += f" ({escape(said.who)}, {escape(said.at[:10])})</p>"
    given = (
        f"<li>{escape(t.criterion)}: {'given' if t.given >= t.points else 'in part' if t.given else 'not given'},"
        f" {t.given:g} of {t.points:g}</li>"
        for t in entry.ticks
    )
    return told + (f"<ul>{''.join(given)}</ul>" if entry.ticks else "")


def notebook_html(notebook: bytes) -> str:
    """All cells of a notebook as it was run."""
    return "".join(map(cell_html, read(notebook, largest=1 << 30).cells))


def cell_html(cell: NotebookNode) -> str:
    """A cell as it was run, nothing in it that runs or loads; of a hidden check its name alone."""
    if is_hidden(cell):
        return f'<p class="quiet">{escape(grade_id(cell))}: further checks</p>'
    source = without_regions(cell.source, REGIONS) if kind(cell) in (TASK, LOCKED, CHECK) else cell.source
    if cell.cell_type == "markdown":
        return markdown_html(source, cell.get("attachments"))
    outputs = "".join(map(_output, cell.get("outputs", [])))
    return f"<pre>{escape(source)}</pre>{outputs}" if source.strip() else ""


def markdown_html(source: str, attachments: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Markdown through nbconvert, then through a sanitiser that lets nothing pass that runs or loads.

    Pictures that were pasted in come after the text.
    """
    import bleach
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):  # type: ignore[misc]  # nbconvert's raises where an attachment is not there
        def image(self, text: str, url: str, title: str | None = None) -> str:
            return escape(text or "")

    html = MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)
    told = str(bleach.clean(html, tags=_TAGS, attributes={}, strip=True))
    return told + "".join(_picture(bundle, "a picture of yours") for bundle in (attachments or {}).values())


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"<pre>{escape(_joined(output.get('text'))[:_LONGEST])}</pre>"
    if output.output_type == "error":
        told = f"{output.get('ename')}: {output.get('evalue')}"[:_LONGEST]
        return f'<pre class="failed">{escape(told)}</pre>'
    data = output.get("data") or {}
    text = _joined(data.get("text/plain"))[:_LONGEST]
    return _picture(data, "a figure of yours") or (f"<pre>{escape(text)}</pre>" if text else "")


def _picture(data: Mapping[str, Any], called: str) -> str:
    """The picture among the forms of an output, written anew; "" where there is none."""
    for form in PICTURES:
        if form in data:
            with suppress(binascii.Error, ValueError):
                picture = base64.b64encode(base64.b64decode(_joined(data[form]), validate=False)).decode()
                return f'<img alt="{called}" src="data:{form};base64,{picture}">'
    return ""


def _joined(text: Any) -> str:
    return "".join(map(str, text)) if isinstance(text, list) else str(text or "")
