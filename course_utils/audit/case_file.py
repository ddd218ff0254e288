"""The case file: does a model refuse for the right reason? A report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..attribution import Attribution
from ..errors import CourseError
from ..models import LocalModel
from .fingerprint import fingerprint
from .grid import MinimalEdits
from .page import TITLE, figure, listed, page, paragraphs, section, table, write_page
from .verdicts import RULE, Verdict


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
            f"<h1>{TITLE}</h1><p>A case file on <strong>{escape(self.model)}</strong>.</p>",
            f'<p class="verdict">{escape(v.sentence)}</p>',
            section("Permitted claim", paragraphs([v.claim])),
            section("What was expected, before measuring", paragraphs(self.expectation.splitlines())),
            section("Minimal edits", figure("Mean refusal score of each cell, and requests refused", self.grid)),
            section("", self.grid._repr_html_() + _requests(self.grid) + _replies(self.grid)),
            section("The rule, fixed beforehand, and the numbers", paragraphs([RULE, *v.figures])),
            *(section(f"Token by token: {text}", found._repr_html_()) for text, found in self.attributions.items()),
            *(section(caption, figure(caption, drawn)) for caption, drawn in self.figures.items()),
            section("Limits", listed(v.limits)),
            section("Next action", paragraphs([v.next_action])),
            section("Notes by the author", paragraphs(self.notes.splitlines() or ["(none)"])),
            section("Which model this was", table(self.fingerprint)),
        ]
        return page(f"{self.model}: {TITLE}", "".join(parts))

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one HTML file, whole or not at all; returns its path.

        An earlier case file of that name is replaced, as a lesson run again should; any other file is left alone.

        Raises:
            CourseError: no .html file, no such folder, another file of that name, or a folder that cannot be written.

        >>> case.export("report.html").name  # doctest: +SKIP
        'report.html'
        """
        return write_page(path, self.to_html())

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


def _requests(grid: MinimalEdits) -> str:
    pairs = "; ".join(f"{harmful} / {harmless}" for harmful, harmless in grid.pairs)
    helps = "every other reply" if not grid.compliance else ", ".join(grid.compliance)
    said = [f"Pairs of acts: {pairs}.", f"Frames: {' | '.join(grid.frames)}"]
    said += [f"Refusing opens with: {', '.join(grid.refusal)}. Helping: {helps}."]
    return paragraphs(said)


def _replies(grid: MinimalEdits) -> str:
    if not grid.replies:
        return ""
    rows = {
        grid.request(0, act, word): reply
        for act, row in enumerate(grid.replies)
        for word, reply in zip(grid.words, row, strict=True)
    }
    return "<p>Greedy replies to the first pair:</p>" + table(rows)
