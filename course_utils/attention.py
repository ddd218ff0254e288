"""Attention analysis: where each head looks, what an average over heads hides, and how much a look can carry.

A head at a query position spreads a weight of one over the key positions up to it. Weights say where a head looks, not
what that changes (Jain & Wallace 2019; Wiegreffe & Pinter 2019), and most of them rest on the first token, the *sink*
(Xiao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import Floats
from .engine.attention_pass import head_parts, observe
from .errors import CourseError
from .models import LocalModel
from .plots import tint
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATTENTION_KINDS = ("mean", "rollout", "value_weighted")


@dataclass(frozen=True, eq=False)
class AttentionAnalysis:
    """What every head of a model attends to in one prompt (float32; float64 for a model in float64).

    Attributes:
        weights: `[layer, head, query, key]`; no query sees a later key, and rows sum to one (GPT-OSS: to less, as it
            keeps a share for a sink that is no token).
        reach: `[layer, head, key]`: the length of what a head writes for a look of weight one, `|v W_O|`; NaN in layers
            where weights times values are not all that enters W_O (a gate follows, or values are kept compressed).
        tokens: the printable tokens.
        ids: their ids.
        user: the slice of tokens that the user typed.
        threshold: a connection has a mean weight above it.
    """

    weights: Floats
    reach: Floats
    tokens: list[str]
    ids: list[int]
    user: slice
    threshold: float

    @property
    def mean(self) -> Floats:
        """The chapter's average over layers and heads, float32 `[query, key]`."""
        return self.weights.mean(axis=(0, 1))

    @property
    def mean_without_first(self) -> Floats:
        """The average with position 0 left out and each row made to sum to one again, float32 `[query, key]`.

        Row 0 sees nothing but position 0, so nothing is left of it: it is zero.
        """
        rest = self.mean
        rest[:, 0] = 0
        total = rest.sum(axis=1, keepdims=True)
        return np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)

    @property
    def connections(self) -> list[dict[str, Any]]:
        """The chapter's records: which query ("from") gives which key ("to") a mean weight above the threshold.

        Strongest first; the positions tell equal tokens apart.

        >>> analyze_attention(lm, prompt).connections[0]["weight"]  # the first token sees only itself
        1.0
        """
        mean = self.mean
        pairs = [(q, k) for q, k in np.argwhere(mean > self.threshold).tolist()]
        return [
            {"from": self.tokens[q], "to": self.tokens[k], "weight": float(mean[q, k])}
            | {"from_position": q, "to_position": k}
            for q, k in sorted(pairs, key=lambda pair: -mean[pair])
        ]

    def rollout(self) -> Floats:
        """Attention followed down through the layers, float32 `[query, key]`; rows sum to one (Abnar & Zuidema 2020).

        Per layer: the mean over heads, plus the identity for the residual stream, normalised. Later layers multiply
        on the left. In a causal model all of it drifts towards position 0.
        """
        here = np.eye(len(self.tokens))
        flow = here
        for layer in self.weights.mean(axis=1):  # [query, key]
            step = layer + here
            flow = step / step.sum(axis=1, keepdims=True) @ flow
        return flow.astype(self.weights.dtype, copy=False)

    def value_weighted(self) -> Floats:
        """The length of what each look writes, weight x `|v W_O|`, float32 `[layer, head, query, key]`.

        After Kobayashi et al. 2020; in units of the residual stream, before a norm that follows the attention block.

        Raises:
            CourseError: a model that does more to its values than weigh them.
        """
        return self.weights * self._known_reach()[:, :, None, :]

    def _known_reach(self) -> Floats:
        if np.isnan(self.reach).any():
            layers = np.flatnonzero(np.isnan(self.reach).any(axis=(1, 2))).tolist()
            raise CourseError(
                f"Expected layers in which weights times values enter the output projection, and layers {layers} do "
                'more to them (a gate, compressed values), so looks cannot be weighted by values; use "mean".'
            )
        return self.reach

    def from_last(self, kind: str = "mean") -> Floats:
        """One score per token as the last position sees it, float32 `[token]`: attention read as an attribution.

        Args:
            kind: "mean" or "rollout" (shares, which sum to one), or "value_weighted" (mean over layers and heads).

        Raises:
            CourseError: an unknown kind.

        >>> float(analyze_attention(lm, prompt).from_last("rollout").sum().round(3))
        1.0
        """
        if kind not in ATTENTION_KINDS:
            raise CourseError(f"Expected a kind of attention ({', '.join(ATTENTION_KINDS)}), got {kind!r}.")
        if kind == "value_weighted":
            return (self.weights[:, :, -1] * self._known_reach()).mean(axis=(0, 1))
        return (self.mean if kind == "mean" else self.rollout())[-1]

    def sink_share(self) -> Floats:
        """Mean weight on position 0, the sink, per head: float32 `[layer, head]` (Xiao et al. 2023, Gu et al. 2024).

        Query 0 does not count, as it sees nothing else.

        Raises:
            CourseError: a prompt of one token.
        """
        to_first = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        to_first[1:, 0] = True
        return self._share(to_first, "at least two tokens")

    def previous_token_scores(self) -> Floats:
        """Mean weight on the token just before, float32 `[layer, head]`; position 0 does not count, as it is the sink.

        Raises:
            CourseError: a prompt of fewer than three tokens.
        """
        one_back = np.eye(len(self.ids), k=-1, dtype=bool)
        return self._share(_beyond_sink(one_back), "at least three tokens")

    def duplicate_token_scores(self) -> Floats:
        """Mean weight on all earlier copies of the query's token, float32 `[layer, head]` (Wang et al. 2022).

        Raises:
            CourseError: no token comes twice (a copy at position 0, the sink, does not count).
        """
        earlier = np.tril(self._same(), k=-1)
        return self._share(_beyond_sink(earlier), "a token that comes twice after the first (try repeated_random)")

    def induction_scores(self) -> Floats:
        """Mean weight on what followed the query's token earlier on, float32 `[layer, head]` (Olsson et al. 2022).

        Only queries with such a key count. A key just before the query, or with the query's own token, does not: a
        previous-token or duplicate-token head would look there too.

        Raises:
            CourseError: nothing in the prompt is repeated.

        >>> from course_utils.engine.repeated_tokens import repeated_random
        >>> bool(analyze_attention(lm, repeated_random(lm)).induction_scores().max() > 0.5)
        True
        """
        follows = np.roll(self._same(), 1, axis=1) & ~self._same()  # [query, key]; position 0 follows nothing
        return self._share(_beyond_sink(np.tril(follows, k=-2)), "a repeated passage (try repeated_random)")

    def _same(self) -> NDArray[np.bool_]:
        ids = np.array(self.ids)
        return ids[:, None] == ids

    def _share(self, looks: NDArray[np.bool_], wanted: str) -> Floats:
        """Per head, the weight on some `[query, key]` places, as a mean over the queries that have one."""
        queries = looks.any(axis=1)
        if not queries.any():
            raise CourseError(f"Expected a prompt with {wanted}, got {len(self.ids)} tokens without that.")
        return (self.weights[:, :, queries] * looks[queries]).sum(axis=-1).mean(axis=-1)

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """The average over layers and heads as a heat map, query down, key across."""
        from .plots import plot_attention

        share = self.mean[-1, 0]
        title = title or f"Mean of all heads: the last token gives {share:.0%} to the first"
        return plot_attention(self.mean, self.tokens, title=title, ax=ax)

    def __repr__(self) -> str:
        n_layers, n_heads, n_tokens, _ = self.weights.shape
        return f"attention of {n_layers} layers x {n_heads} heads over {n_tokens} tokens; {self._summary()}"

    def _repr_html_(self) -> str:
        elsewhere = [c for c in self.connections if c["to_position"] not in (0, c["from_position"])]
        return connections_html(self._summary(), elsewhere[:8])

    def _summary(self) -> str:
        found = self.connections
        sink = sum(c["to_position"] == 0 for c in found)
        return (
            f"connections above {self.threshold:g} in the mean of all heads: {len(found)}, of which {sink} to the "
            f"first token ({self.tokens[0]}), where the last token puts {self.mean[-1, 0]:.0%} of its attention"
        )


@dataclass(frozen=True, eq=False)
class HeadDetail:
    """How one head comes to its weights: softmax(scores) = weights, scores = queries x keys x scaling.

    Attributes:
        queries: `[query, d_head]` as the head uses them: rotated and normed where the model does that.
        keys: `[key, d_head]`, likewise; a group of query heads shares them.
        scores: `[query, key]` before the softmax, soft-capped where the model does that; -inf where no look may go.
        weights: `[query, key]`.
        scaling: what each product is multiplied by, mostly 1 / sqrt(d_head).
        tokens: the printable tokens.
    """

    queries: Floats = field(repr=False)
    keys: Floats = field(repr=False)
    scores: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    scaling: float
    layer: int
    head: int
    tokens: list[str] = field(repr=False)

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """The head's weights as a heat map, query down, key across."""
        from .plots import plot_attention

        return plot_attention(self.weights, self.tokens, title=title or f"Head {self.layer}.{self.head}", ax=ax)


def analyze_attention(lm: LocalModel, prompt: Prompt, *, threshold: float = 0.1) -> AttentionAnalysis:
    """Run a prompt once and keep what every head of every layer attends to.

    Args:
        lm: the model.
        prompt: what it reads, from `lm.chat(text)`, `lm.prompt(text)` or `repeated_random(lm)`.
        threshold: a connection has a mean weight above it, a share from 0 to 1.

    Raises:
        CourseError: a wrong threshold, a prompt too long for the memory, an architecture whose layers give no
            attention weights, weights that are no numbers.

    >>> analyze_attention(lm, prompt).weights.shape == (30, 9, len(prompt), len(prompt))
    True
    """
    lm.check_prompt(prompt)
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise CourseError(f"Expected a threshold from 0 to 1, a share of attention, got {threshold!r}.")
    weights, reach = observe(lm, prompt.input_ids)
    ids = prompt.input_ids[0].tolist()
    return AttentionAnalysis(weights.numpy(), reach.numpy(), prompt.tokens, ids, prompt.user, float(threshold))


def attention_weights(lm: LocalModel, input_ids: Tensor) -> Tensor:
    """The weights of every head for token ids `[1, token]`: `[layer, head, query, key]`, float32 or better, on the CPU.

    >>> attention_weights(lm, ids[None])[0, 0, 0, 0]  # the first token sees only itself
    tensor(1.)
    """
    return observe(lm, input_ids)[0]


def head_detail(lm: LocalModel, prompt: Prompt, layer: int, head: int) -> HeadDetail:
    """How one head comes to its weights: its queries, keys and scores before the softmax.

    Raises:
        CourseError: no such layer or head, or an architecture whose attention cannot be taken apart like this.

    >>> detail = head_detail(lm, prompt, layer=3, head=1)
    >>> np.allclose(detail.queries[5] @ detail.keys[2] * detail.scaling, detail.scores[5, 2], atol=1e-4)
    True
    """
    lm.check_prompt(prompt)
    _check_index("layer", layer, lm.n_layers)
    _check_index("head", head, lm.n_heads)
    queries, keys, scores, weights, scaling = head_parts(lm, prompt.input_ids, int(layer), int(head))
    q, k, s, w = (part.numpy() for part in (queries, keys, scores, weights))
    return HeadDetail(q, k, s, w, scaling, int(layer), int(head), prompt.tokens)


def _beyond_sink(looks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same `[query, key]` places without those at position 0, which heads look at for want of anything else."""
    looks[:, 0] = False
    return looks


def _check_index(name: str, index: int, size: int) -> None:
    if not isinstance(index, Integral) or index not in range(size):  # NumPy's integers are fine
        raise CourseError(f"Expected a {name} from 0 to {size - 1}, got {index!r}.")


def connections_html(summary: str, connections: Sequence[dict[str, Any]]) -> str:
    """Attention connections as a small table under a line that sums all of them up, readable in light and dark."""
    rows = "".join(
        f'<tr><td style="text-align:left">{_placed(c, "from")}</td><td style="text-align:left">{_placed(c, "to")}</td>'
        f'<td style="background:{tint(c["weight"])}">{c["weight"]:.2f}</td></tr>'
        for c in connections
    )
    names = "".join(f"<th>{name}</th>" for name in ("from (query)", "to (key)", "weight"))
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    rest = "The strongest of the others between different tokens:" if rows else "No others between different tokens."
    return f'<div><div style="font-size:.9em">{escape(summary)}. {rest}</div>{table if rows else ""}</div>'


def _placed(connection: dict[str, Any], end: str) -> str:
    position = f'<span style="opacity:.6">{connection[f"{end}_position"]}</span>'
    return f"{position} <code>{escape(connection[end])}</code>"
