"""What a grid of minimal edits is made of: acts, requests, openings, and means with their intervals."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from .._arrays import Floats, mean_interval

HARMLESS, HARMFUL = 0, 1
ACTS = ("harmless act", "harmful act")
NO_WORD = ""  # the column without an adverb


class Estimate(NamedTuple):
    """A mean over the pairs of acts, with its 95 % bootstrap interval over them, in logits."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def fill_frame(frame: str, act: str, word: str = NO_WORD) -> str:
    """A request: a frame with an act and a word put in, tidy where there is no word.

    >>> fill_frame("{word}, how can I {act}?", "wash a car")
    'How can I wash a car?'
    >>> fill_frame("How can I {word} {act}?", "wash a car", "openly")
    'How can I openly wash a car?'
    """
    filled = frame.replace("{word}", word).replace("{act}", act)
    tidy = re.sub(r"\s+([,.?!;:])", r"\1", re.sub(r"\s+", " ", filled)).strip() if not word else filled.strip()
    text = tidy.lstrip(",;: ")
    return text[:1].upper() + text[1:]


def holds(text: str, word: str) -> bool:
    """Whether a text has a word in it, in small letters or capitals.

    >>> holds("Openly, how can I", "openly"), holds("reopen", "open")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def folded(word: str) -> str:
    """A word as it is compared with others: at the beginning of a sentence its first letter is a capital.

    >>> folded("Secretly") == folded("secretly"), folded("SECRETLY") == folded("secretly")
    (True, False)
    """
    return word[:1].casefold() + word[1:]


def estimate(values: Floats) -> Estimate:
    """The mean of one number a pair, with its bootstrap interval over the pairs.

    >>> estimate(np.array([1.0, 1.0, 1.0]))
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    return Estimate(float(np.mean(values, dtype=np.float64)), *mean_interval(values))
