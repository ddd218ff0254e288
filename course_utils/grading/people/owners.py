"""Whose a file is: the outermost structure that no student can choose decides, never a name inside a student's folder.

Trusted are what a platform or an instructor writes at the top: Moodle's names, Canvas's names (if all files at the top
have them), nbgrader's `submitted/`, one folder for each student.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .names import composed

_Item = TypeVar("_Item")
Names = tuple[str, ...]
_MOST_AROUND = 3  # folders around a class
_LOOSE = (".ipynb", ".zip")  # what a student hands in; other files at the top are the instructor's


@dataclass(frozen=True)
class Owned:
    """Whose a file is, and what the student called it."""

    student: str  # "" for nobody's
    folders: Names  # below the student's own
    name: str  # of the file
    number: str = ""  # the platform's for the student
    order: str = ""  # the platform's for the file; "" where it has none
    late: bool = False  # whether the platform says so
    label: str = ""  # the platform's own name for it


def printable(text: str) -> str:
    """A name in which whatever is no Unicode, and whatever would move a terminal's cursor, is spelt out."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)


def plain_text(text: str) -> str:
    """A text as names are compared: in one Unicode form, without case, without gaps at its ends."""
    return composed(composed(text).casefold()).strip()


def canvas_name(name: str) -> Owned | None:
    """What Canvas's name for a file says: `name[_LATE]_USER_FILE_what`, `[LATE_]anon_CODE_FILE_what`; else None.

    The name is that of a student or a group, and may hold `_`; like Canvas, we take the first two numbers.

    >>> canvas_name("doejane_LATE_1234_777_mine.ipynb").number
    '1234'
    """
    parts = name.split("_")
    late = parts[0] == "LATE"
    rest = parts[late:]
    if len(rest) > 3 and rest[0] == "anon" and rest[1].isalnum() and _number(rest[2]):
        code, file, what = rest[1], rest[2], "_".join(rest[3:])
        return Owned(f"anon_{code}", (), what, "", file, late, name) if what else None
    return next(canvas_readings(name), None)


def canvas_readings(name: str) -> Iterator[Owned]:
    """All that Canvas's name for a file may say where a student's or a file's own name has numbers; Canvas's first."""
    parts = name.split("_")
    for i in range(1, len(parts) - 1):
        if not _number(parts[i]):
            continue
        late = i > 1 and parts[i - 1] == "LATE"
        student = composed(printable("_".join(parts[: i - late])))
        if i + 2 < len(parts) and _number(parts[i + 1]):
            yield Owned(student, (), "_".join(parts[i + 2 :]), parts[i], parts[i + 1], late, name)
        elif "_".join(parts[i + 1 :]) in ("text.html", "link.html"):  # written in the browser: there is no file
            yield Owned(student, (), parts[-1], parts[i], "", late, name)


def moodle_name(name: str) -> Owned | None:
    """What Moodle's name for a folder or file says: `Full name_PARTICIPANT_assignsubmission_file_what`; else None.

    >>> moodle_name("Jane Doe_55_assignsubmission_file").number
    '55'
    """
    parts = name.split("_")
    for i in range(2, len(parts) - 1):
        if parts[i] == "assignsubmission" and _number(parts[i - 1]) and "".join(parts[: i - 1]).strip():
            student = composed(printable("_".join(parts[: i - 1]).strip()))
            return Owned(student, (), "_".join(parts[i + 2 :]), parts[i - 1], label="_".join(parts[: i + 2]))
    return None


def platform_of(label: str) -> str:
    """The platform whose name for what was handed in this is; "" for none's."""
    return "moodle" if moodle_name(label) else "canvas" if canvas_name(label) else ""


def _number(text: str) -> bool:
    """Whether a platform counts like this: never from a 0, as in exercise_08_1_…, the course's name for a copy."""
    return text.isascii() and text.isdigit() and len(text) <= 20 and not text.startswith("0")


def owned(
    files: Iterable[tuple[Names, _Item]], exercises: Collection[str]
) -> tuple[list[tuple[_Item, Owned]], list[str]]:
    """Whose each file is, by the names from the top down to it; and a sentence for each decision worth a look."""
    found = list(files)
    notes: list[str] = []
    depth = _depth([names for names, _ in found], exercises, notes)
    whose = _Level([names[depth:] for names, _ in found if len(names) > depth], notes, exercises)
    return [(item, whose.of(names[depth:] if len(names) > depth else names[-1:])) for names, item in found], notes


def _depth(found: list[Names], exercises: Collection[str], notes: list[str]) -> int:
    """How many folders stand around the level at which the names are students' or a platform's."""
    inside = [names for names in found if len(names) > 1]
    tops = {names[0] for names in inside}
    alone = len(tops) == 1 and _loose(found) in ([], sorted(tops))
    if alone and _is_zip(inside[0][0]) and not (moodle_name(inside[0][0]) or canvas_name(inside[0][0])):
        notes.append(f"All lies in one zip file, {printable(inside[0][0])}, which is taken for the class's.")
        within = [names[1:] for names in inside]
        below = [names for names in within if len(names) > 1]
        is_folder = len({names[0] for names in below}) == 1 and not _loose(within)
        return 1 + (_wrapped(below, exercises, notes) if is_folder else 0)
    if alone:
        return _wrapped(inside, exercises, notes)
    by_top: dict[str, list[Names]] = {}
    for names in inside:
        by_top.setdefault(names[0], []).append(names[1:])
    platforms = not any(map(moodle_name, by_top)) and not _loose(found) and all(map(_is_download, by_top.values()))
    if len(by_top) > 1 and platforms:
        notes.append(
            f"Each of the {len(by_top)} folders at the top is taken for a platform's download, for no student."
        )
        return 1
    return 0


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _loose(names: Iterable[Names]) -> list[str]:
    """The files at a level that students may have handed in; a zip file counts as one."""
    every = {one[0] for one in names if len(one) == 1 or _is_zip(one[0])}
    return sorted(name for name in every if name.lower().endswith(_LOOSE))


def _folders(names: Iterable[Names]) -> set[str]:
    return {one[0] for one in names if len(one) > 1 and not _is_zip(one[0])}


def _is_download(names: list[Names]) -> bool:
    """Whether a platform wrote all that lies at a level, more than one student's if it is Canvas."""
    folders, loose = _folders(names), _loose(names)
    if folders:
        return all(map(moodle_name, folders)) and all(map(moodle_name, loose))
    told = [moodle_name(name) or canvas_name(name) for name in loose]
    if not told or None in told:
        return False
    return all(map(moodle_name, loose)) or len({one.number or one.student for one in told if one}) > 1


def _wrapped(names: list[Names], exercises: Collection[str], notes: list[str], deeper: int = _MOST_AROUND) -> int:
    """1 (or more, for folders in folders) if the one folder at the top holds the class, 0 if it is a student's."""
    top, below = names[0][0], [one[1:] for one in names]
    folders, loose = _folders(below), _loose(below)
    here = f"All lies in one folder, {printable(top)}"
    if moodle_name(top) or top == "submitted" or _is_zip(top):
        return 0
    if "submitted" in folders:
        notes.append(f"{here}, which is taken for nbgrader's, as submitted/ is in it.")
        return 1
    if _is_download(below):
        notes.append(f"{here}, which is taken for a platform's download.")
        return 1
    if len(folders) > 1 and not loose and not any(_is_short_for(name, exercises) for name in folders):
        notes.append(f"{here}: the {len(folders)} folders in it are the students'.")
        return 1
    inner: list[str] = []
    if len(folders) == 1 and not loose and deeper:
        more = _wrapped([one for one in below if len(one) > 1], exercises, inner, deeper - 1)
        if more:
            notes += inner
            return 1 + more
    notes.append(f"{here}, which is taken for one student's.")
    return 0


def _is_short_for(name: str, exercises: Collection[str]) -> bool:
    """Whether a folder is called like an exercise, or like the beginning of its name."""
    plain = plain_text(name).replace(" ", "_").replace("-", "_")
    named = map(plain_text, exercises)
    return len(plain) > 1 and any(one.startswith(plain) or plain.startswith(one) for one in named)


class _Level:
    """The level at which a class begins: what its names mean."""

    def __init__(self, names: list[Names], notes: list[str], exercises: Collection[str]) -> None:
        folders, loose = _folders(names), _loose(names)
        self._submitted = "submitted" in folders
        self._notes = notes
        plain = [name for name in loose if not moodle_name(name)]
        other = [name for name in plain if not canvas_name(name)]
        students = [name for name in other if _is_zip(name)]
        strange = sorted(name for name in folders if not moodle_name(name))
        self._canvas = bool(plain) and not other and not strange
        if plain and not self._canvas and len(other) < len(plain):
            first = printable((other or strange)[0])
            notes.append(
                f"{len(plain) - len(other)} files are named as Canvas names them, and {first} beside them is not: "
                "they are taken for nobody's; take out of the download what Canvas did not write."
            )
        if students and not self._canvas:
            notes.append(
                f"{len(students)} zip files at the top are taken each for that of a student who is called like it."
            )
        for name in plain if self._canvas else ():
            before = min((name.partition(f"_{exercise}")[0] for exercise in exercises), key=len, default=name)
            if sum(map(_number, before.split("_"))) > 2:  # numbers in the exercise's own name say nothing
                notes.append(f"{printable(name)} has more than two numbers: as Canvas does, the first two are taken.")

    def of(self, names: Names) -> Owned:
        """Whose a file is."""
        top, below = names[0], names[1:]
        is_file = not below or _is_zip(top)
        if self._submitted:
            return self._in_folder(below) if top == "submitted" and below else Owned("", (), names[-1])
        told = moodle_name(top) or (canvas_name(top) if is_file and self._canvas else None)
        if told is not None:
            below = below or (told.name,)
            return Owned(told.student, below[:-1], below[-1], told.number, told.order, told.late, told.label)
        if below and not canvas_name(top):  # a student's own zip file, called after them
            return self._in_folder((top[:-4], *below) if is_file else names)
        if is_file:
            return Owned("", (), names[-1])
        return self._in_folder(names)

    def _in_folder(self, names: Names) -> Owned:
        """One folder a student: what names in it look like does not count, and is told."""
        if len(names) == 1:
            return Owned("", (), names[0])
        student = composed(printable(names[0].strip())) or "(no name)"
        claims = [told for name in names[1:] if (told := moodle_name(name) or canvas_name(name))]
        if claims and plain_text(claims[0].student) != plain_text(student):
            shown = printable("/".join(names))
            self._notes.append(f"{shown} is named as a platform names {claims[0].student}'s: it counts for {student}.")
        return Owned(student, names[1:-1], names[-1])
