"""Data in, pictures out: coloured tokens as HTML or terminal text, bars and heat maps as matplotlib Axes.

Raised is vermillion and lowered is blue everywhere (a pair that colour-blind readers can tell apart), on a scale that
is symmetric about zero.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STYLE = Path(__file__).with_name("course.mplstyle")
RAISED, LOWERED = (213, 94, 0), (0, 114, 178)  # Okabe-Ito vermillion and blue
COLOURS = {  # one colour, one meaning, in every lesson
    "refuses": "#D55E00",
    "complies": "#0072B2",
    "harm": "#009E73",
    "trigger": "#CC79A7",
    "urgency": "#E69F00",
    "control": "#999999",
}
WIDE, NARROW = (7.2, 3.0), (4.6, 3.0)
_FURTHER = (  # fonts with scripts that DejaVu lacks, by the beginnings of their names
    "Noto Sans CJK", "Noto Sans SC", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai",
    "Noto Emoji", "Source Han Sans", "Microsoft YaHei", "Malgun Gothic", "Yu Gothic", "Nirmala UI", "Segoe UI Emoji",
    "PingFang", "Hiragino Sans", "Apple SD", "Kohinoor", "Arial Unicode", "WenQuanYi", "Droid Sans", "Lohit",
)  # fmt: skip
_MOST_OPAQUE = 0.6  # text keeps its contrast on this, on a white page and on a black one


def tokens_html(
    tokens: Sequence[str], scores: Sequence[float] | None = None, *, user: slice | None = None, unit: str = ""
) -> str:
    """Tokens as HTML, coloured by signed scores, readable on light and dark pages and as plain text without styles.

    Args:
        tokens: printable tokens.
        scores: one signed score a token, in `unit`; none leaves the tokens uncoloured.
        unit: what the scores are in, for the note that appears on hover.
        user: the slice of tokens the user typed; the others are set smaller and paler, and the largest score of these
            has full colour.

    >>> tokens_html(["·a"], [1.0], unit="nats").count("+1.00 nats")
    1
    """
    typed = range(len(tokens))[user or slice(None)]
    limit = max((abs(scores[i]) for i in typed), default=0.0) if scores is not None else 1.0
    shown = ""
    for i, token in enumerate(tokens):
        label = f"token {i}" + ("" if i in typed else " (from the template)")
        label += f": {scores[i]:+.2f} {unit}" if scores is not None else ""
        shown += _token_span(label, token, i in typed, scores[i] / (limit or 1.0) if scores is not None else None)
    return (
        '<div style="font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;line-height:2.1;'
        f'overflow-wrap:anywhere">{shown}</div>'
    )


def _token_span(label: str, token: str, typed: bool, fraction: float | None) -> str:
    style = "padding:.15em .1em;border-radius:.25em;white-space:pre-wrap;"
    style += "" if typed else "font-size:.8em;border-bottom:1px dotted currentColor;"
    style += f"background:{tint(fraction)};" if fraction is not None else ""
    faint = escape(token).replace("·", '<span style="opacity:.45">·</span>')
    newline = "<br>" if token.endswith("↵") else ""
    return f'<span title="{escape(label)}" style="{style}">{faint}</span>{newline}'


def tint(fraction: float) -> str:
    """A translucent colour for a score as a fraction of the largest (beyond it, full colour)."""
    red, green, blue = RAISED if fraction > 0 else LOWERED
    return f"rgba({red},{green},{blue},{_MOST_OPAQUE * min(abs(fraction), 1):.2f})"


@contextmanager
def style() -> Iterator[None]:
    """The course's matplotlib style, as a context manager; nothing global changes.

    Only the style's own settings are put back afterwards: matplotlib's own context would also undo what a notebook's
    first figure switches on, and no later figure would show.
    """
    import matplotlib as mpl

    wanted = dict(mpl.rc_params_from_file(STYLE, use_default_template=False)) | {"font.family": [*_fonts()]}
    before = {name: mpl.rcParams[name] for name in wanted}
    mpl.rcParams.update(wanted)
    try:
        yield
    finally:
        mpl.rcParams.update(before)
        _say_what_figures_show()


def _say_what_figures_show() -> None:
    """In a notebook, figures carry alternative text from now on.

    To be called after drawing: with its first figure IPython sets up anew how figures are shown.
    """
    from matplotlib.figure import Figure

    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    formatter = shell.display_formatter.formatters["image/png"] if shell else None
    plain = formatter.type_printers.get(Figure) if formatter else None
    if formatter is None or plain is None or hasattr(plain, "says"):
        return

    def described(figure: Figure) -> Any:
        shown = plain(figure)
        picture, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return picture and (picture, {**metadata, "alt": alt_text(figure)})

    described.says = alt_text  # type: ignore[attr-defined]
    formatter.for_type(Figure, described)


@cache
def _fonts() -> dict[str, Any]:
    """The course's font, and after it those of the machine that have further scripts; each with its glyphs."""
    from matplotlib import font_manager

    installed = {font.name: font.fname for font in reversed(font_manager.fontManager.ttflist) if font.weight == 400}
    further = sorted(name for name in installed if name.startswith(_FURTHER))
    return {name: font_manager.get_font(installed[name]) for name in ("DejaVu Sans", *further)}


def legible(text: str) -> str:
    """A text as a figure can show it: characters that no font of the machine has stand as their code.

    >>> legible("·How"), legible("\U00093456")
    ('·How', 'U+93456')
    """
    coded = [c if c.isspace() or any(f.get_char_index(ord(c)) for f in _fonts().values()) else None for c in text]
    return "".join(shown or f"U+{ord(c):04X}" for c, shown in zip(text, coded, strict=True))


def _legible(texts: Sequence[str]) -> list[str]:
    return [legible(text) for text in texts]


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    return ax if ax is not None else plt.subplots(figsize=size)[1]


def plot_bars(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    unit: str,
    title: str = "",
    errors: Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A bar for each token, in reading order, with its signed score, and its standard error where there is one.

    >>> plot_bars(["·How", "·kill"], [-0.2, 1.0], unit="logits").get_ylabel()
    'effect (logits)'
    """
    with style():
        ax = axes_of(ax, WIDE if len(tokens) > 10 else NARROW)
        colours = [tuple(c / 255 for c in (RAISED if s > 0 else LOWERED)) for s in scores]
        ax.bar(range(len(tokens)), scores, color=colours, width=0.75, yerr=errors, ecolor="0.3")
        ax.axhline(0, color="0.3", linewidth=0.8)
        names = _legible(tokens)
        ax.set_xticks(range(len(tokens)), names, **_slanted(names, ax))
        ax.set_ylabel(f"effect ({unit})")
        ax.set_title(legible(title))
    return ax


def plot_heatmap(
    scores: NDArray[np.float32],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    unit: str,
    title: str = "",
    labels: tuple[str, str] = ("output token", "input token"),
    ax: Axes | None = None,
) -> Axes:
    """A heat map of signed scores `[row, column]`, on a scale symmetric about zero.

    >>> plot_heatmap(np.eye(2), ["a", "b"], ["·a", "·b"], unit="nats").get_xlabel()
    'input token'
    """
    limit = float(np.abs(scores).max()) or 1.0
    with style():
        ax = axes_of(ax, WIDE)
        image = ax.imshow(scores, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        names = _legible(columns)
        ax.set_xticks(range(len(columns)), names, **_slanted(names, ax))
        ax.set_yticks(range(len(rows)), _legible(rows))
        ax.set_ylabel(labels[0])
        ax.set_xlabel(labels[1])
        return _framed(ax, image, f"effect ({unit})", title)


def _framed(ax: Axes, image: Any, label: str, title: str, extend: str = "neither") -> Axes:
    """Axes that hold a heat map, with its scale beside it and no border."""
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label=label, pad=0.02, extend=extend)
    ax.set_title(legible(title))
    return ax


def _slanted(labels: Sequence[str], ax: Axes) -> dict[str, Any]:
    """Labels that would touch their neighbours in these axes are slanted."""
    width = ax.bbox.width / ax.figure.dpi  # inches
    widest = max((len(a) + len(b) for a, b in pairwise(labels)), default=0) / 2 * len(labels)
    crowded = widest * 0.085 > width  # inches of an average character
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}


_SQUARE = (7.2, 7.2)


def plot_attention(
    weights: NDArray[np.float32],
    tokens: Sequence[str],
    *,
    title: str = "",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A heat map of attention weights `[query, key]`, query down and key across; what no query may see is grey.

    Where tokens stand too close for their names, only every second, third, … is named, and the axes say so.

    Args:
        weights: shares from 0 to 1, or other magnitudes.
        tokens: the printable tokens, one a row and column.
        title: what the figure shows.
        limit: the weight of full colour, by default the largest; equal limits make panels comparable.
        ax: where to draw.

    >>> plot_attention(np.tril(np.ones((2, 2))), ["·a", "·b"]).get_ylabel()
    'query token (looks)'
    """
    future = np.triu(np.ones_like(weights, dtype=bool), k=1) & (weights == 0)
    top = limit or float(weights.max()) or 1.0
    with style():
        ax = axes_of(ax, _SQUARE)
        image = ax.imshow(np.ma.masked_array(weights, future), cmap=_sequential(), vmin=0, vmax=top, aspect="auto")
        shown, note = _names_that_fit(ax, len(tokens))
        names = [legible(tokens[i]) for i in shown]
        ax.set_xticks(shown, names, fontsize=9, rotation=90)
        ax.set_yticks(shown, names, fontsize=9)
        ax.set_xlabel(f"key token (is looked at{note})")
        ax.set_ylabel(f"query token (looks{note})")
        return _framed(ax, image, "attention weight", title, "max" if weights.max() > top else "neither")


def _sequential() -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis"].with_extremes(bad="0.88")


def _names_that_fit(ax: Axes, n_tokens: int) -> tuple[range, str]:
    """Which tokens, evenly spaced, can be named at reading size along both axes, and a note where it is not all."""
    box = ax.get_window_extent()
    room = min(box.width, box.height) / ax.figure.dpi * 72 / 10.5  # names of 9 pt that fit
    every = max(1, int(np.ceil(n_tokens / max(room, 1))))
    return range(0, n_tokens, every), f"; one name in {every}" if every > 1 else ""


def plot_heads(
    values: NDArray[np.float32], *, label: str, title: str = "", limit: float | None = None, ax: Axes | None = None
) -> Axes:
    """A heat map of one number per head, `[layer, head]`: layers across, heads down.

    Numbers of both signs stand on a scale symmetric about zero (raised vermillion to red, lowered blue), magnitudes
    on a sequential one from zero; NaN is grey.

    Args:
        values: one number per head.
        label: what they are, with their unit.
        title: what the figure shows.
        limit: the number of full colour, by default the largest; equal limits make panels comparable.
        ax: where to draw.

    >>> plot_heads(np.eye(3), label="induction score").get_xlabel()
    'layer'
    """
    from matplotlib.ticker import MaxNLocator

    top = limit or float(np.nanmax(np.abs(values), initial=0)) or 1.0
    signed = bool((values < 0).any())
    colours = _sequential() if not signed else "RdBu_r"
    with style():
        ax = axes_of(ax, WIDE)
        image = ax.imshow(values.T, cmap=colours, vmin=-top if signed else 0, vmax=top, aspect="auto")
        for axis, name in ((ax.xaxis, "layer"), (ax.yaxis, "head")):
            axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_label_text(name)
        return _framed(ax, image, label, title)


def plot_layers(
    values: NDArray[np.float32],
    tokens: Sequence[str],
    *,
    label: str,
    title: str = "",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A heat map of one number per layer and token, `[layer, token]`: layers up, tokens across, on a signed scale.

    Args:
        values: one number per layer and token.
        tokens: the printable tokens.
        label: what the numbers are, with their unit.
        title: what the figure shows.
        limit: the number of full colour, by default the largest; equal limits make panels comparable.
        ax: where to draw.

    >>> plot_layers(np.eye(2), ["·a", "·b"], label="share moved").get_ylabel()
    'layer'
    """
    top = limit or float(np.abs(values).max()) or 1.0
    with style():
        ax = axes_of(ax, (WIDE[0], 3.8))
        image = ax.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", origin="lower")
        every = 1 + len(tokens) // 46
        ax.set_xticks(range(0, len(tokens), every), _legible(tokens[::every]), rotation=90, fontsize=9)
        ax.set_xlabel("token" + (f"; one name in {every}" if every > 1 else ""))
        ax.set_ylabel("layer")
        return _framed(ax, image, label, title, "both" if np.abs(values).max() > top else "neither")


def alt_text(figure: Figure) -> str:
    """What a figure says, for those who cannot see it: its titles (the finding) and its axes' quantities."""
    titles = [figure.get_suptitle(), *(ax.get_title(loc) for ax in figure.axes for loc in ("left", "center", "right"))]
    axes = [label for ax in figure.axes for label in (ax.get_xlabel(), ax.get_ylabel())]
    said = [". ".join(dict.fromkeys(filter(None, titles))), ", ".join(dict.fromkeys(filter(None, axes)))]
    return " ".join(". Axes: ".join(filter(None, said)).split()) or "Figure without a title"
