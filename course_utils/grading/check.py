"""What `course check` does: find the reference of each notebook, run one against the other, tell what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CourseError, first_line
from ..loading.sources import HANDED_OUT
from .handout.copies import exercise_named
from .handout.release import EXERCISES, SOLUTIONS, UNTOUCHED, suspect_of, with_suspect
from .marks import PASSED, READ, UNANSWERED
from .notebook import MANUAL, grade_id, item_of, kind, model_answer, read, student_view, write
from .result import Limits, Result
from .runner.run import run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Checked:
    """One notebook and what came of it: a result, or a sentence that says why there is none."""

    path: Path
    result: Result | None = None
    trouble: str = ""

    @property
    def code(self) -> int:
        """0: all passed, 1: some failed, 2: could not be run."""
        if self.result is None or self.result.status == "could not run":
            return 2
        return 0 if self.result.passed else 1

    @property
    def passed_of(self) -> tuple[int, int]:
        """How many checks passed, of how many that a machine judges."""
        judged = [mark.passed for mark in (self.result.marks if self.result else ()) if mark.earned is not None]
        return sum(judged), len(judged)

    def as_json(self) -> dict[str, Any]:
        """What is known, in plain types."""
        if self.result is None:
            return {"notebook": str(self.path), "status": "could not run", "messages": [self.trouble]}
        told = {key: value for key, value in vars(self.result).items() if key not in ("notebook", "marks")}
        return {"notebook": str(self.path), **told, "marks": [asdict(mark) for mark in self.result.marks]}


def notebooks(names: Sequence[str]) -> list[Path]:
    """The notebooks that are meant: by path, or by name, here or in exercises/; all of these without names."""
    if not names:
        return sorted(EXERCISES.glob("*.ipynb")) or sorted(Path().glob("*.ipynb"))
    return [_meant(name) for name in names]


def _meant(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" or path.exists():
        return path
    nearby = [folder / f"{name}.ipynb" for folder in (Path(), EXERCISES)]
    return next((found for found in nearby if found.exists()), nearby[0])


def check_all(paths: Sequence[Path], limits: Limits = Limits()) -> Iterator[Checked]:  # noqa: B008
    """Check notebooks one after another; one that cannot be checked does not keep the others from it."""
    for path in paths:
        try:
            suspects = path.parent / "suspects"
            beside = suspects.resolve() if suspects.is_dir() else None
            reference, submission = reference_of(path), _bytes(path)
            if (own := suspect_of(submission)) != suspect_of(reference) and own in HANDED_OUT:
                reference = with_suspect(reference, own)  # the one that this student was given
            yield Checked(path, run(reference, submission, limits, beside=beside))
        except CourseError as error:
            yield Checked(path, trouble=str(error))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CourseError(f"Expected a notebook, got {path}, which cannot be read ({first_line(error)}).") from error


def reference_of(path: Path) -> bytes:
    """The untouched exercise that a notebook is an answer to, found by its name; a CourseError where there is none."""
    if not path.exists():
        here = ", ".join(_known(Path(UNTOUCHED), EXERCISES)) or "none here"
        raise CourseError(f"Expected a notebook, got {path}, which does not exist; the exercises: {here}.")
    folders = (path.parent / UNTOUCHED, Path(UNTOUCHED), EXERCISES / UNTOUCHED, EXERCISES)
    known = _known(*folders)
    exercise = exercise_named(path.name, _known(*folders, but=path))
    name = f"{exercise}.ipynb" if exercise else path.name
    solution = SOLUTIONS / name
    if solution.is_file():
        return write(student_view(read(_bytes(solution), solution.name)))
    for untouched in (folder / name for folder in folders):
        if untouched.is_file() and untouched.resolve() != path.resolve():
            return _bytes(untouched)
    if exercise or path.stem in known or not known:
        raise CourseError(
            f"There is no untouched copy of {path.name} to check against: run `course check` in the folder that you "
            f"were given, which keeps them in {UNTOUCHED}/, or in the course's own."
        )
    raise CourseError(
        f"Expected a notebook called like its exercise, got {path.name}; the exercises: {', '.join(known)}."
    )


def _known(*folders: Path, but: Path = Path()) -> list[str]:
    """The exercises that have a solution or lie in folders, one file left out."""
    found = (path for folder in (SOLUTIONS, *folders) for path in folder.glob("*.ipynb"))
    return sorted({path.stem for path in found if path.resolve() != but.resolve()})


def as_table(checked: Checked) -> Table:
    """A short table: item, passed or not, what was expected and what came, seconds."""
    from rich.table import Table
    from rich.text import Text

    result = checked.result
    table = Table(title=checked.path.stem, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for name, justify in (("item", "left"), ("", "left"), ("what was expected, what came", "left"), ("s", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for mark in result.marks if result is not None else ():
        colour = {PASSED: "green", UNANSWERED: "yellow", READ: "cyan"}.get(mark.status, "red")
        told = mark.message
        if mark.expected or mark.received:
            told += f"\nexpected {mark.expected}\nreceived {mark.received}"
        seconds = f"{mark.seconds:.1f}" if mark.earned is not None else ""
        table.add_row(mark.item, Text(mark.status, style=colour), Text(told), seconds)
    return table


def model_answers(checked: Checked) -> dict[str, str]:
    """By item, the model answer to each text that the learner has written, once all that is checked passes.

    It tells what the checked items find out. There is none where the solutions are not at hand.
    """
    solution = SOLUTIONS / f"{exercise_named(checked.path.name, _known())}.ipynb"
    if checked.result is None or checked.passed_of[0] < checked.passed_of[1] or not solution.is_file():
        return {}
    reference = read(_bytes(solution))
    asked = {grade_id(cell): cell for cell in reference.cells if cell.cell_type == "markdown" and kind(cell) == MANUAL}
    blank = {grade_id(cell): cell.source.strip() for cell in student_view(reference).cells}
    written = {grade_id(cell): cell.source.strip() for cell in read(_bytes(checked.path)).cells}
    return {
        item_of(cell): model_answer(cell.source)
        for name, cell in asked.items()
        if written.get(name, "") not in ("", blank[name]) and model_answer(cell.source)
    }


def summary(checked: Checked) -> str:
    """One line: how many checks passed, and how long it took."""
    result = checked.result
    if result is None:
        return checked.trouble
    passed, judged = checked.passed_of
    return f"{passed} of {judged} passed, {result.seconds:.0f} s in all."
