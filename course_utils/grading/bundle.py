"""The students' bundle: a folder or a zip file, one suspect a student if asked, the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import CourseError, first_line
from .notebook import read, write
from .release import exercise_from

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS, EXERCISES = ROOT / "solutions", ROOT / "exercises"
SUSPECTS = ("model-a", "model-b", "model-c")
UNTOUCHED = ".checks"  # the folder of a bundle that keeps a copy of each exercise for `course check`
_SUSPECT = re.compile(r'(?m)^SUSPECT = "([^"\n]*)"')
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file knows


def release_to(
    *,
    out: Path | None = None,
    archive: Path | None = None,
    students: Path | None = None,
    suspects: Sequence[str] = (),
    source: Path | None = None,
) -> Iterator[str]:
    """Release all solutions; a line for each thing done.

    Args:
        out: a folder for the bundle.
        archive: a zip file for it; without either, the exercises of this checkout are made anew.
        students: a list of names, one a line.
        suspects: names or folders of suspects; one alone goes to everybody.
        source: the folder of the solutions, if it is not this checkout's.

    Raises:
        CourseError: no solutions, a faulty one, options that contradict each other, or nowhere to write.
    """
    if out is not None and archive is not None:
        raise CourseError("Expected --out or --zip, got both; run it twice.")
    if out is None and archive is None and source is not None:
        raise CourseError(f"Solutions in {source} need a bundle of their own: add --out FOLDER or --zip FILE.")
    if out is None and archive is None and (students is not None or suspects):
        raise CourseError("Students and suspects need a bundle of their own: add --out FOLDER or --zip FILE.")
    if students is None and len(suspects) > 1:
        raise CourseError(f"Expected a list of students for {len(suspects)} suspects, got none; add --students FILE.")
    if unknown := [name for name in suspects if name not in SUSPECTS and not Path(name).is_dir()]:
        raise CourseError(
            f"Expected suspects among {', '.join(SUSPECTS)} or folders, got {unknown[0]}, which is neither."
        )
    solutions = sorted((source or SOLUTIONS).glob("*.ipynb"))
    if not solutions:
        remedy = "name their folder with --solutions" if source else "release from the instructors' checkout"
        raise CourseError(f"Expected solutions in {source or SOLUTIONS}, found none; {remedy}.")
    if out is None and archive is None:
        yield from _renew(solutions)
        return
    exercises = {path.stem: exercise_from(path.read_bytes(), path.name) for path in solutions}
    given = _given(students, suspects)
    files = bundle(exercises, given)
    if archive is not None:
        write_zip(files, archive)
    elif out is not None:
        write_folder(files, out)
    yield f"{len(exercises)} exercises for {len(given) if students else 'everybody'} in {archive or out}"
    if students is not None:
        place = archive.with_suffix(".suspects.csv") if archive else Path(str(out).rstrip("/\\") + ".suspects.csv")
        write_whole(place, table(given))
        yield f"who has which suspect, for you alone: {place}"


def _renew(solutions: list[Path]) -> Iterator[str]:
    """Make this checkout's exercises anew; a faulty solution does not keep the others from it."""
    faulty: list[str] = []
    for path in solutions:
        try:
            write_whole(EXERCISES / path.name, exercise_from(path.read_bytes(), path.name))
        except CourseError as error:
            faulty.append(str(error))
    yield f"{len(solutions) - len(faulty)} exercises in {EXERCISES}"
    if faulty:
        raise CourseError(" ".join(faulty))


def _given(students: Path | None, suspects: Sequence[str]) -> dict[str, str]:
    """The suspect of each student; everybody is called ""."""
    if students is None:
        return {"": suspects[0] if suspects else ""}
    try:
        text = students.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise CourseError(f"Expected a list of students in {students} ({first_line(error)}).") from error
    return assign(student_names(text), suspects or SUSPECTS)


def suspect_of(notebook: bytes) -> str:
    """The suspect that a notebook's setup names, "" where it names none."""
    sources = (cell.source for cell in read(notebook).cells if cell.cell_type == "code")
    return next((found[1] for source in sources if (found := _SUSPECT.search(source))), "")


def with_suspect(notebook: bytes, suspect: str) -> bytes:
    """A notebook whose setup names this suspect; one that has no line `SUSPECT = "…"` stays as it is."""
    content = read(notebook)
    for cell in content.cells:
        if cell.cell_type == "code" and _SUSPECT.search(cell.source):
            cell.source = _SUSPECT.sub(f'SUSPECT = "{suspect}"', cell.source, count=1)
            if "checksum" in cell.metadata.get("nbgrader", {}):
                from nbgrader.utils import compute_checksum

                cell.metadata.nbgrader.checksum = compute_checksum(cell)
    return write(content)


def assign(students: Iterable[str], suspects: Sequence[str]) -> dict[str, str]:
    """A suspect for each student: the same for the same class, each suspect as often as the others (or once more).

    >>> sorted(assign(["Ada", "Ben", "Cy"], ["model-a", "model-b", "model-c"]).values())
    ['model-a', 'model-b', 'model-c']
    """
    names = list(students)
    mixed = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    found = {name: suspects[k % len(suspects)] for k, name in enumerate(mixed)}
    return {name: found[name] for name in names}


def student_names(text: str) -> list[str]:
    """The names in a list, one a line, each of which can name a folder.

    Raises:
        CourseError: no name, one twice, or one that cannot name a folder.
    """
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise CourseError("Expected a list of students, one name a line, got an empty one.")
    for name in names:
        if not re.fullmatch(r"[\w][\w .@+'-]*", name) or name.endswith("."):
            raise CourseError(f"Expected names of letters, digits, spaces and . @ + ' - _, got {name!r}.")
    twice = sorted({name for name in names if [n.casefold() for n in names].count(name.casefold()) > 1})
    if twice:
        raise CourseError(f"Expected each student once, got {twice[0]!r} more than once; add a number.")
    return names


def bundle(exercises: Mapping[str, bytes], suspects: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a bundle: each exercise and an untouched copy of it, in a folder for each student.

    Args:
        exercises: the notebooks, by name.
        suspects: the suspect of each student ("" is everybody: no folder; a suspect "" leaves the exercise's own).
    """
    files: dict[str, bytes] = {}
    for student, suspect in suspects.items():
        root = f"{student}/" if student else ""
        folder = Path(suspect) if suspect and Path(suspect).is_dir() else None
        called = f"suspects/{folder.name}" if folder else suspect
        for name, content in exercises.items():
            own = with_suspect(content, called) if suspect else content
            files[f"{root}{name}.ipynb"] = files[f"{root}{UNTOUCHED}/{name}.ipynb"] = own
        for path in sorted(folder.rglob("*")) if folder else ():
            if path.is_file():
                files[f"{root}{called}/{path.relative_to(folder or path).as_posix()}"] = path.read_bytes()
    return files


def table(suspects: Mapping[str, str]) -> bytes:
    """Who has which suspect, as CSV, for the instructor."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["student", "suspect"])
    rows.writerows(suspects.items())
    return text.getvalue().encode()


def write_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder, each whole or not at all."""
    for name, content in files.items():
        write_whole(folder / name, content)


def write_zip(files: Mapping[str, bytes], path: Path) -> None:
    """Write files into a zip file, the same bytes for the same files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_STORED, 0o644 << 16, 3
            archive.writestr(entry, files[name])
    write_whole(path, memory.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it.

    Raises:
        CourseError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except OSError as error:
        raise CourseError(f"Expected to write {path}, and could not ({first_line(error)}).") from error
