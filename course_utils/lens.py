"""What the parts of a model write towards its output: the logit lens and direct logit attribution.

The residual stream is a sum of what the embedding, the heads and the MLPs write; the output is read off that sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._arrays import HALF, Floats, close, floats, precise
from .engine.blocks import added, added_by_attention, check_adds, check_restart, ending, frozen, normed
from .engine.interventions import Run, run_once
from .engine.metrics import contrast_ids, single_token
from .engine.premises import check_model
from .errors import CourseError
from .hooks import check_in_memory, find_parts, written_by_heads
from .models import LocalModel
from .plots import WIDE, axes_of, plot_layers, style
from .prompts import Prompt, token_strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the model would say if it stopped at each layer: the stream, normed and unembedded there.

    Attributes:
        predictions: the most probable next token, `[layer][token]`; the last layer is the model's own output.
        probability: float32 `[layer, token]`, of that token.
        contrast: float32 `[layer, token]`, logits, or None where no contrast was asked for.
        tokens: the printable input tokens.
    """

    predictions: list[list[str]]
    probability: Floats
    contrast: Floats | None
    tokens: list[str]
    label: str

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """The contrast that the logit lens reads at each layer and token (or the probability of its best guess)."""
        if self.contrast is not None:
            title = title or f"Logit lens: at the last token the output ends at {self.contrast[-1, -1]:+.1f} logits"
            limit = float(np.abs(self.contrast[1:]).max())  # each token's own embedding would outshine the rest
            return plot_layers(
                self.contrast, self.tokens, label=f"{self.label} (logits)", title=title, limit=limit, ax=ax
            )
        title = title or f"Logit lens: the last token ends at {self.predictions[-1][-1]}"
        return plot_layers(self.probability, self.tokens, label="probability of the best guess", title=title, ax=ax)


@torch.no_grad()
def logit_lens(lm: LocalModel, prompt: Prompt, *, contrast: tuple[str, str] | None = None) -> LogitLens:
    """Read the residual stream at every layer and token with what the model runs after its last layer.

    That is its final norm and unembedding, with whatever it does to the logits. The lens is sharp only where a layer
    already writes in the output's terms (nostalgebraist 2020).

    Args:
        lm: the model.
        prompt: what it reads.
        contrast: two single tokens; the lens then also gives the logit of the first minus that of the second.

    Raises:
        CourseError: a model whose layers hand on more than one stream, or whose output is not read off it.

    >>> logit_lens(lm, prompt, contrast=("I", "Sure")).contrast.shape == (31, len(prompt))
    True
    """
    check_model(lm)
    lm.check_prompt(prompt)
    pair = None if contrast is None else contrast_ids(lm, prompt, contrast)
    predictions, probability, differences = [], [], []
    base = run_once(lm, prompt.input_ids[0])
    for stream in base.residual:
        logits = precise(ending(lm, base, stream))  # [token, vocabulary]
        best = logits.argmax(dim=-1)
        predictions.append(token_strings(lm.tokenizer, best.tolist()))
        probability.append((logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(dim=-1)).exp())
        if pair:
            differences.append(logits[:, pair[0]] - logits[:, pair[1]])
    if not close(logits[-1].to(base.logits), base.logits[-1]):
        raise CourseError(
            f"Expected a model whose output is read off its last layer, and {type(lm.model).__name__} computes it from "
            "more than that; the logit lens is not right for it."
        )
    return LogitLens(
        predictions=predictions,
        probability=floats(torch.stack(probability)),
        contrast=floats(torch.stack(differences)) if pair else None,
        tokens=prompt.tokens,
        label="" if pair is None else " − ".join(token_strings(lm.tokenizer, list(pair))),
    )


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """What each part of the model adds to a logit (or a difference of two) directly, at the last token.

    Attributes:
        value: float, the logit; the sum of all parts.
        embedding: float, what the embedding adds.
        attention: float32 `[layer]`, each attention block.
        heads: float32 `[layer, head]`, its heads; the rest of a block is its bias.
        mlps: float32 `[layer]`.
        constant: float, what the final norm's and the unembedding's biases add.
    """

    value: float
    embedding: float
    attention: Floats
    heads: Floats
    mlps: Floats
    constant: float
    label: str

    @property
    def total(self) -> float:
        """The parts added up."""
        return self.embedding + float(self.attention.sum() + self.mlps.sum()) + self.constant

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """What each layer's attention block and MLP add to a logit directly, as bars."""
        layers = np.arange(len(self.mlps))
        strongest = int(np.abs(self.attention + self.mlps).argmax())
        with style():
            ax = axes_of(ax, WIDE)
            ax.bar(layers - 0.2, self.attention, width=0.4, color="#0072B2", label="attention")
            ax.bar(layers + 0.2, self.mlps, width=0.4, color="#E69F00", label="MLP", hatch="//", edgecolor="white")
            ax.axhline(0, color="0.3", linewidth=0.8)
            ax.set_xlabel("layer")
            ax.set_ylabel(f"direct effect on {self.label} (logits)")
            ax.legend()
            ax.set_title(title or f"Layer {strongest} writes most towards {self.label}, {self.value:+.1f} in all")
        return ax


@torch.no_grad()
def direct_logit_attribution(
    lm: LocalModel, prompt: Prompt, *, target: str | None = None, contrast: tuple[str, str] | None = None
) -> DirectAttribution:
    """Split a logit at the last token into what each part of the model writes towards it (Elhage et al. 2021).

    The residual stream is a sum; with the final norm's scale frozen at what it was, so is the logit.

    Args:
        lm: the model.
        prompt: what it reads.
        target: a single token whose logit is split.
        contrast: two single tokens whose difference of logits is split.

    Raises:
        CourseError: neither or both of target and contrast, or an architecture whose stream is no such sum.

    >>> d = direct_logit_attribution(lm, prompt, contrast=("I", "Sure"))
    >>> abs(d.total - d.value) < 1e-2
    True
    """
    check_adds(lm)
    check_restart(lm)
    lm.check_prompt(prompt)
    parts = find_parts(lm)
    wanted, ids = _direction(lm, prompt, target, contrast)
    kinds = ("attention", "mlp", "heads")
    base = run_once(lm, prompt.input_ids[0], sites=[(kind, layer) for kind in kinds for layer in range(lm.n_layers)])
    towards, bias = frozen(lm, lambda rows: normed(lm, base, rows), base.residual[-1][-1])
    factor, constant = _read_off(lm, base, wanted, ids)

    def direct(part: Tensor) -> Tensor:
        return factor * (towards(part) @ precise(wanted))

    attention, mlps, heads = [], [], []
    for layer in range(lm.n_layers):
        blocks, mixed = base.seen["attention", layer], base.seen["heads", layer][-1]
        written = added_by_attention(lm, base, layer)

        def given(rows: Tensor, layer: int = layer) -> Tensor:
            """What the attention of this layer adds at the last token if it gives out some vectors there."""
            return added(lm, base, layer, rows[:, None])[:, 0]

        before, after = base.residual[layer][-1], base.residual[layer + 1][-1]
        rounding = 2 * torch.finfo(before.dtype).eps * float(before.abs().max())
        through, _ = frozen(lm, given, blocks[-1], rounding=rounding)
        attention.append(direct(written))
        mlps.append(direct(after - before - written))
        heads.append(direct(through(written_by_heads(lm, parts.out_projection[layer], mixed))))
    logits = base.logits[-1]
    split = DirectAttribution(
        value=float(logits[ids[0]] - (logits[ids[1]] if len(ids) > 1 else 0)),
        embedding=float(direct(base.residual[0][-1])),
        attention=floats(torch.stack(attention)),
        heads=floats(torch.stack(heads)),
        mlps=floats(torch.stack(mlps)),
        constant=float(factor * (bias @ precise(wanted)) + constant),
        label=" − ".join(token_strings(lm.tokenizer, ids)),
    )
    largest = max(abs(split.embedding), float(np.abs([split.attention, split.mlps]).max()), abs(split.value))
    rounding = torch.finfo(lm.model.dtype).eps * float(logits[ids].abs().max())  # a contrast is a difference of logits
    if abs(split.total - split.value) > (3e-2 if lm.model.dtype in HALF else 1e-3) * largest + rounding:
        raise CourseError(
            f"The parts add up to {split.total:.3g} and the logit is {split.value:.3g}: {type(lm.model).__name__} does "
            "something else with its stream, so its logits cannot be split this way."
        )
    return split


def _read_off(lm: LocalModel, base: Run, wanted: Tensor, ids: list[int]) -> tuple[float, Tensor]:
    """The factor between what the unembedding gives and the logit (Granite divides it), and what is added after it."""
    entering = normed(lm, base, base.residual[-1][-1:])[0]
    head = lm.model.get_output_embeddings()
    raw, logits = precise(head(entering)), base.logits[-1]
    factor = float((raw @ precise(logits)) / (raw @ raw))  # half precision overflows here
    if not close(factor * raw, logits):
        raise CourseError(
            f"{type(lm.model).__name__} bends its logits after the unembedding (a soft cap?), so they are no sum of "
            "parts; use logit_lens."
        )
    bias = getattr(head, "bias", None)
    if bias is None:
        return factor, torch.zeros((), device=lm.device)
    return factor, factor * (bias[ids[0]] - (bias[ids[1]] if len(ids) > 1 else 0))


def _direction(
    lm: LocalModel, prompt: Prompt, target: str | None, contrast: tuple[str, str] | None
) -> tuple[Tensor, list[int]]:
    """The direction in the normed stream whose product is the logit, or the difference of two, and their ids."""
    if (target is None) == (contrast is None):
        raise CourseError("Expected either a target or a contrast, of single tokens; give one of them.")
    weight = lm.model.get_output_embeddings().weight
    check_in_memory(weight)
    if contrast is not None:
        first, second = contrast_ids(lm, prompt, contrast)
        return weight[first] - weight[second], [first, second]
    one = single_token(lm, lm.continuation(prompt, str(target)), str(target))
    return weight[one], [one]
