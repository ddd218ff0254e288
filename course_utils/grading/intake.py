"""Take submissions from wherever a class hands them in: folders of students, nbgrader, Canvas, Moodle, zip files.

Nothing is unpacked and no link is followed: a submission stays where it is until it is read, with a limit on its size.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import CourseError, first_line
from .notebook import LARGEST

_MOST_FILES = 200_000  # in one zip file: more is no class
_CANVAS = re.compile(r"^(?P<student>[^_/]+)_(?:(?P<late>LATE)_)?(?P<id>\d+)_(?P<order>\d+)_(?P<name>.+)$")
_MOODLE = re.compile(r"^(?P<student>[^/]+?)_(?P<id>\d+)_assignsubmission_(?:file|onlinetext)_?(?P<name>.*)$")
_COPY = re.compile(r"(?:[-_ ]+(?:copy|final|v|version)?[-_ ]*\d*|\s*\(\d+\))+$", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    """One notebook that a student handed in, not yet read.

    Attributes:
        student: who, as the folder or the learning platform names them.
        exercise: the name of the exercise.
        source: the file, or the zip file that holds it.
        member: its name in the zip file; "" outside of one.
        number: the platform's number for the student, "" where there is none.
        order: the later of two of a student's has the larger one.
        late: whether the platform says so.
    """

    student: str
    exercise: str
    source: Path
    member: str = ""
    number: str = ""
    order: float = 0.0
    late: bool = False

    @property
    def place(self) -> str:
        """Where it is, to be read by a person."""
        return printable(f"{self.source}/{self.member}" if self.member else str(self.source))

    def content(self) -> bytes:
        """Its bytes.

        Raises:
            CourseError: it is too large, or cannot be read.
        """
        try:
            if self.member:
                with zipfile.ZipFile(self.source) as archive, archive.open(self.member) as file:
                    data = file.read(LARGEST + 1)
            else:
                with open(
                    os.open(self.source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb"
                ) as file:
                    data = file.read(LARGEST + 1)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise CourseError(
                f"Expected a notebook in {self.place}, which cannot be read ({first_line(error)})."
            ) from error
        if len(data) > LARGEST:
            raise CourseError(
                f"Expected a notebook of at most {LARGEST // 10**6} MB, got a larger one in {self.place}."
            )
        return data


@dataclass(frozen=True)
class Taken:
    """What was found.

    Attributes:
        submissions: one for each student and exercise, by exercise and student.
        left: a sentence for each file that was not taken.
    """

    submissions: tuple[Submission, ...]
    left: tuple[str, ...]


def take(path: Path, exercises: Collection[str], *, only: str = "") -> Taken:
    """Find the submissions in a folder or a zip file.

    Args:
        path: `student/NAME.ipynb`, nbgrader's `submitted/student/assignment/`, a download of Canvas or Moodle, zipped
            or not; a student's own zip file among them is looked into.
        exercises: the names of the exercises there are.
        only: take this one alone; a student's only notebook is taken for it, whatever it is called.

    Raises:
        CourseError: there is no such folder or zip file, or no such exercise.
    """
    if only and only not in exercises:
        raise CourseError(f"Expected one of {', '.join(sorted(exercises))}, got {only!r}.")
    if path.is_dir():
        files = _of_folder(path)
    elif zipfile.is_zipfile(path):
        files = _of_zip(path, path)
    else:
        raise CourseError(f"Expected a folder or a zip file of submissions, got {path}; name one that is there.")
    left: list[str] = []
    found: list[tuple[Submission, str]] = []
    for file in files:
        if isinstance(file, str):
            left.append(file)
            continue
        submission, folders, name = _whose(file)
        if not submission.student:
            left.append(f"{submission.place} is in no student's folder: put it into one called after its student.")
        else:
            found.append((replace(submission, exercise=_exercise(folders, name, exercises)), name))
    return _sorted_out(found, left, only)


@dataclass(frozen=True)
class _File:
    """A notebook somewhere: where it is, and what the names around it are."""

    source: Path
    member: str
    names: tuple[str, ...]  # from the top folder down to the file
    order: float


def _of_folder(top: Path) -> Iterator[_File | str]:
    for folder, inner, names in os.walk(top, followlinks=False):
        here = Path(folder)
        for name in sorted(inner):
            if (here / name).is_symlink():
                yield f"{printable(str(here / name))} is a link: links are not followed."
        inner[:] = sorted(name for name in inner if not _is_hidden(name) and not (here / name).is_symlink())
        for name in sorted(names):
            path = here / name
            if _is_hidden(name) or path.suffix.lower() not in (".ipynb", ".zip"):
                continue
            if path.is_symlink() or not path.is_file():
                yield f"{printable(str(path))} is a link or no file: only files are read."
            elif path.suffix.lower() == ".zip":
                yield from _of_zip(path, top)
            else:
                yield _File(path, "", path.relative_to(top).parts, path.stat().st_mtime)


def _of_zip(path: Path, top: Path) -> Iterator[_File | str]:
    above = path.relative_to(top).with_suffix("").parts if path != top else ()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        yield f"{printable(str(path))} is no zip file that can be read ({first_line(error)})."
        return
    if len(entries) > _MOST_FILES:
        yield f"{printable(str(path))} holds {len(entries)} files, more than any class hands in."
        return
    for number, entry in enumerate(entries):
        names = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if entry.is_dir() or any(map(_is_hidden, names)) or not entry.filename.lower().endswith((".ipynb", ".zip")):
            continue
        where = printable(f"{path}/{entry.filename}")
        if names[0] == "/" or ".." in names:
            yield f"{where} points out of the zip file."
        elif entry.filename.lower().endswith(".zip"):
            yield f"{where} is a zip file in a zip file: unpack {printable(path.name)} and grade the folder."
        elif entry.flag_bits & 1:
            yield f"{where} is encrypted."
        elif entry.external_attr >> 28 == 0xA:
            yield f"{where} is a link: links are not followed."
        else:
            yield _File(path, entry.filename, (*above, *names), number)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) and name != "."


def printable(text: str) -> str:
    """A name in which whatever is no Unicode, and whatever would move a terminal's cursor, is spelt out."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)


def _whose(file: _File) -> tuple[Submission, tuple[str, ...], str]:
    """Whose it is, the folders below the student's, and what they called the file."""
    for depth, name in enumerate(file.names):
        if found := _MOODLE.match(name) or _CANVAS.match(name):
            told = found.groupdict()
            order = float(told["order"]) if told.get("order") else file.order
            below = file.names[depth + 1 :] or (told["name"],)
            return _submission(file, told["student"], told["id"], order, bool(told.get("late"))), below[:-1], below[-1]
    folders = file.names[:-1]
    if "submitted" in folders[:-1]:
        folders = folders[folders.index("submitted") + 1 :]
    return _submission(file, folders[0] if folders else "", "", file.order), folders[1:], file.names[-1]


def _submission(file: _File, student: str, number: str, order: float, late: bool = False) -> Submission:
    return Submission(printable(student.strip()), "", file.source, file.member, number, order, late)


def _exercise(folders: Iterable[str], name: str, exercises: Collection[str]) -> str:
    """The exercise that a file is for: called like it, or a copy of it, or in a folder that is; "" for none."""
    for given in (name, *reversed(list(folders))):
        stem = re.sub(r"\.ipynb$", "", given, flags=re.IGNORECASE)
        plain = {_plain(exercise): exercise for exercise in exercises}
        for candidate in (stem, _COPY.sub("", stem)):
            if found := plain.get(_plain(candidate)):
                return found
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.casefold())


def _sorted_out(found: list[tuple[Submission, str]], left: list[str], only: str) -> Taken:
    """One submission for each student and exercise, the latest; two students of one name are told apart by number."""
    numbers: dict[str, set[str]] = {}
    files = Counter((submission.student, submission.number) for submission, _ in found)
    for student, number in files:
        numbers.setdefault(student, set()).add(number)
    best: dict[tuple[str, str], Submission] = {}
    for submission, name in found:
        student, number, exercise = submission.student, submission.number, submission.exercise
        if only and files[student, number] == 1:
            exercise = exercise or only
        if not exercise:
            left.append(f"{submission.place} is called {printable(name)}, like no exercise.")
        if not exercise or (only and exercise != only):
            continue
        called = f"{student} ({number})" if len(numbers[student]) > 1 and number else student
        mine = replace(submission, student=called, exercise=exercise)
        other = best.setdefault((exercise, called), mine)
        if other is not mine:
            earlier, later = sorted((other, mine), key=lambda one: one.order)
            best[exercise, called] = later
            left.append(f"{earlier.place} is an earlier one than {later.place}.")
    return Taken(tuple(best[key] for key in sorted(best)), tuple(left))
