"""What Sphinx is taught for the book: mathematics that needs no script, and a search that leaves outputs out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

ARRAY = re.compile(r"(?:numpy\.)?ndarray\[tuple\[[^\]]*\], (?:numpy\.)?dtype\[(?:numpy\.)?(\w+)\]\]")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_builder(_builder(), override=True)
    app.connect("builder-inited", _colour, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _shorten)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _builder() -> type:
    from docutils import nodes
    from sphinx.builders.html import StandaloneHTMLBuilder

    class BookBuilder(StandaloneHTMLBuilder):  # type: ignore[misc]  # its types are not always there
        """Sphinx's own, whose search knows what the lessons say and not what their cells printed.

        What is sealed until somebody finds it out stands in an output; and no reader looks for a number there.
        """

        def index_page(self, pagename: str, doctree: nodes.document, title: str) -> None:
            spoken = doctree.deepcopy()
            for output in [node for node in spoken.findall(nodes.Element) if "cell_output" in node.get("classes", ())]:
                output.parent.remove(output)
            super().index_page(pagename, spoken, title)

    return BookBuilder


def mathml(latex: str, display: str = "inline") -> str:
    """LaTeX as MathML, which browsers draw by themselves.

    >>> mathml("x^2")[:5], mathml("x^2")[-7:]
    ('<math', '</math>')
    """
    from latex2mathml.converter import convert

    return str(convert(latex, display=display))


def _inline(translator: Any, node: nodes.Element) -> None:
    _written(translator, mathml(node.astext()))


def _block(translator: Any, node: nodes.Element) -> None:
    _written(translator, f'<div class="math">{mathml(node.astext(), "block")}</div>')


def _written(translator: Any, html: str) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(html)
    raise SkipNode


def readable(signature: str) -> str:
    """A signature with short names.

    >>> readable("(scores: ndarray[tuple[Any, ...], dtype[float32]], which: ~typing.Any)")
    '(scores: NDArray[float32], which: Any)'
    """
    return re.sub(r"~(?:\w+\.)+", "", ARRAY.sub(r"NDArray[\1]", signature))


def _shorten(*told: Any) -> tuple[str, str | None] | None:
    arguments, returned = told[-2:]
    return (readable(arguments), returned and readable(returned)) if arguments is not None else None


def _skip(app: Sphinx, what: str, name: str, member: object, *_: object) -> bool | None:
    """Leave out what a NamedTuple says of its fields: "Alias for field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def _colour(app: Sphinx) -> None:
    app.config["pygments_dark_style"] = "a11y-dark"  # known only when the theme is there
