"""The checks of exercise 8.3, a function for each item; what an item alone needs stands below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import LocalModel
from .answers import Answer, ask, expect, expect_shape, same_in_another_process, show
from .spies import asked, hanging
from .tiny import tiny

Array = NDArray[Any]
States = Callable[..., Tensor]  # of a layer and a side: what the answer to item 1 says of the batch
Row = tuple[tuple[int, ...], Tensor]  # ids, and what enters each layer, [layer + 1, token, d_model]


def last(last_states: Answer) -> None:
    """Item 1: what enters a layer at each prompt's last real token, on whichever side the filling is.

    Needs `last_states(lm, ids, mask, layer)`, [prompt, d_model].
    """
    lm = tiny(seed=32)
    lm.model.float()  # in float64, this model gives no numbers at filling on the left
    texts = ("the old nurse forgave the thief", "she met a monk", "no dog can read without a lamp")
    lines: list[list[int]] = [lm.prompt(text).input_ids[0].tolist() for text in texts]
    apart = "keep the prompts apart"
    likely = {
        (3, 8, 32): "one vector a prompt, that of its last real token",
        (8, 32): f"every prompt has its own last token, {apart}",
        (32,): apart,
        (3, 3, 32): "one position for each prompt: index rows and positions together",
        (3, 1, 32): "no axis of tokens is left",
    }

    def states(layer: int, side: str = "right", filling: int = 1) -> Tensor:
        found = ask(last_states, lm, *_batch(lines, side, filling), layer)
        return expect_shape(found, "[prompt, d_model]", (3, 32), likely=likely)

    plain = cache(states)  # where no hook of ours is on the model
    for layer in (2, 1, 0, 4):
        _expect_entering(lm, states, plain, layer)
    for side in ("right", "left"):
        _expect_last_tokens(lines, side, _moved(lm, states, plain, 2, side, mark=2)[:, 5], lm)
        changed = (plain(3, side) - states(3, side, filling=60)).abs().max()
        told = f"Other filling on the {side}, other states: real tokens look at it; give the model the mask."
        expect(changed < 1e-4, told)
    alone = ask(last_states, lm, torch.tensor([lines[1]]), torch.ones(1, 5, dtype=torch.long), 3)
    changed = (expect_shape(alone, "[prompt, d_model]", (1, 32))[0] - plain(3, "right")[1]).abs().max()
    told = f"Prompt 1 gives another state alone than in a batch (by {changed:.2f}): the rows must not mix."
    expect(changed < 1e-4, told)
    shown = [plain(layer, side)[:, :6] for layer, side in ((0, "right"), (2, "left"), (4, "right"))]
    show(*shown, seal="9364931c27e3", digits=2)


def _batch(lines: list[list[int]], side: str, filling: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of lines that are filled up to eight tokens."""
    gaps = [[filling] * (8 - len(line)) for line in lines]
    pairs = list(zip(lines, gaps, strict=True))
    if side == "left":
        pairs = [(gap, line) for line, gap in pairs]
    real = [[int(part is line) for part in pair for _ in part] for pair, line in zip(pairs, lines, strict=True)]
    return torch.tensor([one + other for one, other in pairs]), torch.tensor(real)


def _moved(lm: LocalModel, states: States, plain: States, layer: int, side: str = "right", *, mark: int) -> Tensor:
    """How states change where dimension 5 of what enters layer `mark` is given 1000 times its token's id plus 1."""

    def write(module: Any, given: Any, out: Tensor) -> Tensor:
        out = out.clone()
        ids = seen.passes[-1] if mark else given[0]  # for layer 0 the embedding may be all that is asked
        out[..., 5] += 1000 * (1 + ids.view(out.shape[:-1]))
        return out

    before, parts = plain(layer, side), lm.model.model
    part = parts.layers[mark - 1].mlp.down_proj if mark else parts.embed_tokens
    with asked(lm) as seen, part.register_forward_hook(write):
        return states(layer, side) - before


def _expect_entering(lm: LocalModel, states: States, plain: States, layer: int) -> None:
    """The states are the stream, neither before nor after this place."""
    later = layer < 4 and _moved(lm, states, plain, layer, mark=layer + 1).abs().max() > 1e-3
    expect(not later, f"What layer {layer} itself adds is in your states: take what enters it (one layer too late).")
    change = _moved(lm, states, plain, layer, mark=layer)
    early = change.abs().max() < 1e-3
    before = f"what layer {layer - 1} adds" if layer else "the embedding"
    expect(not early, f"What enters layer {layer} holds {before}, your states do not: you read one place too early.")
    where = "the stream before the final norm" if layer == 4 else "the stream itself"
    told = f"Your states for layer {layer} are not the residual stream, but normed or mixed: take {where}."
    expect(_beside(change, 5) < 1e-2, told)


def _beside(change: Tensor, *dimensions: int) -> Tensor:
    """The largest change in any other dimension than these."""
    return change[..., [i for i in range(32) if i not in dimensions]].abs().max()


def _expect_last_tokens(lines: list[list[int]], side: str, marks: Tensor, lm: LocalModel) -> None:
    words = lm.tokenizer.convert_ids_to_tokens
    for number, (line, found) in enumerate(zip(lines, marks / 1000 - 1, strict=True)):
        told = f"Filled up on the {side}, prompt {number} ends with ·{words(line[-1])}: "
        token = int(found.round())
        its = abs(found - token) < 1e-3 and 0 <= token < 168
        expect(its, told + "you give a mean of several tokens, or else not that one's state as it is.")
        expect(token != 1, told + "you read the filling; the mask says where the last real token is.")
        expect(token == line[-1], told + f"you read ·{words(token)}.")


NAMES = ["tea", "car", "oak", "ant", "zoo", "map", "key", "ice", "egg", "box", "fig"]


def folds(group_folds: Answer, held_out: Answer, fit: Callable[..., Any]) -> None:
    """Item 2: folds that deal out whole groups, and predictions for texts that neither probe nor scaler has seen.

    Needs `group_folds(groups, n_folds, seed)` and `held_out(x, y, fold, fit)`, both [text], and the lesson's `fit`.
    """
    _expect_whole_groups(group_folds)
    _expect_shuffled(group_folds)
    x, parts = _three_folds()
    found, spies = _spied(held_out, x, parts)
    _expect_training_texts(spies, parts)
    for spy in spies:
        _expect_scaled_alike(spy, spies, x, parts)
    _expect_no_leak(held_out, spies, x, parts)
    _expect_scale(spies, parts)
    placed = (found.numpy() > 0.5) == (x[:, 0] > 0)
    expect(placed.all(), f"{(~placed).sum()} predictions came back at another text's place: keep the order of x.")
    signs = np.random.RandomState(5).standard_normal((16, 12))  # what an act is known by, [act, d_model]
    acts = np.repeat(np.arange(16), 4)
    coins = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0], dtype=bool)[acts]  # mean nothing
    said = 2 * signs[acts] + np.random.RandomState(6).standard_normal((64, 12))  # [text, d_model]
    both = [ask(held_out, said, coins, fold, fit) for fold in (np.arange(64) % 4, acts % 4)]
    right = [(np.asarray(some).astype(bool) == coins).reshape(8, 8).mean(axis=1) for some in both]
    show("coin labels read right, by eighths: texts dealt out, then acts", *right, seal="52b60222efd9")


def _dealt(group_folds: Answer, groups: Sequence[str], seed: int) -> list[int]:
    found, each = ask(group_folds, list(groups), 4, seed), "a fold for each text"
    fold = expect_shape(found, "[text]", (len(groups),), likely={(11,): each})
    odd = sorted({*fold.tolist()} - {*range(4)})
    expect(not odd, f"Expected folds from 0 to 3, yours hold {odd[:3]}: every text has its fold, counted from 0.")
    return fold.long().tolist()


def _expect_whole_groups(group_folds: Answer) -> None:
    """Each group in one fold, as many groups in each, whatever the order."""
    groups = [NAMES[i * 7 % 11] for i in range(22)] + ["oak"] * 20 + NAMES[:3]
    fold, backwards = _dealt(group_folds, groups, 0), _dealt(group_folds, groups[::-1], 0)[::-1]
    for name in NAMES:
        where = sorted({f for f, group in zip(fold, groups, strict=True) if group == name})
        expect(len(where) == 1, f"Texts of {name} stand in folds {where}: deal out groups, not texts.")
    sizes = sorted(len({g for g, f in zip(groups, fold, strict=True) if f == k}) for k in range(4))
    expect(sizes == [2, 3, 3, 3], f"Eleven groups in four folds: 2, 3, 3, 3 in some order; yours hold {sizes} groups.")
    again = _dealt(group_folds, groups, 0)
    expect(again == fold, "Two calls with one seed differ: draw from np.random.default_rng(seed).")
    at = next((i for i in range(len(groups)) if fold[i] != backwards[i]), 0)
    told = f"With the same texts in another order, {groups[at]} goes to another fold: sort the groups first."
    expect(fold == backwards, told)
    same = same_in_another_process(lambda names: _dealt(group_folds, names, 0), groups)
    expect(same, "A set has another order in each process: sort the groups first.")


def _expect_shuffled(group_folds: Answer) -> None:
    deals = np.array([_dealt(group_folds, NAMES, seed) for seed in range(200)])  # [seed, group]
    expect((deals != deals[0]).any(), "Every seed gives the same folds: the seed must decide.")
    often = [(deals[:, i] == k).mean() for i in range(11) for k in range(4)]
    told = f"Over 200 seeds a group is in the same fold {max(often):.0%} of the time: shuffle."
    expect(min(often) > 0.1 and max(often) < 0.45, told)
    pairs = [(deals[:, i] == deals[:, j]).mean() for i in range(11) for j in range(i)]
    told = f"Over 200 seeds two groups are in one fold {min(pairs):.0%} to {max(pairs):.0%} of the time"
    expect(max(pairs) < 0.4 and min(pairs) > 0.04, f"{told}: shuffle the groups.")


def _three_folds() -> tuple[Array, Array]:
    """Made-up x [text, d_model], and three folds, named 2, 5 and 7."""
    parts, x = np.array([7, 2, 5, 2, 7, 5, 2, 2] * 3), np.random.RandomState(3).standard_normal((24, 6))
    x[:, 0] = np.where(np.arange(24) % 3 == 1, 1, -1)
    x[:, 1], x[:, 2] = 5 + 40 * x[:, 1], np.where(parts == 5, 3, 2)  # dimension 2 is the same in all texts but fold 5
    x[9] = x[8]  # the same numbers in folds 2 and 7
    return x, parts


class _Spy:
    """A probe that writes down what it is trained on and asked, and in which texts, once these are known."""

    def __init__(self, z: Any, y: Any) -> None:
        self.z, self.labels = np.array(z, dtype=float), [int(label > 0) for label in y]
        self.asked: list[Array] = []
        self.texts: list[int] = []

    def predict(self, z: Any) -> Array:
        self.asked.append(np.array(z, dtype=float))
        return self.asked[-1][:, 0] > 0


def _spied(held_out: Answer, x: Array, parts: Array) -> tuple[Tensor, list[_Spy]]:
    """What is predicted, and the probes that were trained and asked."""
    rounds: list[list[_Spy]] = []  # labels are true or false, so each round tells one bit of the texts' numbers

    def fit(z: Any, y: Any) -> _Spy:
        rounds[-1].append(_Spy(z, y))
        return rounds[-1][-1]

    for bit in range(5):
        rounds.append([])
        found = ask(held_out, x, np.arange(24) >> bit & 1 == 1, parts, fit)
    each = "a prediction for each text"
    found = expect_shape(found, "[text]", (24,), likely={(): f"{each}, no accuracy", (3,): each})
    for first, *others in zip(*rounds, strict=False):
        bits = zip(first.labels, *(spy.labels for spy in others), strict=False)
        first.texts = [sum(one << n for n, one in enumerate(each)) for each in bits]
        told = "A probe was trained on labels that are not those of its texts: fit(z, y) of some."
        expect(max(first.texts) < 24, told)
    return found, [spy for spy in rounds[0] if spy.asked]


def _expect_training_texts(spies: list[_Spy], parts: Array) -> None:
    expect(len(spies) > 0, "No probe was trained and asked: call fit(z, y) and then .predict(z).")
    held = [{*parts[[*{*spy.texts}]].tolist()} for spy in spies]
    told = "A probe was trained on texts of all folds, those among them that it is asked about"
    expect({2, 5, 7} not in held, f"{told}: leave one of 2, 5, 7 out (np.unique(fold)).")
    told = "A probe was trained on one fold: train on all others, and ask about that one."
    expect(all(len(folds) != 1 for folds in held), told)


def _expect_scaled_alike(spy: _Spy, spies: list[_Spy], x: Array, parts: Array) -> None:
    """Of one probe: its texts, their z, and those that it is asked about."""
    left = next(k for k in (2, 5, 7) if k not in parts[spy.texts])
    wanted, came = int((parts != left).sum()), len(spy.texts)
    told = f"Of {wanted} texts outside fold {left} a probe was trained on {came}: use them all."
    expect(len({*spy.texts}) == wanted, told)
    told = f"A probe was trained on z {list(spy.z.shape)} for {came} labels: one row for each."
    expect(spy.z.shape == (came, 6), told)
    finite = all(np.isfinite(z).all() for z in (spy.z, *spy.asked))
    expect(finite, "Not all z are finite: where all training texts agree, the spread is 0; divide by 1 there.")
    raw = any(np.array_equal(row, x[text]) for text, row in zip(spy.texts, spy.z, strict=True))
    expect(not raw, "A probe got x unscaled: first move and stretch each dimension.")
    rows = [row for like in spies if {*like.texts} == {*spy.texts} for z in like.asked for row in z]
    new = any((abs(spy.z - row).max(axis=1) >= 1e-9).all() for row in rows)
    expect(new, "A probe was only asked about texts that it was trained on: ask about the fold left out.")
    for text in {8, 9} & {*spy.texts} if not {8, 9} <= {*spy.texts} else ():
        twin = spy.z[spy.texts.index(text)]
        told = "Texts 8 and 9 are alike, one held out; their z differ: scale both by the training texts' numbers."
        expect(any(np.allclose(row, twin, atol=1e-4) for row in rows), told)


def _expect_no_leak(held_out: Answer, spies: list[_Spy], x: Array, parts: Array) -> None:
    for left in (2, 5, 7):
        far = x.copy()
        far[parts == left] = far[parts == left] * 3 + 100
        for before, after in zip(spies, _spied(held_out, far, parts)[1], strict=True):
            same = left in parts[before.texts] or np.allclose(before.z, after.z)
            told = "Other held-out texts, another z in training: the scaler leaks"
            expect(same, f"{told}, its mean and spread come from the training texts alone.")


def _expect_scale(spies: list[_Spy], parts: Array) -> None:
    for spy in spies:
        most, spreads = abs(spy.z.mean(axis=0)).max(), spy.z.std(axis=0)[[0, 1, 3, 4, 5]]
        expect(most < 1e-4, f"Scaled training texts have means up to {most:.2f}: subtract each dimension's mean.")
        told = f"Scaled training texts have spreads of {spreads.min():.2f} to {spreads.max():.2f}, not 1"
        expect(abs(spreads - 1).max() < 0.1, f"{told}: divide by the standard deviation.")
        flat = max(spy.asked[0][:, 2].max() for spy in spies if 5 not in parts[spy.texts])
        told = f"Where training texts agree on 2 and held-out ones are 3, z is (3 - 2) / 1; yours is {flat:.3g}."
        expect(abs(flat - 1) < 1e-4, told)


ACTS = ["sew", "hum", "row", "dig", "fry", "mow", "ski", "nap", "jog", "act", "pay", "vow"]
YES = {act: i % 3 == 0 for i, act in enumerate(ACTS)}  # four of twelve


def control(control_labels: Answer, selectivity: Answer, fit: Callable[..., Any]) -> None:
    """Item 3: labels shuffled among the acts, and what a probe knows beyond what it recites.

    Needs `control_labels(y, groups, seed)`, [text], `selectivity(x, y, controls, fold, fit)`, two numbers, and the
    lesson's `fit`.
    """
    _expect_controls(control_labels)
    acts = np.repeat(np.arange(12), 4)
    y, dealt_out = acts % 2 == 0, np.arange(48) % 4
    tosses = [acts % 4 < 2, acts % 3 == 0, acts < 6, acts % 5 < 2]  # the first agrees with y in half of the texts

    def both(x: Array, controls: list[Array], fit: Callable[..., Any]) -> list[float]:
        likely = {(): "two numbers, the accuracy too", (4,): "two numbers, the mean over the controls"}
        found = ask(selectivity, x, y, controls, dealt_out, fit)
        return expect_shape(found, "[accuracy, selectivity]", (2,), likely=likely).tolist()

    _expect_selectivity(both, y, tosses[0])
    knows = np.eye(12)[acts] + 0.01 * np.sin(np.arange(48) * 2.3)[:, None]  # holds which act it is
    accuracy, left = both(knows, tosses[:3], _reciter)
    told = f"A probe that recites acts is right on new texts of theirs, your accuracy is {accuracy:.2f}"
    expect(accuracy > 0.99, f"{told}: keep the folds as given.")
    told = f"It recites any labels of acts, so selectivity must be 0, yours is {left:.2f}"
    expect(abs(left) < 1e-6, f"{told}: train it on each control's labels.")
    shades, noise = (np.random.RandomState(21 + n).standard_normal((m, 10)) for n, m in ((0, 12), (13, 48)))
    mixed = 0.6 * shades[acts] + noise + 0.5 * np.where(y, 1, -1)[:, None] * shades[0]
    show(
        both(mixed, tosses, fit),
        both(mixed, tosses[:1], fit),
        both(0.5 * mixed, tosses[1:], _reciter),
        both(mixed[:, 2:6], tosses, fit),
        seal="61733ec1aee3",
    )


def _expect_controls(control_labels: Answer) -> None:
    by_act = ACTS[:1] * 5 + [ACTS[i * 5 % 12] for i in range(36)] + ACTS[1:2]

    def labels(seed: int, by_act: list[str] = by_act) -> Array:
        return _labels_of_acts(control_labels, seed, by_act)

    drawn, truly = np.array([labels(seed) for seed in range(80)]), np.array([*YES.values()])
    counts = sorted({*drawn.sum(axis=1).tolist()})
    told = f"Four of twelve acts say yes, in yours {counts[0]} to {counts[-1]}: shuffle the real labels of the acts."
    expect(counts == [4], told)
    first = drawn[0]
    expect((labels(0) == first).all(), "Two calls with one seed differ: draw from np.random.default_rng(seed).")
    same = (labels(0, by_act[::-1]) == first).all()
    expect(same, "With the same texts in another order, acts get other labels: sort the acts first.")
    same = same_in_another_process(lambda names: labels(0, names).tolist(), by_act)
    expect(same, "A set has another order in each process: sort the acts first.")
    expect((drawn != first).any(), "Every seed gives the same labels: the seed must decide.")
    many = len({*map(tuple, drawn.tolist())})
    expect(many > 40, f"80 seeds give {many} different labelings: shuffle, don't turn in a circle.")
    kept = drawn[:, truly].mean()  # by chance 4 / 12
    told = f"Acts that truly say yes do so in {kept:.0%} of the controls, by chance it were 33%"
    expect(0.23 < kept < 0.44, f"{told}: they must not depend on it.")
    often = drawn.mean(axis=0)
    told = f"Over 80 seeds an act says yes {often.min():.0%} to {often.max():.0%} of the time: shuffle."
    expect(often.min() > 0.12 and often.max() < 0.6, told)


def _labels_of_acts(control_labels: Answer, seed: int, by_act: list[str]) -> Array:
    """The control label of each act, which all of its texts share."""
    acts = [str(name)[:3] for name in by_act]
    found = ask(control_labels, np.array([YES[act] for act in acts]), by_act, seed)
    labels = expect_shape(found, "[text]", (42,), likely={(12,): "a label for each text"})
    expect({*labels.tolist()} <= {0, 1}, f"Labels are true or false, yours hold {sorted({*labels.tolist()})[:3]}.")
    for act in ACTS:
        got = {bool(v) for v, one in zip(labels.tolist(), acts, strict=True) if one == act}
        told = f"Texts of {act} got both labels: shuffle among the acts, so that the texts of each share one."
        expect(len(got) == 1, told)
    return np.array([bool(labels[acts.index(act)]) for act in ACTS])


def _reader(z: Array, labels: Array) -> Any:
    """A probe that, whatever it is trained on, says what dimension 0 says."""
    return SimpleNamespace(predict=lambda new: new[:, 0] > 0)


def _reciter(z: Array, labels: Array) -> Any:
    """Says what the nearest training text said."""
    return SimpleNamespace(predict=lambda new: labels[_distances(new, z).argmin(axis=1)])


def _parrot(z: Array, labels: Array) -> Any:
    """Knows its training texts, and says no to all others."""

    def predict(new: Array) -> Array:
        apart = _distances(new, z)
        return labels[apart.argmin(axis=1)] & (apart.min(axis=1) < 1e-9)

    return SimpleNamespace(predict=predict)


def _distances(new: Array, z: Array) -> Array:
    return ((new[:, None] - z) ** 2).sum(axis=2)


def _expect_selectivity(both: Callable[..., list[float]], y: Array, half: Array) -> None:
    """Of probes that parrot and that read; the control `half` agrees with y in half of the texts."""
    texts = np.arange(48)
    says = np.stack([np.where(y, 1.0, -1.0), np.sin(texts * 1.7)], axis=1)  # holds the label, and noise
    accuracy, parroted = both(np.stack([np.sin(texts * 0.9), np.cos(texts * 1.9)], axis=1), [half], _parrot)
    told = f"A probe that says no to all new texts is right on half of them, you say {accuracy:.2f}"
    expect(accuracy < 0.9, f"{told}: not the training texts.")
    accuracy, left = both(says, [half, half], _reader)
    told = f"A probe that reads the label is always right, your accuracy is {accuracy:.2f}"
    expect(accuracy > 0.99, f"{told}; expected it first, then selectivity.")
    if abs(left) < 1e-6:
        other = both(says, [half], _reader)[1]
        told = "Two controls, each read right half of the time, took off 1.00: the mean over the controls, no sum."
        expect(abs(other) < 1e-6, told)
        told = "It reads the real label and is right on half of a control's; selectivity 0.5 expected, got 0"
        expect(False, f"{told}: ask about the control's labels, not the real ones.")
    told = f"It reads the real labels, not the control's; expected selectivity above 0, got {left:.2f}"
    expect(left > 0, f"{told}: what minus what?")
    told = f"Accuracy 1 and controls at 0.5 leave 0.5, you say {left:.2f}: accuracy minus mean control."
    expect(abs(left - 0.5) < 1e-6, told)
    left = both(says, [y, ~y, ~y], _reader)[1]
    told = f"Accuracy 1 and controls at 1, 0, 0 leave 0.67, you say {left:.2f}"
    expect(abs(left - 2 / 3) < 1e-6, f"{told}: accuracy minus the mean over all controls.")
    told = f"Saying no to all new texts is right on half of them in both tasks; expected 0, got {parroted:.2f}"
    expect(abs(parroted) < 1e-6, f"{told}: hold out in controls too.")


def remove(lost_without: Answer, lm: LocalModel, contrast: tuple[int, int]) -> None:
    """Item 4: what a score loses when several directions are taken out of what enters one layer.

    Needs `lost_without(lm, ids, directions, layer, contrast)`, [prompt].
    """
    asks = ("the old nurse forgave the thief", "she asked the monk for bread")
    ids = torch.cat([lm.prompt(text).input_ids for text in asks])  # [prompt, token]
    likely = {(): "keep the prompts apart", (2, 7): "the last position alone, see `score`", (2, 168): "see `score`"}
    with _watched(lm) as usual, torch.no_grad():
        lm.model(ids)

    def taken_out(directions: Tensor, layer: int, **listen: Any) -> tuple[Tensor, list[Row]]:
        with _watched(lm, **listen) as rows:
            lost = ask(lost_without, lm, ids, directions, layer, contrast)
        return expect_shape(lost, "[prompt]", (2,), likely=likely), rows

    def without(directions: Tensor, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The stream of each prompt without the directions, and the usual one, [layer + 1, token, d_model]."""
        rows = taken_out(directions, layer)[1]
        for number, (given, was) in enumerate(usual):
            changed = [its for one, its in rows if one == given and (its - was).abs().max() > 1e-6]
            told = f"Prompt {number} was never run with its stream changed: does your hook return the new arguments?"
            expect(changed, told)
            yield changed[-1], was

    axes = torch.eye(32, dtype=torch.float64)
    for layer in (2, 0, 4):
        for its, was in without(3 * axes[5:6], layer):
            _expect_one_out(its, was, layer)
    sloping = torch.stack([2 * axes[3], axes[3] + axes[7]])
    for named, some in (("two", sloping), ("three", torch.cat([sloping, sloping[:1] - 4 * sloping[1:]]))):
        for its, was in without(some, 1):
            _expect_span_out(its, was, named)
    _expect_loss_of_8(taken_out(axes[3:4], 2, listen=(2, 3), target=contrast[0])[0])
    some = torch.arange(96).double().square().mul(0.39).sin().view(3, 32)
    shown = [taken_out(some[:n], layer)[0] for layer in range(5) for n in (1, 3)]
    show(torch.stack(shown).view(5, 4), seal="ada03325e930")


@contextmanager
def _watched(lm: LocalModel, *, listen: tuple[int, int] | None = None, target: int = 0) -> Iterator[list[Row]]:
    """Collect each row of each pass: its ids, and what enters each layer.

    With (layer, dimension) the model listens to that alone: the target's logit is 8 where the last token has anything
    there.
    """
    rows: list[Row] = []
    stream: dict[int, Any] = {}
    inner = lm.model.model

    def wrote(i: int) -> Callable[..., None]:
        return lambda module, given, out: stream.update({i: -out})

    def passed(i: int) -> Callable[..., None]:  # behind the attention: what entered the layer, and what it wrote
        return lambda module, given, out: stream.update({i: stream.get(i, 0) + given[0]})

    def end(module: Any, given: Any, out: Tensor) -> Tensor | None:
        layers = torch.stack([stream.pop(i) for i in range(5)], dim=1).detach()  # [prompt, layer + 1, token, d_model]
        rows.extend((tuple(one), its) for one, its in zip(seen.passes[-1].tolist(), layers, strict=True))
        if listen is None:
            return None
        planted = torch.zeros_like(out)
        planted[..., target] = 8.0 * (layers[:, listen[0], -1:, listen[1]].abs() > 1e-6)
        return planted

    hooks = [block.self_attn.o_proj.register_forward_hook(wrote(i)) for i, block in enumerate(inner.layers)]
    norms = [*(block.post_attention_layernorm for block in inner.layers), inner.norm]
    hooks += [norm.register_forward_hook(passed(i)) for i, norm in enumerate(norms)]
    hooks.append(lm.model.lm_head.register_forward_hook(end))
    with hanging(hooks), asked(lm) as seen:
        yield rows


def _expect_one_out(its: Tensor, was: Tensor, layer: int) -> None:
    """Dimension 5 alone is 0 where the stream enters this layer, at every token."""
    change = its - was
    moved = [n for n in range(5) if change[n].abs().max() > 1e-6]
    told = f"The stream was to change where it enters layer {layer}, and "
    late = "stays as it is there: the layer after it, or a copy that the stream does not get?"
    expect(layer in moved, told + (late if moved[0] > layer else f"changes at layer {moved[0]} alone."))
    expect(moved[0] == layer, told + f"changes at layer {moved[0]} already: hook that layer alone.")
    same = [t for t in range(7) if change[layer, t].abs().max() < 1e-6]
    expect(not same, f"At tokens {same} nothing was taken out: project at every token.")
    times = (its[layer, :, 5] / was[layer, :, 5]).mean()
    told = f"Along a direction of length 3 there is {times:+.2f} times of what there was, not 0: "
    expect(times < 1.5, told + "subtract the part along it, don't add it.")
    expect(abs(times + 1) > 1e-3, told + "it was subtracted twice.")
    expect(abs(times - 1) > 1e-3, told + "the part along it was kept, and the rest taken out?")
    expect(abs(times) < 1e-4, told + "make the direction a unit vector first.")
    beside = _beside(change[layer], 5)
    told = f"What is at right angles to the direction changed too, by up to {beside:.2f}: take out its part alone."
    expect(beside < 1e-4, told)
    again = layer < 4 and its[layer + 1, :, 5].abs().max() < 1e-6
    expect(not again, f"Layer {layer} was meant, and it is taken out again before layer {layer + 1}.")


def _expect_span_out(its: Tensor, was: Tensor, named: str) -> None:
    """Dimensions 3 and 7 alone, which the directions span, are 0 where the stream enters layer 1."""
    left, beside = its[1][:, [3, 7]].abs().max(), _beside((its - was)[1], 3, 7)
    told = f"Of {named} directions that slope to each other, up to {left:.2f} is left"
    expect(left < 1e-4, f"{told}: one after the other brings the first back, project onto what all of them span.")
    told = f"{named.capitalize()} directions span two dimensions; what is at right angles to both changed by"
    expect(beside < 1e-4, f"{told} {beside:.2f}: a direction that repeats others adds nothing.")


def _expect_loss_of_8(lost: Tensor) -> None:
    told = f"The score was 8 and is 0 without what the model listens to; got {lost[0]:+.2f}"
    expect((lost > 0).all(), f"{told}: the score without your hook minus the score with it.")
    told = f"The score was 8 and is 0 without the direction; expected a loss of 8, got {lost[0]:.2f}."
    expect((lost - 8).abs().max() < 1e-4, told)
