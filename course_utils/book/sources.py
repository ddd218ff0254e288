"""What the book is made of: pages and notebooks as they lie in the repository, a start page, and a page a module.

Files keep their places, so that links between them hold. A file that a page links to and that is no page goes along.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import CourseError, first_line

START = "docs/index.md"  # in the book it stands at the top
PICTURES = "notebooks/images"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")  # of Markdown, to a place in this repository
CODE = re.compile(r"```.*?```|`(?:[^`\n]|\n(?!\n))*`", re.DOTALL)
MODULES = {
    "Load and look": ("models", "prompts", "hooks", "plots", "errors"),
    "Methods": (
        *("attribution", "faithfulness", "attention", "probing", "directions", "ablation", "lens", "patching"),
        *("engine.openings", "engine.activations", "engine.dictionary"),
    ),
    "Audit": ("audit.run", "audit.case_file", "audit.minimal_edits", "audit.verdicts", "audit.vocabulary"),
    "Suspects and lessons": (
        *("organisms.suspects", "organisms.planted", "organisms.requests", "organisms.scores"),
        *("lesson.turns", "lesson.widgets"),
    ),
}


class Chapter(NamedTuple):
    """A part of the contents: its heading and its pages, as patterns from the top of the repository."""

    title: str
    patterns: tuple[str, ...]

    def pages(self, root: Path) -> list[str]:
        found = [path for pattern in self.patterns for path in sorted(root.glob(pattern))]
        return [path.relative_to(root).as_posix() for path in found]


STARTS = "Where to start"  # the start page says it in sentences
CONTENTS = (
    Chapter(STARTS, ("docs/learner.md", "docs/operator.md", "docs/instructor.md")),
    Chapter("Lessons", ("notebooks/08_*.ipynb",)),
    Chapter("Exercises", ("exercises/08_[0-9]*.ipynb", "exercises/08_chapter*.ipynb")),
    Chapter("For a model of your own", ("docs/methods.md", "docs/audit.md", "docs/architectures.md")),
    Chapter("To teach", ("docs/class.md", "docs/write_an_exercise.md", "docs/sandbox.md", "docs/grading_desk.ipynb")),
    Chapter(
        "About the course",
        ("docs/measured.md", "course_utils/organisms/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    ),
)


def gather(root: Path, to: Path) -> None:
    """Lay out the book's sources in an empty folder."""
    chapters = [(chapter.title, chapter.pages(root)) for chapter in CONTENTS]
    if not (root / START).is_file() or not dict(chapters)["Lessons"]:
        raise CourseError(
            f"Expected the lessons in {root / 'notebooks'} and {START} beside them, got a package without them; "
            "install from a clone: pip install -c constraints.txt -e '.[book]'."
        )
    pages = {page for _, found in chapters for page in found}
    pictures = {path.relative_to(root).as_posix() for path in (root / PICTURES).iterdir()}
    for name in sorted(pages | pictures | _beside(root, {START, *pages})):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".ipynb"):
            (to / name).write_text(with_descriptions((root / name).read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(root / name, to / name)
    start = moved((root / START).read_text(encoding="utf-8"), posixpath.dirname(START), "")
    (to / "index.md").write_text("\n\n".join([start, *_contents(root, chapters)]) + "\n", encoding="utf-8")
    _reference(to / "api")


def moved(text: str, old: str, new: str) -> str:
    """Markdown whose links still hold when its file goes from one folder to another.

    >>> moved("[a](../notebooks/a.ipynb#top), [b](audit.md), [c](https://x.org)", "docs", "")
    '[a](notebooks/a.ipynb#top), [b](docs/audit.md), [c](https://x.org)'
    """
    return LINK.sub(lambda link: posixpath.relpath(posixpath.join(old, link[1]), new or "."), text)


def with_descriptions(notebook: str) -> str:
    """A notebook whose figures say in words what they show, where MyST-NB looks for it."""
    told = json.loads(notebook)
    for cell in told["cells"]:
        kinds = [kind for output in cell.get("outputs", ()) for kind in output.get("metadata", {}).values()]
        if words := [kind["alt"] for kind in kinds if isinstance(kind, dict) and "alt" in kind]:
            cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(words)}}
    return json.dumps(told, ensure_ascii=False)


def linked(path: Path) -> list[str]:
    """The places in this repository that a page or a notebook's text links to, as they are written."""
    text = "\n\n".join(_prose(path))
    return LINK.findall(CODE.sub("", text))


def _prose(path: Path) -> list[str]:
    """A page, or the text cells of a notebook."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".ipynb":
            return [text]
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"Expected a page in UTF-8 or a notebook, got {path} ({first_line(error)}).") from error


def _beside(root: Path, pages: set[str]) -> set[str]:
    """The files that are linked to and are no pages."""
    found = set()
    for page in pages:
        for link in linked(root / page):
            name = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if (root / name).is_file():  # what is not there, Sphinx tells
                found.add(name)
    return found - pages


def _contents(root: Path, chapters: Iterable[tuple[str, list[str]]]) -> list[str]:
    """A table of contents for each chapter, the reference last."""
    named = [(title, [(label(root / page), page) for page in pages]) for title, pages in chapters]
    named.append(("Reference", [(title, f"api/{_slug(title)}.md") for title in MODULES]))
    return [
        f"```{{toctree}}\n:caption: {title}\n:maxdepth: 1\n{':hidden:' if title == STARTS else ''}\n\n"
        + "\n".join(f"{name} </{posixpath.splitext(page)[0]}>" for name, page in pages)
        + "\n```"
        for title, pages in named
    ]


def label(path: Path) -> str:
    """What the contents call a page: its first heading, with the number of a lesson before it."""
    heading = re.search(r"^# (.+)$", "\n\n".join(_prose(path)), re.MULTILINE)
    title = heading[1] if heading else path.stem
    number = re.match(r"08_(\d+)_", path.name)
    return f"8.{number[1]} {title}" if number and "8." not in title else title


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def _reference(folder: Path) -> None:
    folder.mkdir()
    for title, modules in MODULES.items():
        parts = [f"# {title}"]
        for module in modules:
            directive = f".. automodule:: course_utils.{module}\n   :members:"
            parts += [f"## `{module}`", f"```{{eval-rst}}\n{directive}\n```"]
        (folder / f"{_slug(title)}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
