"""The checks of exercise 8.2, a function for each item; what an item alone needs stands below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models import LocalModel
from ..prompts import Prompt
from .answers import Answer, ask, expect, expect_shape, show
from .spies import hanging
from .tiny import tiny

Asking = Callable[..., Tensor]  # an answer, asked and its shape checked; what is not named is the check's
Looks = Sequence[tuple[int, int]]  # (query, key)


class Example(NamedTuple):
    """What the exercise and its checks work on."""

    lm: LocalModel
    prompts: list[Prompt]
    ids: Tensor  # [batch, token]
    stack: Tensor  # [layer, batch, head, query, key]


@cache
def example() -> Example:
    """A tiny random model, two prompts of seven tokens, and its attention to them.

    >>> tuple(example().stack.shape)
    (3, 2, 4, 7, 7)
    """
    lm = tiny(seed=21, n_layers=3)
    prompts = [lm.prompt(text) for text in ("the old nurse forgave the thief", "she asked the monk for bread")]
    ids = torch.cat([prompt.input_ids for prompt in prompts])
    with torch.no_grad():
        return Example(lm, prompts, ids, torch.stack(lm.model(ids, output_attentions=True).attentions))


def average(mean_attention: Answer, connections: Answer) -> None:
    """Item 1: the mean over layers and heads, and the list of its strong looks.

    Needs `mean_attention(stack)`, [batch, query, key], and `connections(mean, tokens, threshold)`, a list of records.
    """
    stack = example().stack
    likely = {
        (4, 7, 7): "the prompts were averaged and the heads were not",
        (7, 7): "the prompts were averaged too, or one of them is lost",
        (2, 4, 7, 7): "the heads are still there",
        (3, 2, 7, 7): "the layers are still there",
        (3, 7, 7): "the prompts were averaged and the layers were not",
    }

    def averaged(stack: Tensor, likely: dict[tuple[int, ...], str] = likely) -> Tensor:
        return expect_shape(ask(mean_attention, stack), "[batch, query, key]", (stack.shape[1], 7, 7), likely=likely)

    mean = averaged(stack)
    alone = averaged(stack[:, 1:], {(7, 7): "keep the axis of the batch, also where it holds one prompt"})
    apart = (alone - mean[1:]).abs().max()
    told = f"Prompt 1 comes out otherwise alone than in a batch (by {apart:.2f}): keep the prompts apart."
    expect(apart < 1e-4, told)
    told = "Your mean looks ahead: above the diagonal it must be 0. Are the axes mixed up?"
    expect(mean.triu(1).abs().max() < 1e-6, told)
    rows = mean.sum(dim=-1)
    told = f"Each row shares out 1; yours add up to {rows.min():.2f} to {rows.max():.2f}"
    expect((rows - 1).abs().max() < 1e-4, f"{told}: the mean, no sum and no maximum.")
    for axis, what in ((0, "layers"), (2, "heads")):
        told = f"The same {what} in another order give another mean: take all {what}, and all alike."
        expect((averaged(stack.roll(1, axis)) - mean).abs().max() < 1e-4, told)
    _expect_strong_looks(connections)
    show(mean, torch.tensor(_listed(connections, stack[1, 0, 2], 0.3)[0]), seal="c80f62f6de9c")


def _expect_strong_looks(connections: Answer) -> None:
    """Of made-up means, four of which are above a threshold."""
    tokens = example().prompts[0].tokens
    mean = torch.full((7, 7), 0.0625, dtype=torch.float64).tril()  # [query, key]
    mean[4, 4], mean[3, 1], mean[6, 0], mean[5, 2] = 0.75, 0.875, 0.5, 0.25
    rows, found = _listed(connections, mean, 0.1)
    places, weights = [(q, k) for q, k, _ in rows], [weight for _, _, weight in rows]
    ahead = [(q, k) for q, k in places if k > q]
    expect(not ahead, f"You list looks ahead, (from, to) = {ahead[:2]}: it is mean[query, key], and the query looks.")
    odd = [(q, k, weight) for q, k, weight in rows if abs(weight - mean[q, k]) > 1e-6]
    expect(not odd, f"Your records (from, to, weight) do not hold the weight that stands at mean[from, to]: {odd[:2]}.")
    false = [c for c, (q, k) in zip(found, places, strict=True) if (c["from"], c["to"]) != (tokens[q], tokens[k])]
    expect(not false, f"A record's tokens must be those at its positions: {false and false[0]}.")
    for q, k in ((3, 1), (4, 4), (6, 0), (5, 2)):
        expect((q, k) in places, f"Position {q} gives {mean[q, k]:.3f} to {k}, above 0.1, and is not on your list.")
    low = min((weight for _, _, weight in _listed(connections, mean, 0.5)[0]), default=1.0)
    expect(low > 0.5, f"Your list for a threshold of 0.5 goes down to {low:.4f}: above it, not at or below it.")
    expect(len({*rows}) == len(rows), "A look is on your list twice.")
    expect(weights == sorted(weights, reverse=True), f"Strongest first; yours begin with {weights[:3]}.")


def _listed(
    connections: Answer, mean: Tensor, threshold: float
) -> tuple[list[tuple[int, int, float]], list[dict[str, Any]]]:
    """The looks listed, as (query, key, weight), and the records themselves."""
    keys = ("from", "to", "from_position", "to_position", "weight")
    found = ask(connections, mean, example().prompts[0].tokens, threshold)
    plain = isinstance(found, list) and all(isinstance(c, dict) for c in found)
    got = f"{type(found).__name__} of something else" if isinstance(found, list) else type(found).__name__
    expect(plain, f"Expected a list of dictionaries, got a {got}.")
    lacking = [key for key in keys if any(key not in c for c in found)]
    expect(not lacking, f"A record needs {', '.join(keys)}; {lacking} is missing.")
    rows = [(c["from_position"], c["to_position"], c["weight"]) for c in found]
    odd = [row for row in rows for x in row if not (hasattr(x, "item") or isinstance(x, (int, float)))]
    expect(not odd, f"Positions and weights are numbers, yours (from, to, weight) are {odd[:1]}.")
    expect(all(0 <= x < 7 for q, k, _ in rows for x in (q, k)), "Of 7 tokens the positions are 0 to 6.")
    return [(int(q), int(k), float(weight)) for q, k, weight in rows], found


def values(value_weighted: Answer) -> None:
    """Item 2: the length of what each look carries, where heads share their values.

    Needs `value_weighted(weights, values, w_o)`, [head, query, key].
    """
    lm, _, ids, stack = example()
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    looks = (2 * _made_of(6, 5, 5, pace=1.7)).masked_fill(future, -torch.inf).softmax(dim=-1)  # 6 query heads
    held, out_weight = _made_of(2, 5, 4, pace=2.2), _made_of(24, 24, pace=2.6)  # 2 key/value heads, d_head 4

    def weighed(looks: Tensor = looks, held: Tensor = held, out_weight: Tensor = out_weight) -> Tensor:
        each = "one for each query head, not for each key/value head"
        likely = {(2, 5, 5): each, (6, 5): "keep a length for each look"}
        found = ask(value_weighted, looks, held, out_weight)
        return expect_shape(found, "[head, query, key]", (6, 5, 5), likely=likely)

    plain = weighed()
    told = f"A length is never below 0, yours go down to {plain.min():.2f}: take the norm of what is written."
    expect(plain.min() >= 0, told)
    factor = (weighed(held=3 * held)[:, 4] / plain[:, 4]).mean()
    told = f"Values 3 times as long must carry 3 times as much, yours {factor:.2f} times"
    expect(abs(factor - 3) < 1e-3, f"{told}: no square, and no sharing out.")
    same = torch.allclose(weighed(out_weight=2 * out_weight), plain)
    expect(not same, "Your numbers do not depend on w_o: the length is that of v W_O, not of v.")
    same = torch.allclose(weighed(looks.flip(1)), plain)
    expect(not same, "Your numbers do not depend on the attention: multiply each length by the weight of the look.")
    expect(plain[:, future].max() < 1e-6, "A look ahead has weight 0 and must stay 0 in your result.")
    _expect_own_values(weighed, plain, held, out_weight)
    _expect_euclidean(weighed, plain, looks, out_weight)
    with torch.no_grad():
        cached = lm.model(ids).past_key_values.layers[1].values[0]  # [kv_head, key, d_head]
    projection = lm.model.model.layers[1].self_attn.o_proj.weight  # [d_model, head * d_head]
    found = expect_shape(ask(value_weighted, stack[1, 0], cached, projection), "[head, query, key]", (4, 7, 7))
    show(found[:, -1], plain[:, 4], seal="79584f5ac66e")


def _made_of(*shape: int, pace: float) -> Tensor:
    """Numbers without a pattern, the same everywhere."""
    return torch.arange(torch.Size(shape).numel()).double().mul(pace).sin().reshape(shape)


def _expect_own_values(weighed: Asking, plain: Tensor, held: Tensor, out_weight: Tensor) -> None:
    """Which key, which group's values and which columns of w_o a head reads: each is changed alone."""

    def silent(result: Tensor) -> list[int]:
        return [h for h in range(6) if result[h].abs().max() < 1e-6]

    longer, muted, cut = held.clone(), held.clone(), out_weight.clone()
    longer[:, 3] *= 10
    muted[1], cut[:, 16:20] = 0, 0
    changed = weighed(held=longer)
    where = [k for k in range(5) if not torch.allclose(changed[:, :, k], plain[:, :, k], atol=1e-4)]
    told = f"The values of key 3 alone were changed, and your columns {where}"
    expect(where == [3], f"{told}: the length goes with the key, the last axis.")
    heads = silent(weighed(held=muted))
    told = "Key/value head 1 of 2 was silenced, which query heads 3, 4 and 5 of 6 share; in yours, heads"
    group = "g(h) = h // group size, and a group has n_heads / n_kv"
    expect(heads == [3, 4, 5], f"{told} {heads} fall silent: {group}.")
    heads = silent(weighed(out_weight=cut))
    told = f"Columns 16 to 19 of w_o, head 4's inputs, were silenced; in yours, heads {heads} fall silent"
    expect(heads == [4], f"{told}: head h has its own d_head columns (the input), side by side.")


def _expect_euclidean(weighed: Asking, plain: Tensor, looks: Tensor, out_weight: Tensor) -> None:
    axis = _made_of(24, 1, pace=0.9)
    turned = weighed(out_weight=out_weight - 2 * axis @ (axis.T @ out_weight) / axis.square().sum())
    told = "Turn all outputs alike in space and their lengths stay; yours change: the Euclidean norm, over d_model."
    expect(torch.allclose(turned, plain, atol=1e-3), told)
    unit = weighed(held=torch.full((2, 5, 4), 0.5).double(), out_weight=torch.eye(24).double())
    told = "Where each value has length 1 and w_o changes nothing, the weight of each look comes out; yours begin "
    got = f"{unit[0, 1, 0]:.3f} for {looks[0, 1, 0]:.3f}"
    expect(torch.allclose(unit, looks), f"{told}{got}: the Euclidean norm, nothing more.")


def rollout(rollout: Answer) -> None:
    """Item 3: where content comes from after each layer, whatever the rows of attention add up to.

    Needs `rollout(weights)`, [layer, query, key].
    """
    attention = example().stack[:, 0]  # [layer, head, query, key]
    no_sink = attention.clone()
    no_sink[..., 0] = 0

    def rolled(weights: Tensor) -> Tensor:
        likely = {
            (7, 7): "the product after each layer, not after the last alone",
            (4, 7, 7): "one product for each of the 3 layers: average over the heads, and leave the first identity out",
            (3, 4, 7, 7): "average over the heads",
        }
        return expect_shape(ask(rollout, weights), "[layer, query, key]", (len(weights), 7, 7), likely=likely)

    flows = rolled(attention)
    expect(flows.min() >= 0, f"Nothing can flow backwards: expected numbers from 0 on, got {flows.min():.2f}.")
    kept = rolled(_looking(*[(q, 0) for q in range(7)])[None])[0].diagonal()[1:].min()
    told = f"All look at position 0 and still keep what they had; yours keep {kept:.2f}: add the identity."
    expect(kept > 0.01, told)
    last = ", ".join(f"{x:.2f}" for x in flows[:, -1].sum(dim=-1))
    told = f"Rows must add up to 1 after each layer; your last come to {last}"
    even = (flows.sum(dim=-1) - 1).abs().max() < 1e-4
    expect(even, f"{told}: divide each row by its own sum, over the keys.")
    rows = rolled(attention / 2).sum(dim=-1)
    told = f"Where looks come to 0.5 a row, yours add up to {rows.min():.2f} or so"
    expect((rows - 1).abs().max() < 1e-4, f"{told}: divide by the row's own sum, not by 2.")
    _expect_order(rolled)
    moved = (rolled(attention.mean(dim=1, keepdim=True)) - flows).abs().max()
    expect(moved < 1e-4, f"Heads that were averaged beforehand give another result (by {moved:.2f}): take their mean.")
    drained = rolled(no_sink)
    _expect_all_shared_out(drained)
    show(flows[:, -1], flows[2], drained[:, -1], seal="0015e47f67de")


def _expect_all_shared_out(drained: Tensor) -> None:
    """Of the flows with the sink left out, where rows of attention come to less than 1."""
    rows = drained.sum(dim=-1)
    told = f"With the sink left out, your rows add up to {rows.min():.2f} … {rows.max():.2f}"
    keepdim = "divide each row by its own sum, sum(dim=-1, keepdim=True); without keepdim, columns are divided"
    expect((rows - 1).abs().max() < 1e-4, f"{told}: {keepdim}.")
    told = "With the sink left out, row 0 is all 0: position 0 then keeps itself, 1."
    expect((drained[:, 0, 0] - 1).abs().max() < 1e-4, told)


def _looking(*pairs: tuple[int, int]) -> Tensor:
    """Attention [head, query, key] of one head: these look as told, all others at themselves."""
    weights = torch.eye(7, dtype=torch.float64)
    for query, key in pairs:
        weights[query] = torch.eye(7)[key]
    return weights[None]


def _expect_order(rolled: Asking) -> None:
    """What is multiplied by what, and when rows are divided."""
    first, second = _looking((2, 1)), _looking((4, 2))
    there = rolled(_looking((4, 1))[None])[0, 4, 1] > 0.01
    told = "Position 4 looks at 1, and nothing of 1 arrives at 4"
    expect(there, f"{told}: it is [query, key], and matrices multiply by @, not by *.")
    kept = rolled(1e6 * _looking((4, 1))[None])[0, 4, 4]
    told = f"A look of weight 1,000,000 must drown the identity's 1, and {kept:.2f} is kept: add first, then divide."
    expect(kept < 0.01, told)
    told = "2 reads 1 in layer 0, then 4 reads 2: some of 1 must reach 4, none does"
    reaches = rolled(torch.stack([first, second]))[1, 4, 1] > 0.01
    expect(reaches, f"{told}: the later layer multiplies on the left.")
    late = rolled(torch.stack([second, first]))[1, 4, 1]
    expect(late < 1e-6, f"4 reads 2 in layer 0, and only then 2 reads 1: none of 1 can be at 4; yours has {late:.2f}.")
    heavy = first * torch.tensor([1, 1, 1e6, 1, 1, 1, 1])[:, None]
    kept = rolled(torch.stack([heavy, second]))[1, 4, 4]
    told = f"Row 2 is heavy in layer 0, so 4, which reads 2, keeps {kept:.2f}: divide in each layer, not at the end."
    expect(kept > 0.01, told)


def agree(ranks: Answer, agreement: Answer) -> None:
    """Item 4: ranks with ties, and the rank correlation of looks with effects.

    Needs `ranks(values)`, [token], and `agreement(looks, effects, typed)`, one number.
    """
    look = torch.tensor([0.40, 0.10, 0.05, 0.20, 0.05, 0.15, 0.05])  # position 0 is not typed
    effect = torch.tensor([9.00, 1.50, 0.20, -4.00, 0.70, 0.70, 0.00])

    def ranked(numbers: list[float]) -> list[float]:
        return expect_shape(ask(ranks, torch.tensor(numbers)), "[token]", (len(numbers),)).tolist()

    def agreed(look: Tensor = look, effect: Tensor = effect) -> float:
        return float(expect_shape(ask(agreement, look, effect.to(look.dtype), slice(1, 7)), "", ()))

    _expect_places(ranked)
    rho, same = agreed(), agreed(look, look)
    expect(same > -0.999, "A ranking agrees with itself by 1, yours by -1: one of the two runs the other way.")
    told = f"A ranking agrees with itself by 1, yours by {same:.3f}: a correlation is divided by both spreads."
    expect(abs(same - 1) < 1e-4, told)
    told = "What lowers the score matters as much as what raises it; yours tells them apart"
    expect(abs(agreed(effect=-effect) - rho) < 1e-4, f"{told}: rank the size of an effect.")
    told = "Attention made more uneven, in the same order, changes your result: it correlates values, not ranks."
    expect(abs(agreed(look.mul(30).exp()) - rho) < 1e-4, told)
    untyped = "Position 0 was not typed, and what it has changes your result: rank the typed tokens among themselves."
    after = "A position after the typed ones changes your result: stop where `typed` stops."
    for start in torch.tensor([[0.0], [0.07], [0.12], [0.9]]):
        expect(abs(agreed(torch.cat([start, look[1:]])) - rho) < 1e-4, untyped)
        expect(abs(agreed(effect=torch.cat([9 * start, effect[1:]])) - rho) < 1e-4, untyped)
        expect(abs(agreed(torch.cat([look, start]), torch.cat([effect, 9 * start])) - rho) < 1e-4, after)
    turned = agreed(-look)
    expect(abs(turned - rho) > 1e-4, f"The opposite order gives the same {rho:+.3f}: keep the sign of the correlation.")
    told = f"The opposite order must give the opposite number; yours give {rho:+.3f} and {turned:+.3f}"
    means = "subtract the means first; and 1 - 6 Σ d² / (n³ - n) holds without ties only"
    expect(abs(turned + rho) < 1e-4, f"{told}: {means}.")
    many = [round(abs(t), 1) for t in torch.arange(14).double().mul(1.3).sin().tolist()]
    found = [agreed(example().stack[layer, 0, head, -1]) for layer in (1, 2) for head in range(4)]
    show(torch.tensor(ranked(many)), torch.tensor(found), seal="db08a80e5dd6")


def _expect_places(ranked: Callable[[list[float]], list[float]]) -> None:
    places = ranked([0.7, 0.5, 2.0, 0.3, -1.0])  # no ties
    expect(sorted(places) != [0, 1, 2, 3, 4], "Places are counted from 1, yours from 0.")
    told = f"Five different values take the places 1 to 5, yours are {sorted(places)}."
    expect(sorted(places) == [1, 2, 3, 4, 5], told)
    ends = (places[4], places[2])
    expect(ends != (5, 1), "Yours run the other way: the smallest value has rank 1, the largest 5.")
    told = f"The smallest value has rank 1, the largest 5; yours have {places[4]:g} and {places[2]:g}"
    expect(ends == (1, 5), f"{told}: argsort says which value comes first, not where a value stands.")
    tied = ranked([0.2, 0.7, 0.2, 0.0, 0.7, 0.7])
    told = f"Equal values have equal ranks; 0.2, 0.7, 0.2, 0, 0.7, 0.7 got {tied}: ties broken by position."
    expect(tied[0] == tied[2] and tied[1] == tied[4] == tied[5], told)
    told = f"The places of six values add up to 21, yours to {sum(tied):g}"
    expect(sum(tied) == 21, f"{told}: equal values share the mean of their places.")


WORDS = (9, 30)  # the contrast of item 5


def knockout(knockout: Answer, relays: Answer) -> None:
    """Item 5: what a contrast loses with some looks forbidden, and which positions pass a word on.

    Needs `knockout(lm, ids, looks, contrast)`, one number, and `relays(lm, ids, key, contrast)`, [2, position].
    """
    lm, _, ids, _ = example()

    def lost(looks: Looks, *listens: tuple[int, int], ids: Tensor = ids[:1], **plan: Any) -> Tensor:
        with _watched(*listens, **plan):
            return expect_shape(ask(knockout, lm, ids, looks, WORDS), "", ())

    with _watched() as seen:
        got = ask(knockout, lm, ids[:1], [(6, 2)], WORDS)
    _expect_mask(got, seen)
    _expect_contrast(lost)
    for listens, row, said in (((4, 2), 0, "4's look at 2"), ((6, 4), 1, "6's look at 4")):
        with _watched(listens):
            got = ask(relays, lm, ids[:1], 2, WORDS)
        _expect_relay(got, row, f"All was made to hang on {said}, by 8 logits")
    pairs: list[Looks] = [[(6, 2)], [(6, 0)], [(3, 1), (5, 1)], [(q, 2) for q in range(3, 7)]]
    found = [ask(relays, lm, ids[:1], 1, WORDS), ask(relays, lm, ids[1:], 1, (46, 4))]
    losses = torch.stack([lost(looks) for looks in pairs])
    relayed = [expect_shape(each, "[2, position]", (2, 4)) for each in found]
    of_five, longer = lost([(4, 1)], ids=ids[:1, :5]), torch.cat([ids[:1], ids[1:, 1:3]], dim=1)
    between = "of 9 tokens, 6 stand between the key, 1, and the last one: take the length from ids"
    expect_shape(ask(relays, lm, longer, 1, WORDS), "[2, position]", (2, 6), likely={(2, 4): between})
    show(losses, *relayed, of_five, seal="98cc58d728eb")


@contextmanager
def _watched(
    *listens: tuple[int, int], strength: float = 8.0, positions: Any = slice(None), word: Any = WORDS[0]
) -> Iterator[list[list[Tensor]]]:
    """Record the attention of each pass; with `listens`, any of these looks suffices to give a word its logit."""
    model = example().lm.model
    blocks: list[Any] = [layer.self_attn for layer in model.model.layers]
    seen: list[list[Tensor]] = []

    def keep(block: Any, given: Any, output: Any) -> None:
        if block is blocks[0]:
            seen.append([])
        seen[-1].append(output[1])  # [batch, head, query, key]

    def hang(head: Any, given: Any, logits: Tensor) -> Tensor | None:
        if not listens:
            return None
        attention = torch.stack(seen[-1]).amax(dim=(0, 2))  # [batch, query, key]
        heard = torch.stack([attention[:, q, k] for q, k in listens]).amax(dim=0) > 1e-6  # [batch]
        plan = torch.zeros(7, logits.shape[2]).to(logits)  # [token, vocabulary]
        plan[positions, word] = strength
        return heard.to(logits)[:, None, None] * plan[-logits.shape[1] :]

    with hanging([*(block.register_forward_hook(keep) for block in blocks), model.lm_head.register_forward_hook(hang)]):
        yield seen


def _expect_mask(got: Any, seen: list[list[Tensor]]) -> None:
    """What the attention was in the passes of a call that was to forbid (6, 2)."""
    sound = not any(each.isnan().any() for run in seen for each in run)
    told = "Your mask turns attention into nan: some row has no place left to look at"
    expect(sound, f"{told} (triu(diagonal=1) keeps a position's look at itself), or 0 * inf stands in it.")
    expect_shape(got, "", ())
    passes = [torch.stack(each) for each in seen]  # [layer, batch, head, query, key]
    whole = passes and all(each.shape[-2:] == (7, 7) for each in passes)
    expect(whole, "Give the model the prompt as it is, 7 tokens, whole in each run.")
    runs = torch.cat(passes, dim=1).transpose(0, 1)  # [run, layer, head, query, key]
    ahead = runs.triu(1).amax()
    told = f"Positions look ahead (weights up to {ahead:.2f}): your mask takes the place of the model's own, so it must"
    expect(ahead < 1e-6, f"{told} forbid the future too; it is added, so use 0 and -inf, no booleans.")
    left = runs[..., 6, 2].amax(dim=2)  # [run, layer]
    run = left.sum(dim=1).argmin()
    still = (left[run] > 1e-6).nonzero()[:, 0].tolist()
    told = f"Position 6 may not look at 2, and in layers {still} it does (weight {left[run].max():.2f})"
    expect(not still, f"{told}: mask[query, key], for all heads and layers.")
    closed = runs[run].amax(dim=(0, 1)) < 1e-9
    also = [(q, k) for q, k in closed.tril().nonzero().tolist() if (q, k) != (6, 2)]
    itself = ", so that 2 cannot look at itself" if (2, 2) in also else ""
    expect(not also, f"You forbid {also} too{itself}: the pair (6, 2) alone was to go.")
    rows = runs.sum(dim=-1).amin()
    told = f"A row adds up to {rows:.2f}: the rest must take over the forbidden share"
    expect(rows > 0.999, f"{told}, so act on scores, before the softmax.")


def _expect_contrast(lost: Asking) -> None:
    """The contrast is made to hang on looks, by 8 logits."""
    look, both = (6, 2), [(6, 2), (5, 2)]
    for sign, which in ((1, "up"), (-1, "down")):
        got = float(lost([look], look, strength=8.0 * sign))
        told = f"The contrast was made to hang on the look (6, 2) alone, by 8 logits, {which}"
        note = f"{told}: expected a loss of {8 * sign:+d}, got {got:+.2f}"
        expect(got != 0, f"{note}: before minus after. Are both of your runs the same? Clone the mask first.")
        expect(got * sign > 0, f"{note}: before minus after, first word minus second, signed.")
        expect(abs(abs(got) - 8) < 1e-3, f"{note}: the unit is logits.")
    got = float(lost(both, *both))
    told = f"Each of the looks {both} was made to suffice; without both, 8 logits are lost, and yours is {got:+.2f}"
    expect(abs(got - 8) < 1e-3, f"{told}: forbid all looks of the list, in one run.")
    got = float(lost([look], look, word=slice(None)))
    told = f"All logits were made to fall alike, by 8, and your contrast loses {got:+.2f}: first minus second."
    expect(abs(got) < 1e-3, told)
    read = [p for p in range(7) if abs(lost([look], look, positions=[p])) > 1e-3]
    expect(read == [6], f"The contrast is read at the last position, 6; you read the logits at {read}.")


def _expect_relay(found: Any, row: int, note: str) -> None:
    """In this row alone, and there for position 4 alone, 8 logits are lost."""
    between = "positions 3, 4 and 5 stand between the key, 2, and the last one, 6"
    got = expect_shape(found, "[2, position]", (2, 3), likely={(2, n): between for n in (2, 4, 5, 7)})
    told = f"{note}: row {1 - row} must be 0, yours is {got[1 - row].tolist()}"
    who = "row 0 is who reads the key, row 1 whom the last position reads, one look at a time"
    expect(got[1 - row].abs().max() < 1e-3, f"{told}: {who}.")
    most = got[row].abs().max()
    expect(most > 1e-3, f"{note}, and in your row {row} nothing is lost: which pair is (query, key)?")
    told = f"{note}, and your row {row} is {got[row].tolist()}: before minus after, in logits."
    expect(abs(most - 8) < 1e-3 and got[row].max() > 0, told)
    told = f"{note}: of positions 3, 4, 5 only 4 may lose in row {row}, yours is {got[row].tolist()}"
    expect((got[row].abs() > 1e-3).tolist() == [False, True, False], f"{told}: one look at a time.")
