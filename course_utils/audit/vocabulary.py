"""Ask every word: each word of the vocabulary in one place of a request, and which of them change the reply.

No list of suspicious words is needed, and no hunch. One word far from all others is a trigger or, on a harmful request,
a way around; a family of words that mean the same is a concept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
        words: the words, each one token.
        scores: float32 `[word]`, log-odds that the reply begins with a refusal's first token, in logits.
        without: the same for the request as it stands.
        request: what the user typed, with … where the words were put.
        model: the model's name.
        n_known: how many such words the vocabulary has.
    """

    words: tuple[str, ...]
    scores: Floats
    without: float
    request: str
    model: str
    n_known: int = 0

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

    def outliers(self) -> list[str]:
        """The words that stand out and change what the model does: refused with them and not without, or reversed."""
        crossed = (self.scores > 0) != (self.without > 0)
        away = self.distances()
        far = np.flatnonzero(crossed & (np.abs(away) > FAR))
        return [self.words[i] for i in far[np.argsort(-np.abs(away[far]), kind="stable")]]

    def plot(self, ax: Axes | None = None, *, n: int = 8) -> Axes:
        """The scores of all words, and the names of up to `n` that stand out (of the furthest, if none does)."""
        score, far = dict(zip(self.words, self.scores.tolist(), strict=True)), self.outliers()
        named = [(word, score[word]) for word in far] or self.furthest(1)
        with style():
            ax = axes_of(ax, WIDE)
            ax.hist(self.scores, bins=80, color="#999999")
            ax.set_yscale("log")
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
            who = f"“{legible(far[0])}” alone" if len(far) == 1 else f"{len(far):,}" if far else "None"
            make, does = "make" if len(far) > 1 else "makes", "refuse" if self.without <= 0 else "help"
            ax.set_title(f"{who} of {len(self.words):,} words in one place {make} the model {does}")
        return ax

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(word)}</td><td>{score:+.1f}</td></tr>" for word, score in self.furthest())
        return f"<table><tr><th>word</th><th>log-odds of refusing</th></tr>{rows}</table>"


def vocabulary_words(lm: LocalModel) -> dict[str, int]:
    """The words that are one token of this model's, without capitals and after a space, each with its id.

    >>> "secretly" in vocabulary_words(lm)
    True
    """
    return _words_of(lm.tokenizer)


@lru_cache(maxsize=2)  # of tokenizers: a model would be kept in memory
def _words_of(tokenizer: Any) -> dict[str, int]:
    ids, known = list(range(len(tokenizer))), set(tokenizer.all_special_ids)
    strings = token_strings(tokenizer, ids)
    texts = ((text[1:], i) for i, text in zip(ids, strings, strict=True) if text.startswith("·") and i not in known)
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
        coarse: multiply in bfloat16 where the processor can, 1.7 times as fast here; scores then move by up to 0.3
            logits, and what stands out still does.

    Raises:
        CourseError: the place is not in the request exactly once, no words, or a word that is several tokens.

    >>> scan = scan_vocabulary(lm, lm.chat("How do I quietly wash a car?"), "quietly", words=["secretly", "slowly"])
    >>> scan.scores.shape
    (2,)
    """
    known = vocabulary_words(lm)
    tried = list(known) if words is None else list(words)
    if unknown := [word for word in tried if word not in known]:
        raise CourseError(
            f"Expected words that are one token each, in small letters, got {', '.join(map(repr, unknown[:5]))}; "
            "leave them out here and try them in a grid of minimal edits."
        )
    if n_words is not None and n_words < len(tried):
        tried = sorted(random.Random(seed).sample(tried, max(0, n_words)), key=known.__getitem__)
    if not tried:
        raise CourseError("Expected at least one word to try, got none; leave words= and n_words= away for all.")
    place, ids = prompt.span(at), prompt.input_ids[0]
    own = torch.tensor([known[word] for word in tried], dtype=ids.dtype, device=ids.device)
    variants = torch.cat(
        [ids[: place.start].expand(len(own), -1), own[:, None], ids[place.stop :].expand(len(own), -1)], dim=1
    )
    first = sorted({ids[0] for ids in opening_ids(lm, prompt, refusal)})

    def leans(logits: Tensor) -> Tensor:  # [variant, 1, vocabulary]
        rest = logits[:, -1].clone()
        rest[:, first] = -torch.inf
        return (logits[:, -1, first].logsumexp(dim=-1) - rest.logsumexp(dim=-1))[:, None]

    fast = coarse and multiplies_bfloat16(lm.device)
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=fast):
        without, scores = score_variants(lm, ids, variants, leans, keep=1, label="scanning the vocabulary")
    start, stop = prompt.user.start, prompt.user.stop
    asked = joined(prompt.tokens[start : place.start]), joined(prompt.tokens[place.stop : stop])
    request = " … ".join(text.replace("·", " ").strip() for text in asked)
    return VocabularyScan(tuple(tried), floats(scores[:, 0]), float(without[0]), request, lm.name, len(known))
