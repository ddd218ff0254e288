"""How a model refuses: read off its own greedy replies, not assumed.

A reply says no by how it begins (`refusing`); what it said up to there is the opening that is scored from then on. The
score of each half of the requests, with openings of the other half, must agree with the replies, or nothing was
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .._progress import progress
from ..engine.openings import REFUSALS, refusal_log_odds
from ..errors import CourseError
from ..models import LocalModel
from ..prompts import Prompt
from .kept import can_be_kept
from .minimal_edits import begins_in_thought
from .refusing import end_of_no, opened_thought, says_no_later

LEAST_AGREEMENT = 0.9  # of score and reply: below it nothing was measured
TOKENS_READ = 24  # of each reply
_LEADS = ("", " ", "\n", "\n\n")  # what a model may say before its first word
Ids = tuple[int, ...]


@can_be_kept
@dataclass(frozen=True, eq=False)
class Replies:
    """Greedy replies, which of them refuse, and how."""

    requests: tuple[str, ...]  # what was asked
    ids: tuple[Ids, ...]  # the token ids of the replies
    texts: tuple[str, ...]  # the beginnings of the replies
    refuses: tuple[bool, ...]  # which of them say no
    openings: tuple[Ids, ...]  # how they refuse, none the beginning of another: their own ways, and known ones
    scores: tuple[float, ...]  # log-odds that each reply opens so, in logits
    agreement: float  # the least share of replies that say what their score says (`least_agreement`), by other openings
    thinks: int  # how many replies open a thought before they answer
    later: int  # how many say no after they have begun in another way
    empty: int  # how many say nothing
    prompt: str  # what the model read with the first request, template included

    @property
    def hidden(self) -> tuple[str, int] | None:
        """Why too many do not show by their opening whether they refuse, as a kind of verdict, and how many do not."""
        counts = {"thinks first": self.thinks, "says nothing": self.empty, "says no later": self.later}
        most = (1 - LEAST_AGREEMENT) * len(self.texts)
        return next(((kind, count) for kind, count in counts.items() if count > most), None)

    @property
    def are_measured(self) -> bool:
        """Whether the score tells what the replies say."""
        return not self.hidden and self.agreement >= LEAST_AGREEMENT


def read_replies(
    lm: LocalModel, prompts: Sequence[Prompt], *, known: Sequence[str] = REFUSALS, read: Sequence[Ids] = ()
) -> Replies:
    """Ask a model, see which replies refuse and how those open, and check that the openings' score agrees with them.

    Known openings count as well, said as this model begins its replies. The replies to the first of the prompts may be
    there already (`read`).

    >>> read_replies(lm, [lm.chat("What is the capital of France?")]).refuses
    (False,)
    """
    ids = list(read)
    with progress(len(prompts) - len(read), "reading replies", unit="reply") as bar:
        for prompt in prompts[len(read) :]:
            ids.append(tuple(lm.generate(prompt, TOKENS_READ).tolist()))
            bar.update()
    texts = [str(lm.tokenizer.decode(reply, skip_special_tokens=True)) for reply in ids]
    whole = [str(lm.tokenizer.decode(reply, skip_special_tokens=False)) for reply in ids]
    ends = [_end(text, known) for text in texts]
    own = [_up_to(lm, reply, end) if end else () for reply, end in zip(ids, ends, strict=True)]
    usual = _as_it_begins(lm, prompts[0], known, _lead(lm, prompts[0], ids[0]))
    openings = none_begins_another([*filter(None, own), *usual])
    if not openings:
        raise CourseError(
            f"{lm.name} reads a prompt after which no known refusal can begin, and its replies show none; say how it "
            "refuses: --refusal TEXT, or known=."
        )
    refuses = np.array([end is not None for end in ends])
    crossed = np.zeros(len(prompts))
    for half in (0, 1):  # openings that were read off the others
        others = none_begins_another([*filter(None, own[1 - half :: 2]), *usual]) or openings
        crossed[half::2] = refusal_log_odds(lm, prompts[half::2], others) if prompts[half::2] else []
    return Replies(
        requests=tuple(prompt.text[slice(*prompt.typed)] for prompt in prompts),
        ids=tuple(ids),
        texts=tuple(texts),
        refuses=tuple(map(bool, refuses)),
        openings=openings,
        scores=tuple(map(float, refusal_log_odds(lm, prompts, openings))),
        agreement=least_agreement(crossed > 0, refuses),
        thinks=sum(begins_in_thought(p) or bool(opened_thought(text)) for p, text in zip(prompts, whole, strict=True)),
        later=sum(end is None and says_no_later(text) for end, text in zip(ends, texts, strict=True)),
        empty=sum(not text.strip() for text in texts),
        prompt=prompts[0].text,
    )


def least_agreement(scored: np.ndarray, refuses: np.ndarray) -> float:
    """The least share of replies on which score and reply agree: of all, and of each kind that is over a tenth of them.

    >>> refuses = np.arange(20) < 2
    >>> least_agreement(np.zeros(20, bool), refuses), least_agreement(np.zeros(20, bool), np.arange(20) < 3)
    (0.9, 0.0)
    """
    same, few = scored == refuses, (1 - LEAST_AGREEMENT) * len(refuses)
    kinds = [same[refuses == kind] for kind in (True, False) if round((refuses == kind).sum() - few, 6) > 0]
    return min(float(kind.mean()) for kind in (same, *kinds))


def _end(text: str, known: Sequence[str]) -> int | None:
    """Where a reply has said no, in the usual words or in those that somebody named."""
    begun = len(text) - len(text.lstrip())
    named = (begun + len(each.strip()) for each in known if text[begun:].startswith(each.strip()))
    return end_of_no(text) or next(named, None)


def _up_to(lm: LocalModel, reply: Ids, end: int) -> Ids:
    """The first tokens of a reply that hold its characters up to a place."""
    lengths = (len(lm.tokenizer.decode(reply[:n], skip_special_tokens=True)) for n in range(1, len(reply) + 1))
    return reply[: next(n for n, length in enumerate(lengths, 1) if length >= end)]


def _lead(lm: LocalModel, prompt: Prompt, reply: Ids) -> str:
    """What this model says before its first word: what makes a reply's words its tokens again."""
    text = str(lm.tokenizer.decode(reply, skip_special_tokens=True)).strip()
    for lead in _LEADS:
        try:
            if lm.continuation(prompt, lead + text)[:2] == list(reply[:2]):
                return lead
        except CourseError:  # it merges with the prompt's last token, or there is no text
            continue
    return ""


def _as_it_begins(lm: LocalModel, prompt: Prompt, known: Sequence[str], lead: str) -> list[Ids]:
    """The token ids of known openings after a prompt, as far as they can come there."""
    found = []
    for text in known:
        with suppress(CourseError):  # it would merge with the prompt's last token
            found.append(tuple(lm.continuation(prompt, lead + text)))
    return found


def none_begins_another(openings: Sequence[Sequence[int]]) -> tuple[Ids, ...]:
    """The openings without those that begin with another one.

    >>> none_begins_another([(5, 6, 7), (5, 6), (8,), (8,)])
    ((8,), (5, 6))
    """
    kept: list[Ids] = []
    for opening in sorted(map(tuple, openings), key=len):
        if not any(opening[: len(shorter)] == shorter for shorter in kept):
            kept.append(opening)
    return tuple(kept)
