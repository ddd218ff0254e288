"""Take submissions from wherever a class hands them in: folders of students, nbgrader, Canvas, Moodle, zip files.

Nothing is unpacked and no link is followed: a submission stays where it is until it is read, with a limit on its size.
Who a file belongs to is decided in `owners`, what it is for by the names of its cells, here.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from ...errors import CourseError, first_line
from ..handout.copies import exercise_named
from ..handout.suspects import FOLDER
from ..notebook import LARGEST
from ..people.owners import Owned, moodle_name, owned, plain_text, printable

_MOST_FILES = 200_000  # in one zip file: more is no class
_LARGEST_DIRECTORY = 20_000_000  # bytes of a zip file's list of files; a tenth of it for a student's own
_MOST_TOLD = 20  # sentences about the files of one student
_DOWNLOADED_WITHIN = 900.0  # seconds that a platform takes to send a class's files
_LONGEST_NAME = 1000  # characters of all names down to a file
_DAMAGE = (OSError, EOFError, ValueError, LookupError, RuntimeError, ArithmeticError, MemoryError)
DAMAGE = (*_DAMAGE, zipfile.BadZipFile, zlib.error, struct.error)  # what zipfile raises on damaged files
_CELL = re.compile(rb'"(?:grade_id|id)"[ \t\r\n]{0,9}:[ \t\r\n]{0,9}"([A-Za-z0-9_-]{1,100})"')  # a key: \" in a source


@dataclass(frozen=True)
class Submission:
    """One notebook that a student handed in, not yet read."""

    student: str  # who, as the folder, the learning platform or the roster names them
    exercise: str
    source: Path  # the file, or the zip file that holds it
    member: str = ""  # its name in the zip file; "" outside of one
    number: str = ""  # the platform's number for the student, "" where there is none
    order: float = 0.0  # the later of two of a student's has the larger one
    late: bool = False  # whether the platform says so
    label: str = ""  # the platform's own name for it in its download, "" outside of one
    handed_in: str = ""  # when, in UTC, if the file tells (Canvas's are all of the download's time)
    extension: str = ""  # what the roster grants

    @property
    def place(self) -> str:
        """Where it is, to be read by a person."""
        return _place(self.source, self.member)

    def content(self) -> bytes:
        """Its bytes; a CourseError where it is too large or damaged, OSError or MemoryError where we cannot open it."""
        with _Archives() as archives:
            return _content(self.source, self.member, archives)


@dataclass(frozen=True)
class Taken:
    """What was found."""

    submissions: tuple[Submission, ...]  # one for each student and exercise, by exercise and student
    left: tuple[str, ...]  # a sentence for each file that was not taken
    notes: tuple[str, ...] = ()  # a sentence for each decision that somebody might see otherwise


def take(
    path: Path,
    exercises: Collection[str],  # the names of those there are
    *,
    only: str = "",  # take this one alone; a student's only notebook is taken for it, whatever it is called
    cells: Mapping[str, Collection[str]] | None = None,  # of each exercise: known by them, whatever the file is called
    untouched: Callable[[Submission], bool] = lambda _: False,  # whether nothing is written in it
) -> Taken:
    """Find the submissions in a folder or a zip file; a CourseError where there is no such, or no such exercise.

    They lie as `student/NAME.ipynb`, as nbgrader's `submitted/student/assignment/`, or as a download of Canvas or
    Moodle, zipped or not, in one more folder or not; a student's own zip file among them is looked into.
    """
    if only and only not in exercises:
        raise CourseError(f"Expected one of {', '.join(sorted(exercises))}, got {only!r}.")
    told = _Told()
    files = list(_files_in(path, told))
    found, notes = owned(((file.names, file) for file in files), exercises)
    told.notes += notes
    not_timed = _not_timed(found, path, told)
    mine: list[tuple[Submission, str]] = []
    ids = _telling(cells or {})
    with _Archives() as archives:
        for file, who in found:
            submission = _submission(file, who)
            if moodle_name(who.label) and _download(file, who, path) in not_timed:
                submission = replace(submission, handed_in="")
            if not who.student:
                where = "put it into one called after its student"
                told.left.append(f"{submission.place} is in no student's folder: {where}.")
            elif not file.name.lower().endswith(".ipynb"):
                if FOLDER in who.folders:  # the suspect that came with the exercises
                    continue
                told.about(
                    who.student, f"{submission.place} of {who.student} is handed in and not gradable: no .ipynb."
                )
            else:
                by_cells = _by_cells(file, archives, ids, told) if ids else ""
                exercise = _exercise(who, exercises, by_cells, submission.place, told)
                mine.append((replace(submission, exercise=exercise), who.name))
    return _sorted_out(mine, told, only, untouched)


def _not_timed(found: list[tuple[_File, Owned]], path: Path, told: _Told) -> set[Path]:
    """The downloads of Moodle's whose files have the time at which it wrote them, which is nobody's hand-in.

    Moodle did so from 3.10 on, for years: a class's files follow each other within minutes, in a zip file none earlier
    than the one before it. Of one or two, these are as old as the zip file itself.
    """
    times: dict[Path, list[float]] = {}
    for file, who in found:
        if moodle_name(who.label):
            times.setdefault(_download(file, who, path), []).append(_seconds(file, who))
    made = sorted(place for place, each in times.items() if _follow_each_other(each, place))
    told.notes += [
        f"{printable(str(place))}: all has the time at which Moodle wrote the download; when it was handed in is not "
        "known, and nothing is subtracted."
        for place in made
    ]
    return set(made)


def _download(file: _File, who: Owned, path: Path) -> Path:
    """The zip file in which Moodle wrote a file, or the folder where its download was unpacked."""
    outside = len(file.names) - len(PurePosixPath(file.member).parts) if file.member else len(file.names)
    is_inside = any(name.startswith(who.label) for name in file.names[outside:])
    return file.source if is_inside and not any(name.startswith(who.label) for name in file.names[:outside]) else path


def _follow_each_other(times: list[float], place: Path) -> bool:
    if max(times) - min(times) > _DOWNLOADED_WITHIN:
        return False
    if len(times) > 2:
        return place.is_dir() or times == sorted(times)
    try:
        return place.is_file() and abs(place.stat().st_mtime - max(times)) <= _DOWNLOADED_WITHIN
    except OSError:
        return False


@dataclass
class _Told:
    """Sentences for the person who grades; no student fills the page with theirs."""

    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def about(self, student: str, sentence: str) -> None:
        self.counts[student] += 1
        if self.counts[student] <= _MOST_TOLD:
            self.left.append(sentence)

    def all_left(self) -> tuple[str, ...]:
        more = [f"{who}: {n - _MOST_TOLD} more files." for who, n in self.counts.items() if n > _MOST_TOLD]
        return (*self.left, *more)


@dataclass(frozen=True)
class _File:
    """A file somewhere: where it is, and what the names around it are."""

    source: Path
    member: str
    names: tuple[str, ...]  # from the top folder down to the file; a zip file counts as a folder
    when: float  # its own time, 0 if it has none

    @property
    def name(self) -> str:
        return self.names[-1]


def _files_in(path: Path, told: _Told) -> Iterator[_File]:
    if path.is_dir():
        return _of_folder(path, told)
    with suppress(*DAMAGE):
        if zipfile.is_zipfile(path):
            return _of_zip(path, (), told)
    raise CourseError(f"Expected a folder or a zip file of submissions, got {path}; name one that is there.")


def _of_folder(top: Path, told: _Told) -> Iterator[_File]:
    def closed(error: OSError) -> None:
        told.left.append(f"{printable(str(error.filename))} cannot be read ({first_line(error)}).")

    for folder, inner, names in os.walk(top, onerror=closed, followlinks=False):
        here = Path(folder)
        links = {name for name in inner if os.path.islink(here / name)}
        told.left += (f"{printable(str(here / name))} is a link: links are not followed." for name in sorted(links))
        inner[:] = sorted(name for name in inner if not _is_hidden(name) and name not in links)
        for name in sorted(names):
            path = here / name
            if _is_hidden(name):
                continue
            parts = path.relative_to(top).parts
            try:
                if path.is_symlink() or not path.is_file():
                    told.left.append(f"{printable(str(path))} is a link or no file: only files are read.")
                elif path.suffix.lower() == ".zip":
                    yield from _of_zip(path, parts, told)
                else:
                    yield _File(path, "", parts, path.stat().st_mtime)
            except OSError as error:
                told.left.append(f"{printable(str(path))} cannot be read ({first_line(error)}).")


def _of_zip(path: Path, above: tuple[str, ...], told: _Told) -> Iterator[_File]:
    try:
        if (size := _directory_size(path)) > (_LARGEST_DIRECTORY // 10 if above else _LARGEST_DIRECTORY):
            told.left.append(f"{printable(str(path))} lists files in {size // 10**6} MB, more than any class hands in.")
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGE as error:
        told.left.append(f"{printable(str(path))} is no zip file that can be read ({first_line(error)}).")
        return
    if len(entries) > _MOST_FILES:
        told.left.append(f"{printable(str(path))} holds {len(entries)} files, more than any class hands in.")
        return
    for entry in {entry.filename: entry for entry in entries}.values():  # of two of one name zipfile reads the last
        names = PurePosixPath(_decoded(entry).replace("\\", "/")).parts
        if not names or entry.filename.endswith("/") or any(map(_is_hidden, names)):
            continue
        if fault := _fault(entry, names, path):
            told.about(str(above), f"{_place(path, entry.filename[:_LONGEST_NAME])} {fault}")
        else:
            yield _File(path, entry.filename, (*above, *names), _time_of(entry))


def _directory_size(path: Path) -> int:
    """The bytes of a zip file's list of files, as its last records say: a list of a million takes long to read."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 200))
        tail = file.read()
    end = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" else tail.rfind(b"PK\5\6")
    if end < 0:
        return 0
    told = int.from_bytes(tail[end + 12 : end + 16], "little")
    long = end - 76  # where a record for large files and then 20 bytes that say where it is stand, if there are any
    if long >= 0 and tail[long : long + 4] == b"PK\6\6" and tail[end - 20 : end - 16] == b"PK\6\7":
        told = int.from_bytes(tail[long + 40 : long + 48], "little")
    return min(size, told)


def _decoded(entry: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 that does not say so, as macOS writes it, is read as UTF-8."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _fault(entry: zipfile.ZipInfo, names: tuple[str, ...], path: Path) -> str:
    """Why a member of a zip file is not read, "" where it is."""
    unpack = f"unpack {printable(path.name)} and grade the folder."
    packed_otherwise = entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    faults = {
        "points out of the zip file.": names[0] == "/" or ".." in names,
        f"has a name of {len(entry.filename)} characters, longer than any file's.": len(entry.filename) > _LONGEST_NAME,
        f"is a zip file in a zip file: {unpack}": names[-1].lower().endswith(".zip"),
        "is encrypted.": bool(entry.flag_bits & 1),
        "is a link: links are not followed.": entry.external_attr >> 28 == 0xA,
        f"is packed in a way that is not read here: {unpack}": packed_otherwise,
    }
    return next((fault for fault, is_so in faults.items() if is_so), "")


def _time_of(entry: zipfile.ZipInfo) -> float:
    try:
        return datetime(*entry.date_time).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) and name not in (".", "..")


def _place(source: Path, member: str) -> str:
    return printable(f"{source}/{member}" if member else str(source))


def _submission(file: _File, who: Owned) -> Submission:
    seconds = _seconds(file, who)
    order = float(who.order) if who.order else seconds
    when = "" if who.order or not seconds else _utc(seconds)
    label = printable(who.label)
    return Submission(who.student, "", file.source, file.member, who.number, order, who.late, label, when)


def _seconds(file: _File, who: Owned) -> float:
    """When it was handed in: a student's own zip file, whose clock they can set, is as late as itself."""
    zips = [name for name in file.names if name.lower().endswith(".zip")]
    if not zips or not (zips[-1] in who.folders or plain_text(zips[-1][:-4]) == plain_text(who.student)):
        return file.when
    try:
        return file.source.stat().st_mtime
    except OSError:
        return 0.0


def _utc(when: float) -> str:
    try:
        return datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""


class _Archives(ExitStack):
    """The zip file whose members are looked into, which stays open meanwhile."""

    _last: tuple[Path, zipfile.ZipFile] | None = None

    def of(self, path: Path) -> zipfile.ZipFile:
        if self._last is None or self._last[0] != path:
            self.close()
            self._last = None
            self._last = path, self.enter_context(zipfile.ZipFile(path))
        return self._last[1]


def _content(source: Path, member: str, archives: _Archives) -> bytes:
    try:
        if member:
            with archives.of(source).open(member) as file:
                data = file.read(LARGEST + 1)
        else:
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            with open(os.open(source, flags), "rb") as plain:
                data = plain.read(LARGEST + 1)
    except DAMAGE as error:
        ours = isinstance(error, OSError) and bool(error.filename or not member)  # damage in a zip file names none
        is_link = getattr(error, "errno", 0) == errno.ELOOP  # which is its student's
        if isinstance(error, MemoryError) or (ours and not is_link):
            raise
        where = _place(source, member)
        raise CourseError(f"Expected a notebook in {where}, which cannot be read ({first_line(error)}).") from error
    if len(data) > LARGEST:
        where = _place(source, member)
        raise CourseError(f"Expected a notebook of at most {LARGEST // 10**6} MB, got a larger one in {where}.")
    return data


def _telling(cells: Mapping[str, Collection[str]]) -> dict[bytes, str]:
    """The exercise of each name of a cell that one exercise alone has."""
    count = Counter(name for names in cells.values() for name in set(names))
    return {
        name.encode(): exercise
        for exercise, names in cells.items()
        for name in names
        if count[name] == 1 and re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)
    }


def _by_cells(file: _File, archives: _Archives, telling: Mapping[bytes, str], told: _Told) -> str:
    """The exercise that most of a file's cells are of, "" where none or no single one is."""
    try:
        data = _content(file.source, file.member, archives)
    except (CourseError, OSError, MemoryError):
        return ""  # whoever grades it says why
    found = {name for name in _CELL.findall(data) if name in telling}
    ranked = Counter(telling[name] for name in found).most_common(2)
    if len(ranked) == 2:
        (most, count), (other, fewer) = ranked
        told.notes.append(f"{_place(file.source, file.member)} holds cells of {most} ({count}) and {other} ({fewer}).")
        if count == fewer:
            return ""
    return ranked[0][0] if ranked else ""


def _exercise(who: Owned, exercises: Collection[str], by_cells: str, place: str, told: _Told) -> str:
    """The exercise that a file is for: by its cells, else by its name, else by a folder's; "" for none."""
    given = (who.name, *reversed(who.folders))
    by_name = next((found for name in given if (found := exercise_named(name, exercises))), "")
    if by_cells and by_name and by_cells != by_name:
        told.notes.append(f"{place} is called {by_name} and holds the cells of {by_cells}, as which it counts.")
    return by_cells or by_name


def _copies(name: str) -> int:
    """The number that a copy's name ends in."""
    found = re.search(r"([0-9]{1,6})\)?$", name[-20:].rsplit(".", 1)[0])
    return int(found[1]) if found else 0


def _sorted_out(
    found: list[tuple[Submission, str]], told: _Told, only: str, untouched: Callable[[Submission], bool]
) -> Taken:
    """One submission for each student and exercise, the latest; two students of one name are told apart by number."""
    files = Counter((submission.student, submission.number) for submission, _ in found)
    numbers = Counter(student for student, _ in files)
    mine: list[tuple[Submission, str]] = []
    others: Counter[str] = Counter()
    for submission, name in found:
        student, number, exercise, place = submission.student, submission.number, submission.exercise, submission.place
        if only and files[student, number] == 1:
            exercise = exercise or only
        if not exercise:
            told.about(student, f"{place} is called {printable(name)}, like no exercise, and has no cell of one.")
        if only and exercise not in ("", only) and files[student, number] == 1:
            told.about(student, f"{place}, the only notebook of {student}, is one of {exercise}, not of {only}.")
        elif only and exercise not in ("", only):
            others[exercise] += 1
        if not exercise or (only and exercise != only):
            continue
        called = f"{student} ({number})" if numbers[student] > 1 and number else student
        mine.append((replace(submission, student=called, exercise=exercise), name))
    if others:
        counts = ", ".join(f"{exercise} ({count})" for exercise, count in sorted(others.items()))
        told.notes.append(f"Not graded, as {only} alone was asked for: {counts}.")
    mine.sort(key=lambda pair: (pair[0].order, _copies(pair[1]), pair[1], pair[0].place))
    submissions, earlier = latest((submission for submission, _ in mine), untouched)
    return Taken(submissions, (*told.all_left(), *earlier), tuple(told.notes))


def latest(
    found: Iterable[Submission], untouched: Callable[[Submission], bool] = lambda _: False
) -> tuple[tuple[Submission, ...], list[str]]:
    """Of several submissions of one student for one exercise the last one given; a sentence for each of the others.

    One in which nothing is written counts only where nothing is written in any.
    """
    best: dict[tuple[str, str], Submission] = {}
    left: list[str] = []
    for submission in found:
        key = submission.exercise, submission.student
        if key in best and untouched(submission) and not untouched(best[key]):
            left.append(f"{submission.place} has nothing written in it: {best[key].place}, an earlier one, counts.")
            continue
        if key in best:
            left.append(f"{best[key].place} is an earlier one than {submission.place}.")
        best[key] = submission
    return tuple(best[key] for key in sorted(best)), left
