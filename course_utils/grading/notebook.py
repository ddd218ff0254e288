"""Read notebooks whatever state they are in, and know what each cell is for (nbgrader's metadata, schema 3)."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..errors import CourseError, first_line

ANSWER, CHECK, MANUAL, TASK, LOCKED, FREE = "answer", "check", "manual", "task", "locked", "free"
NAMESPACE = "nbgrader"
STUB = "YOUR ANSWER HERE"  # what stands where text is to be written
NOT_RUN = "(not run yet; a right answer prints)\n"  # what stands above the output expected of a check, in an exercise
MOST_CELLS = 2_000  # an exercise has about thirty
LARGEST = 30_000_000  # bytes: beyond that it is no notebook that anybody wrote
PICTURES = ("image/png", "image/jpeg")  # the kinds that are shown
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_OUTPUTS = ("stream", "display_data", "execute_result", "error")
REGIONS = ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME")
_NEXT = re.compile(r"#\s*NEXT:\s*(.+)")


def read(data: bytes, name: str = "this file", *, largest: int = LARGEST) -> NotebookNode:
    """A notebook of any version as version 4.5, valid, each cell with an id of its own; else a CourseError.

    >>> read(b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 2}').nbformat_minor
    5
    """
    if len(data) > largest:
        raise CourseError(
            f"Expected a notebook of at most {largest // 10**6} MB, got {name} of {len(data) // 10**6} MB."
        )
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what = "an empty file" if not data.strip() else f"a file that is not JSON ({first_line(error)})"
        raise CourseError(f"Expected a notebook, got {name}, {what}; save it again from Jupyter.") from error
    if not isinstance(content, dict) or not isinstance(content.get("cells", content.get("worksheets")), list):
        raise CourseError(f"Expected a notebook, got {name}, which is JSON without cells; save it again from Jupyter.")
    if (count := len(content.get("cells", []))) > MOST_CELLS:
        raise CourseError(f"Expected a notebook of at most {MOST_CELLS} cells, got {name} with {count}.")
    major = content.get("nbformat")
    if not isinstance(major, int) or not 1 <= major <= nbformat.current_nbformat:
        raise CourseError(f"Expected a notebook of format {nbformat.current_nbformat}, got {name} of format {major!r}.")
    try:
        with _quiet():
            notebook = nbformat.from_dict(content)
            if major < nbformat.current_nbformat:
                notebook = nbformat.convert(notebook, nbformat.current_nbformat)
                for cell in notebook.cells:
                    cell.pop("id", None)  # a random one
            return _normal(notebook)
    except Exception as error:  # nbformat's upgrades assume a well-formed file and raise whatever comes
        raise CourseError(f"Expected a notebook, got {name}, whose cells are damaged ({first_line(error)}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence nbformat, which warns of everything that is mended here."""
    import logging

    logger = logging.getLogger("traitlets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _normal(notebook: NotebookNode) -> NotebookNode:
    """Mend what editors leave out or spoil: ids, metadata, sources in parts, unknown kinds of cell."""
    cells: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number, cell in enumerate(notebook.cells):
        kind = cell.get("cell_type") if cell.get("cell_type") in ("code", "markdown", "raw") else "raw"
        source = cell.get("source") or ""
        plain: dict[str, Any] = {
            "cell_type": kind,
            "source": _lines(source if isinstance(source, str) else "".join(map(str, source))),
            "metadata": cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {},
        }
        if kind == "code":
            outputs = (out for out in cell.get("outputs") or [] if isinstance(out, dict))
            plain["outputs"] = [out for out in outputs if out.get("output_type") in _OUTPUTS]
            plain["execution_count"] = cell.get("execution_count")
        elif pictures := _pictures(cell.get("attachments")):
            plain["attachments"] = pictures
        wanted = cell.get("id")
        usable = isinstance(wanted, str) and re.fullmatch(r"[\w-]{1,64}", wanted, re.ASCII) and wanted not in taken
        plain["id"] = wanted if usable else f"cell-{number}-{len(taken)}"
        taken.add(plain["id"])
        cells.append(plain)
    metadata = notebook.get("metadata") if isinstance(notebook.get("metadata"), dict) else {}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return nbformat.from_dict(whole)


def _lines(source: str) -> str:
    """A source as Jupyter has it, whichever program ended its lines."""
    return whole_text(source).lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _pictures(attachments: Any) -> dict[str, dict[str, str]]:
    """What was pasted into a cell's text, pictures alone."""
    found: dict[str, dict[str, str]] = {}
    for name, bundle in (attachments if isinstance(attachments, dict) else {}).items():
        data = bundle.items() if isinstance(bundle, dict) else ()
        if kept := {kind: text for kind, text in data if kind in PICTURES and isinstance(text, str)}:
            found[name] = kept
    return found


def write(notebook: NotebookNode, *, indent: int | None = 1) -> bytes:
    """The bytes of a notebook, the same for the same notebook."""
    return (whole_text(json.dumps(notebook, ensure_ascii=False, indent=indent, sort_keys=True)) + "\n").encode()


def whole_text(text: str) -> str:
    """A text that can be encoded: half a surrogate pair, which JSON may hold, is spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def grade_id(cell: NotebookNode) -> str:
    """The name that nbgrader knows a cell by; "" for a cell that it does not know."""
    marks = cell.metadata.get(NAMESPACE)
    name = marks.get("grade_id") if isinstance(marks, dict) else None
    return name if isinstance(name, str) else ""


def kind(cell: NotebookNode) -> str:
    """What a cell of an exercise is for: ANSWER, CHECK, MANUAL, TASK, LOCKED or FREE."""
    marks = cell.metadata.get(NAMESPACE)
    if not isinstance(marks, dict) or not grade_id(cell):
        return FREE
    if marks.get("task"):
        return TASK
    if marks.get("solution"):
        return MANUAL if marks.get("grade") else ANSWER
    return CHECK if marks.get("grade") else LOCKED


def checksum(cell: NotebookNode) -> str:
    """What nbgrader writes into a cell that it releases: a digest of the source, and of what the cell is for."""
    marks = cell.metadata[NAMESPACE]
    is_grade, is_solution = bool(marks.get("grade")), bool(marks.get("solution"))
    is_locked = not is_solution and (is_grade or bool(marks.get("locked")))
    parts = [cell.source, cell.cell_type, str(is_grade), str(is_solution), str(is_locked), grade_id(cell)]
    parts += [str(points(cell))] if is_grade else []
    return hashlib.md5("".join(parts).encode(), usedforsecurity=False).hexdigest()


def is_as_released(cell: NotebookNode) -> bool:
    """Whether a cell is as some release had it, perhaps an earlier one."""
    marks = cell.metadata.get(NAMESPACE)
    told = marks.get("checksum") if isinstance(marks, dict) and grade_id(cell) else None
    try:
        return told is not None and told == checksum(cell)
    except (TypeError, ValueError):  # points that are no number
        return False


def points(cell: NotebookNode) -> float:
    """What a cell is worth."""
    return float(cell.metadata[NAMESPACE].get("points", 0))


def item_of(cell: NotebookNode) -> str:
    """The item that a cell belongs to: `occlusion` for `occlusion-check`."""
    return re.sub(r"-(check|hidden|text)$", "", grade_id(cell))


def printed(outputs: list[Any]) -> str:
    """What a cell printed."""
    text = ("".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o.get("name") == "stdout")
    return "".join(text)


def is_hidden(cell: NotebookNode) -> bool:
    """Whether a cell holds a check that students do not see."""
    return kind(cell) == CHECK and "BEGIN HIDDEN TESTS" in cell.source


def region(source: str, name: str) -> str:
    """What stands between BEGIN and END of a region."""
    kept: list[str] = []
    inside = False
    for line in source.splitlines():
        if f"BEGIN {name}" in line or f"END {name}" in line:
            inside = f"BEGIN {name}" in line
        elif inside:
            kept.append(line)
    return "\n".join(kept).strip()


def mark_scheme(cell: NotebookNode) -> str:
    """The rubric of an answer that a person reads; in a cell of code it is written as comments."""
    found = region(cell.source, "MARK SCHEME")
    return re.sub(r"(?m)^[ \t]*# ?", "", found) if cell.cell_type == "code" else found


def model_answer(source: str) -> str:
    """The model answer to a question for a person, without the scheme by which it is marked; "" where there is none."""
    return without_regions(region(source, "SOLUTION"), REGIONS[1:]).strip()


def has_code(source: str) -> bool:
    """Whether a cell holds more than comments."""
    return any(line.strip() and not line.strip().startswith("#") for line in source.splitlines())


def student_view(solution: NotebookNode) -> NotebookNode:
    """What a student gets of a solution: stubs for answers, no hidden check, no mark scheme, expected outputs kept."""
    notebook = nbformat.from_dict(solution)
    for cell in notebook.cells:
        before, is_answer = cell.source, kind(cell) in (ANSWER, MANUAL)
        cell.source = stubbed(cell) if is_answer else without_regions(cell.source, REGIONS[1:])
        if cell.cell_type == "code" and (is_answer or (before != cell.source and not has_code(cell.source))):
            cell.outputs, cell.execution_count = [], None
    return notebook


def stubbed(cell: NotebookNode) -> str:
    """An answer cell with each solution region replaced by the step that comes next."""
    steps = (f"raise NotImplementedError({step})" for step in next_steps(cell.source))
    stubs = steps if cell.cell_type == "code" else repeat(STUB)
    kept = without_regions(cell.source, REGIONS[:1], lambda: next(stubs))
    return without_regions(kept, REGIONS[1:])


def next_steps(source: str) -> list[str]:
    """For each solution region of a cell, the text after its `# NEXT:`, quoted ("" where there is none)."""
    regions = re.findall(r"BEGIN SOLUTION\n(.*?)END SOLUTION", source, flags=re.DOTALL)
    found = [_NEXT.search(region) for region in regions]
    return [json.dumps(match.group(1).strip(), ensure_ascii=False) if match else "" for match in found]


def without_regions(source: str, names: tuple[str, ...], stub: Any = None) -> str:
    """A source without what stands between BEGIN and END of some regions; `stub()` gives a line to put there."""
    kept: list[str] = []
    inside = ""
    for line in source.split("\n"):
        begins = next((name for name in names if f"BEGIN {name}" in line), "")
        if begins and not inside:
            inside = begins
            if stub is not None:
                kept.append(line[: len(line) - len(line.lstrip())] + stub())
        elif inside and f"END {inside}" in line:
            inside = ""
        elif not inside:
            kept.append(line)
    if inside:
        raise CourseError(f"Expected END {inside} after BEGIN {inside}, and found none.")
    return "\n".join(kept)
