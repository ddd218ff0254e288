"""The checks of exercise 8.4, a function for each item: take heads out, and say what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

from ..models import LocalModel
from .answers import Answer, ask, expect, expect_heads, expect_shape, show
from .spies import asked, hanging

Row = tuple[int, ...]  # the ids of a prompt
Head = tuple[int, int]  # layer, head
Rows = list[tuple[Row, Tensor]]  # what was run, and what its heads gave [token, layer, head, d_head]
Plan = Callable[[Row, Tensor], float]
Where = slice | list[int]

_ALL = slice(None)
_APART = "keep the prompts apart"
_LEFT = {(): _APART, (2, 168): "the contrast of two logits, see `score`"}
_LOOP = "a function made in a loop sees the last value of its variable"


@dataclass(frozen=True)
class Trial:
    """What the items are tried on."""

    lm: LocalModel  # a tiny model of three layers
    ids: Tensor  # two prompts of seven tokens
    other: Tensor  # the counterpart of each
    contrast: tuple[int, int]  # two token ids; a score is the logit of the one minus that of the other
    usual: dict[Row, Tensor]  # what heads give for each of the four, nothing changed, [token, layer, head, d_head]

    @property
    def prompts(self) -> list[Row]:
        return [tuple(row) for row in self.ids.tolist()]

    @property
    def counterparts(self) -> list[Row]:
        return [tuple(row) for row in self.other.tolist()]

    def o_proj(self, layer: int) -> Any:
        return self.lm.model.model.layers[layer].self_attn.o_proj


@torch.no_grad()
def trial(lm: LocalModel, ids: Tensor, other: Tensor, contrast: tuple[int, int]) -> Trial:
    """A trial, with what the heads of the model usually give."""
    bare = Trial(lm, ids, other, contrast, {})
    with _watched(bare) as rows:
        lm.model(torch.cat([ids, other]))
    return Trial(lm, ids, other, contrast, dict(rows))


@contextmanager
def _watched(trial: Trial, plan: Plan | None = None) -> Iterator[Rows]:
    """Collect what was run, and of its heads what reached the stream.

    With a plan, the model listens to it alone: one logit is plan(ids, heads) in each row, all others are 0.
    """
    lm, rows, stream = trial.lm, Rows(), dict[int, Tensor]()
    layers = lm.model.model.layers
    undo = [torch.linalg.inv(layer.self_attn.o_proj.weight) for layer in layers]

    def enter(i: int) -> Any:
        return lambda module, given: stream.update({i: given[0].clone()})

    def leave(i: int) -> Any:
        return lambda module, given: stream.update({i: (given[0] - stream[i]) @ undo[i].T})

    def end(module: Any, given: Any, logits: Tensor) -> Tensor:
        heads = torch.stack([stream[i] for i in range(len(layers))], dim=2)  # [batch, token, layer, head * d_head]
        heads = heads.view(*heads.shape[:-1], lm.n_heads, -1)
        new = [(tuple(one), its) for one, its in zip(seen.passes[-1].tolist(), heads, strict=True)]
        rows.extend(new)
        if plan:
            logits = torch.zeros_like(logits)
            logits[:, -1, trial.contrast[0]] = torch.tensor([plan(*row) for row in new]).to(logits)
        return logits

    with asked(lm) as seen:
        hooks = [layer.input_layernorm.register_forward_pre_hook(enter(i)) for i, layer in enumerate(layers)]
        hooks += [layer.post_attention_layernorm.register_forward_pre_hook(leave(i)) for i, layer in enumerate(layers)]
        with hanging([*hooks, lm.model.lm_head.register_forward_hook(end)]):
            yield rows


def _far(one: Tensor, two: Tensor | float, dims: int | tuple[int, ...] = ()) -> Tensor:
    """Where two records differ by more than rounding; over all axes unless some are named."""
    return (one - two).abs().amax(dim=dims) > 1e-4


def _changed(trial: Trial, rows: Rows, number: int) -> list[Tensor]:
    """What the heads gave in those runs of a prompt in which they gave something else than usual."""
    prompt = trial.prompts[number]
    return [its for given, its in rows if given == prompt and _far(its, trial.usual[prompt])]


def zero(answer: Answer, trial: Trial) -> None:
    """Item 1: the score that is left when one head gives nothing at some positions.

    Needs `without_head(lm, ids, layer, head, contrast, *, where)`, [prompt].
    """
    places: list[tuple[Head, Where]] = [((1, 2), _ALL), ((2, 1), _ALL), ((0, 3), [2, 5])]
    for head, where in places:
        _, rows = _taken_out(answer, trial, head, where)
        for number in range(2):
            _expect_zero(trial, rows, number, head, torch.arange(7)[where].tolist())
    left, _ = _taken_out(answer, trial, (1, 2), plan=lambda given, heads: 8.0 if _far(heads[:, 1, 2], 0.0) else 5.0)
    said = f"Without the head the score was made to be 5, with it 8; expected 5, got {left[0]:.2f}"
    expect((left - 5).abs().max() < 1e-4, f"{said}: return what is left, not what is lost, nor a share.")
    _expect_tidy(answer, trial)
    every = torch.stack([_taken_out(answer, trial, (n, h))[0] for n in range(3) for h in range(4)])
    at_end = [_taken_out(answer, trial, (n, 1), slice(-1, None))[0] for n in range(3)]
    show(*every.view(3, 4, 2).unbind(2), torch.stack(at_end), seal="3e2ff2561ed8")


def _taken_out(
    answer: Answer, trial: Trial, head: Head, where: Where = _ALL, plan: Plan | None = None
) -> tuple[Tensor, Rows]:
    with _watched(trial, plan) as rows:
        left = ask(answer, trial.lm, trial.ids, *head, trial.contrast, where=where)
    return expect_shape(left, "[prompt]", (2,), likely=_LEFT), rows


def _expect_zero(trial: Trial, rows: Rows, number: int, place: Head, positions: list[int]) -> None:
    """Of a prompt's last changed run: one head gave 0, at these positions, and up to its layer nothing else changed."""
    layer, head = place
    name, changed = f"{layer}.{head}", _changed(trial, rows, number)
    said = f"Head {name} was to go, and prompt {number} was run with nothing changed: does your hook return the new"
    expect(changed, f"{said} tensor, for every prompt? (Indexing twice with a list writes into a copy.)")
    its = changed[-1]
    moved = _far(its, trial.usual[trial.prompts[number]], 3)  # [token, layer, head]
    first = int(moved.any(dim=2).any(dim=0).int().argmax())
    expect(first == layer, f"Head {name} was to go, and layer {first} is the first that you change.")
    mixed = its[:, layer].flatten(1) @ trial.o_proj(layer).weight.T
    empty = int((mixed.abs().amax(dim=0) < 1e-6).sum())
    leaves = f"You zeroed {empty} columns of what leaves o_proj: there all heads are mixed; take what enters."
    expect(empty in (0, 32), leaves)
    others = [h for h in range(4) if moved[:, layer, h].any()]
    note = "each has d_head neighbouring columns, and query heads count, not the heads that share their keys"
    expect(others == [head], f"Head {head} of 0 to 3 was to go, and your hook changes heads {others}: {note}.")
    there = [p for p in range(7) if moved[p, layer, head]]
    elsewhere = f"The head was to go at positions {positions}, and you change it at {there}: see `where`."
    expect(there == positions, elsewhere)
    rest = its[positions, layer, head].abs().max()
    expect(rest < 1e-4, f"The head was to give zero, and still gives up to {rest:.2f}.")


def _expect_tidy(answer: Answer, trial: Trial) -> None:
    """The hook goes also when the run stops; another's hook stays, and so does the tensor that it holds."""

    def stopped(lm: LocalModel) -> None:
        with suppress(IndexError):
            answer(lm, trial.ids, 1, 2, (0, 10**6))

    stopped.__name__ = "without_head, when the run stops with an error,"
    ask(stopped, trial.lm)
    held: list[tuple[Tensor, Tensor]] = []
    module = trial.o_proj(1)
    with module.register_forward_pre_hook(lambda _, given: held.append((given[0], given[0].clone()))) as hook:
        ask(answer, trial.lm, trial.ids, 1, 2, trial.contrast)
        kept = hook.id in module._forward_pre_hooks
    gone = "Somebody else's hook is gone after your function: call remove() on your own handle, do not clear all hooks."
    expect(kept, gone)
    said = "You change what enters o_proj in place, and another hook holds that tensor: clone it, and return the copy."
    expect(all(torch.equal(now, then) for now, then in held), said)


def mean(head_mean: Answer, lost_at_mean: Answer, trial: Trial) -> None:
    """Item 2: a head's mean over prompts of different lengths, and what is lost when it stands in the head's place.

    Needs `head_mean(lm, reference, mask, layer, head)`, [d_head], and `lost_at_mean(lm, ids, layer, head, contrast, *,
    mean)`, [prompt].
    """
    texts = ("the old nurse forgave the thief", "she met a monk", "no dog can read without a lamp")
    lines = [trial.lm.prompt(text).input_ids[0].tolist() for text in texts]
    reference = torch.tensor([line + [1] * (8 - len(line)) for line in lines])  # 1 is the filling
    _expect_mean(head_mean, trial, reference, lines)
    made_up = torch.arange(8).double().mul(0.8).cos().mul(2)
    _, rows = _lost(lost_at_mean, trial, (1, 2), made_up)
    for number in range(2):
        _expect_mean_put_in(trial, rows, number, made_up)
    for sign, which in ((1, "up"), (-1, "down")):

        def plan(given: Row, heads: Tensor, sign: int = sign) -> float:
            return 2 + 6 * sign * _far(heads[6, 1, 2], made_up).item()

        value, _ = _lost(lost_at_mean, trial, (1, 2), made_up, plan)
        said = f"The head was made to hold the score {which}, by 6: expected a loss of {6 * sign:+d}, got"
        right = (value - 6 * sign).abs().max() < 1e-4
        expect(right, f"{said} {value[0]:+.2f}: before minus after, signed, in logits.")
    means = [ask(head_mean, trial.lm, reference, (reference != 1).long(), n, h) for n in range(3) for h in (0, 3)]
    means = [expect_shape(each, "[d_head]", (8,)) for each in means]
    lost = [_lost(lost_at_mean, trial, head, made_up / 4)[0] for head in ((0, 3), (1, 0), (2, 2))]
    show(torch.stack(means), *lost, seal="94679aa83ba9")


def _expect_mean(head_mean: Answer, trial: Trial, reference: Tensor, lines: list[list[int]]) -> None:
    """The mean follows what one head of one layer gives at each last real token, all alike, and nothing else."""
    last, early = [line[-1] for line in lines], sorted({token for line in lines for token in line[:-1]})
    by = torch.arange(32).double().mul(1.9).sin()  # another number for each column
    plain = _mean_where(head_mean, trial, reference, [], by)

    def rise(words: list[int], by: Tensor = by, layer: int = 1) -> Tensor:
        return _mean_where(head_mean, trial, reference, words, by, layer=layer) - plain

    later = "Layer 1 was asked for, and your mean depends on what heads of layer 2 give."
    expect(not _far(rise(last, layer=2), 0.0), later)
    filling = "The filling was given another value, and your mean moved: look at the last real token, by `mask`."
    expect(not _far(rise([1]), 0.0), filling)
    before = "Tokens before the last were given another value, and your mean moved: the last real token of each prompt"
    expect(not _far(rise(early), 0.0), f"{before} alone counts.")
    still = "Layer 1 gave another value at the last real tokens, and your mean did not move"
    expect(_far(rise(last), 0.0), f"{still}: does it read them, in layer 1?")
    alone = [float(rise([word]).norm()) for word in last]
    blind = [number for number, size in enumerate(alone) if size < 1e-4]
    told = f"The last token of reference prompt {blind} does not count in your mean: each prompt counts once."
    expect(not blind, told)
    columns = [by * (torch.arange(32) // 8 == h) for h in range(4)]  # of each head
    for h in (0, 1, 3):
        other = f"Head 2 was asked for, and your mean depends on head {h}: of what enters o_proj take the d_head"
        expect(not _far(rise(last, columns[h]), 0.0), f"{other} columns of one head.")
    got, added = rise(last, columns[2]), by[16:24]
    share = ((got @ added) / (added @ added)).item()
    said = f"What head 2 gives at all last tokens was raised by a vector, and your mean rose by {share:.2f} times that"
    expect(abs(share - 1) < 1e-4, f"{said}: a mean must rise by once that. A sum? Divided by something else?")
    expect((got - added).norm() < 1e-4, f"{said}, and by something beside it: one head's columns, in their order.")
    unlike = "The reference prompts do not count alike in your mean: each prompt counts once."
    expect(max(alone) - min(alone) < 1e-4, unlike)


def _mean_where(
    head_mean: Answer, trial: Trial, reference: Tensor, words: list[int], by: Tensor, *, layer: int = 1
) -> Tensor:
    """The mean of head 1.2 while what enters the o_proj of a layer is raised wherever one of some tokens stands."""

    def raise_it(module: Any, args: Any) -> tuple[Tensor]:
        here = torch.isin(seen.passes[-1], torch.tensor(words, dtype=torch.long))
        return (args[0] + by * here[:, :, None],)

    likely = {
        (): "keep the d_head numbers apart",
        (3, 8): "average over the prompts, each read at its own last position",
        (32,): "one head alone",
        (4, 8): "one head alone",
        (1, 8): "a vector, without an axis of prompts",
    }
    with asked(trial.lm) as seen, trial.o_proj(layer).register_forward_pre_hook(raise_it):
        found = ask(head_mean, trial.lm, reference, (reference != 1).long(), 1, 2)
    return expect_shape(found, "[d_head]", (8,), likely=likely)


def _lost(
    lost_at_mean: Answer, trial: Trial, head: Head, mean: Tensor, plan: Plan | None = None
) -> tuple[Tensor, Rows]:
    with _watched(trial, plan) as rows:
        value = ask(lost_at_mean, trial.lm, trial.ids, *head, trial.contrast, mean=mean)
    return expect_shape(value, "[prompt]", (2,), likely={(): _APART}), rows


def _expect_mean_put_in(trial: Trial, rows: Rows, number: int, mean: Tensor) -> None:
    """Of a prompt's last changed run: head 1.2 gave the mean at position 6, and nothing else changed below layer 2."""
    changed = _changed(trial, rows, number)
    expect(changed, f"Prompt {number} was run with nothing changed: does your hook return the new tensor?")
    its, own = changed[-1], trial.usual[trial.prompts[number]]
    places = [(p, n, h) for p, n, h in _far(its, own, 3).nonzero().tolist() if n < 2]
    elsewhere = [f"{n}.{h}" for _, n, h in places if (n, h) != (1, 2)]
    expect(not elsewhere, f"Head 1.2 was to be replaced, and you change {elsewhere[:4]} as well: one layer, one head.")
    positions = [p for p, _, _ in places]
    expect(positions == [6], f"The mean goes to the last position, 6, alone; you change the head at {positions}.")
    at_end = its[6, 1, 2]
    expect(_far(at_end, 0.0), "The head gives zero at the last position: the mean was to stand there.")
    both = _far(at_end, own[6, 1, 2] + mean)
    expect(both, "The mean was added to what the head gives: it goes in its place.")
    expect(not _far(at_end, mean), "At the last position the head does not give the mean that it was given.")


def joint(resampled: Answer, joint_and_sum: Answer, trial: Trial) -> None:
    """Item 3: heads that give what they give for another prompt, and what is lost together and one by one.

    Needs `resampled(lm, ids, other, heads, contrast)`, [prompt], and `joint_and_sum` of the same, [2, prompt].
    """
    some = [(0, 3), (1, 1), (1, 2), (2, 0)]
    given = trial.lm, trial.ids, trial.other
    with _watched(trial) as rows:
        left = expect_shape(ask(resampled, *given, some, trial.contrast), "[prompt]", (2,), likely=_LEFT)
    turned = [row for row, its in rows if row in trial.counterparts and _far(its, trial.usual[row])]
    said = "You replace heads in a run over `other`: that run is for recording, unchanged; `ids` gets the heads."
    expect(not turned, said)
    for number in range(2):
        _expect_resampled(trial, rows, number, some)
    _expect_losses(joint_and_sum, trial, some[:3])
    lists = [some, [(0, 0), (0, 1)], [(2, 3), (1, 0), (0, 2)]]
    show(left, *[ask(joint_and_sum, *given, heads, trial.contrast) for heads in lists], seal="c44c7217d4bd")


def _expect_resampled(trial: Trial, rows: Rows, number: int, some: list[Head]) -> None:
    """Of a prompt's last changed run: each head on the list, and no other, gave what it gives for the counterpart."""
    changed = _changed(trial, rows, number)
    expect(changed, f"Prompt {number} was run with nothing changed: does your function return the new tensor?")
    its, own = changed[-1], trial.usual[trial.prompts[number]]
    wanted = trial.usual[trial.counterparts[number]]
    moved = [h for h in range(4) if _far(its[:, 0, h], own[:, 0, h])]
    said = f"Of layer 0 only head 3 is on the list {some}, and you change {moved}"
    expect(3 in moved or not moved, f"{said}: does each hook know its own head? {_LOOP.capitalize()}.")
    expect(moved in ([], [3]), f"{said}: d_head neighbouring columns for each head.")
    taken = [(n, h) for n in range(3) for h in range(4) if not _far(its[:, n, h], wanted[:, n, h])]
    extra = [head for head in taken if head not in some]
    what = f"{extra} are not on the list and give what they give for `other`: replace single heads, no layers."
    expect(not extra, what)
    first, second = (trial.usual[each] for each in trial.counterparts)
    for n, h in [head for head in some if head not in taken]:
        said = f"The list is {some}; head ({n}, {h}) was to give what it gives for prompt {number} of `other`, and"
        got = its[:, n, h]
        expect(_far(got[-1], wanted[-1, n, h]), f"{said} does so at the last position, not at all positions.")
        expect(_far(got, 0.0), f"{said} gives zero.")
        expect(_far(got, first[:, n, h]), f"{said} gives what it gives for prompt 0 of it: row by row.")
        average = (first + second)[:, n, h] / 2
        expect(_far(got, average), f"{said} gives the mean over the prompts: row by row.")
        hint = f"all heads in one run; and {_LOOP}"
        expect(False, f"{said} does not; of the list, {[one for one in some if one in taken]} do: {hint}.")


def _expect_losses(joint_and_sum: Answer, trial: Trial, heads: list[Head]) -> None:
    """Where scores hang on heads in a way that is known, so do the losses, in logits and signed."""
    one, two, three = heads

    def both(count: int, rule: Callable[..., float]) -> tuple[float, float, str]:
        return _losses(joint_and_sum, trial, heads[:count], rule)

    together, added, got = both(3, lambda a, b, c, d: 8 * d)
    said = "The score was made to hang on a head that is not on your list, so nothing is lost"
    expect(abs(together) + abs(added) < 1e-4, f"{said}; {got}: losses count from the unchanged score of `ids`.")
    together, added, got = both(1, lambda a, b, c, d: -8 * a)
    said = f"The score was made to fall by 8 without head {one}, the only one of the list: expected +8 twice"
    expect(abs(together) + abs(added) > 1e-4, f"{said}, {got}: is the first head of the list replaced?")
    expect(together > 0 and added > 0, f"{said}, {got}: before minus after.")
    expect(abs(together - 8) + abs(added - 8) < 1e-4, f"{said}, {got}: the loss itself, in logits, no share.")
    together, added, got = both(1, lambda a, b, c, d: 8 * a)
    said = f"The score was made to rise by 8 without {one}: expected -8 twice"
    expect(together < 0 and added < 0, f"{said}, {got}: keep the sign.")
    together, added, got = both(2, lambda a, b, c, d: -8 * (a and b))
    said = f"{one} and {two} were made two ropes: 8 is lost without both, nothing without one; expected +8 together"
    said += " and 0 in sum"
    expect(not (abs(together) < 1e-4 and added > 1), f"{said}, {got}: row 0 is what is lost together.")
    expect(abs(together - 8) < 1e-4, f"{said}, {got}: replace all of them in one run.")
    expect(abs(added) < 1e-4, f"{said}, {got}: each single loss begins with the unchanged model.")
    together, added, got = both(3, lambda a, b, c, d: -8 * (a or b or c))
    said = f"{one}, {two}, {three} were made a chain: 8 is lost without any of them"
    right = abs(added - 24) < 1e-4 and abs(together - 8) < 1e-4
    expect(right, f"{said}; expected +8 together and +24 in sum, {got}: the sum of all single losses, no mean.")


def _losses(
    joint_and_sum: Answer, trial: Trial, heads: list[Head], rule: Callable[..., float]
) -> tuple[float, float, str]:
    """What is lost together and in sum, also in words, where a rule of what is replaced is added to a score of 3."""
    theirs = dict(zip(trial.prompts, trial.counterparts, strict=True))

    def plan(given: Row, its: Tensor) -> float:
        usual = trial.usual[theirs.get(given, given)]
        known = [(0, 3), (1, 1), (1, 2), (0, 0)]
        return 3 + rule(*[given not in theirs or not _far(its[:, n, h], usual[:, n, h]) for n, h in known])

    with _watched(trial, plan):
        result = ask(joint_and_sum, trial.lm, trial.ids, trial.other, heads, trial.contrast)
    likely = {(2,): "a number for each prompt, keep them apart", (len(heads) + 1, 2): "add the single losses up"}
    together, added = expect_shape(result, "[2, prompt]", (2, 2), likely=likely)[:, 0].tolist()
    return together, added, f"got {together:+.2f} together and {added:+.2f} in sum"


_A, _B, _C, _N, _OUT = (1, 1), (2, 3), (0, 2), (2, 1), (0, 1)
_CANDIDATES = [_N, (0, 0), _B, _A, (1, 3), _C]
_NOTE = "(score - score with the heads replaced) / (score - score of the counterpart)"


def team(answer: Answer, trial: Trial) -> None:
    """Item 4: the greedy search for a team of heads that closes a share of the gap.

    Needs `greedy_team(lm, ids, other, candidates, contrast, *, enough)`, two lists: the team, and its share a step.
    """
    calls: list[Answer] = []
    try:
        with _calls_of("resampled", answer) as calls:
            found, shares = _planned(answer, trial)
    finally:  # whatever the search made of it: first things first
        if calls:
            _expect_sound_item_three(calls[0], trial)
    _expect_two_steps(found, shares)
    edge, _ = _planned(answer, trial, own=0.5)
    said = f"{_A} was made to close exactly 0.5, and `enough` is 0.5; your team is {edge}"
    expect(edge == [_A], f"{said}: at least, not more.")
    turned = _planned(answer, trial, sign=-1)
    turned_shares = [round(x, 4) for x in turned[1].tolist()]
    said = f"With all scores negated, the gap is -8 and team and shares stay; yours become {turned[0]}, {turned_shares}"
    same = turned[0] == found and torch.allclose(turned[1], shares, atol=1e-3)
    expect(same, f"{said}: choose by the share, which knows the gap's sign, not by the loss.")
    less, _ = _planned(answer, trial, enough=0.4)
    expect(less == [_A], f"With enough=0.4 {_A} alone suffices, yours is {less}: stop at `enough`.")
    _expect_all_six(*_planned(answer, trial, enough=0.9))
    every = [(layer, head) for layer in range(3) for head in range(4)]
    teams = [
        _searched(answer, trial, 0, every, enough=0.9),
        _searched(answer, trial, 0, [head for head in every if head[1] != 2], enough=0.7),
        _searched(answer, trial, 1, [head for head in every if head != (0, 3)], enough=0.9),
    ]
    show(*[part for team, shares in teams for part in (torch.tensor(team).T, shares)], seal="2df341386d08")


def _searched(
    answer: Answer, trial: Trial, number: int, candidates: list[Head], **named: float
) -> tuple[list[Head], Tensor]:
    """The team for one prompt, and its share after each step."""
    ids, other = trial.ids[number : number + 1], trial.other[number : number + 1]
    result = ask(answer, trial.lm, ids, other, candidates, trial.contrast, **named)
    pair = isinstance(result, (list, tuple)) and len(result) == 2
    expect(pair and all(hasattr(part, "__len__") for part in result), "Expected two lists, the team and the shares.")
    found = expect_heads(result[0], candidates)
    expect(found, "Your team is empty: one head at least must be tried.")
    plain = "plain numbers, take .item()"
    return found, expect_shape(result[1], "[step]", (len(found),), likely={(len(found), 1): plain})


def _loss(out: Callable[[Head], bool], own: float = 0.2) -> float:
    """What the planned score of 10 loses without some heads; 8 without all."""
    chain = 3.5 * (out(_A) or out(_B))
    return chain + own * out(_A) + 3 * out(_C) - 6 * out(_N) + (7.5 - own) * out(_OUT)


def _planned(
    answer: Answer, trial: Trial, *, sign: int = 1, own: float = 0.2, **named: float
) -> tuple[list[Head], Tensor]:
    """The team for the first prompt, whose score hangs on some heads as planned."""
    prompt, theirs = trial.prompts[0], trial.usual[trial.counterparts[0]]

    def plan(given: Row, heads: Tensor) -> float:
        def out(head: Head) -> bool:
            at = _ALL, *head
            return given != prompt or not _far(heads[at], theirs[at])

        return sign * (10 - _loss(out, own))

    with _watched(trial, plan):
        return _searched(answer, trial, 0, list(_CANDIDATES), **named)


@contextmanager
def _calls_of(name: str, answer: Answer) -> Iterator[list[Answer]]:
    """Collect, for each call of another function by a learner's function, that other function."""
    names, calls = getattr(unwrap(answer), "__globals__", {}), list[Answer]()
    function: Any = names.get(name)

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(function)
        return function(*given, **named)

    if function is not None:
        names[name] = counted
    try:
        yield calls
    finally:
        if function is not None:
            names[name] = function


def _expect_sound_item_three(resampled: Answer, trial: Trial) -> None:
    """The function that the search asks replaces just the heads that it is to replace."""
    with _watched(trial) as rows, suppress(Exception):
        resampled(trial.lm, trial.ids[:1], trial.other[:1], [_A, (1, 3), _C], trial.contrast)
    usual, theirs = (trial.usual[each[0]] for each in (trial.prompts, trial.counterparts))
    wanted = dict.fromkeys([(0, 0), (0, 1), (0, 3)], usual) | dict.fromkeys([_C, _A, (1, 3)], theirs)
    runs = [its for given, its in rows if given == trial.prompts[0]]
    sound = any(not any(_far(its[:, n, h], gives[:, n, h]) for (n, h), gives in wanted.items()) for its in runs)
    expect(sound or not rows, "Your team asks `resampled` of item 3, which is not right yet: repair it first.")


def _expect_two_steps(found: Sequence[Head], shares: Tensor) -> None:
    """First the head with the largest share, then the one that adds most to it, and then enough."""
    told = f"The score was made to fall from 10 to 2 between the prompts, and by 3.7 without {_A}"
    away = f"Without {_N} the score moves away from the counterpart's, and you take it first"
    expect(found[0] != _N, f"{away}: the largest share, signed.")
    most = f"{told}, more than without any other; you take {found[0]} first"
    expect(found[0] == _A, f"{most}: the largest share first.")
    closes = f"{told}; the team of this head closes {shares[0]:+.4f} of the gap in your list"
    expect(shares[0] > 0, f"{closes}: {_NOTE}.")
    known = f"{told}; of the gap that is {3.7 / 8:.4f}, in your list {shares[0]:.4f}"
    expect(abs(shares[0] - 3.7 / 8) < 1e-3, f"{known}: {_NOTE}.")
    expect(len(found) > 1, f"{_A} alone closes less than half, and your team ends there: go on until it is enough.")
    said = f"{_A} and {_B} were made links of one chain: once one is replaced, the other adds nothing"
    expect(found[1] != _B, f"{said}, and you take both: try each candidate again, together with the team.")
    expect(found[1] == _C, f"Beside {_A}, {_C} adds most; you take {found[1]}: try each together with the team.")
    pair = f"{_A} and {_C} close {6.7 / 8:.4f} of the gap together, in your list {shares[1]:.4f}: {_NOTE}."
    expect(abs(shares[1] - 6.7 / 8) < 1e-3, pair)
    many = f"Two heads close {shares[1]:.2f} of the gap, enough; your team has {len(found)}: stop at once."
    expect(len(found) == 2, many)


def _expect_all_six(most: Sequence[Head], shares: Tensor) -> None:
    """Where nothing is enough, all candidates, each step with the share of its whole team."""
    for n in range(1, len(most) + 1):
        so_far = most[:n]
        known = _loss(so_far.__contains__) / 8
        told = f"{so_far} close {known:.4f} of the gap together, in your list {shares[n - 1]:.4f}"
        expect(abs(shares[n - 1] - known) < 1e-3, f"{told}: all in one run, not single shares added up.")
    said = f"All six candidates close less than 0.9, and you stop with {len(most)}: go on while one is left."
    expect(len(most) == 6, said)
    expect(most[-1] == _N, f"{_N} takes away from any team, so it comes last; your order is {most}.")
