"""A learner's own copy of lessons and exercises, in `my/`: to write in, while the originals stay to be read.

Outputs are cleared, so that no prediction is spoiled. What a learner has changed is never overwritten; what they have
not is brought up to date when the course is. `my/.course.json` keeps what each copy held when it was made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
MY = ROOT / "my"
KEPT = ".course.json"
PREFIX = "exercise_"  # begins the name of an exercise's copy: lesson and exercise stand beside each other


@dataclass(frozen=True)
class Standing:
    """How far a learner is in one notebook."""

    name: str  # of the copy, without its ending
    title: str  # its first heading
    minutes: int  # what it takes, as its first cell says
    done: int  # lines that are right, or checks that passed
    of: int  # how many there are
    begun: bool  # whether anything was changed or run

    @property
    def finished(self) -> bool:
        """Whether every line is right and every check passed."""
        return self.done == self.of > 0

    @property
    def sign(self) -> str:
        """✓ where it is finished, … where it is begun."""
        return "✓" if self.finished else "…" if self.begun else ""

    @property
    def told(self) -> str:
        """How far a learner is, in words."""
        unit = "checks passed" if self.name.startswith(PREFIX) else "lines right"
        return f"{self.done} of {self.of} {unit}" if self.of else "not checked yet" if self.begun else ""


def originals(root: Path = ROOT) -> dict[str, Path]:
    """The notebook behind each copy, by the copy's name, in the order in which they are done."""
    lessons, exercises = (sorted((root / folder).glob("08_*.ipynb")) for folder in ("notebooks", "exercises"))
    found = {path.stem: path for path in lessons} | {PREFIX + path.stem: path for path in exercises}
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[str, bool]:
    """A lesson's number, then its exercise; that of the whole chapter comes after 8.0, which is the chapter."""
    number = name.removeprefix(PREFIX)[:4]
    return (number if number[-1].isdigit() else "08_0", name.startswith(PREFIX))


def bring_up_to_date(root: Path = ROOT) -> Iterator[str]:
    """Make the copies that are missing, renew those that nobody changed; a sentence for each that could not be."""
    my = root / "my"
    found, kept = originals(root), _kept(my)
    if not found:
        raise CourseError(
            f"Expected the lessons in {root / 'notebooks'}, found none; install from a clone: pip install -e ."
        )
    for name, original in found.items():
        source, copy = original.read_bytes(), my / f"{name}.ipynb"
        told = kept.get(name, {})
        if copy.exists() and told.get("source") == _digest(source):
            continue
        if copy.exists() and not _as_made(copy, told):
            yield f"{name}: the course has a newer one than yours; `course reset {name}` gets it and keeps yours."
            continue
        kept[name] = _write(copy, source)
    _keep(my, kept)


def reset(name: str, root: Path = ROOT) -> Path | None:
    """Begin a notebook anew; the old one is kept beside it, and its path returned (None if there was none)."""
    my = root / "my"
    whole = named(name, list(originals(root)))
    copy, old = my / f"{whole}.ipynb", None
    if copy.exists():
        old = my / "before" / f"{whole}_{datetime.now():%Y-%m-%d_%H%M%S}.ipynb"
        old.parent.mkdir(exist_ok=True)
        copy.replace(old)
    kept = _kept(my)
    kept[whole] = _write(copy, originals(root)[whole].read_bytes())
    _keep(my, kept)
    return old


def named(name: str, known: list[str]) -> str:
    """The one notebook that a name, or its beginning, means: "08_1", "exercise_08_1", "08_chapter" (an exercise alone).

    >>> named("08_1", ["08_1_token_attribution", "exercise_08_1_token_attribution"])
    '08_1_token_attribution'
    """
    stem = Path(name).name.removesuffix(".ipynb")
    meant = [each for each in known if each == stem]
    for beginning in (stem, PREFIX + stem) if stem else ():
        meant = meant or [each for each in known if each.startswith(beginning)]
    if len(meant) != 1:
        came = f"which could be {' or '.join(meant)}" if meant else "which is none"
        raise CourseError(f"Expected a notebook among {', '.join(known)}, got {name!r}, {came}.")
    return meant[0]


def standings(root: Path = ROOT) -> list[Standing]:
    """How far a learner is in each lesson and each exercise, read off their copies."""
    my = root / "my"
    kept = _kept(my)
    return [
        _standing(name, original, my / f"{name}.ipynb", kept.get(name, {}))
        for name, original in originals(root).items()
    ]


def following(found: Sequence[Standing]) -> Standing | None:
    """What comes next: the first that is not finished; None where all are."""
    return next((one for one in found if not one.finished), None)


def passed_checks(name: str, passed: int, of: int, my: Path = MY) -> None:
    """Keep how many checks of an exercise passed, for `standings`; nothing where the learner has no copy of it."""
    kept = _kept(my)
    if name in kept:
        kept[name] |= {"passed": passed, "of": of}
        _keep(my, kept)


def _standing(name: str, original: Path, copy: Path, told: dict[str, Any]) -> Standing:
    source = _cells(original)
    text = "".join(source[0]["source"]) if source else name
    minutes = re.search(r"(\d+) minutes", text)
    title = text.partition("\n")[0].lstrip("# ")
    begun = copy.exists() and not _as_made(copy, told)
    if name.startswith(PREFIX):
        done, of = int(told.get("passed", 0)), int(told.get("of", 0))
    else:
        turns = [cell for cell in _cells(copy) or source if "your_turn(" in "".join(cell["source"])]
        done, of = sum("✓" in json.dumps(cell.get("outputs", []), ensure_ascii=False) for cell in turns), len(turns)
    return Standing(name, title, int(minutes[1]) if minutes else 0, done, of, begun)


def _cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook; none of one that is not there or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(copy: Path, source: bytes) -> dict[str, Any]:
    """Write a copy: no outputs, links as they run from where it lies; what is kept of it."""
    notebook = json.loads(source)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and copy.name.startswith("08_"):
            cell |= {"outputs": [], "execution_count": None}
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            text = re.sub(r"\]\(\.\./exercises/(?=08_)", f"]({PREFIX}", text)
            text = re.sub(r"\]\(\.\./notebooks/(?=08_)", "](", text)
            cell["source"] = re.sub(r"\]\(images/", "](../notebooks/images/", text).splitlines(keepends=True)
    content = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
    copy.parent.mkdir(exist_ok=True)
    write_whole(copy, content)
    return {"source": _digest(source), "copy": _held(content)}


def _as_made(copy: Path, told: dict[str, Any]) -> bool:
    content = copy.read_bytes()
    return told.get("copy") in (_held(content), _digest(content))  # the latter is what courses of before kept


def _held(content: bytes) -> str:
    """A digest of what the cells hold: JupyterLab saves what was only opened, with metadata and lines of its own."""
    try:
        cells = [
            {part: cell.get(part) for part in ("cell_type", "source", "outputs")}
            for cell in json.loads(content)["cells"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return _digest(content)
    return _digest(json.dumps(_joined(cells), sort_keys=True).encode())


def _joined(value: Any) -> Any:
    """A part of a notebook, with each text in one piece, whether it was written so or as a list of lines."""
    if isinstance(value, dict):
        return {key: _joined(each) for key, each in value.items()}
    if isinstance(value, list):
        texts = all(isinstance(each, str) for each in value)
        return "".join(value) if texts else [_joined(each) for each in value]
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _kept(my: Path) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads((my / KEPT).read_text(encoding="utf-8"))
        return {name: dict(told) for name, told in kept.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _keep(my: Path, kept: dict[str, dict[str, Any]]) -> None:
    write_whole(my / KEPT, (json.dumps(kept, indent=1) + "\n").encode())
