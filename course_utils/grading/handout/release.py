"""The students' bundle: a folder or a zip file, one suspect a student if asked, the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nbformat import NotebookNode

from ..._files import write_folder, write_whole, write_zip
from ...errors import CourseError
from ...loading.sources import HANDED_OUT, SUSPECTS
from ..notebook import ANSWER, FREE, MANUAL, checksum, grade_id, is_as_released, kind, read, write
from ..people.roster import (
    COLUMNS,
    Roster,
    Student,
    class_list,
    read_roster,
    roster_as_csv,
    student_names,
    with_suspects,
)
from ..people.tables import text_of
from ..processes import PACKAGE
from .assignment import exercise_from
from .suspects import FOLDER, handed_out, named, words_for

ROOT = PACKAGE.parent
SOLUTIONS, EXERCISES = ROOT / "solutions", ROOT / "exercises"
UNTOUCHED = ".checks"  # the folder of a bundle that keeps a copy of each exercise for `course check`
_SUSPECT = re.compile(r'(?m)^SUSPECT = "([^"\n]*)"')


@dataclass(frozen=True)
class Release:
    """What is to be released, and how."""

    out: Path | None = None  # a folder for the bundle
    archive: Path | None = None  # a zip file for it
    archives: Path | None = None  # a folder for a zip file for each student
    students: Path | None = None  # a list of names, one a line
    roster: Path | None = None  # a roster in the place of a list
    suspects: Sequence[str] = ()  # names or folders of suspects; one alone goes to everybody
    exercises: Sequence[str] = ()  # these alone, none for all
    source: Path | None = None  # the folder of the solutions, if it is not this checkout's
    force: bool = False  # overwrite exercises of this checkout that have answers in them

    def check(self) -> None:
        """Raise a CourseError where the options contradict each other."""
        places = [place for place in (self.out, self.archive, self.archives) if place is not None]
        has_class = self.students is not None or self.roster is not None
        if len(places) > 1:
            raise CourseError("Expected one of --out, --zip and --zips, got both; run it twice.")
        if self.students is not None and self.roster is not None:
            raise CourseError("Expected --students or --roster, got both; course roster makes the one of the other.")
        if not places and self.source is not None:
            raise CourseError(f"Solutions in {self.source} need a bundle of their own: add --out FOLDER or --zip FILE.")
        if not places and (has_class or self.suspects):
            raise CourseError("Students and suspects need a bundle of their own: add --out FOLDER, --zip or --zips.")
        if not has_class and (self.archives is not None or len(self.suspects) > 1):
            what = f"{len(self.suspects)} suspects" if len(self.suspects) > 1 else "--zips"
            raise CourseError(
                f"Expected a list of students for {what}, got none; add --students FILE or --roster FILE."
            )
        for name in self.suspects:
            check_suspect(name)


def check_suspect(name: str) -> None:
    """Raise a CourseError for a suspect that is neither a built-in one nor a folder."""
    if name and name not in HANDED_OUT and not Path(name).is_dir():
        known, place = ", ".join(HANDED_OUT), SOLUTIONS / FOLDER
        raise CourseError(
            f"Expected suspects among {known} or folders, got {name}, which is neither; a private one lies in {place}."
        )
    if name and name not in HANDED_OUT and not re.fullmatch(r"\w[\w .-]*", Path(name).name):
        raise CourseError(f"Expected a suspect's folder called with letters, digits, spaces and . - _, got {name!r}.")


def release_to(release: Release) -> Iterator[str]:
    """Release solutions; a line for each thing done."""
    release.check()
    solutions = _chosen(release.exercises, release.source)
    yield from (told for path in solutions for told in _beside(path))
    if not (release.out or release.archive or release.archives):
        yield from _renew(solutions, release.force)
        return
    exercises = {path.stem: exercise_from(path.read_bytes(), path.name) for path in solutions}
    roster = _class_of(release)
    given = {one.student: one.suspect for one in roster.students} if roster else {"": "".join(release.suspects)}
    where = _write(bundle(exercises, given), release, list(given))
    yield f"{len(exercises)} exercises for {len(given) if roster else 'everybody'} in {where}"
    if roster is not None and release.roster is None:
        place = where.with_suffix(".roster.csv") if release.archive else Path(str(where).rstrip("/\\") + ".roster.csv")
        students = tuple(replace(one, suspect=named(one.suspect)) for one in roster.students)
        write_whole(place, roster_as_csv(replace(roster, students=students)))
        yield f"who has which suspect, for you alone: {place}"


def _chosen(names: Sequence[str], source: Path | None) -> list[Path]:
    solutions = {path.stem: path for path in sorted((source or SOLUTIONS).glob("*.ipynb"))}
    if not solutions:
        remedy = "name their folder with --solutions" if source else "release from the instructors' checkout"
        raise CourseError(f"Expected solutions in {source or SOLUTIONS}, found none; {remedy}.")
    if unknown := [name for name in names if name not in solutions]:
        raise CourseError(f"Expected one of {', '.join(solutions)}, got {unknown[0]!r}.")
    return [solutions[name] for name in dict.fromkeys(names)] or list(solutions.values())


def _beside(path: Path) -> Iterator[str]:
    """A sentence for each file beside a solution that its code names: neither students nor the grader have it."""
    cells: Sequence[NotebookNode] = ()
    with suppress(CourseError):  # told when it is released
        cells = read(path.read_bytes(), path.name).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for name in dict.fromkeys(re.findall(r"""["']([^"'\0\n]{1,200})["']""", code)):
        if not Path(name).is_absolute() and (path.parent / name).is_file():
            yield (
                f"note: {path.name} names {name}, which is not handed out and not there when it is graded: if it is "
                "read, put what it holds into a set-up cell, as text for io.StringIO"
            )


def _class_of(release: Release) -> Roster | None:
    """The class, everybody with a suspect; None for everybody alike."""
    if release.roster is not None:
        roster = read_roster(release.roster)
        student_names("\n".join(one.student for one in roster.students))
    elif release.students is not None:
        text = text_of(release.students, "a list of students")
        roster = Roster(tuple(Student(name) for name in student_names(text)), str(release.students))
    else:
        return None
    if release.roster is None or release.suspects:  # else who has none in the roster gets the exercise's own
        roster = with_suspects(roster, release.suspects or SUSPECTS)
    students = tuple(replace(one, suspect=_folder_of(one.suspect)) for one in roster.students)
    return replace(roster, students=students)


def _folder_of(suspect: str) -> str:
    """A suspect as it can be read: of one that a roster calls `suspects/NAME`, the folder beside the solutions."""
    beside = SOLUTIONS / suspect
    found = str(beside) if suspect not in HANDED_OUT and not Path(suspect).is_dir() and beside.is_dir() else suspect
    check_suspect(found)
    return found


def _write(files: Mapping[str, bytes], release: Release, students: Sequence[str]) -> Path:
    """Write a bundle in the form asked for; where."""
    if release.archive is not None:
        write_zip(files, release.archive)
        return release.archive
    if release.archives is not None:
        for student in students:
            mine = {name: content for name, content in files.items() if name.startswith(f"{student}/")}
            write_zip(mine, release.archives / f"{student}.zip")
        return release.archives
    out = release.out or Path()
    write_folder(files, out)
    return out


def _renew(solutions: list[Path], force: bool) -> Iterator[str]:
    """Make this checkout's exercises anew; a faulty solution does not keep the others from it."""
    faulty: list[str] = []
    made: dict[Path, bytes] = {}
    for path in solutions:
        try:
            made[EXERCISES / path.name] = exercise_from(path.read_bytes(), path.name)
        except CourseError as error:
            faulty.append(str(error))
    answered = [path for path, content in made.items() if not force and has_answers(path, content)]
    for path, content in made.items():
        if path not in answered:
            write_whole(path, content)
    yield f"{len(made) - len(answered)} exercises in {EXERCISES}"
    if answered:
        kept = ", ".join(path.name for path in answered)
        faulty.append(f"Expected exercises without answers, and {kept} has some: kept as it is; --force overwrites it.")
    if faulty:
        raise CourseError(" ".join(faulty))


def has_answers(path: Path, released: bytes) -> bool:
    """Whether somebody has worked in an exercise: a cell to be answered is not as it was released, or one was added."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    if content == released:
        return False
    try:
        mine = read(content, path.name)
    except CourseError:
        return bool(content.strip())  # whatever it is, it is no exercise that we wrote
    known = {(cell.id, grade_id(cell), cell.source) for cell in read(released).cells}
    theirs = [cell for cell in mine.cells if kind(cell) in (ANSWER, MANUAL, FREE) and cell.source.strip()]
    return any(not is_as_released(cell) for cell in theirs if (cell.id, grade_id(cell), cell.source) not in known)


def suspect_of(notebook: bytes) -> str:
    """The suspect that a notebook's setup names, "" where it names none."""
    sources = (cell.source for cell in read(notebook).cells if cell.cell_type == "code")
    return next((found[1] for source in sources if (found := _SUSPECT.search(source))), "")


def with_suspect(notebook: bytes, suspect: str, words: Mapping[str, str] | None = None) -> bytes:
    """A notebook whose setup names this suspect; one that has no line `SUSPECT = "…"` stays as it is.

    The words are of the texts and checks, each with the one that takes its place: the suspect's own cue.
    """
    content = read(notebook)
    if not any(cell.cell_type == "code" and _SUSPECT.search(cell.source) for cell in content.cells):
        return notebook
    for cell in content.cells:
        before = cell.source
        if cell.cell_type == "code":
            cell.source = _SUSPECT.sub(f'SUSPECT = "{suspect}"', cell.source, count=1)
        for old, new in (words or {}).items() if kind(cell) not in (ANSWER, MANUAL, FREE) else ():
            cell.source = re.sub(rf"\b{old}\b", new, cell.source)
            if old in str(cell.get("outputs", "")):  # no check's: these print no word of a request
                cell.outputs, cell.execution_count = [], None
        if before != cell.source and "checksum" in cell.metadata.get("nbgrader", {}):
            cell.metadata.nbgrader.checksum = checksum(cell)
    return write(content)


def bundle(exercises: Mapping[str, bytes], suspects: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a bundle: each exercise and an untouched copy of it, in a folder for each student.

    A student "" is everybody, without a folder; a suspect "" leaves the exercise's own.
    """
    files: dict[str, bytes] = {}
    made: dict[str, tuple[dict[str, bytes], dict[str, bytes]]] = {}
    for student, suspect in suspects.items():
        root = f"{student}/" if student else ""
        if suspect not in made:
            made[suspect] = _for_suspect(exercises, suspect)
        notebooks, beside = made[suspect]
        for name, own in notebooks.items():
            files[f"{root}{name}.ipynb"] = files[f"{root}{UNTOUCHED}/{name}.ipynb"] = own
        files |= {f"{root}{name}": content for name, content in beside.items()}
    return files


def _for_suspect(exercises: Mapping[str, bytes], suspect: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The exercises for one suspect ("" for their own), and the files that lie beside them."""
    if not suspect:
        return dict(exercises), {}
    folder = Path(suspect) if suspect not in HANDED_OUT else None
    words = words_for(folder) if folder else {}
    beside = {f"{named(suspect)}/{name}": content for name, content in handed_out(folder).items()} if folder else {}
    own = {name: with_suspect(content, named(suspect), words) for name, content in exercises.items()}
    return own, beside


def make_roster(source: Path, out: Path, suspects: Sequence[str] = (), *, force: bool = False) -> str:
    """Write the roster of a class, everybody with a suspect; what was done, in a sentence."""
    if out.exists() and not force:
        raise CourseError(f"Expected a new file, got {out}, which is there; name another with --out, or say --force.")
    for suspect in suspects:
        check_suspect(suspect)
    roster = with_suspects(class_list(source), [named(suspect) for suspect in suspects] or SUSPECTS)
    write_whole(out, roster_as_csv(roster))
    has = [column for column in COLUMNS if any(getattr(one, column) for one in roster.students)]
    return f"{len(roster.students)} students with {', '.join(has[1:])} in {out}, which is for you alone"
