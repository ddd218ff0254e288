"""CSV as spreadsheets and learning platforms write and read it."""

from __future__ import annotations

import csv
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from ...errors import CourseError, first_line
from .names import composed

Rows = list[list[str]]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_INSIDE = re.compile(r"(?<=[;\t\r\n])(?=\s*[=+\-@])")  # where a spreadsheet of another country begins a cell
_LARGEST = 50_000_000  # bytes


def rows_as_csv(rows: Rows) -> bytes:
    """Rows as a CSV file that spreadsheets read, none of its cells a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def rows_of(path: Path, what: str) -> Rows:
    """The rows of a CSV file with commas, semicolons or tabs, cells without gaps at their ends; or a CourseError."""
    text = text_of(path, what)
    told = re.match(r"sep=([,;|\t])\s*\n", text)  # Excel's own first line
    text = text[told.end() :] if told else text
    head = text.split("\n", 1)[0]
    mark = told[1] if told else max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    except (ValueError, csv.Error) as error:
        why = first_line(error)
        raise CourseError(f"Expected {what} in {path}, which cannot be read ({why}); save it as CSV, UTF-8.") from error
    return [[_plain(cell) for cell in row] for row in rows if any(cell.strip() for cell in row)]


def text_of(path: Path, what: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 that says so; a CourseError for any other."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
        if len(data) > _LARGEST or "\0" in text:
            raise ValueError("too large" if len(data) > _LARGEST else "it holds binary data")
    except UnicodeDecodeError as error:
        told = f"Expected {what} in UTF-8 in {path}, got another encoding, such as Latin-1 or Windows's"
        where = f"{error.object[max(0, error.start - 10) : error.start + 10]!r}"
        raise CourseError(f"{told} ({where}); save it in UTF-8 (Excel: CSV UTF-8).") from error
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise CourseError(f"Expected {what} in {path}, which cannot be read ({why}); save it as CSV, UTF-8.") from error
    return text


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, nor a part of it: where decimals have commas, cells end at ;."""
    try:
        float(cell)
    except ValueError:
        return _INSIDE.sub("'", f"'{cell}" if cell.startswith(_FORMULA) else cell)
    return cell


def _plain(cell: str) -> str:
    """A cell as it was before `_harmless`."""
    cell = re.sub(r"(?<=[;\t\r\n])'(?=\s*[=+\-@])", "", composed(cell.strip()))
    return cell[1:] if cell[:1] == "'" and cell[1:2] in _FORMULA else cell
