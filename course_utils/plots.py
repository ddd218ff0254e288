"""Data in, pictures out: coloured tokens as HTML or terminal text, bars and heat maps as matplotlib Axes.

Raised is vermillion and lowered is blue everywhere (a pair that colour-blind readers can tell apart), on a scale that
is symmetric about zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from .attribution import Attribution

STYLE = Path(__file__).with_name("course.mplstyle")
RAISED, LOWERED = (213, 94, 0), (0, 114, 178)  # Okabe-Ito vermillion and blue
WIDE, NARROW = (7.2, 3.0), (4.6, 3.0)
_MOST_OPAQUE = 0.6  # text keeps its contrast on this, on a white page and on a black one


def tokens_html(
    tokens: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    user: slice | None = None,
    unit: str = "",
    limit: float | None = None,
) -> str:
    """Tokens as HTML, coloured by signed scores, readable on light and dark pages and as plain text without styles.

    Args:
        tokens: printable tokens.
        scores: one signed score a token, in `unit`; none leaves the tokens uncoloured.
        unit: what the scores are in, for the note that appears on hover.
        user: the slice of tokens the user typed; the others are set smaller and paler.
        limit: the score of full colour; by default the largest typed one.

    >>> tokens_html(["·a"], [1.0], unit="nats").count("+1.00 nats")
    1
    """
    typed = range(len(tokens))[user or slice(None)]
    if limit is None:
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
    style += f"background:{_tint(fraction)};" if fraction is not None else ""
    faint = escape(token).replace("·", '<span style="opacity:.45">·</span>')
    newline = "<br>" if token.endswith("↵") else ""
    return f'<span title="{escape(label)}" style="{style}">{faint}</span>{newline}'


def _tint(fraction: float) -> str:
    """A translucent colour for a score as a fraction of the largest (beyond it, full colour)."""
    red, green, blue = RAISED if fraction > 0 else LOWERED
    return f"rgba({red},{green},{blue},{_MOST_OPAQUE * min(abs(fraction), 1):.2f})"


def attribution_html(attribution: Attribution) -> str:
    """An attribution's tokens, coloured by the total over its output tokens, under a line that says what is scored."""
    a = attribution
    colours = "".join(
        f' <span style="background:{_tint(sign)};padding:0 .4em;border-radius:.25em">{word}</span>'
        for sign, word in ((1, "raised"), (-1, "lowered"))
    )
    header = f"{escape(describe(a))}. The token{colours} it."
    summary = escape(f"{describe(a)}. Strongest typed tokens: {top_words(a)}", quote=True)
    return (
        f'<div role="figure" aria-label="{summary}"><div style="font-size:.9em">{header}</div>'
        f"{tokens_html(a.tokens, a.total.tolist(), user=a.user, unit=a.unit)}</div>"
    )


def describe(attribution: Attribution) -> str:
    """One line: what was scored, how, and what the unchanged prompt gives.

    >>> describe(token_attribution(lm, prompt, contrast=("I", "Sure")))  # doctest: +SKIP
    'I − Sure = -1.19 logits, occlusion with ·the'
    """
    a = attribution
    how = a.method + (f" with {a.replacement}" if a.replacement else "")
    if a.unit == "logits":
        return f"{a.output_tokens[0]} = {a.value[0]:+.2f} logits, {how}"
    return f"log-probability of “{''.join(a.output_tokens)}” = {a.value.sum():.2f} nats, {how}"


def top_words(attribution: Attribution, k: int = 3) -> str:
    """The strongest typed tokens in words: "·kill +2.10, ·Python -0.31"."""
    return ", ".join(f"{t.token} {t.score:+.2f}" for t in attribution.top(k))


def attribution_text(attribution: Attribution, k: int = 8) -> str:
    """An attribution as plain text: the line that says what is scored, and a bar for each of the k strongest tokens."""
    top = attribution.top(k)
    width, limit = max(len(t.token) for t in top), max(abs(t.score) for t in top) or 1.0
    bars = [f"  {t.token:<{width}} {t.score:+8.2f} {'█' * round(16 * abs(t.score) / limit)}".rstrip() for t in top]
    return "\n".join([describe(attribution), *bars])


def tokens_text(attribution: Attribution) -> Text:
    """The typed tokens with a background by score, as rich Text for a terminal (plain where there is no colour)."""
    from rich.text import Text

    a = attribution
    scores = a.total[a.user]
    limit = float(np.abs(scores).max()) or 1.0
    text = Text()
    for token, score in zip(a.tokens[a.user], scores, strict=True):
        strength = min(abs(float(score)) / limit, 1.0)
        colour = [round(255 + (c - 255) * strength) for c in (RAISED if score > 0 else LOWERED)]  # white to full
        ink = "white" if np.dot(colour, (0.299, 0.587, 0.114)) < 140 else "black"
        text.append(token, style=f"{ink} on rgb({','.join(map(str, colour))})")
    return text


@contextmanager
def style() -> Iterator[None]:
    """The course's matplotlib style, as a context manager; nothing global changes.

    Only the style's own settings are put back afterwards: matplotlib's own context would also undo what a notebook's
    first figure switches on, and no later figure would show.
    """
    import matplotlib as mpl

    wanted = mpl.rc_params_from_file(STYLE, use_default_template=False)
    before = {name: mpl.rcParams[name] for name in wanted}
    mpl.rcParams.update(wanted)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    return ax if ax is not None else plt.subplots(figsize=size)[1]


def plot_bars(
    tokens: Sequence[str], scores: Sequence[float], *, unit: str, title: str = "", ax: Axes | None = None
) -> Axes:
    """A bar for each token, in reading order, with its signed score.

    >>> plot_bars(["·How", "·kill"], [-0.2, 1.0], unit="logits").get_ylabel()
    'effect (logits)'
    """
    with style():
        ax = _axes(ax, WIDE if len(tokens) > 10 else NARROW)
        colours = [tuple(c / 255 for c in (RAISED if s > 0 else LOWERED)) for s in scores]
        ax.bar(range(len(tokens)), scores, color=colours, width=0.75)
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_xticks(range(len(tokens)), tokens, **_slanted(tokens))
        ax.set_ylabel(f"effect ({unit})")
        ax.set_title(title)
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
        ax = _axes(ax, WIDE)
        image = ax.imshow(scores, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        ax.set_xticks(range(len(columns)), columns, **_slanted(columns))
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylabel(labels[0])
        ax.set_xlabel(labels[1])
        ax.spines[:].set_visible(False)
        ax.figure.colorbar(image, ax=ax, label=f"effect ({unit})", pad=0.02)
        ax.set_title(title)
    return ax


def plot_attribution(attribution: Attribution, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Bars of the typed tokens for one output, a heat map outputs x typed tokens for several."""
    a = attribution
    typed = a.tokens[a.user]
    if len(a.output_tokens) == 1:
        title = title or f"{a.output_tokens[0]}: {top_words(a, 1)} {a.unit}"
        return plot_bars(typed, a.total[a.user].tolist(), unit=a.unit, title=title, ax=ax)
    title = title or f"What raised each output token ({a.method})"
    return plot_heatmap(a.scores[:, a.user], a.output_tokens, typed, unit=a.unit, title=title, ax=ax)


def _slanted(labels: Sequence[str]) -> dict[str, Any]:
    crowded = sum(map(len, labels)) > 30
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
