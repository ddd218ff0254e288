"""Two runs to patch between: what of one is put into the other, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CourseError
from ..hooks import Edit, Site, edit, find_parts, head_size, written_by_heads
from ..models import LocalModel
from ..prompts import Prompt
from .blocks import added, added_by_attention, check_adds, check_restart, ending, run_layer
from .interventions import Intervention, Run, check_stream, run_once, score_edits
from .metrics import Metric, make_metric
from .prefix_sharing import BATCH_TOKENS
from .premises import with_gradients

OVER = ("residual", "attention", "mlp", "heads")
INTO = ("corrupted", "clean")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs to patch between: `base` is patched, with what `source` has."""

    base: Run
    source: Run
    over: str
    into: str
    tokens: list[str]  # of the prompt that is patched
    metric: Metric
    clean: float
    corrupted: float
    first: int  # the first token that differs
    position: int | None  # the one token of the prompt at which heads are patched, if not all

    @property
    def ends(self) -> tuple[float, float]:
        """The output of the run that is patched, and that of the other."""
        return (self.corrupted, self.clean) if self.into == "corrupted" else (self.clean, self.corrupted)

    def moved(self, values: Tensor) -> Tensor:
        """Scores as shares of the difference between the runs."""
        start, end = self.ends
        return (values - start) / (end - start)


def pair_of(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    over: str,
    into: str,
    target: str | None,
    contrast: tuple[str, str] | None,
    position: int | None = None,
    also: tuple[str, ...] = (),
) -> Pair:
    """Run both prompts, and check that they can be patched into each other."""
    if over not in OVER:
        raise CourseError(f"Expected something to patch ({', '.join(OVER)}), got {over!r}.")
    if into not in INTO:
        raise CourseError(f"Expected the run to patch into ({' or '.join(INTO)}), got {into!r}.")
    if (target is None) == (contrast is None):
        raise CourseError("Expected either a target or a contrast to score; give one of them.")
    for prompt in (clean, corrupted):
        lm.check_prompt(prompt)
    if len(clean) != len(corrupted):
        raise CourseError(
            f"Expected prompts of the same number of tokens, got {len(clean)} and {len(corrupted)}; "
            "change one word for another of as many tokens."
        )
    at = None if position is None else clean.place(position)  # a target's tokens come after the prompt's
    if over == "residual":
        check_stream(lm)
    elif over != "heads" or also:
        check_adds(lm)
    if also:
        check_restart(lm)
    metrics = [make_metric(lm, prompt, target=target, contrast=contrast) for prompt in (clean, corrupted)]
    sites: list[Site] = [(kind, layer) for kind in {over, *also} - {"residual"} for layer in range(lm.n_layers)]
    runs = [run_once(lm, metric.ids, keep=metric.keep, sites=sites) for metric in metrics]
    of_clean, of_corrupted = (float(m.total(one.logits[None])) for m, one in zip(metrics, runs, strict=True))
    differ = runs[0].ids != runs[1].ids
    if not differ.any() or abs(of_clean - of_corrupted) < 1e-6:
        raise CourseError("Expected prompts with different outputs, got the same one twice; there is nothing to patch.")
    (base, source), patched = (runs, clean) if into == "clean" else (runs[::-1], corrupted)
    first = int(differ.int().argmax())
    return Pair(base, source, over, into, patched.tokens, metrics[0], of_clean, of_corrupted, first, at)


def patch(lm: LocalModel, pair: Pair, site: Site, places: list[int]) -> Intervention:
    """The change that patch number i makes: one token of a stream or block, or one head (at one token, or at all)."""
    source, position = pair.source.at(site), pair.position  # [token, width]
    size = head_size(lm, source.shape[-1]) if site[0] == "heads" else 0

    def change(number: int, activation: Tensor) -> Tensor:
        new, shift = activation.clone(), len(source) - len(activation)
        own = slice(places[number] * size, (places[number] + 1) * size)
        if site[0] != "heads":
            new[places[number] - shift] = source[places[number]]
        elif position is None:
            new[:, own] = source[shift:, own]
        else:
            new[position - shift, own] = source[position, own]
        return new

    return change


def gradients_at(lm: LocalModel, base: Run, metric: Metric, sites: list[Site]) -> list[Tensor]:
    """How the output changes with what flows through each site, `[token, width]`."""
    held: dict[Site, Tensor] = {}

    def hold(site: Site) -> Edit:
        def keep(activation: Tensor) -> Tensor:
            held[site] = activation if activation.requires_grad else activation.requires_grad_()
            return held[site].clone()  # what comes after may add to it in place

        return keep

    begin: Site = ("residual", 0)
    with (
        with_gradients(),
        edit(lm, {begin: lambda stream: stream.detach().requires_grad_()}),
        edit(lm, {site: hold(site) for site in sites}),
    ):
        logits = lm.model(input_ids=base.ids[None], use_cache=False).logits[:, -metric.keep :]
        value = metric.total(logits).sum()
    return [slope[0] for slope in torch.autograd.grad(value, [held[site] for site in sites])]


def head_deltas(lm: LocalModel, pair: Pair, layer: int, n_tokens: int) -> Tensor:
    """How what each head of a layer adds to the stream at the last tokens would change, `[head, token, d_model]`."""
    added_by_attention(lm, pair.base, layer)  # which says where it cannot be told
    mixed = (pair.source.seen["heads", layer] - pair.base.seen["heads", layer])[-n_tokens:]
    written = written_by_heads(lm, find_parts(lm).out_projection[layer], mixed)
    changes = written.transpose(0, 1)  # [head, token, d_model]
    block = pair.base.seen["attention", layer][-n_tokens:]
    gained = added(lm, pair.base, layer, torch.cat([block[None], block + changes]))
    return gained[1:] - gained[:1]


def at_output(lm: LocalModel, pair: Pair, deltas: Tensor) -> Tensor:
    """The output with each change added to the last stream, `[head]`."""
    stream = pair.base.residual[-1][-1] + deltas[:, -1]  # [head, d_model]
    return pair.metric.total(ending(lm, pair.base, stream)[:, None]).cpu()


def through(lm: LocalModel, pair: Pair, deltas: Tensor, receiver: tuple[int, int]) -> Tensor:
    """The output with each change let into one later head alone, `[head]`."""
    layer, head = receiver
    at_once = max(1, BATCH_TOKENS // len(pair.base.ids))
    seen: list[Tensor] = []  # what the heads give with some changes added to the stream, [change, token, width]
    for some in torch.split(deltas, at_once):
        run_layer(lm, pair.base, layer, pair.base.residual[layer] + some, {("heads", layer): seen.append})
    mixed = torch.cat(seen)
    size = head_size(lm, mixed.shape[-1])
    own = slice(head * size, (head + 1) * size)

    def change(number: int, activation: Tensor) -> Tensor:
        new = activation.clone()
        new[:, own] = mixed[number, -len(activation) :, own]
        return new

    return score_edits(lm, pair.base, ("heads", layer), [pair.first] * len(mixed), change, score=pair.metric.total)
