"""What is known about each suspect so far: one table that grows from lesson to lesson.

A lesson's rows live in its own stored output, nowhere else: a later lesson reads them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CourseError

MIME = "application/vnd.interpretability-course.evidence+json"  # how a row stands in a stored notebook


class Row(NamedTuple):
    """One question and what a lesson found for each suspect."""

    lesson: str
    question: str
    findings: dict[str, str]


@dataclass(frozen=True)
class Evidence:
    """The rows of all lessons so far, this lesson's last; shows itself as a table."""

    rows: tuple[Row, ...]

    @property
    def suspects(self) -> list[str]:
        """Whoever has a finding, in order of name."""
        return sorted({name for row in self.rows for name in row.findings})

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in ["", "", *self.suspects])
        body = ""
        for row in self.rows:
            cells = [row.lesson, row.question, *(row.findings.get(name, "") for name in self.suspects)]
            body += "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in cells) + "</tr>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            lines += [f"{row.lesson}  {row.question}", *(f"     {name}: {row.findings[name]}" for name in row.findings)]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        rows = [row._asdict() for row in self.rows]
        return {"text/plain": repr(self), "text/html": self._repr_html_(), MIME: rows}


def evidence(lesson: str, findings: Mapping[str, Mapping[str, str]], *, folder: str | Path | None = None) -> Evidence:
    """This lesson's findings below those of the lessons before it, as they stand in the stored notebooks.

    Args:
        lesson: its number, such as "8.3".
        findings: for each question, what was found for each suspect, in a few words.
        folder: where the lessons are; by default the current folder, which is where a notebook runs.

    Raises:
        CourseError: a lesson's number that is none, or no findings.

    >>> evidence("8.3", {"where is it read?": {"model-a": "at the verb"}}, folder="no-lessons-here").rows[-1].lesson
    '8.3'
    """
    chapter, _, number = lesson.partition(".")
    if not (chapter.isdigit() and number.isdigit()) or not findings or not all(findings.values()):
        raise CourseError(f"Expected a lesson such as '8.3' and its findings, got {lesson!r} and {dict(findings)!r}.")
    before: list[Row] = []
    for n in range(int(number)):
        for path in sorted(Path(folder or ".").glob(f"{int(chapter):02}_{n}_*.ipynb")):
            before += [row for row in stored_rows(path) if row.lesson == f"{chapter}.{n}"]
    return Evidence((*before, *(Row(lesson, question, dict(found)) for question, found in findings.items())))


def stored_rows(path: Path) -> list[Row]:
    """The rows of the evidence table in a stored notebook; none if it has not been run or cannot be read."""
    try:
        cells = loads(path.read_text(encoding="utf-8"))["cells"]
        tables = [o["data"][MIME] for c in cells for o in c.get("outputs", []) if MIME in o.get("data", {})]
    except (OSError, UnicodeDecodeError, JSONDecodeError, KeyError, TypeError, AttributeError):
        return []
    return [Row(row["lesson"], row["question"], row["findings"]) for row in tables[-1]] if tables else []
