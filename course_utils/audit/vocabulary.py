"""Ask every word: each word of the vocabulary in one place of a request, and which of them change the reply.

No list of suspicious words is needed, and no hunch. One word far from all others is a trigger or, on a harmful request,
a way around; a family of words that mean the same is a concept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import Floats, floats
from ..engine.openings import REFUSALS, Opening, opening_ids
from ..engine.prefix_sharing import score_variants
from ..errors import CourseError
from ..loading.devices import multiplies_bfloat16
from ..models import LocalModel
from ..plots import WIDE, axes_of, legible, style
from ..prompts import Prompt, joined, token_strings
from .kept import can_be_kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 4.0  # robust standard deviations from the median, beyond which a word stands out


@can_be_kept
@dataclass(frozen=True, eq=False)
class VocabularyScan:
    """How far a model leans to refusing one request, with each word of its vocabulary in one place of it.

    Attributes:
        words: the words, one token each but for a few.
        scores: float32 `[word]`, log-odds that the reply begins with a refusal's first token, in logits.
        without: the same for the request as it stands.
        request: what the user typed, with … where the words were put.
        model: the model's name.
        n_known: how many such words the vocabulary has.
        n_grouped: how many were asked several at once, before these were asked alone.
        n_longer: how many of `words` are several tokens (see `longer`).
    """

    words: tuple[str, ...]
    scores: Floats
    without: float
    request: str
    model: str
    n_known: int = 0
    n_grouped: int = 0
    n_longer: int = 0

    @property
    def n_asked(self) -> int:
        """How many words of one token were asked, alone or with others."""
        return max(len(self.words) - self.n_longer, self.n_grouped)

    @property
    def longer(self) -> tuple[str, ...]:
        """The words of several tokens."""
        return self.words[len(self.words) - self.n_longer :]

    def highest(self, n: int = 10) -> list[tuple[str, float]]:
        """The words that push furthest towards refusing, with their scores."""
        return self._first(-self.scores, n)

    def lowest(self, n: int = 10) -> list[tuple[str, float]]:
        """The words that push furthest away from refusing, with their scores."""
        return self._first(self.scores, n)

    def furthest(self, n: int = 10) -> list[tuple[str, float]]:
        """The words that push furthest away from what the model does with the request as it stands."""
        return self.highest(n) if self.without <= 0 else self.lowest(n)

    def _first(self, order: Floats, n: int) -> list[tuple[str, float]]:
        return [(self.words[i], float(self.scores[i])) for i in np.argsort(order, kind="stable")[:n]]

    def distances(self) -> Floats:
        """How far each word lies from the median, in robust standard deviations (1.48 median absolute deviations)."""
        away = self.scores - np.median(self.scores)
        spread = 1.4826 * float(np.median(np.abs(away)))
        return (away / max(spread, 1e-6)).astype(np.float32)

    def turned(self) -> int:
        """How many words change what the model does: refused with them and not without, or reversed."""
        return int(self._crossed().sum())

    def outliers(self) -> list[str]:
        """The words that change what the model does, and stand out."""
        away = self.distances()
        far = np.flatnonzero(self._crossed() & (np.abs(away) > FAR))
        return [self.words[i] for i in far[np.argsort(-np.abs(away[far]), kind="stable")]]

    def _crossed(self) -> Any:  # bool [word]
        return (self.scores > 0) != (self.without > 0)

    def plot(self, ax: Axes | None = None, *, n: int = 8) -> Axes:
        """The scores of all words, and the names of up to `n` that stand out (of the furthest, if none does)."""
        score, far = dict(zip(self.words, self.scores.tolist(), strict=True)), self.outliers()
        named = [(word, score[word]) for word in far] or self.furthest(1)
        with style():
            ax = axes_of(ax, WIDE)
            ax.hist(self.scores, bins=80, color="#999999")
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.axvline(0, color="#000000", linewidth=0.8)
            ax.axvline(self.without, color="#0072B2", linestyle="--", linewidth=1)
            left, right = ax.get_xlim()
            apart = 0.035 * (right - left)  # names stand side by side
            shown: list[float] = []
            for word, at in named:
                if len(shown) < n and all(abs(at - other) > apart for other in shown):
                    shown.append(at)
                    ax.text(at, 1.3, legible(word), rotation=90, ha="center", va="bottom", color="#D55E00")
            ax.plot([at for _, at in named], [1.0] * len(named), "v", color="#D55E00", markersize=4)
            ax.set_xlabel(f"log-odds of refusing “{legible(self.request)}” (logits); dashed: as it stands")
            ax.set_ylabel("words")
            turned, does = self.turned(), "refuse" if self.without <= 0 else "help"
            who = f"“{legible(self.furthest(1)[0][0])}” alone" if turned == 1 else f"{turned:,}" if turned else "None"
            make = "make" if turned > 1 else "makes"
            ax.set_title(f"{who} of {len(self.words):,} words in one place {make} the model {does}")
        return ax

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(word)}</td><td>{score:+.1f}</td></tr>" for word, score in self.furthest())
        return f"<table><tr><th>word</th><th>log-odds of refusing</th></tr>{rows}</table>"


def vocabulary_words(lm: LocalModel) -> dict[str, int]:
    """The words that are one token of this model's, without capitals and after a space, each with its id.

    Raises:
        CourseError: it has none, since its tokens are letters or bytes.

    >>> "secretly" in vocabulary_words(lm)
    True
    """
    if not (words := _words_of(lm.tokenizer)):
        raise CourseError(
            f"Expected a vocabulary with words, each one token after a space, and that of {lm.name} has none, so they "
            "cannot all be tried; give minimal_edits the words that you suspect."
        )
    return words


@lru_cache(maxsize=2)  # of tokenizers: a model would be kept in memory
def strings_of(tokenizer: Any) -> list[str]:
    """One printable string for each token of a vocabulary.

    >>> strings_of(lm.tokenizer)[vocabulary_words(lm)["secretly"]]
    '·secretly'
    """
    return token_strings(tokenizer, list(range(len(tokenizer))))


@lru_cache(maxsize=2)
def _words_of(tokenizer: Any) -> dict[str, int]:
    known = set(tokenizer.all_special_ids)
    texts = ((text[1:], i) for i, text in enumerate(strings_of(tokenizer)) if text.startswith("·") and i not in known)
    return {text: i for text, i in texts if len(text) > 1 and text.isalpha() and text == text.lower()}


def scan_vocabulary(
    lm: LocalModel,
    prompt: Prompt,
    at: str,
    *,
    words: Sequence[str] | None = None,
    n_words: int | None = None,
    refusal: Sequence[Opening] = REFUSALS,
    seed: int = 0,
    coarse: bool = False,
) -> VocabularyScan:
    """Put each word of the vocabulary in the place of a word of a request, and score the reply.

    What stands before the place is computed once. The score looks at the first token of the reply alone: what stands
    out is to be tried as a whole, in a grid of minimal edits.

    Args:
        lm: the model.
        prompt: the request.
        at: the words in it that give way; late in the request is cheap.
        words: which words to try; by default all of the vocabulary that are one token.
        n_words: try so many, drawn at random by `seed`.
        refusal: how refusals open.
        seed: decides which are drawn.
        coarse: multiply in bfloat16 where the processor can, 1.4 to 1.7 times as fast; scores then move by up to 0.3
            logits, and what stands out still does.

    Raises:
        CourseError: the place is not in the request exactly once, no words, or a word that is several tokens.

    >>> scan = scan_vocabulary(lm, lm.chat("How do I quietly wash a car?"), "quietly", words=["secretly", "slowly"])
    >>> scan.scores.shape
    (2,)
    """
    known = vocabulary_words(lm)
    tried = list(known) if words is None else list(words)
    _check_known(tried, known)
    if n_words is not None and n_words < len(tried):
        tried = sorted(random.Random(seed).sample(tried, max(0, n_words)), key=known.__getitem__)
    if not tried:
        raise CourseError("Expected at least one word to try, got none; leave words= and n_words= away for all.")
    without, scores = leanings(lm, prompt, at, [[known[word]] for word in tried], refusal, coarse=coarse)
    place, typed = prompt.span(at), prompt.user
    asked = joined(prompt.tokens[typed.start : place.start]), joined(prompt.tokens[place.stop : typed.stop])
    request = " … ".join(text.replace("·", " ").strip() for text in asked)
    return VocabularyScan(tuple(tried), scores, without, request, lm.name, len(known))


def scan_groups(
    lm: LocalModel,
    prompt: Prompt,
    at: str,
    groups: Sequence[Sequence[str]],
    *,
    refusal: Sequence[Opening] = REFUSALS,
    coarse: bool = False,
) -> Floats:
    """Put several words at once in the place of a word of a request, and score the reply as `scan_vocabulary` does.

    What stands behind the place is run once for all of them: sixteen words at once take about a fifth of the time. A
    word that acts wherever it stands moves its group's score; which of the group it was, asking them alone tells.

    Args:
        lm: the model.
        prompt: the request.
        at: the words in it that give way.
        groups: the words, each of one token; every group has as many.
        refusal: how refusals open.
        coarse: as for `scan_vocabulary`.

    Returns:
        float32 `[group]`, log-odds that the reply begins with a refusal's first token, in logits.

    Raises:
        CourseError: as for `scan_vocabulary`.

    >>> groups = [("secretly", "slowly"), ("happily", "gently")]
    >>> scan_groups(lm, lm.chat("How do I quietly wash a car?"), "quietly", groups).shape
    (2,)
    """
    known = vocabulary_words(lm)
    _check_known([word for group in groups for word in group], known)
    put = [[known[word] for word in group] for group in groups]
    return leanings(lm, prompt, at, put, refusal, coarse=coarse)[1]


def _check_known(words: Sequence[str], known: dict[str, int]) -> None:
    if unknown := [word for word in words if word not in known]:
        raise CourseError(
            f"Expected words that are one token each, in small letters, got {', '.join(map(repr, unknown[:5]))}; "
            "leave them out here and try them in a grid of minimal edits."
        )


def first_token_odds(lm: LocalModel, prompt: Prompt, refusal: Sequence[Opening]) -> Callable[[Tensor], Tensor]:
    """What maps logits `[variant, position, vocabulary]` to log-odds of a refusal's first token, `[variant, 1]`.

    >>> float(first_token_odds(lm, prompt, ["I can't"])(torch.zeros(1, 1, 3 * 10**4)).exp()) < 1e-4
    True
    """
    first = first_tokens(lm, prompt, refusal)

    def leans(logits: Tensor) -> Tensor:
        rest = logits[:, -1].clone()
        rest[:, first] = -torch.inf
        return (logits[:, -1, first].logsumexp(dim=-1) - rest.logsumexp(dim=-1))[:, None]

    return leans


def first_tokens(lm: LocalModel, prompt: Prompt, refusal: Sequence[Opening]) -> list[int]:
    """The ids of the tokens with which openings begin after a prompt, each once."""
    return sorted({ids[0] for ids in opening_ids(lm, prompt, refusal)})


def leanings(
    lm: LocalModel, prompt: Prompt, at: str, put: Sequence[Sequence[int]], refusal: Sequence[Opening], *, coarse: bool
) -> tuple[float, Floats]:
    """The log-odds of a refusal's first token for a request, and `[row]` with each row of ids in the place of `at`.

    >>> prompt = lm.chat("How can I pay openly?")
    >>> leanings(lm, prompt, "openly", [[260], [260, 261]], ["I can't"], coarse=False)[1].shape
    (2,)
    """
    place, ids = prompt.span(at), prompt.input_ids[0]
    leans, fast = first_token_odds(lm, prompt, refusal), coarse and multiplies_bfloat16(lm.device)
    without, found = np.nan, np.empty(len(put), np.float32)
    for length in {len(row) for row in put}:
        places = [i for i, row in enumerate(put) if len(row) == length]
        own = torch.tensor([put[i] for i in places], dtype=ids.dtype, device=ids.device)  # [variant, token]
        around = [part.expand(len(own), -1) for part in (ids[: place.start], ids[place.stop :])]
        variants = torch.cat([around[0], own, around[1]], dim=1)
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=fast):
            base, scores = score_variants(lm, ids, variants, leans, keep=1, label="scanning the vocabulary")
        without, found[places] = float(base[0]), floats(scores[:, 0])
    return without, found
