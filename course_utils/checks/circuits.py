"""The checks of exercise 8.5, a function for each item: from the last line to the team."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import LocalModel
from .answers import Answer, ask, expect, expect_heads, expect_shape, show
from .spies import hanging, rows_read
from .tiny import tiny

Head = tuple[int, int]  # layer, head
Change = Callable[[Any], object]  # of a model's weights
Has = Callable[[int, int], Tensor]  # 1 where the last position holds what a head gave in the clean run, else 0
Rule = Callable[[Has], Tensor]  # what share of the difference that moves


@dataclass(frozen=True)
class Trial:
    """What the items are tried on: a tiny model, and two prompts of 7 tokens which differ at position 4."""

    lm: LocalModel
    clean: Tensor
    corrupted: Tensor
    contrast: tuple[int, int]
    streams: Tensor  # what enters each layer, [run, layer, token, d_model]; the clean run first
    heads: Tensor  # what enters the output projections, [run, layer, token, head, d_head]
    logits: Tensor  # of both runs, [run, token, vocabulary]


def small(seed: int = 64, n_layers: int = 3, n_heads: int = 4, change: Change | None = None) -> LocalModel:
    """A tiny model, its weights changed by a function, run once: transformers hangs its recorders on it then."""
    lm = tiny(seed=seed, n_layers=n_layers, n_heads=n_heads)
    with torch.no_grad():
        if change is not None:
            change(lm.model)
        lm.model(torch.arange(7)[None], output_attentions=True)
    return lm


@torch.no_grad()
def trial(lm: LocalModel, clean: Tensor, corrupted: Tensor, contrast: tuple[int, int]) -> Trial:
    """A trial, with what its two runs hold."""
    with _entering(lm.model.model.layers) as streams, _entering(_projections(lm)) as heads:
        logits = lm.model(torch.cat([clean, corrupted])).logits
    mixed = torch.stack(heads[0], dim=1)  # [run, layer, token, head * d_head]
    mixed = mixed.view(*mixed.shape[:-1], lm.n_heads, -1)
    return Trial(lm, clean, corrupted, contrast, torch.stack(streams[0], dim=1), mixed, logits)


def _projections(lm: LocalModel) -> list[Any]:
    return [layer.self_attn.o_proj for layer in lm.model.model.layers]


@contextmanager
def _entering(modules: Iterable[Any]) -> Iterator[list[list[Tensor]]]:
    """What enters each of some modules, patches and all, for each pass."""
    first, *_ = modules = list(modules)
    passes: list[list[Tensor]] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        if module is first:
            passes.append([])
        passes[-1].append(given[0].detach().clone())

    with hanging([module.register_forward_hook(keep) for module in modules]):
        yield passes


@contextmanager
def _changed(lm: LocalModel, change: Change | None) -> Iterator[LocalModel]:
    """The model with its weights changed, inside the block."""
    parameters = list(lm.model.parameters()) if change else []
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            if change:
                change(lm.model)
        yield lm  # a learner's function may take gradients
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)


def _hangs_on(trial: Trial, call: Callable[[Tensor], Tensor], plain: Tensor) -> list[int]:
    """The positions at which another token of the clean prompt changes what a call gives."""
    found = []
    for p in range(7):
        varied = trial.clean.clone()
        varied[0, p] = 30
        if not torch.allclose(call(varied), plain, atol=1e-6):
            found.append(p)
    return found


def lens(answer: Answer, trial: Trial) -> None:
    """Item 1, the logit lens: needs `lens(lm, ids, position, token)`, [layer + 1]."""
    likely = {
        (3,): "three layers have four streams, the one before layer 0 and the one after the last layer among them",
        (4, 168): "the logit of one token",
        (4, 7): "the stream at one position",
    }

    def read(change: Change | None = None, ids: Tensor = trial.clean, token: int = trial.contrast[0]) -> Tensor:
        with _changed(trial.lm, change) as lm:
            return expect_shape(ask(answer, lm, ids, 4, token), "[layer + 1]", (4,), likely=likely)

    plain = read()
    raised = read(lambda model: model.lm_head.weight.add_(0.3))
    softmax = "The unembedding was moved so that all logits rise alike, and your numbers stay"
    expect(not torch.allclose(raised, plain, atol=1e-4), f"{softmax}: logits, without a softmax.")
    where = _hangs_on(trial, lambda ids: read(ids=ids)[0], plain[0])
    expect(where, "Another prompt gives the same first entry: run the model on `ids`.")
    said = "Before layer 0 the stream at position 4 knows the token at 4 alone; your first entry depends on those at "
    expect(where == [4], f"{said}{where}: read that stream alone, normed by its own size.")
    silent = read(lambda model: model.lm_head.weight[trial.contrast[0]].zero_())
    said = "The token's row of the unembedding was set to 0, and your numbers are not 0"
    expect(silent.abs().max() < 1e-6, f"{said}: the logit of that token, and no other.")
    _expect_normed(read, plain)
    own = float(trial.logits[0, 4, trial.contrast[0]])
    said = f"At the end the lens is the model's own logit, {own:+.2f}, and yours is {plain[3]:+.2f}: norm it once "
    said += "(the last of transformers' hidden states has been normed already), as the model's final norm does."
    expect(abs(plain[3] - own) < 1e-3, said)
    show(plain, read(ids=trial.corrupted, token=trial.contrast[1]), seal="039567814253")


def _expect_normed(read: Callable[..., Tensor], plain: Tensor) -> None:
    """Each entry is a whole stream, under the final norm, once."""
    longer = read(lambda model: model.model.embed_tokens.weight.mul_(2))[0] / plain[0]
    said = f"Embeddings twice as long must read the same before layer 0, yours {longer:.2f} times"
    expect(abs(longer - 1) < 1e-3, f"{said}: norm every stream first.")
    gained = read(lambda model: model.model.norm.weight.mul_(3))[:3] / plain[:3]
    said = "With the final norm's gain (`norm.weight`) 3 times as large all must be 3 times as large; yours is "
    said += f"{gained[0]:.2f} times: it is the final norm, with its gain, at every layer."
    expect((gained - 3).abs().max() < 1e-3, said)

    def only_layer_one(model: Any) -> None:  # the other layers write nothing, and a second norm would do no harm
        for layer in (model.model.layers[0], model.model.layers[2]):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)

    steps = read(only_layer_one).diff().abs() > 1e-4
    moves = [layer for layer in range(3) if steps[layer]]
    said = f"Layer 1 alone was made to write, so only entries 1 and 2 may differ; yours move across layers {moves}"
    expect(moves == [1], f"{said}: entry l is the whole stream that enters layer l.")


def direct(answer: Answer, trial: Trial) -> None:
    """Item 2, who wrote the difference: needs `direct_by_head(lm, ids, contrast, position)`, [layer, head]."""

    def parts(change: Change | None = None, **named: Any) -> Tensor:
        with _changed(trial.lm, change) as lm:
            return _parts_of(answer, trial, lm, **named)

    plain = parts()
    turned = parts(words=trial.contrast[::-1])
    said = "Exchange the two words and every sign must turn; yours do not"
    same = torch.allclose(turned, -plain, atol=1e-4)
    expect(same, f"{said}: the first row of the unembedding minus the second.")
    where = _hangs_on(trial, lambda ids: parts(ids=ids), plain)
    said = f"What stands at position 5 hangs on tokens 0 to 5; your result hangs on tokens {where}"
    expect(where == [0, 1, 2, 3, 4, 5], f"{said}: heads and stream at `position`.")
    fewer = parts(lambda model: model.model.layers[1].self_attn.o_proj.weight[:, 8:16].zero_())
    silent = [tuple(place) for place in (fewer.abs() < 1e-9).nonzero().tolist()]
    said = "Columns 8 to 15 of layer 1's W_O were set to 0, which are head 1's alone; in yours, the parts that are 0"
    owns = "a head owns neighbouring columns, not rows and not every fourth"
    expect(silent == [(1, 1)], f"{said} are {silent or 'none'}: {owns}.")
    _expect_one_scale(parts, plain)
    _expect_whole_difference(answer, trial)
    show(plain, parts(ids=trial.corrupted, at=3), seal="ee620a067ba4")


def _parts_of(
    answer: Answer,
    trial: Trial,
    lm: LocalModel,
    *,
    ids: Tensor | None = None,
    words: Sequence[int] | None = None,
    at: int = 5,
) -> Tensor:
    likely = {
        (3, 2): "the output projection reads the query heads, 4, and not the key/value heads, 2",
        (3,): "keep the heads of a layer apart",
        (4,): "keep the layers apart",
    }
    found = ask(answer, lm, trial.clean if ids is None else ids, words or trial.contrast, at)
    return expect_shape(found, "[layer, head]", (3, lm.n_heads), likely=likely)


def _expect_one_scale(parts: Callable[..., Tensor], plain: Tensor) -> None:
    """All parts are divided by the size of the whole stream at the end, and multiplied by the norm's gain."""
    twice = parts(lambda model: model.model.layers[2].self_attn.o_proj.weight[:, 16:24].mul_(2))[2]
    factor = (twice[2] / twice[0]) / (plain[2, 2] / plain[2, 0])
    said = f"Head 2.2 was made to write twice as much; beside head 2.0 its part grows {factor:.2f} times"
    expect(abs(factor - 2) < 1e-3, f"{said}: freeze the scale of the norm, don't norm each part by itself.")
    shrunk = parts(lambda model: model.model.layers[2].mlp.down_proj.weight.mul_(3)) / plain
    said = "The last MLP was made to write more, which changes only the size of the stream at the end; "
    said += "your parts change by different factors: one scale for all, that of the whole stream."
    expect(shrunk.amax() - shrunk.amin() < 1e-3, said)
    said = "The last MLP was made to write more, and your parts stay: divide by the size of the stream at the end."
    expect(abs(shrunk.mean() - 1) > 1e-3, said)
    gained = (parts(lambda model: model.model.norm.weight.mul_(3)) / plain).mean()
    said = "With the final norm's gain 3 times as large all parts must be, too; yours are "
    said += f"{gained:.2f} times as large: the final norm's gain, and the size of the stream before that norm."
    expect(abs(gained - 3) < 1e-3, said)


def _expect_whole_difference(answer: Answer, trial: Trial) -> None:
    """Where heads alone write what the two words read, the parts add up to the difference of their logits."""
    one, other = trial.contrast

    def only_heads(model: Any) -> None:  # they write entries 16 to 31 of the stream, all else 0 to 15
        model.model.embed_tokens.weight[:, 16:] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:16] = 0
            layer.mlp.down_proj.weight[16:] = 0
        model.lm_head.weight[one, :16] = model.lm_head.weight[other, :16]  # so the contrast reads 16 to 31

    lm = small(n_heads=2, change=only_heads)
    with torch.no_grad():
        logits = lm.model(trial.clean).logits[0, 5]
    whole, total = float(logits[one] - logits[other]), float(_parts_of(answer, trial, lm).sum())
    scale = "the scale is that of the stream that enters the final norm, its root of the mean square"
    note = "first minus second" if abs(whole + total) < 1e-3 else scale
    said = "In a model of two heads a layer, where these alone write what the two words read, the logits differ by "
    said += f"{whole:+.3f}; your parts add up to {total:+.3f}: {note}."
    expect(abs(whole - total) < 1e-4, said)


def patch(patched_contrast: Answer, share_map: Answer, trial: Trial) -> None:
    """Item 3, patch one vector, and map the share that each moves.

    Needs `patched_contrast(lm, ids, streams, contrast, *, layer, position)`, a number, and `share_map(lm, clean,
    corrupted, contrast)`, [layer, token].
    """
    lm, contrast, (theirs, own) = trial.lm, trial.contrast, trial.streams

    def patched(streams: Tensor, layer: int, position: int) -> Tensor:
        got = ask(patched_contrast, lm, trial.corrupted, streams, contrast, layer=layer, position=position)
        return expect_shape(got, "", ())

    with _entering(lm.model.model.layers) as passes:
        patched(theirs, 1, 4)
    _expect_one_vector(trial, passes)
    one, other = trial.logits[1, -1, list(contrast)].tolist()
    usual, same = one - other, patched(own, 2, 3).item()
    said = f"Patched with its own vector a run keeps its contrast, {usual:+.3f}; yours is then {same:+.3f}"
    expect(abs(same - usual) < 1e-4, f"{said}: logits, first word minus second, at the last position.")
    read = rows_read(lm, lambda: patched(theirs, 1, 4))
    expect(read == [6], f"The contrast is read at the last position, 6; you read the logits at {read}.")
    with _entering(lm.model.model.layers) as passes:
        found = _mapped(share_map, trial)
    _expect_clean_into_corrupted(trial, passes)
    _expect_held(share_map, trial)
    said = "Some patches move less than 0 and some more than 1; yours never do: keep what comes out, sign and all."
    expect(found.min() < -1e-3 and found.max() > 1.001, said)
    places = ((0, 4), (1, 4), (1, 6), (2, 5), (2, 6))
    show(found, [patched(theirs, layer, p).item() for layer, p in places], seal="ce40c692ef09")


def _mapped(share_map: Answer, trial: Trial) -> Tensor:
    likely = {(4, 7): "a row for each layer's input, and none for what follows the last layer"}
    found = ask(share_map, trial.lm, trial.clean, trial.corrupted, trial.contrast)
    return expect_shape(found, "[layer, token]", (3, 7), likely=likely)


def _expect_one_vector(trial: Trial, passes: list[list[Tensor]]) -> None:
    """In the last run that was changed: what entered layer 1 at position 4 is the clean run's, all else as usual."""
    theirs, own = trial.streams
    entered = [torch.stack(each) for each in passes]
    whole = entered and all(each.shape == (3, 1, 7, 32) for each in entered)
    expect(whole, "Give the model the ids as they are, 7 tokens in one row, whole in each run.")
    differs = [(each[:, 0] - own).abs().amax(dim=-1) > 1e-6 for each in entered]  # [layer, token] of each pass
    differs = [each for each in differs if each.any()]
    expect(differs, "What enters the layers is as in the run without a patch: nothing was put in.")
    first = int(differs[-1].any(dim=1).int().argmax())
    said = f"The patch was meant for what enters layer 1; in yours, layer {first} is the first to get something else: "
    expect(first == 1, f"{said}the stream that enters, not what comes out or what a part of the layer gives.")
    at = differs[-1][1].nonzero()[:, 0].tolist()
    expect(at == [4], f"The patch was meant for position 4 alone; in yours, layer 1 gets something else at {at}.")
    off = (entered[-1][1, 0, 4] - theirs[1, 4]).abs().max()
    said = f"What enters layer 1 at position 4 must be `streams[1, 4]`, and yours is off by up to {off:.2f}"
    expect(off < 1e-4, f"{said}: replace, and take the vector of the same layer and position.")


def _expect_clean_into_corrupted(trial: Trial, passes: list[list[Tensor]]) -> None:
    """Of the runs of a map: each is the corrupted one, and what is put in entered that layer in the clean one."""

    def alike(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, atol=1e-5)

    theirs, own = trial.streams
    runs = [run for each in passes if each[0].shape[1] == 7 for run in torch.stack(each, dim=1)]
    runs = [run for run in runs if not alike(run, own) and not alike(run, theirs)]  # each [layer, token, d_model]
    said = "You patch the clean run; that is the other direction: the corrupted run is to get the clean run's vectors."
    expect(not runs or not all(alike(run[0], theirs[0]) for run in runs), said)
    for run in runs:
        places = (run - own).abs().amax(dim=-1) > 1e-5  # [layer, token]
        layer = int(places.any(dim=1).int().argmax())
        said = f"What you put in at layer {layer} is not what entered that layer in the clean run "
        said += "(of transformers' hidden states, number l enters layer l)."
        expect(alike(run[layer][places[layer]], theirs[layer][places[layer]]), said)


def _expect_held(share_map: Answer, trial: Trial) -> None:
    """Where three vectors alone hold the word, each of these moves 1, and no other moves anything."""

    def layer_one_looks(model: Any) -> None:
        for layer in (model.model.layers[0], model.model.layers[2]):
            layer.self_attn.o_proj.weight.zero_()

    with _changed(trial.lm, layer_one_looks):
        shares = _mapped(share_map, trial)
    told = "Layer 1 alone was made to look anywhere: what enters layers 0 and 1 holds the word at position 4, "
    told += "layer 2 at position 6"
    held = torch.zeros(3, 7, dtype=torch.bool)
    held[0, 4] = held[1, 4] = held[2, 6] = True
    turned = shares[held].abs().max() < 1e-3 and (shares[~held] - 1).abs().max() < 1e-3
    said = f"{told}. Yours is 0 there and 1 elsewhere: put clean into corrupted, and count from the corrupted run's"
    expect(not turned, f"{said} contrast.")
    expect((shares - 1).abs().max() > 1e-3, f"{told}. Yours is 1 everywhere: put the vectors into the corrupted run.")
    expect(shares.abs().max() > 1e-3, f"{told}. Yours is 0 everywhere: the vectors must come from the other run.")
    late = ((shares.abs() > 1e-3) & ~held).nonzero().tolist()[:4]
    said = f"{told}, so all else must be 0; yours is not 0 at (layer, token) {late}: one layer and one position"
    expect(shares[~held].abs().max() < 1e-3, f"{said} at a time, and from the corrupted run's contrast on.")
    moves = [round(x, 2) for x in shares[held].tolist()]
    said = f"{told}, so each of these moves 1, all of the difference; yours move {moves}: "
    expect((shares[held] - 1).abs().max() < 1e-3, f"{said}(patched - corrupted) / (clean - corrupted).")


_CANDIDATES = [(2, 3), (0, 2), (1, 0), (2, 1), (1, 3), (0, 0)]
_PLANS = ((0, 8), (5, 8), (5, -8))  # the corrupted run's contrast, and how far the clean one's is from it


def team(moved: Answer, find_team: Answer, trial: Trial) -> None:
    """Item 4, the team that carries it.

    Needs `moved(lm, clean, corrupted, heads, contrast)`, a number, and `find_team(lm, clean, corrupted, contrast, *,
    candidates, share)`, a list of heads.
    """
    _expect_patches(moved, trial)
    _expect_shares(moved, trial)
    for base, strength in _PLANS:
        _expect_no_double(find_team, trial, base, strength)
    _expect_as_a_whole(find_team, trial)
    expect(_team_of(find_team, trial, 0, _covered) == [], "Asked for 0%, an empty team is enough.")
    few = [(2, 3), (1, 3), (0, 0)]
    found = _team_of(find_team, trial, 0.9, _covered, candidates=few)
    said = f"Asked for 90% of candidates that move 40% at most, your team {found} must be all of them, best first."
    expect(found == [(1, 3), (2, 3), (0, 0)], said)
    every = [(layer, head) for layer in range(3) for head in range(4)]
    singles = torch.tensor([_share_of(moved, trial, [head]) for head in every]).view(3, 4)
    pair = trial.lm, trial.clean, trial.corrupted, trial.contrast
    teams = [ask(find_team, *pair, candidates=every, share=share) for share in (0.5, 0.9)]
    told = [str([(int(a), int(b)) for a, b in each]) for each in teams]
    show(singles, _share_of(moved, trial, _CANDIDATES), *told, seal="166b11e2ebec")


@contextmanager
def _planned(trial: Trial, rule: Rule | None, base: float = 0.0, strength: float = 8.0) -> Iterator[None]:
    """Let the contrast hang on heads alone, by a rule, if there is one."""
    one = trial.contrast[0]

    def hang(module: Any, given: Any, logits: Tensor) -> Tensor:
        if rule is None:
            return logits
        at_end = torch.stack([each[:, -1] for each in passes[-1]])  # [layer, batch, head * d_head]
        at_end = at_end.view(*at_end.shape[:-1], 4, 8)
        same = ((at_end - trial.heads[0][:, None, -1]).abs().amax(dim=-1) < 1e-5).double()  # [layer, batch, head]
        plan = torch.zeros_like(logits)
        plan[:, :, one] = (base + strength * same.amin(dim=(0, 2)))[:, None]  # elsewhere: all heads or nothing
        plan[:, -1, one] = base + strength * rule(lambda layer, head: same[layer, :, head])
        return plan

    with _entering(_projections(trial.lm)) as passes, trial.lm.model.lm_head.register_forward_hook(hang):
        yield


def _share_of(moved: Answer, trial: Trial, heads: Sequence[Head], rule: Rule | None = None, **plan: float) -> float:
    with _planned(trial, rule, **plan):
        share = ask(moved, trial.lm, trial.clean, trial.corrupted, list(heads), trial.contrast)
    return expect_shape(share, "", ()).item()


def _expect_patches(moved: Answer, trial: Trial) -> None:
    """Heads of layer 1 are patched at the last position, all in one run, with what they gave in the clean one."""
    places, taken = _patches(moved, trial, [(1, 2)])
    positions, heads = ({place[i] for each in places for place in each} for i in (1, 0))
    said = f"Asked for head 2 of layer 1, you patch it at positions {sorted(positions)}: the last one, 6, alone."
    expect(positions == {6}, said)
    said = f"Asked for head 2 of layer 1, you change heads {sorted(heads)} in it: a head owns d_head neighbouring"
    expect(all(each == [[2, 6]] for each in places), f"{said} entries, from head * d_head on.")
    expect(taken, "What you put in is not what the head gave in the clean run.")
    places, _ = _patches(moved, trial, [(1, 0), (1, 3)])
    said = "Asked for heads 0 and 3 of layer 1, no run has both: patch all heads of the list in one run, "
    expect(any(sorted(each) == [[0, 6], [3, 6]] for each in places), f"{said}also where two are in the same layer.")


def _patches(moved: Answer, trial: Trial, heads: list[Head]) -> tuple[list[list[list[int]]], bool]:
    """Of each run that differs from the corrupted one from layer 1 on: (head, position); and is it the clean run's?"""
    in_clean, in_corrupted = trial.heads
    with _entering(_projections(trial.lm)) as passes:
        ask(moved, trial.lm, trial.clean, trial.corrupted, list(heads), trial.contrast)
    whole = [torch.stack(each, dim=1) for each in passes if each[0].shape[1] == 7]  # [batch, layer, token, …]
    expect(whole, "Give the model the prompts as they are, 7 tokens, whole in each run.")
    found = []
    for run in torch.cat(whole).view(-1, *in_clean.shape):  # [layer, token, head, d_head]
        there = (run - in_corrupted).abs().amax(dim=-1) > 1e-6  # [layer, token, head]
        if there[1].any() and not there[0].any():
            off = (run[1] - in_clean[1])[there[1]].abs().max()
            found.append((there[1].nonzero().flip(1).tolist(), bool(off < 1e-5)))
    said = f"Asked for {heads}, as (layer, head), no run differs from the corrupted one in layer 1 first"
    expect(found, f"{said}: put what heads gave in the clean run into the corrupted run.")
    return [where for where, _ in found], all(same for _, same in found)


def _expect_shares(moved: Answer, trial: Trial) -> None:
    """A share of the difference, whatever the two runs score, with all heads in one run."""

    def parted(has: Has) -> Tensor:
        return 0.75 * has(0, 2) + 0.25 * has(2, 1)

    for base, strength in _PLANS:
        got = _share_of(moved, trial, [(0, 2)], parted, base=base, strength=strength)
        said = f"The corrupted run has {base:+d}, the clean one {base + strength:+d}, and one head was made to bring "
        said += f"0.75 of the difference; yours is {got:.3f}: (patched - corrupted) / (clean - corrupted), clean heads "
        expect(abs(got - 0.75) < 1e-4, f"{said}put into the corrupted run, logits at the last position.")
    got = _share_of(moved, trial, [(0, 2), (2, 1)], lambda has: has(0, 2) * has(2, 1))
    said = f"The contrast was made to need two heads of different layers; together they move 1, and yours is {got:.3f}"
    expect(abs(got - 1) < 1e-4, f"{said}: both in one run, each with its own layer's vector.")
    got = _share_of(moved, trial, [], parted, base=5)
    expect(abs(got) < 1e-4, f"A team of no heads moves 0, yours {got:.3f}.")


def _team_of(
    find_team: Answer, trial: Trial, share: float, rule: Rule, *, candidates: list[Head] = _CANDIDATES, **plan: float
) -> list[Head]:
    pair = trial.lm, trial.clean, trial.corrupted, trial.contrast
    with _planned(trial, rule, **plan):
        team = ask(find_team, *pair, candidates=list(candidates), share=share)
    return expect_heads(team, candidates)


def _covered(has: Has) -> Tensor:
    """Two heads bring the same message."""
    same = torch.maximum(has(0, 2), 0.9 * has(2, 1))
    return 0.6 * same + 0.26 * has(1, 3) + 0.1 * has(2, 3) + 0.04 * has(0, 0)


def _against(has: Has) -> Tensor:
    """One head works against the rest."""
    return 0.7 * has(0, 2) + 0.6 * has(2, 3) + 0.5 * has(1, 3) - 0.8 * has(1, 0)


def _overlapping(has: Has) -> Tensor:
    """Two heads bring partly the same."""
    return 0.6 * has(0, 2) + 0.5 * has(1, 0) - 0.3 * has(0, 2) * has(1, 0) + 0.2 * has(2, 1) * has(1, 0)


def _needing(has: Has) -> Tensor:
    """Alone, all heads but one do harm; two of them do good together, and three others nothing."""
    a, b, c = has(2, 3), has(2, 1), has(0, 0)
    harm = 0.1 * has(1, 0) + 0.2 * has(1, 3) + 0.15 * (a + b + c) - 0.45 * a * b * c
    return 0.6 * has(0, 2) - harm + 0.7 * has(1, 0) * has(1, 3)


def _expect_enough(team: list[Head], share: float, rule: Rule, told: str) -> None:
    """The team moves the share, and not without the head that joined last."""

    def worth(team: list[Head]) -> float:
        return float(rule(lambda layer, head: torch.tensor(float((layer, head) in team))))

    asked_for = f"{told} Asked for {share:.0%}, your team {team} moves {worth(team):.0%}"
    said = f"{asked_for} together: ask what the team moves as a whole, as a share of the difference between the runs."
    expect(worth(team) >= share, said)
    said = f"{asked_for}, and {worth(team[:-1]):.0%} without its last head: stop as soon as it is enough."
    expect(worth(team[:-1]) < share, said)


def _expect_no_double(find_team: Answer, trial: Trial, base: int, strength: int) -> None:
    told = "Heads 0.2 and 2.1 were made to bring the same message, worth 60% and 54% alone; 1.3 brings 26% of its own."
    runs = f"{told} The corrupted run has {base:+d}, the clean one {base + strength:+d}."
    team = _team_of(find_team, trial, 0.8, _covered, base=base, strength=strength)
    _expect_enough(team, 0.8, _covered, runs)
    said = f"{told} First joins the head that moves most; your team {team} begins with {team[0]}."
    expect(team[0] == (0, 2) or len(team) == 2, said)
    said = f"{told} Your team {team} has both: rank by what the team moves with a head, not by the head alone."
    expect((2, 1) not in team, said)
    said = f"{runs} Two heads reach 80%; your team is {team}: let the best one join each time."
    expect({*team} == {(0, 2), (1, 3)}, said)
    expect(team == [(0, 2), (1, 3)], f"{told} List them in the order of joining, the strongest first; yours is {team}.")


def _expect_as_a_whole(find_team: Answer, trial: Trial) -> None:
    """Each head joins for what it does in the team, with its sign, and not for what it does alone."""
    told = "Head 1.0 was made to undo 80% of the difference, while 0.2 brings 70%, 2.3 60% and 1.3 50%."
    team = _team_of(find_team, trial, 1.2, _against)
    expect((1, 0) not in team, f"{told} It is in your team {team}: effects keep their sign.")
    _expect_enough(team, 1.2, _against, told)
    said = f"{told} Asked for 120%, your team is {team}: let the head join with which it moves most."
    expect(team == [(0, 2), (2, 3)], said)
    told = "Heads 0.2 and 1.0 were made to bring 60% and 50% alone, and 80% together."
    _expect_enough(_team_of(find_team, trial, 0.95, _overlapping), 0.95, _overlapping, told)
    told = "Heads 1.0 and 1.3 were made to bring 70% together and to take away 10% and 20% alone, while 0.2 brings 60%."
    team = _team_of(find_team, trial, 0.9, _needing)
    said = f"{told} Asked for 90%, your team is {team}"
    expect(len(team) > 1, f"{said}: go on while the team moves less, though no head gains at once.")
    expect((1, 0) not in team or (1, 3) in team, f"{told} Your team is {team}: one layer may give several heads.")
    _expect_enough(team, 0.9, _needing, told)
    expect(team == [(0, 2), (1, 0), (1, 3)], f"{said}: the best one joins each time.")
