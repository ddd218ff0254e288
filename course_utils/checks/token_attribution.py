"""The checks of exercise 8.1, a function for each item; what they share stands below them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models import LocalModel
from ..prompts import Prompt
from .answers import Answer, ask, expect, expect_shape, show
from .remember import remember
from .spies import asked, planted, rows_read
from .tiny import tiny

Scored = Callable[..., Tensor]  # an answer, asked and its shape checked; what is not named is the example's

_OF_8 = 8 - math.log(math.exp(8) + 167)  # log-probability of a token with logit 8, where the 167 others have 0
_WORTH = _OF_8 + math.log(168)  # what that token loses with its logit


class Example(NamedTuple):
    """What the exercise and its checks work on."""

    lm: LocalModel
    prompt: Prompt
    reply_ids: Tensor  # [output]
    stand_in: int


@cache
def example() -> Example:
    """A tiny random model, a prompt of six words, a reply of four, and the word that takes the place of others.

    >>> example().prompt.tokens
    ['·<s>', '·the', '·old', '·nurse', '·forgave', '·the', '·thief']
    """
    lm = remember(tiny(seed=1))
    prompt = lm.prompt("the old nurse forgave the thief")
    reply_ids = torch.tensor(lm.continuation(prompt, " because he was sorry"))
    return Example(lm, prompt, reply_ids, lm.continuation(prompt, " this")[0])


def reply(log_probabilities: Answer, score_reply: Answer) -> None:
    """Item 1: the scores of a reply's tokens after several prompts at once, and of the whole reply.

    Needs `log_probabilities(lm, ids, reply_ids)`, [variant, output], and `score_reply` of the same, [variant].
    """
    lm, prompt, reply_ids, stand_in = example()
    variants = prompt.input_ids.repeat(3, 1)  # [variant, token]
    variants[1, 2], variants[2, 5] = stand_in, stand_in
    short = lm.prompt("a king asks").input_ids  # 4 tokens

    def scored(ids: Tensor = variants, reply_ids: Tensor = reply_ids) -> Tensor:
        each = ask(log_probabilities, lm, ids, reply_ids)
        return expect_shape(each, "[variant, output]", (len(ids), len(reply_ids)))

    each = scored()
    between = "probabilities: take their logarithm" if each.min() >= 0 and each.max() <= 1 else "logits, or negated?"
    expect(each.max() <= 0, f"A log-probability is never above 0, yours reach {each.max():.3g}: {between}")
    apart = (scored(variants[2:]) - each[2:]).abs().max()
    expect(apart < 1e-4, f"Prompt 2 scores otherwise alone than in a batch (by {apart:.2f}): the rows must not mix.")
    two = _expect_reply_rows(scored, short)
    _expect_each_alone(scored, each)
    likely = {(): "one number for each prompt", (4,): "sum over the reply's tokens, not over the prompts"}
    whole = expect_shape(ask(score_reply, lm, variants, reply_ids), "[variant]", (3,), likely=likely)
    sums, got = _rounded(each.sum(dim=1), 3), _rounded(whole, 3)
    expect(got == sums, f"A reply's log-probability is the sum over its tokens, here {sums}; yours is {got}.")
    total = expect_shape(ask(score_reply, lm, short, reply_ids[:2]), "[variant]", (1,))[0]
    told = f"A reply of 2 tokens adds up to {two:.2f}, you say {total:.2f}: the sum over all it has."
    expect(abs(total - two) < 1e-4, told)
    show(each, whole, seal="68e80a52a782")


def _expect_reply_rows(scored: Scored, short: Tensor) -> float:
    """Which logits each score is read from; what a reply of two tokens, after four, adds up to."""
    lm, _, reply_ids, _ = example()
    rows = rows_read(lm, scored)
    softmax = "take the softmax over the vocabulary, the last axis."
    expect(len(rows) <= 4, f"Every score depends on the logits at {rows}: {softmax}")
    likely = "row t - 1 scores token t" if rows else "your numbers hang on no logits"
    expect(rows == [6, 7, 8, 9], f"The reply stands at 7 to 10 and you read rows {rows}: {likely}.")
    total = float(scored(short, reply_ids[:2]).sum())
    rows = rows_read(lm, lambda: scored(short, reply_ids[:2]))
    told = f"After 4 tokens a reply of 2 stands at 4 and 5; you read rows {rows}: take the lengths from ids."
    expect(rows == [3, 4], told)
    return total


def _expect_each_alone(scored: Scored, each: Tensor) -> None:
    lm, _, reply_ids, _ = example()
    with planted(lm, lambda ids: ids[:, 0] >= 0, int(reply_ids[0])):
        got = _rounded(scored()[0])
    wanted = [round(_OF_8, 2), *[round(_OF_8 - 8, 2)] * 3]
    expect(
        got == wanted,
        f"Logit 8 for the reply's first token at every place, 0 for all others: expected {wanted}, got {got}: column o "
        "is reply token o alone, from the logits as they are: the natural logarithm of their softmax over the "
        "vocabulary.",
    )
    ends_otherwise = torch.cat([reply_ids[:-1], reply_ids[:1]])
    same = torch.allclose(scored(reply_ids=ends_otherwise)[:, :3], each[:, :3], atol=1e-4)
    told = "With another last token in the reply, the scores of those before it change"
    expect(same, f"{told}: the reply stands behind the prompt.")


def occlusion(occlusion: Answer) -> None:
    """Item 2: what each reply token loses when each typed token is replaced in place.

    Needs `occlusion(lm, prompt, reply_ids, stand_in)`, [output, typed token].
    """
    lm, prompt, reply_ids, stand_in = example()
    given, axes, apart = prompt.input_ids[0], "[output, typed token]", "keep the reply tokens apart"

    def scored(
        prompt: Prompt = prompt, reply_ids: Tensor = reply_ids, stand_in: int = stand_in, likely: str = ""
    ) -> Tensor:
        found, typed = ask(occlusion, lm, prompt, reply_ids, stand_in), len(prompt.tokens[prompt.user])
        return expect_shape(found, axes, (len(reply_ids), typed), likely={(4, 6): likely})

    with asked(lm) as seen:
        scores = ask(occlusion, lm, prompt, reply_ids, stand_in)
    shorter = [[*given[given != given[i]].tolist(), int(reply_ids[0])] for i in (2, 3, 4, 6)]
    deleted = any(row[:7] in shorter for row in seen.rows)
    expect(not deleted, "A variant misses a token: deleting it moves all later positions.")
    likely = {(4, 7): "token 0, <s>, was not typed", (6,): apart, (1, 6): apart, (7,): apart}
    scores = expect_shape(scores, axes, (4, 6), likely=likely)
    scored(reply_ids=reply_ids[:2], likely="another reply was asked about, so take the one that you are given")
    scored(_framed(), likely="the template token after the typed ones gets a column too, so stop at prompt.user.stop")
    several = max(map(len, seen.changed(torch.cat([given, reply_ids]))), default=0)
    told = f"A variant differs from the prompt in {several} tokens"
    expect(several <= 1, f"{told}: start each from the unchanged prompt, and replace one place.")
    itself = scored(stand_in=int(given[3]))
    where = [i for i in range(6) if itself[:, i].abs().max() < 1e-9]
    elsewhere = "replaced elsewhere, cut off, or not measured from the unchanged prompt"
    told = f"With ·nurse as its own stand-in, column 2 alone must be 0; columns {where} are"
    expect(where == [2], f"{told}: {elsewhere if where else 'is it the stand-in given'}?")
    _expect_effect_of_a_cue(scored, scores)
    rows = rows_read(lm, scored)
    expect(rows == [6, 7, 8, 9], f"The reply stands at 7 to 10 and you read rows {rows}: row t - 1 scores token t.")
    moved, _ = _elsewhere(lambda lm, prompt: ask(occlusion, lm, prompt, reply_ids, stand_in), 1)
    expect_shape(moved, axes, (4, 4), likely={(4, 5): "prompt.user began at 2, counted from 0"})
    show(scores, seal="91fe7fac761b")


def _expect_effect_of_a_cue(scored: Scored, scores: Tensor) -> None:
    """·forgave, at 4, is made to raise the reply's first token, to lower it, and to raise all logits alike."""
    lm, prompt, reply_ids, _ = example()
    cue = int(prompt.input_ids[0, 4])

    def with_cue(target: int | None, strength: float = 8.0) -> Tensor:
        with planted(lm, lambda ids: ids[:, 4] == cue, target, strength=strength):
            return scored()

    raised, lowered = (with_cue(int(reply_ids[0]), strength)[:, 3] for strength in (8, -8))
    for effect, sign, value in (("raise", 1, raised[0]), ("lower", -1, lowered[0])):
        told = f"·forgave was made to {effect} the reply; it scores {value:+.2f}"
        expect(value * sign > 0, f"{told}: before minus after, a signed difference.")
    told = f"The reply was made e^8 times less likely and scores {value:+.2f}: the unit is log-probability."
    expect(value < -1.5, told)
    expect(torch.allclose(with_cue(None), scores, atol=1e-4), "What shifts all logits alike moves your scores.")
    wanted, got = [round(_WORTH, 2), *[round(_WORTH - 8, 2)] * 3], _rounded(raised)
    told = f"·forgave was made worth a logit of 8 for the reply's first token: expected {wanted}, got {got}"
    expect(got == wanted, f"{told}: each output on its own, the difference of two log-probabilities.")


def pairs(pair_attribution: Answer) -> None:
    """Item 3: how much more each pair of typed tokens matters together than apart.

    Needs `pair_attribution(lm, prompt, target, stand_in)`, [typed token, typed token].
    """
    lm, prompt, _, stand_in = example()
    target, axes, given = " because he was sorry", "[typed token, typed token]", prompt.input_ids[0].tolist()

    def paired(target: str = target, stand_in: int = stand_in) -> Tensor:
        return expect_shape(ask(pair_attribution, lm, prompt, target, stand_in), "[typed, typed]", (6, 6))

    with asked(lm) as seen:
        table = ask(pair_attribution, lm, prompt, target, stand_in)
    expect(seen.rows, "You never ran the model that you are given.")
    again = any(0 in row[1:] for row in seen.rows)
    expect(not again, "A second <s> stands inside your input: take the ids from lm.continuation.")
    told = "Your inputs differ in length: replace, don't delete, which moves later positions."
    expect(min(seen.lengths) not in (8, 9), told)
    likely = {(7, 7): "token 0, <s>, was not typed", (4, 6, 6): "take the last token of the target alone"}
    table = expect_shape(table, axes, (6, 6), likely=likely)
    likely = {(6, 6): "the template token after the typed ones is paired too, so stop at prompt.user.stop"}
    expect_shape(ask(pair_attribution, lm, _framed(), target, stand_in), axes, (5, 5), likely=likely)
    told = "Pair (i, j) and pair (j, i) are the same pair, yours differ: fill both, and take off both single losses."
    expect(torch.allclose(table, table.T), told)
    expect(not table.diagonal().any(), f"The diagonal holds no pair and must be 0, yours begins {table[0, 0]:+.2f}.")
    several = max(sum(a != b for a, b in zip(row, given, strict=False)) for row in seen.rows)
    told = f"A variant differs from the prompt in {several} tokens: a pair is two places, whatever stands there."
    expect(several < 3, told)
    _expect_last_row(paired)
    _expect_pairs_of_rules(paired)
    told = "With ·nurse as the stand-in, replacing ·nurse changes nothing and row 2 must be 0"
    still = paired(stand_in=given[3])[2].abs().max() < 1e-9
    expect(still, f"{told}: take the stand-in that you are given.")
    moved, _ = _elsewhere(lambda lm, prompt: ask(pair_attribution, lm, prompt, target, stand_in), 2)
    expect_shape(moved, "[typed, typed]", (4, 4), likely={(5, 5): "prompt.user began at 2, counted from 0"})
    show(table, seal="c943edf41e9f")


def _expect_last_row(paired: Scored) -> None:
    rows = rows_read(example().lm, paired)
    likely = "row t - 1 scores token t" if rows else "logits, no log-probabilities"
    expect(rows == [9], f"The target's last token stands at 10 and you read rows {rows}: {likely}.")
    rows = rows_read(example().lm, lambda: paired(" why not"))
    expect(rows == [7], f"The target “ why not” ends at 8 and you read rows {rows}: the ids are those of `target`.")


def _expect_pairs_of_rules(paired: Scored) -> None:
    """The target's last token is made to hang on ·nurse, at 3, and ·thief, at 6, in several ways."""
    lm, prompt, reply_ids, _ = example()
    nurse, thief = prompt.input_ids[0, [3, 6]].tolist()

    def with_rule(rule: Callable[[Tensor, Tensor], Tensor], strength: float = 8.0) -> float:
        def holds(ids: Tensor) -> Tensor:
            return rule(ids[:, 3] == nurse, ids[:, 6] == thief)

        with planted(lm, holds, int(reply_ids[-1]), strength=strength):
            return float(paired()[2, 5])

    one, either, both = with_rule(lambda a, b: a), with_rule(torch.logical_or), with_rule(torch.logical_and)
    told = f"Where only ·nurse counts, no pair adds anything; ·nurse, ·thief give {one:+.2f}: d_ij - d_i - d_j."
    expect(abs(one) < 1e-6, told)
    likely = "what minus what" if abs(either) > 1e-6 else "are these the places that you replace"
    expect(either > 0, f"Either of ·nurse, ·thief was made to suffice: expected above 0, got {either:+.2f}: {likely}?")
    likely = "keep the sign" if both > 1e-6 else "take off both single losses"
    expect(both < 0, f"·nurse and ·thief were both made necessary: expected below 0, got {both:+.2f}: {likely}.")
    expect(both < -1.5, f"Both were made necessary for e^8 and give {both:+.2f}: the unit is log-probability.")
    for wanted, got in ((_WORTH, either), (-_WORTH, both)):
        told = f"A rule worth {_WORTH:.2f} nats was planted: expected {wanted:+.2f}, got {got:+.2f}"
        expect(abs(wanted - got) < 1e-4, f"{told}: d_ij - d_i - d_j in log-probability, counted once.")
    against = with_rule(lambda a, b: a, strength=-8.0)
    told = f"·nurse alone was made to speak against the target; expected 0, got {against:+.2f}"
    expect(abs(against) < 1e-6, f"{told}: single losses keep their sign.")


def faithful(faithful: Answer) -> None:
    """Item 4: whether a ranking's top tokens matter more together than other sets of as many.

    Needs `faithful(lm, prompt, reply_ids, scores, stand_in, *, k)`, [loss, mean, share].
    """
    lm, prompt, reply_ids, stand_in = example()
    ranking = torch.tensor([0.1, -0.9, 0.4, 0.3, -0.2, 0.0])  # [typed token]

    def judged(scores: Tensor = ranking, k: int = 2, **other: Any) -> Tensor:
        given = {"prompt": prompt, "reply_ids": reply_ids, "stand_in": stand_in, **other}
        found = ask(faithful, lm, given["prompt"], given["reply_ids"], scores, given["stand_in"], k=k)
        return expect_shape(found, "[loss, mean, share]", (3,))

    with asked(lm) as seen:
        found = judged()
    expect(seen.rows, "You never ran the model that you are given.")
    same = max(seen.lengths) == min(seen.lengths) or 11 not in seen.lengths
    expect(same, "Your inputs differ in length: replace, don't delete.")
    most = max(map(len, seen.changed(torch.cat([prompt.input_ids[0], reply_ids]))), default=2)
    expect(most > 1, "You replace one token at a time: the top k must go together, losses don't add up.")
    expect(most < 3, f"You replace {most} tokens where k is 2: replace the top, keep the rest.")
    _expect_one_cue(judged)
    rows = rows_read(lm, lambda: judged()[:2])
    likely = "row t - 1 scores token t" if rows else "logits, no log-probabilities"
    expect(rows == [6, 7, 8, 9], f"The whole reply counts, tokens 7 to 10; you read rows {rows}: {likely}.")
    _expect_signed_sum(judged)
    _, replaced = _elsewhere(
        lambda lm, prompt: ask(faithful, lm, prompt, reply_ids, torch.arange(4.0), stand_in, k=2), 2
    )
    tried = len(replaced - {()})
    expect(tried == 6, f"Of 4 typed tokens there are 6 sets of 2, you try {tried}: the typed tokens only.")
    _expect_each_share(judged)
    show(found, judged(-ranking, 3), seal="b2b0d3d5fbfa")


def _with_cue(
    judged: Scored,
    cue: int,
    first: int,
    k: int,
    *,
    length: int = 1,
    strength: float = 8.0,
    prompt: Prompt | None = None,
) -> list[float]:
    """What is said where only the token at `cue` matters, and the ranking puts typed token `first` first."""
    lm, own, reply_ids, _ = example()
    prompt, given = prompt or own, own.input_ids[0, cue]
    scores = torch.linspace(0, 0.5, len(prompt.tokens[prompt.user]))
    scores[first], scores[first - 1] = 1, -2
    with planted(lm, lambda ids: ids[:, cue] == given, int(reply_ids[0]), strength=strength):
        return judged(scores, k, prompt=prompt, reply_ids=reply_ids[:1].repeat(length)).tolist()


def _expect_one_cue(judged: Scored) -> None:
    """One token is made to matter, and ranks first; then another does."""
    for cue, k in ((3, 1), (6, 1), (3, 2)):
        loss, mean, share = _with_cue(judged, cue, cue - 1, k)
        only, part = f"Only {example().prompt.tokens[cue]} was made to matter", f"{k / 6:.3f} of the sets of {k}"
        likely = "do the largest scores go first, each at its own position"
        if abs(loss) > 1e-6:
            likely = "is it before minus after" if loss < 0 else "is it log-probability"
        expect(loss > 1.5, f"{only} and it ranks first: expected a large loss, got {loss:+.2f}: {likely}?")
        told = f"{only}, worth {_WORTH:.2f} nats, and you say {loss:.2f}: share out nothing."
        expect(abs(loss - _WORTH) < 1e-4, told)
        expect(abs(share - k / 6) < 1e-6, f"{only}: {part} hold it, the top set too; your share is {share:.3f}.")
        expect(abs(mean - loss * k / 6) < 1e-6, f"{only}: {part} lose {loss:.2f}, the rest 0; your mean is {mean:.2f}.")
    share = _with_cue(judged, 3, 2, 1, prompt=_framed())[2]
    told = "Where 5 tokens are typed and one of the template's follows, 1 in 5 sets of 1 holds the cue"
    expect(abs(share - 1 / 5) < 1e-6, f"{told}, your share is {share:.3f}: stop at prompt.user.stop.")
    share = _with_cue(judged, 3, 5, 1)[2]
    told = f"The first-ranked token does not matter: every set loses at least as much, your share is {share:.2f}."
    expect(share > 0.99, told)


def _expect_signed_sum(judged: Scored) -> None:
    """·nurse and ·thief rank first, and each suffices; ·nurse replaces itself, speaks against, counts twice."""
    lm, prompt, reply_ids, _ = example()
    nurse, thief = prompt.input_ids[0, [3, 6]].tolist()
    scores = torch.tensor([0.1, 0.2, 2, 0.3, 0, 1])
    with planted(lm, lambda ids: (ids[:, 3] == nurse) | (ids[:, 6] == thief), int(reply_ids[0])):
        loss = judged(scores, reply_ids=reply_ids[:1])[0]
    told = f"Either of the top two was made to suffice: together they lose {_WORTH:.2f}, you say {loss:.2f}"
    expect(abs(loss - _WORTH) < 1e-4, f"{told}: losses don't add up.")
    loss = judged(scores, 1, stand_in=nurse)[0]
    told = f"·nurse as its own stand-in loses nothing, you say {loss:+.2f}: take the stand-in that you are given."
    expect(abs(loss) < 1e-9, told)
    gained = _with_cue(judged, 3, 2, 1, strength=-8.0)[0]
    told = f"Without the first-ranked token the reply was made to gain, and your loss is {gained:+.2f}: keep the sign."
    expect(gained < 0, told)
    twice = _with_cue(judged, 3, 2, 1, length=2)[0]
    told = f"A reply of one token loses {_WORTH:.2f}, the same token twice {twice:.2f}"
    expect(abs(twice - 2 * _WORTH) < 1e-4, f"{told}: sum over the reply, no mean.")


def _expect_each_share(judged: Scored) -> None:
    shares = []
    for pair in combinations(range(6), 2):  # each pair on top in turn
        scores = torch.linspace(0, 0.5, 6)
        scores[list(pair)] = torch.tensor([1.0, 2.0])
        shares.append(round(15 * float(judged(scores)[2]), 3))
    told = "With each of the 15 pairs on top in turn, their shares must be 1/15, 2/15, …, 15/15; yours, times 15, are "
    same = sorted(shares) == [*range(1, 16)]
    expect(same, f"{told}{sorted(shares)}: does a set lose as much as itself? Allow for rounding.")


def _rounded(values: Tensor, digits: int = 2) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _framed() -> Prompt:
    """The example's prompt as in a chat: what follows the typed tokens, ·thief here, is template."""
    return replace(example().prompt, user=slice(1, 6))


@cache
def _another() -> LocalModel:
    return remember(tiny(seed=2))


def _elsewhere(call: Callable[[LocalModel, Prompt], Any], together: int) -> tuple[Any, set[tuple[int, ...]]]:
    """What a call gives with another model and a prompt whose tokens 2 to 5 are typed, and which sets it replaced.

    Fails where it does not replace each set of so many together.
    """
    lm = _another()
    chat = replace(lm.prompt("a kind king met the old queen"), user=slice(2, 6))
    ids = chat.input_ids[0].tolist()
    with asked(lm) as seen:
        value = call(lm, chat)
    replaced = {tuple(i for i in range(8) if row[i] != ids[i]) for row in seen.rows if len(row) > 7}
    missing = [places for places in combinations(range(2, 6), together) if places not in replaced]
    wrong = "With another model and a prompt whose tokens 2 to 5 are typed, you do not replace"
    given = "take the model, the prompt and the prompt.user that you are given."
    expect(not missing, f"{wrong} {missing and missing[0]}: {given}")
    return value, replaced
