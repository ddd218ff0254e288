"""Interactive figures: controls over a function that draws, so that the first state is the static figure beside it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from html import escape
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from ipywidgets import HTML, Layout, ValueWidget, VBox, interactive

from ..errors import CourseError, first_line
from ..plots import alt_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUIET = 0.4  # seconds without a change before the figure is drawn anew


class Explorer(VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls, a line that says what is going on, and the figure of the last entry that worked."""

    def __init__(self, draw: Callable[..., Any], **controls: Any) -> None:
        self._draw = draw
        self._controls = _controls(draw, controls)
        self._timer: asyncio.TimerHandle | None = None
        self.status = HTML(layout=Layout(min_height="1.8em"))
        self.picture = HTML()
        super().__init__([*self._controls.values(), self.status, self.picture])
        for control in self._controls.values():
            control.observe(self._changed, names="value")
        self.redraw()

    def redraw(self) -> None:
        """Draw from the controls' values now; an entry that fails is answered with a sentence, and the figure stays."""
        import matplotlib.pyplot as plt

        self.status.value = "<em>working …</em>"
        before = set(plt.get_fignums())
        try:
            self.picture.value = to_html(self._draw(**{name: c.value for name, c in self._controls.items()}))
            self.status.value = ""
        except Exception as error:  # whatever was typed: the next entry must still find a widget that works
            told = str(error) if isinstance(error, CourseError) else first_line(error)
            sentence = told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}"
            below = "<br><em>Below: the last one that worked.</em>" if self.picture.value else ""
            self.status.value = f"<strong>Not drawn.</strong> {escape(sentence)}{below}"
        finally:
            for number in set(plt.get_fignums()) - before:  # else the notebook shows it below the cell as well
                plt.close(number)

    def _changed(self, _: Any) -> None:
        """Wait until nothing has changed for a while: typing a word asks for one drawing, not for one a letter."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel, nobody who types
            self.redraw()
            return
        if self._timer is not None:
            self._timer.cancel()
        self.status.value = "<em>waiting for you to finish …</em>"
        self._timer = loop.call_later(QUIET, self.redraw)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        names = ", ".join(self._controls)
        return {**bundle, "text/plain": f"An interactive figure ({names}): run the notebook to change it."}


def explore(draw: Callable[..., Any], **controls: Any) -> Explorer:
    """Put controls over a function that draws, which waits for a pause in typing and survives a bad entry.

    Args:
        draw: returns an Axes, a Figure, a result that shows itself (`_repr_html_`), or text. Its defaults are the
            first state, so that calling it without arguments gives the same figure.
        **controls: for each of its parameters a `(low, high)` slider, a list to choose from, `str` for a text box, or
            any value widget of ipywidgets.

    Raises:
        CourseError: a control for no parameter, a parameter with neither default nor control, a default that its
            control does not offer.

    >>> explore(lambda layer=3: f"layer {layer}", layer=(0, 29)).picture.value
    '<pre>layer 3</pre>'
    """
    return Explorer(draw, **controls)


def to_html(drawn: Any) -> str:
    """Anything that a drawing function returns, as HTML; a figure becomes a picture.

    Raises:
        CourseError: it returned nothing that can be shown.
    """
    if isinstance(drawn, str):
        return f"<pre>{escape(drawn)}</pre>"
    if hasattr(drawn, "_repr_html_"):
        return drawn._repr_html_()
    figure = getattr(drawn, "figure", drawn)  # of Axes, or itself
    if not hasattr(figure, "savefig"):
        raise CourseError(
            f"Expected the drawing function to return Axes, a Figure, text or a result, got {type(drawn).__name__}; "
            "let it end with `return ax`."
        )
    return figure_html(figure)


def figure_html(figure: Figure) -> str:
    """A figure as the notebook itself would show it, inlined, with its titles as alternative text."""
    from IPython.core.pylabtools import print_figure

    png = b64encode(print_figure(figure, fmt="png", bbox_inches="tight")).decode()  # type: ignore[no-untyped-call]
    return f'<img style="max-width:100%" alt="{escape(alt_text(figure))}" src="data:image/png;base64,{png}">'


def _controls(draw: Callable[..., Any], controls: dict[str, Any]) -> dict[str, Any]:
    """The abbreviations of ipywidgets, started at the defaults; a value that a control cannot take is refused."""
    parameters = signature(draw).parameters
    unknown = [name for name in controls if name not in parameters]
    if unknown or not controls:
        came = f"got {', '.join(unknown)}" if unknown else "got none"
        raise CourseError(
            f"Expected controls for parameters of the drawing function ({', '.join(parameters)}), {came}."
        )
    built = {name: _control(name, controls[name], p.default) for name, p in parameters.items() if name in controls}
    missing = [
        n for n, p in parameters.items() if n not in built and p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    if missing:
        raise CourseError(
            f"Expected a default or a control for {', '.join(missing)}, which the drawing function needs."
        )
    return built


def _control(name: str, wanted: Any, default: Any) -> ValueWidget:
    control = interactive.widget_from_abbrev(default if wanted is str else wanted, default)
    if control is None:
        raise CourseError(f"Expected a (low, high) pair, a list, str or a value widget for {name}, got {wanted!r}.")
    if default is not Parameter.empty and control.value != default:
        raise CourseError(f"Expected a control for {name} that offers its default, {default!r}; widen it.")
    control.description = control.description or name
    control.style, control.layout = {"description_width": "6em"}, Layout(width="min(40em, 96%)")
    return control
