"""Data in, pictures out: coloured tokens as HTML or terminal text, bars and heat maps as matplotlib Axes.

Raised is vermillion and lowered is blue everywhere (a pair that colour-blind readers can tell apart), on a scale that
is symmetric about zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from .ablation import AblationSweep
    from .attribution import Attribution
    from .faithfulness import Faithfulness
    from .lens import DirectAttribution, LogitLens
    from .patching import Patching
    from .probing import Probes

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
    how = a.method.replace("_", " ") + (f" with {a.replacement}" if a.replacement else "")
    how += f", completeness gap {a.gap.max():.1%}" if a.gap is not None else ""
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
        ax = _axes(ax, WIDE if len(tokens) > 10 else NARROW)
        colours = [tuple(c / 255 for c in (RAISED if s > 0 else LOWERED)) for s in scores]
        ax.bar(range(len(tokens)), scores, color=colours, width=0.75, yerr=errors, ecolor="0.3")
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_xticks(range(len(tokens)), tokens, **_slanted(tokens, ax))
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
        ax.set_xticks(range(len(columns)), columns, **_slanted(columns, ax))
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
        errors = None if a.standard_error is None else a.standard_error[0, a.user].tolist()
        return plot_bars(typed, a.total[a.user].tolist(), unit=a.unit, title=title, errors=errors, ax=ax)
    title = title or f"What raised each output token ({a.method})"
    return plot_heatmap(a.scores[:, a.user], a.output_tokens, typed, unit=a.unit, title=title, ax=ax)


def _slanted(labels: Sequence[str], ax: Axes) -> dict[str, Any]:
    """Labels that would touch their neighbours in these axes are slanted."""
    width = ax.bbox.width / ax.figure.dpi  # inches
    widest = max((len(a) + len(b) for a, b in pairwise(labels)), default=0) / 2 * len(labels)
    crowded = widest * 0.085 > width  # inches of an average character
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}


def plot_probes(probes: Probes, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer with its interval, the control task beside it, and the baselines as level lines."""
    p, layers, best = probes, range(len(probes.accuracy)), probes.best_layer
    floor = max(p.baselines, key=p.baselines.__getitem__)
    default = f"Layer {best} tells {p.accuracy[best]:.0%} of unseen texts apart, {floor} {p.baselines[floor]:.0%}"
    with style():
        ax = _axes(ax, WIDE)
        ax.fill_between(layers, *p.interval.T, color="#0072B2", alpha=0.25, linewidth=0)
        ax.plot(layers, p.accuracy, color="#0072B2", linewidth=2, label="probe, 95 % interval")
        ax.plot(best, p.accuracy[best], "o", color="#0072B2", markersize=8, label="layer chosen on validation")
        if not np.isnan(p.control).any():
            ax.plot(layers, p.control, color="#D55E00", linestyle="--", label="control task")
        for (name, value), (colour, dashes, width) in zip(p.baselines.items(), _LEVELS, strict=False):
            label = f"{name}: {value:.2f}"
            ax.axhline(value, color=colour, linestyle=dashes, linewidth=width, label=label, zorder=1)
        ax.set_ylim(np.nanmin([0.4, *p.interval[:, 0], *p.accuracy, *p.control, *p.baselines.values()]) - 0.03, 1.03)
        ax.set_xlabel("layer (last: before the final norm)")
        ax.set_ylabel("accuracy on test")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
        ax.set_title(title or default)
    return ax


_LEVELS = (  # a colour, a line style and a width for each baseline: where two coincide, both are seen
    ("#999999", "-", 6.0),
    ("#E69F00", "-.", 3.6),
    ("#009E73", (0, (5, 1)), 2.2),
    ("#CC79A7", (0, (1, 1)), 1.4),
)


def probes_text(probes: Probes) -> str:
    """Probes in a few lines: the chosen layer, its accuracy with interval, the baselines, the control, the sizes."""
    return "\n".join(f"{name:<16} {value}" for name, value in _probe_rows(probes))


def probes_html(probes: Probes) -> str:
    """The same as a small table."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in _probe_rows(probes)
    )
    return f'<table aria-label="Probes by layer">{cells}</table>'


def _probe_rows(probes: Probes) -> list[tuple[str, str]]:
    p, best = probes, probes.best_layer
    low, high = p.interval[best]
    spread = "a single test group, so no interval" if np.isnan(low) else f"95 % interval {low:.2f} to {high:.2f}"
    control = f"{p.control[best]:.2f}, selectivity {p.selectivity[best]:+.2f}"
    return [
        ("probe", f"{p.classes[1]} against {p.classes[0]}, {len(p.accuracy)} layers"),
        (f"layer {best}", f"{p.accuracy[best]:.2f} on test, {spread}"),
        *((name, f"{value:.2f}") for name, value in p.baselines.items()),
        ("control task", "needs two texts a group" if np.isnan(p.control[best]) else control),
        ("texts", ", ".join(f"{size} {name}" for name, size in p.sizes.items())),
    ]


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
        ax = _axes(ax, _SQUARE)
        image = ax.imshow(np.ma.masked_array(weights, future), cmap=_sequential(), vmin=0, vmax=top, aspect="auto")
        shown, note = _names_that_fit(ax, len(tokens))
        names = [tokens[i] for i in shown]
        ax.set_xticks(shown, names, fontsize=9, rotation=90)
        ax.set_yticks(shown, names, fontsize=9)
        ax.set_xlabel(f"key token (is looked at{note})")
        ax.set_ylabel(f"query token (looks{note})")
        extend = "max" if weights.max() > top else "neither"
        ax.figure.colorbar(image, ax=ax, label="attention weight", pad=0.02, extend=extend)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return ax


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
        ax = _axes(ax, WIDE)
        image = ax.imshow(values.T, cmap=colours, vmin=-top if signed else 0, vmax=top, aspect="auto")
        for axis, name in ((ax.xaxis, "layer"), (ax.yaxis, "head")):
            axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_label_text(name)
        ax.figure.colorbar(image, ax=ax, label=label, pad=0.02)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return ax


def connections_html(summary: str, connections: Sequence[dict[str, Any]]) -> str:
    """Attention connections as a small table under a line that sums all of them up, readable in light and dark."""
    rows = "".join(
        f'<tr><td style="text-align:left">{_placed(c, "from")}</td><td style="text-align:left">{_placed(c, "to")}</td>'
        f'<td style="background:{_tint(c["weight"])}">{c["weight"]:.2f}</td></tr>'
        for c in connections
    )
    names = "".join(f"<th>{name}</th>" for name in ("from (query)", "to (key)", "weight"))
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    rest = "The strongest of the others between different tokens:" if rows else "No others between different tokens."
    return f'<div><div style="font-size:.9em">{escape(summary)}. {rest}</div>{table if rows else ""}</div>'


def _placed(connection: dict[str, Any], end: str) -> str:
    position = f'<span style="opacity:.6">{connection[f"{end}_position"]}</span>'
    return f"{position} <code>{escape(connection[end])}</code>"


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
        ax = _axes(ax, (WIDE[0], 3.8))
        image = ax.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", origin="lower")
        every = 1 + len(tokens) // 46
        ax.set_xticks(range(0, len(tokens), every), tokens[::every], rotation=90, fontsize=9)
        ax.set_xlabel("token" + (f"; one name in {every}" if every > 1 else ""))
        ax.set_ylabel("layer")
        extend = "both" if np.abs(values).max() > top else "neither"
        ax.figure.colorbar(image, ax=ax, label=label, pad=0.02, extend=extend)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return ax


def plot_lens(lens: LogitLens, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """The contrast that the logit lens reads at each layer and token (or the probability of its best guess)."""
    if lens.contrast is not None:
        title = title or f"Logit lens: at the last token the output ends at {lens.contrast[-1, -1]:+.1f} logits"
        limit = float(np.abs(lens.contrast[1:]).max())  # each token's own embedding would outshine the rest
        return plot_layers(lens.contrast, lens.tokens, label=f"{lens.label} (logits)", title=title, limit=limit, ax=ax)
    title = title or f"Logit lens: the last token ends at {lens.predictions[-1][-1]}"
    return plot_layers(lens.probability, lens.tokens, label="probability of the best guess", title=title, ax=ax)


def plot_direct(direct: DirectAttribution, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """What each layer's attention block and MLP add to a logit directly, as bars."""
    layers = np.arange(len(direct.mlps))
    strongest = int(np.abs(direct.attention + direct.mlps).argmax())
    with style():
        ax = _axes(ax, WIDE)
        ax.bar(layers - 0.2, direct.attention, width=0.4, color="#0072B2", label="attention")
        ax.bar(layers + 0.2, direct.mlps, width=0.4, color="#E69F00", label="MLP", hatch="//", edgecolor="white")
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_xlabel("layer")
        ax.set_ylabel(f"direct effect on {direct.label} (logits)")
        ax.legend()
        ax.set_title(title or f"Layer {strongest} writes most towards {direct.label}, {direct.value:+.1f} in all")
    return ax


def plot_patching(patching: Patching, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """How much of the difference between two runs each patch moves: layers and tokens, or layers and heads."""
    layer, place, effect = patching.top(1)[0]
    where = f"head {layer}.{place}" if patching.over == "heads" else f"layer {layer}, {patching.tokens[place]}"
    title = title or f"{patching.method.capitalize()}: {where} moves {effect:.0%} of the difference"
    if patching.over == "heads":
        return plot_heads(patching.effects, label="share of the difference moved", title=title, ax=ax)
    return plot_layers(patching.effects, patching.tokens, label="share of the difference moved", title=title, ax=ax)


def plot_sweep(sweep: AblationSweep, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """What the output loses without each component: heads as a heat map, layers and MLPs as bars, neurons by rank."""
    (component, effect), *_ = sweep.top(1)
    title = title or f"Without {component} ({sweep.kind}) the output changes most, by {-effect:+.2f} {sweep.unit}"
    if sweep.over == "heads":
        values = np.full((max(sweep.layers) + 1, sweep.effects.shape[1]), np.nan, dtype=np.float32)
        values[sweep.layers] = sweep.effects
        return plot_heads(values, label=f"effect ({sweep.unit})", title=title, ax=ax)
    shown = [(str(c), e) for c, e in sweep.top(20)]
    if sweep.over != "neurons":
        shown = [(str(layer), float(e)) for layer, e in zip(sweep.layers, sweep.effects, strict=True)]
    names, effects = zip(*shown, strict=True)
    ax = plot_bars(names, effects, unit=sweep.unit, title=title, ax=ax)
    if sweep.over != "neurons":
        ax.set_xlabel("layer")
        ax.tick_params(axis="x", rotation=0)
    return ax


def plot_faithfulness(faithful: Faithfulness, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """What the output loses without the top tokens, and with them alone, over the share that counts as top."""
    f = faithful
    gone, kept = f.area
    shares = [100 * fraction for fraction in f.fractions]
    lines = {"comprehensiveness": (f.comprehensiveness, "#D55E00", "-"), "sufficiency": (f.sufficiency, "#0072B2", "-")}
    lines |= {
        f"{name} of a random order": (values, lines[name][1], ":")
        for name, values in zip(lines, f.baselines["random"], strict=True)
    }
    with style():
        ax = _axes(ax, WIDE)
        for label, (values, colour, dashes) in lines.items():
            ax.plot(shares, values, color=colour, linestyle=dashes, marker="o", markersize=4, label=label)
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_xlabel("share of the typed tokens that counts as top (%)")
        ax.set_ylabel(f"loss of the output ({f.unit})")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
        ax.set_title(title or f"Without the top the output loses {gone:.1f} {f.unit}, with it alone {kept:.1f}")
    return ax
