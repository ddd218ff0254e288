"""What the parts of a layer add to the residual stream, seen from outside: by running the layer with a part changed.

Nothing is assumed of what stands between a part and the stream (a norm, a multiplier, a gate): it is tried out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import HALF, close, precise
from ..errors import CourseError
from ..hooks import Edit, Site, edit, find_parts, instead, record, skip_layers
from ..models import LocalModel
from .interventions import Run, can_restart
from .premises import can_batch, plain_logits, random_ids, require

Linear = Callable[[Tensor], Tensor]


class _Stop(Exception):
    """Raised inside a pass when all that is wanted has been seen."""


def check_adds(lm: LocalModel) -> None:
    """Raise unless layers add what attention and MLP give out to the stream, and nothing else (no norm of it)."""
    complaint = (
        f"Expected layers that add their attention and their MLP to the residual stream, and those of "
        f"{type(lm.model).__name__} do something else with it; this method is not right for it."
    )
    require(lm, "adds", _adds, complaint)


def _adds(lm: LocalModel, length: int) -> bool:
    """With all of them silent, every layer hands on the stream as it is, also one of another size, which norms undo."""
    streams: list[Site] = [("residual", layer) for layer in range(lm.n_layers + 1)]
    silent: dict[Site, Edit] = {}
    for kind in ("attention", "mlp"):
        with suppress(CourseError), edit(lm, {(kind, 0): torch.zeros_like}):  # a state-space model has no MLP
            silent |= {(kind, layer): torch.zeros_like for layer in range(lm.n_layers)}
    with ExitStack() as others:
        for mixer in find_parts(lm).further_mixers:
            others.enter_context(mixer.register_forward_hook(_nothing))
        with edit(lm, {("residual", 0): lambda stream: 2 * stream, **silent}), record(lm, streams) as seen:
            plain_logits(lm, random_ids(lm, length)[None])
    return bool(silent) and all(close(seen[site], seen["residual", 0]) for site in streams)


def _nothing(module: nn.Module, args: Any, output: Any) -> Any:
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def run_layer(lm: LocalModel, base: Run, layer: int, stream: Tensor, edits: dict[Site, Edit] | None = None) -> Tensor:
    """What one layer alone makes of streams that enter it at the last tokens, `[row, token, d_model]`, if edited."""
    seen: list[Tensor] = []

    def keep(given: Tensor) -> None:
        seen.append(given.clone())
        raise _Stop

    ends: dict[Site, Edit] = {("residual", layer): instead(stream.clone()), ("residual", layer + 1): keep}
    with skip_layers(lm, range(layer), base.outputs), edit(lm, {**ends, **(edits or {})}), suppress(_Stop):
        lm.model(input_ids=base.ids[-stream.shape[1] :].expand(len(stream), -1), use_cache=False)
    return seen[0]


def added(lm: LocalModel, base: Run, layer: int, attention: Tensor) -> Tensor:
    """What a layer's attention adds to the stream if it gives out something at the last tokens of the input.

    Both are `[row, token, d_model]`. Once attention has given it out, tokens are by themselves (`added_by_attention`
    sees to that), so no others are run.
    """
    attention = torch.cat([attention, torch.zeros_like(attention[:1])])
    streams = _without_mlp(lm, base, layer, attention)
    return streams[:-1] - streams[-1:]


def _without_mlp(lm: LocalModel, base: Run, layer: int, attention: Tensor) -> Tensor:
    n_rows, n_tokens, _ = attention.shape
    stream = base.residual[layer][-n_tokens:].expand(n_rows, -1, -1)
    silent: Edit = torch.zeros_like
    return run_layer(lm, base, layer, stream, {("attention", layer): instead(attention), ("mlp", layer): silent})


def added_by_attention(lm: LocalModel, base: Run, layer: int) -> Tensor:
    """What a layer's attention adds to the stream at the last token, `[d_model]`.

    CourseError where something (a convolution, a gate, a second mixer) follows the heads or stands beside them.
    """
    given = base.seen["attention", layer]
    written = find_parts(lm).out_projection[layer](base.seen["heads", layer])
    gained = _without_mlp(lm, base, layer, given[None])[0, -1] - base.residual[layer][-1]
    last = added(lm, base, layer, given[None, -1:])[0, 0]
    if not close(written, given) or not close(last, gained):
        raise CourseError(
            f"Expected heads whose sum alone is added to the stream, and in layer {layer} of {type(lm.model).__name__} "
            "something else follows them or stands beside them, so what single parts write cannot be told."
        )
    return last


def check_restart(lm: LocalModel) -> None:
    """Raise unless a single layer can be run by itself."""
    if not (can_restart(lm) and can_batch(lm)):
        raise CourseError(
            f"Expected layers that can be run by themselves, and those of {type(lm.model).__name__} share more than "
            "the residual stream (or a hook of your own hangs on it); this method is not right for it."
        )


def ending(lm: LocalModel, base: Run, stream: Tensor) -> Tensor:
    """Logits `[token, vocabulary]` of what comes out of the last layer, `[token, d_model]`, by all that comes after."""
    last: Site = ("residual", lm.n_layers)
    ids = base.ids[:1].expand(1, len(stream))
    with skip_layers(lm, range(lm.n_layers), base.outputs), edit(lm, {last: instead(stream[None])}):
        return lm.model(input_ids=ids, use_cache=False).logits[0]


def normed(lm: LocalModel, base: Run, stream: Tensor) -> Tensor:
    """What enters the unembedding for what comes out of the last layer, both `[token, d_model]`."""
    seen: list[Tensor] = []
    with lm.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0][0])):
        ending(lm, base, stream)
    return seen[0]


def frozen(
    lm: LocalModel, norm: Callable[[Tensor], Tensor], at: Tensor, *, rounding: float = 0.0
) -> tuple[Linear, Tensor]:
    """A norm (or a multiplier) with its scale fixed at what one vector gives: a linear function, and its bias.

    It is found by trying: y = (x - mean(x) or x) * weight * scale + bias, with `weight` from a vector of equal sizes.
    The norm maps `[row, d_model]` to `[row, d_model]`; where what it gives is a difference of large numbers, it may be
    off by `rounding`. CourseError where it is nothing of the kind.
    """
    given, share = at.dtype, 3e-2 if at.dtype in HALF else 1e-3
    at = precise(at)
    size = at.abs().max()  # what is large loses least to rounding
    signs = torch.ones_like(at)
    signs[1::2] = -1
    signs = (signs - signs.mean()) * size
    out, bias, of_signs, of_equal = precise(norm(torch.stack([at, 0 * at, signs, 0 * at + size]).to(given)))
    unlike = CourseError(
        f"Expected a layer norm or an RMS norm before what is added up, and {type(lm.model).__name__} has "
        "something else there, so its logits cannot be split this way."
    )
    if out.shape != at.shape:  # OPT may go on to a narrower unembedding
        raise unlike
    centred = bool((of_equal - bias).abs().max() <= share * (of_signs - bias).abs().max())
    weight = (of_signs - bias) / signs

    def centre(part: Tensor) -> Tensor:
        return part - part.mean(dim=-1, keepdim=True) if centred else part

    scaled = centre(at) * weight
    scale = ((out - bias) @ scaled) / (scaled @ scaled)
    if not (scaled * scale + bias - out).abs().max() <= max(share * out.abs().max(), rounding):
        raise unlike
    return lambda part: centre(precise(part)) * weight * scale, bias
