"""One HTML file that needs nothing else: the parts that reports are put together from."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

from .._files import write_whole
from ..errors import CourseError, first_line

TITLE = "Does it refuse for the right reason?"  # of a case file and of an audit
MARK = "<!-- interpretability-course: case file -->"  # a file that begins so may be written anew, no other
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1,h2{line-height:1.25}h2{margin-top:2rem;border-bottom:1px solid #8888}
table{border-collapse:collapse;display:block;overflow-x:auto;margin:.8rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .7rem .25rem 0;border-bottom:1px solid #8884}
caption{text-align:left;color:inherit;opacity:.8}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font-size:.9em}
figure{margin:1rem 0}img{max-width:100%;height:auto;background:#fff}
.verdict{font-size:1.25rem;font-weight:600;border-left:.3rem solid #0072b2;padding-left:.8rem}
@media (prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}}
@media print{body{max-width:none;margin:0;font-size:11pt;color:#000;background:#fff}
h2,figcaption{break-after:avoid}figure,tr{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
    """A whole page, self-contained (what reaches outside or would run is refused); the same bytes for the same content.

    >>> page("A title", "<p>Text.</p>").startswith("<!DOCTYPE html>")
    True
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
    check_self_contained(text)
    return text


def page_target(path: str | os.PathLike[str]) -> Path:
    """Where a report may be written: a new .html file, or an earlier report."""
    target = file_target(path, (".html", ".htm"))
    if target.exists() and not _is_report(target):
        raise CourseError(f"Expected a new file or an earlier case file, got {target.name}, which is neither; rename.")
    return target


def file_target(path: str | os.PathLike[str], endings: Sequence[str]) -> Path:
    """Where a file may be written, told before much is done for it."""
    try:
        target = Path(path).expanduser()
        target.exists()
    except (OSError, RuntimeError) as error:  # too long a name, no such user's home
        raise CourseError(f"Expected a file to write to, got {str(path)!r:.80} ({first_line(error)}).") from error
    if target.suffix.lower() not in endings or not target.parent.is_dir():
        raise CourseError(
            f"Expected a file name that ends in {endings[0]}, in a folder that exists, got {str(path)!r:.80}."
        )
    if not os.access(target.parent, os.W_OK):
        raise CourseError(f"Expected a folder that can be written, got {target.parent}; name another place.")
    return target


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write a report as one HTML file, whole or not at all; returns its path."""
    target = page_target(path)
    write_whole(target, text.encode("utf-8", "backslashreplace"))
    return target


def check_self_contained(page: str) -> None:
    """Refuse a page that would run something (a script, an event handler), or fetch something from outside itself.

    >>> check_self_contained('<img src="data:image/png;base64,AA==" alt="a figure">')
    """
    parser = _Outside()
    parser.feed(page)
    if parser.found:
        raise CourseError(f"Expected a page that needs nothing else, got {parser.found[0]}; leave that part out.")


class _Outside(HTMLParser):
    """Collects what of a page runs or reaches outside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            reaches = name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
            if (reaches and not (value or "").startswith(("data:image/", "#"))) or name.startswith("on"):
                self.found.append(f"{name} of <{tag}>")
            if name == "style" and "url(" in (value or "").lower():
                self.found.append(f"an address in the style of <{tag}>")


def figure(caption: str, drawn: Any) -> str:
    """A result, Axes or a Figure as an inlined picture with its titles as alternative text."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..plots import alt_text

    figure = drawn.figure.figure if isinstance(drawn, Axes) else drawn  # an Axes may lie in a part of a figure
    if not isinstance(figure, Figure):
        figure = Figure(layout="constrained", figsize=(7.2, 3.0), dpi=110)
        drawn.plot(ax=figure.subplots())
    png = BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    data = b64encode(png.getvalue()).decode()
    said = escape(f"{caption}. {alt_text(figure)}", quote=True)
    shown = f'<img alt="{said}" src="data:image/png;base64,{data}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def section(title: str, body: str) -> str:
    return (f"<h2>{escape(title)}</h2>" if title else "") + body


def paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines if line.strip())


def listed(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td><pre>{escape(value)}</pre></td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _is_report(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith("<!DOCTYPE html>") and file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False
