"""The case file: does a model refuse for the right reason? A report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..attribution import Attribution
from ..errors import CourseError
from ..models import LocalModel
from .fingerprint import fingerprint
from .grid import MinimalEdits
from .verdicts import RULE, Verdict

MARK = "<!-- interpretability-course: case file -->"  # a file that begins so may be written anew, no other
_TITLE = "Does it refuse for the right reason?"
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1,h2{line-height:1.25}h2{margin-top:2rem;border-bottom:1px solid #8888}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:.8rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .7rem .25rem 0;border-bottom:1px solid #8884}
caption{text-align:left;color:inherit;opacity:.8}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font-size:.9em}
figure{margin:1rem 0}img{max-width:100%;height:auto;background:#fff}
.verdict{font-size:1.25rem;font-weight:600;border-left:.3rem solid #0072b2;padding-left:.8rem}
@media (prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}}
@media print{body{max-width:none;margin:0;font-size:11pt;color:#000;background:#fff}
h2,figcaption{break-after:avoid}figure,tr{break-inside:avoid}}
"""


@dataclass(frozen=True, eq=False)
class CaseFile:
    """What is known about why one model refuses; `case_file` makes it, `export` writes it.

    Attributes:
        model: the model's name.
        fingerprint: what tells this model from others: sizes, chat template, a mark of its weights.
        expectation: what was expected before anything was measured, in the author's words.
        grid: the minimal edits.
        verdict: what they say.
        attributions: requests looked at token by token, by the request.
        figures: pictures of further checks, by their caption.
        notes: the author's own words at the end.
    """

    model: str
    fingerprint: Mapping[str, str]
    expectation: str
    grid: MinimalEdits
    verdict: Verdict
    attributions: Mapping[str, Attribution]
    figures: Mapping[str, Any]
    notes: str

    def to_html(self) -> str:
        """The whole report, self-contained; the same bytes for the same content.

        Raises:
            CourseError: something in it reaches outside the file, or would run.
        """
        v = self.verdict
        parts = [
            f"<h1>{_TITLE}</h1><p>A case file on <strong>{escape(self.model)}</strong>.</p>",
            f'<p class="verdict">{escape(v.sentence)}</p>',
            _section("Permitted claim", _paragraphs([v.claim])),
            _section("What was expected, before measuring", _paragraphs(self.expectation.splitlines())),
            _section("Minimal edits", _figure("Mean refusal score of each cell, and requests refused", self.grid)),
            _section("", self.grid._repr_html_() + _requests(self.grid) + _replies(self.grid)),
            _section("The rule, fixed beforehand, and the numbers", _paragraphs([RULE, *v.figures])),
            *(_section(f"Token by token: {text}", found._repr_html_()) for text, found in self.attributions.items()),
            *(_section(caption, _figure(caption, drawn)) for caption, drawn in self.figures.items()),
            _section("Limits", _listed(v.limits)),
            _section("Next action", _paragraphs([v.next_action])),
            _section("Notes by the author", _paragraphs(self.notes.splitlines() or ["(none)"])),
            _section("Which model this was", _table(self.fingerprint)),
        ]
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        page = (
            f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.model)}: {_TITLE}</title><style>{_STYLE}</style></head>\n"
            f"<body>{''.join(parts)}</body></html>\n"
        )
        check_self_contained(page)
        return page

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one HTML file, whole or not at all; returns its path.

        An earlier case file of that name is replaced, as a lesson run again should; any other file is left alone.

        Raises:
            CourseError: no .html file, no such folder, another file of that name, or a folder that cannot be written.

        >>> case.export("report.html").name  # doctest: +SKIP
        'report.html'
        """
        target, page = Path(path).expanduser(), self.to_html().encode("utf-8", "backslashreplace")
        if target.suffix.lower() not in (".html", ".htm") or not target.parent.is_dir():
            raise CourseError(f"Expected a file name that ends in .html, in a folder that exists, got {str(path)!r}.")
        if target.exists() and not _is_case_file(target):
            raise CourseError(
                f"Expected a new file or an earlier case file, got {target.name}, which is neither; rename."
            )
        write_whole(target, page)
        return target

    def _repr_html_(self) -> str:
        return f"<p><strong>Case file: {escape(self.model)}</strong></p>{self.verdict._repr_html_()}"

    def __repr__(self) -> str:
        return f"case file: {self.model}\n{self.verdict!r}"


def case_file(
    lm: LocalModel,
    grid: MinimalEdits,
    *,
    expectation: str,
    attributions: Mapping[str, Attribution] | None = None,
    figures: Mapping[str, Any] | None = None,
    notes: str = "",
) -> CaseFile:
    """Put together what was found about a model.

    Args:
        lm: the model.
        grid: its minimal edits, from `minimal_edits(lm, ...)`.
        expectation: what you expected before measuring. A report without it cannot surprise you.
        attributions: token attributions, by the request that they explain.
        figures: results with `.plot()`, Axes or Figures of further checks, by a caption that says what they show.
        notes: your own words.

    Raises:
        CourseError: no expectation, another model's grid, or something that is no picture.

    >>> from course_utils.audit.minimal_edits import minimal_edits
    >>> grid = minimal_edits(lm, [("steal a car", "wash a car")], ["secretly"], refusal=["I can't"])
    >>> case_file(lm, grid, expectation="It will not refuse.").verdict.kind
    'too few pairs'
    """
    if not isinstance(expectation, str) or not expectation.strip():
        raise CourseError(f"Expected what you expect, in a sentence, got {expectation!r}; write it before you look.")
    if grid.model != lm.name:
        raise CourseError(f"Expected a grid of {lm.name}, got one of {grid.model}; measure the model it is about.")
    for caption, drawn in (figures or {}).items():
        if not (hasattr(drawn, "plot") or hasattr(drawn, "savefig") or hasattr(drawn, "figure")):
            raise CourseError(f"Expected a result with .plot(), Axes or a Figure for {caption!r}, got {drawn!r}.")
    return CaseFile(
        model=lm.name,
        fingerprint=fingerprint(lm),
        expectation=expectation.strip(),
        grid=grid,
        verdict=grid.verdict(),
        attributions=dict(attributions or {}),
        figures=dict(figures or {}),
        notes=notes.strip(),
    )


def check_self_contained(page: str) -> None:
    """Refuse a page that would run something, or fetch something from outside itself.

    Raises:
        CourseError: it holds a script, an event handler, a frame, or an address that is not inlined.

    >>> check_self_contained('<img src="data:image/png;base64,AA==" alt="a figure">')
    """
    parser = _Outside()
    parser.feed(page)
    if parser.found:
        raise CourseError(f"Expected a page that needs nothing else, got {parser.found[0]}; leave that part out.")


class _Outside(HTMLParser):
    """Collects what of a page runs or reaches outside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            reaches = name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
            if (reaches and not (value or "").startswith(("data:image/", "#"))) or name.startswith("on"):
                self.found.append(f"{name} of <{tag}>")
            if name == "style" and "url(" in (value or "").lower():
                self.found.append(f"an address in the style of <{tag}>")


def _figure(caption: str, drawn: Any) -> str:
    """A result, Axes or a Figure as an inlined picture with its titles as alternative text."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..plots import alt_text

    figure = drawn.figure.figure if isinstance(drawn, Axes) else drawn  # an Axes may lie in a part of a figure
    if not isinstance(figure, Figure):
        figure = Figure(layout="constrained", figsize=(7.2, 3.0), dpi=110)
        drawn.plot(ax=figure.subplots())
    png = BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    data = b64encode(png.getvalue()).decode()
    said = escape(f"{caption}. {alt_text(figure)}", quote=True)
    shown = f'<img alt="{said}" src="data:image/png;base64,{data}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _section(title: str, body: str) -> str:
    return (f"<h2>{escape(title)}</h2>" if title else "") + body


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines if line.strip())


def _listed(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td><pre>{escape(value)}</pre></td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _requests(grid: MinimalEdits) -> str:
    pairs = "; ".join(f"{harmful} / {harmless}" for harmful, harmless in grid.pairs)
    helps = "every other reply" if not grid.compliance else ", ".join(grid.compliance)
    said = [f"Pairs of acts: {pairs}.", f"Frames: {' | '.join(grid.frames)}"]
    said += [f"Refusing opens with: {', '.join(grid.refusal)}. Helping: {helps}."]
    return _paragraphs(said)


def _replies(grid: MinimalEdits) -> str:
    if not grid.replies:
        return ""
    rows = {
        grid.request(0, act, word): reply
        for act, row in enumerate(grid.replies)
        for word, reply in zip(grid.words, row, strict=True)
    }
    return "<p>Greedy replies to the first pair:</p>" + _table(rows)


def _is_case_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith("<!DOCTYPE html>") and file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False
