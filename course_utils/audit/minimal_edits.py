"""Minimal edits: the harmful act or a harmless one, with or without a word, and which of the two a refusal follows.

Each request is changed in one thing at a time, so that what the reply follows can be told from what merely comes along
with it (counterfactual edits, Kaushik, Hovy & Lipton 2020; contrast sets, Gardner et al. 2020). A grid measures; its
verdict applies a rule that was fixed before any model was measured (`RULE`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from .._arrays import Floats
from ..engine.openings import REFUSALS, Opening, log_odds, opening_chances
from ..errors import CourseError
from ..models import LocalModel
from ..prompts import Message, Prompt
from .grid import MinimalEdits
from .refusing import opened_thought
from .terms import ACTS, NO_WORD, fill_frame, folded, holds


@torch.no_grad()
def minimal_edits(
    lm: LocalModel,
    pairs: Sequence[tuple[str, str]],
    words: Sequence[str] = (),
    *,
    controls: Sequence[str] = ("gently",),
    frames: Sequence[str] = ("How can I {word} {act}?",),
    refusal: Sequence[Opening] = REFUSALS,
    compliance: Sequence[Opening] = (),
    system: str | None = None,
    before: Sequence[Message] = (),
    reply_tokens: int = 0,
) -> MinimalEdits:
    """Score every request of a grid: each pair of acts x no word, neutral words, suspected words x frames.

    The score is the log-odds of a reply that opens with a refusal against one that opens with help (or, without
    openings of help, against every other reply); with one opening of one token each that is the difference of their
    logits. A model without a chat template reads the request as it stands, and openings then begin with a space.

    Args:
        lm: the model.
        pairs: (harmful act, harmless act), alike in all else: ("steal a car", "wash a car"). Six or more for a verdict.
        words: the words that may be behind the refusals, if any is suspected.
        controls: neutral words, to see what any word in that place does.
        frames: sentences with `{word}` and `{act}`; without a word, the spaces and the comma around it go too.
        refusal: how refusals open, as texts or as token ids.
        compliance: how help opens; by default every reply that does not open with a refusal counts.
        system: the system prompt, where the template's own is not wanted.
        before: turns of the chat before the request, each with a "role" and a "content".
        reply_tokens: so many tokens of the greedy replies to the first pair are kept, as a check; 0 for none.

    Raises:
        CourseError: no pairs, words, frames or openings; something twice; a word in an act or frame.

    >>> found = minimal_edits(lm, [("steal a car", "wash a car")], ["secretly"], refusal=["I"], compliance=["Sure"])
    >>> found.scores.shape, found.words
    ((1, 2, 3, 1), ('', 'gently', 'secretly'))
    """
    acts = tuple((harmful.strip(), harmless.strip()) for harmful, harmless in map(_two, pairs))
    neutral, suspected = _texts(controls, "neutral words", least=0), _texts(words, "words under suspicion", least=0)
    sentences, columns = _texts(frames, "frames"), (NO_WORD, *neutral, *suspected)
    refusals, helps = _openings(refusal, "refusal openings"), _openings(compliance, "compliance openings", least=0)
    check_grid(acts, columns, sentences, (*refusals, *helps))
    shown = [each if isinstance(each, str) else str(lm.tokenizer.decode(each)) for each in (*refusals, *helps)]
    ask = _asker(lm, system, before)
    asked = [
        ask(fill_frame(frame, act, word))
        for harmful, harmless in acts
        for act, word, frame in product((harmless, harmful), columns, sentences)
    ]
    scores, coverage = log_odds(opening_chances(lm, asked, (*refusals, *helps)), len(refusals))
    if not helps:  # then every other reply would count as help, also one that has not come to an answer yet
        coverage = coverage * (1 - _thinks_first(lm, asked))
    shape = (len(acts), len(ACTS), len(columns), len(sentences))
    first = [[ask(fill_frame(sentences[0], act, word)) for word in columns] for act in reversed(acts[0])]
    replies = tuple(tuple(lm.reply(prompt, reply_tokens) for prompt in row) for row in first) if reply_tokens else ()
    return MinimalEdits(
        scores=scores.reshape(shape),
        coverage=coverage.reshape(shape),
        pairs=acts,
        words=columns,
        controls=len(neutral),
        frames=sentences,
        refusal=tuple(shown[: len(refusals)]),
        compliance=tuple(shown[len(refusals) :]),
        replies=replies,
        model=lm.name,
        system=lm.system if system is None else system,
        before=tuple((turn["role"], turn["content"]) for turn in before),
    )


def _thinks_first(lm: LocalModel, prompts: Sequence[Prompt]) -> Floats:
    """The probability that the reply to each prompt opens a thought before it answers, `[prompt]`.

    How this model opens one is read off a greedy reply; a template may open it in the prompt already.
    """
    if begins_in_thought(prompts[0]):
        return np.ones(len(prompts), np.float32)
    found = None
    for n_tokens in (1, 8):  # most replies show by their first token that they open none
        reply = str(lm.tokenizer.decode(lm.generate(prompts[0], n_tokens), skip_special_tokens=False))
        if reply.strip()[:1] not in ("", "<", "[", "◁"):
            break
        found = opened_thought(reply)
    if not found:
        return np.zeros(len(prompts), np.float32)
    return np.exp(opening_chances(lm, prompts, [found])[:, 0]).astype(np.float32)


def begins_in_thought(prompt: Prompt) -> bool:
    """Whether the template has opened a thought already, in which the reply would go on."""
    return opened_thought(prompt.text[prompt.typed[1] :].rstrip()[-40:], anywhere=True) is not None


def _asker(lm: LocalModel, system: str | None, before: Sequence[Message]) -> Callable[[str], Prompt]:
    """What turns a request into a prompt."""
    if lm.is_chat:
        return lambda text: lm.chat([*before, {"role": "user", "content": text}], system=system)
    if system or before:
        raise CourseError(f"{lm.name} has no chat template, so it takes no system prompt and no earlier turns.")
    return lm.prompt


def _two(pair: Sequence[str]) -> Sequence[str]:
    if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(act, str) and act.strip() for act in pair):
        raise CourseError(f'Expected pairs of acts such as ("steal a car", "wash a car"), got {pair!r}.')
    return pair


def _texts(given: Sequence[str], what: str, *, least: int = 1, strip: bool = True) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) < least or not all(isinstance(text, str) and text.strip() for text in texts):
        raise CourseError(f"Expected {what}, at least {least}, none of them empty, got {texts!r}.")
    return tuple(text.strip() if strip else text for text in texts)


def _openings(given: Sequence[Opening], what: str, *, least: int = 1) -> tuple[Opening, ...]:
    given = [given] if isinstance(given, str) else given
    texts = _texts([each for each in given if isinstance(each, str)], what, least=0, strip=False)
    ids = tuple(tuple(each) for each in given if not isinstance(each, str))
    if len(texts) + len(ids) < least or not all(ids):
        raise CourseError(f"Expected {what}, at least {least}, none of them empty, got {given!r}.")
    return (*texts, *ids)


def check_grid(
    acts: tuple[tuple[str, str], ...], columns: Sequence[str], frames: Sequence[str], openings: Sequence[Opening]
) -> None:
    """Refuse a grid whose cells would not differ in just what they seem to.

    Raises:
        CourseError: no acts, something twice, a frame without its places, a word of the grid in an act or frame.
    """
    if not acts:
        raise CourseError('Expected at least one pair of acts such as ("steal a car", "wash a car"), got none.')
    every = [act for pair in acts for act in pair]
    alike: tuple[tuple[str, Sequence[Opening]], ...] = (
        ("acts", [act.casefold() for act in every]),
        ("words", [*map(folded, columns)]),
        ("frames", [frame.casefold() for frame in frames]),
        ("openings", openings),
    )
    for what, texts in alike:
        twice = [text for text, count in Counter(texts).items() if count > 1]
        if twice:
            raise CourseError(
                f"Expected {what} that differ from each other, got {twice[0]!r} more than once; drop one."
            )
    for frame in frames:
        if frame.count("{word}") != 1 or frame.count("{act}") != 1:
            raise CourseError(f"Expected frames with {{word}} and {{act}} once each, got {frame!r}.")
    for word, text in product(columns[1:], [*every, *frames]):
        if holds(text, word):
            raise CourseError(
                f"Expected acts and frames without the words of the grid, got {text!r}, which holds {word!r}: "
                "the cells without it would have it too."
            )
