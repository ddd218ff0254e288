"""What earlier classes handed in: notebooks and gradebooks in a folder, at any depth, read and left as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from nbformat import NotebookNode

from ...errors import CourseError
from ..limited import within
from ..notebook import LARGEST, grade_id, read
from ..people.owners import printable
from .gradebook import Gradebook
from .gradebook_file import NAME, NBGRADERS, is_ours


def needs_folder(folder: Path) -> None:
    """Raise a CourseError where there is no such folder."""
    if not folder.is_dir():
        raise CourseError(f"Expected a folder of earlier submissions in {folder}, found none; name one that is there.")


def earlier_in(folder: Path, references: Mapping[str, NotebookNode]) -> dict[str, list[tuple[str, NotebookNode]]]:
    """What an earlier class handed in, by exercise, each with where it is; what cannot be read is passed over."""
    needs_folder(folder)
    found: dict[str, list[tuple[str, NotebookNode]]] = {}
    own = {name: {grade_id(cell) for cell in reference.cells} - {""} for name, reference in references.items()}
    for place, notebook in _notebooks(folder):
        ids = {grade_id(cell) for cell in notebook.cells} - {""}
        exercise = max(own, key=lambda name: len(own[name] & ids), default="")
        if exercise and len(own[exercise] & ids) * 2 > len(ids):
            found.setdefault(exercise, []).append((place, notebook))
    if not found:
        told = f"Expected earlier notebooks or a gradebook in {folder}, found none of these exercises"
        raise CourseError(f"{told}: {', '.join(references)}.")
    return found


def _notebooks(folder: Path) -> Iterator[tuple[str, NotebookNode]]:
    """Each notebook below a folder, alone or in a gradebook, and where it is."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(top, name) for name in sorted(names)):
            place = printable(path.relative_to(folder).as_posix())
            if path.is_symlink() or not path.is_file():
                continue
            with suppress(CourseError, OSError):
                if path.suffix.lower() == ".ipynb" and path.stat().st_size <= LARGEST:
                    yield place, within(read, path.read_bytes())
                elif path.name in (NAME, NBGRADERS) and is_ours(path):
                    yield from _in_gradebook(path, place)


def _in_gradebook(path: Path, place: str) -> Iterator[tuple[str, NotebookNode]]:
    """The notebooks in a gradebook, read from a copy: opening one may bring it up to date."""
    with TemporaryDirectory(prefix="course-earlier-") as folder, Gradebook(Path(shutil.copy(path, folder))) as book:
        for graded in book.current():
            yield f"{place}: {graded.student}", book.notebook(graded.result)
