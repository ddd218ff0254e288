"""CSV as spreadsheets and learning platforms write and read it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ...errors import CourseError, first_line
from .names import composed

Rows = list[list[str]]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LARGEST = 50_000_000  # bytes


def rows_as_csv(rows: Rows) -> bytes:
    """Rows as a CSV file that spreadsheets read, none of its cells a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def rows_of(path: Path, what: str) -> Rows:
    """The rows of a CSV file with commas or semicolons, cells without gaps at their ends.

    Raises:
        CourseError: it cannot be read, is no text in UTF-8, or no table.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
        if len(data) > _LARGEST or "\0" in text:
            raise ValueError("too large" if len(data) > _LARGEST else "it holds binary data")
        head = text.split("\n", 1)[0]
        mark = ";" if head.count(";") > head.count(",") else ","
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    except (OSError, ValueError, csv.Error) as error:
        why = first_line(error)
        raise CourseError(f"Expected {what} in {path}, which cannot be read ({why}); save it as CSV, UTF-8.") from error
    return [[_plain(cell) for cell in row] for row in rows if any(cell.strip() for cell in row)]


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return cell


def _plain(cell: str) -> str:
    """A cell as it was before `_harmless`."""
    cell = composed(cell.strip())
    return cell[1:] if cell[:1] == "'" and cell[1:2] in _FORMULA else cell
