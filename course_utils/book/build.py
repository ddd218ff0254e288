"""The site, built aside and put in place when it is whole."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from io import StringIO
from pathlib import Path

from ..errors import CourseError, first_line
from .sources import gather

OURS = ".course-book"  # an empty file in each book: what holds it may be replaced
LOOK = Path(__file__).parent / "look"
COPIED = ("cell_input", "highlight-python", "highlight-sh", "highlight-powershell", "doctest")
SETTINGS = {
    "project": "Interpretability course kit",
    "language": "en",
    "extensions": [
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx.ext.viewcode",
        "sphinx_copybutton",
        "course_utils.book.extension",
    ],
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},  # they would come from a network; a lesson's widgets are static figures here
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath"],
    "myst_dmath_allow_space": False,
    "myst_dmath_allow_digits": False,
    "myst_heading_anchors": 3,
    "default_role": "code",  # docstrings write `x` for code
    "add_module_names": False,
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "signature",
    "maximum_signature_line_length": 80,
    "napoleon_attr_annotations": False,  # they stand in the signature
    "napoleon_use_ivar": True,
    "python_use_unqualified_type_names": True,
    "toc_object_entries_show_parents": "hide",
    "pygments_style": "a11y-high-contrast-light",
    "html_theme": "furo",
    "html_title": "Interpretability course kit",
    "html_math_renderer": "mathml",
    "html_static_path": [str(LOOK)],
    "html_favicon": str(LOOK / "icon.svg"),
    "html_css_files": ["book.css"],
    "html_js_files": ["book.js"],
    "html_copy_source": False,
    "html_show_copyright": False,
    "copybutton_selector": ", ".join(f"div.{kind} pre" for kind in COPIED),
    "copybutton_prompt_text": r">>> |\.\.\. ",
    "copybutton_prompt_is_regexp": True,
}

MENDED = {
    r'(<p class="caption" role="heading")>': r'\1 aria-level="2">',
    r'<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Contents">',
    r'<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    r'Variables(?=<span class="colon">)': "Attributes",
    r'<th class="head[^"]*">(<p>\s*</p>)?</th>': "<td></td>",  # a heading without a word is none
}
PARAMETERS = re.compile(r'(?<=<span class="sig-paren">\(</span>)\s*<dl>(.*?)</dl>', re.DOTALL)


def check_installed() -> None:
    """Say so where the extra `book` is missing."""
    try:
        import furo  # noqa: F401
        import latex2mathml  # noqa: F401
        import myst_nb  # noqa: F401
        import sphinx  # noqa: F401
        import sphinx_copybutton  # noqa: F401
    except ImportError as error:
        raise CourseError(
            f"Expected what the book is built with, got {first_line(error)}; install it: "
            "pip install -c constraints.txt -e '.[book]'."
        ) from error


def check_place(out: Path) -> Path:
    """The folder that a book may be written to, or replace."""
    place = out.expanduser().resolve()
    if place.is_dir() and any(place.iterdir()) and not (place / OURS).is_file():
        raise CourseError(f"Expected --out to be new, empty or an earlier book, got {out}, which holds other things.")
    if place.exists() and not place.is_dir():
        raise CourseError(f"Expected --out to be a folder, got the file {out}.")
    return place


def build(root: Path, out: Path) -> int:
    """Build the book of a clone into a folder; the number of its pages.

    An earlier book there stays as it is until the new one is whole.
    """
    check_installed()
    try:
        place = check_place(out)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unfinished-book-") as folder:
            aside = Path(folder)
            gather(root, aside / "sources")
            site = aside / "site"
            render(aside / "sources", site, aside / "doctrees")
            (site / OURS).touch()
            (site / ".nojekyll").touch()  # a code host shall take the folders that begin with _
            _put(site, place, aside / "earlier")
    except OSError as error:
        raise CourseError(f"Expected to write the book to {out}, and could not ({first_line(error)}).") from error
    return sum(1 for _ in place.rglob("*.html"))


def render(sources: Path, site: Path, doctrees: Path) -> None:
    """Run Sphinx, and refuse what it warns of: a dead link, or any other fault of a page."""
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace

    told = StringIO()
    quietly = {"status": None, "warning": told, "freshenv": True}
    try:
        with docutils_namespace():  # a second book in one process is built like the first
            Sphinx(sources, None, site, doctrees, "html", confoverrides=SETTINGS, **quietly).build()
    except SphinxError as error:
        raise CourseError(f"Expected pages that Sphinx can read, got {first_line(error)}.") from error
    lines = re.sub(r"\x1b\[[\d;]*m", "", told.getvalue()).replace(f"{sources}{os.sep}", "").splitlines()
    if wrong := [line for line in lines if line.strip()]:
        some = "; ".join(wrong[:5]).rstrip(".")
        raise CourseError(f"Expected pages without a dead link or any other fault, got {len(wrong)}: {some}.")
    for page in site.rglob("*.html"):
        page.write_text(mended(page.read_text(encoding="utf-8")), encoding="utf-8")


def mended(page: str) -> str:
    """A page of Sphinx's with what its theme leaves out for those who hear it.

    >>> mended('<p class="caption" role="heading">')
    '<p class="caption" role="heading" aria-level="2">'
    """
    for wrong, right in MENDED.items():
        page = re.sub(wrong, right, page)
    return PARAMETERS.sub(_lines, page)


def _lines(found: re.Match[str]) -> str:
    """Parameters a line each, which Sphinx makes a list of definitions without anything that is defined."""
    return f'<div class="parameters">{found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")}</div>'


def _put(site: Path, place: Path, earlier: Path) -> None:
    if place.exists():
        place.rename(earlier)
    try:
        site.rename(place)
    except OSError:
        if earlier.exists():
            earlier.rename(place)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
