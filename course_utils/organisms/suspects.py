"""Which suspects there are, and what truly makes each of them refuse."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CourseError, first_line
from ..loading.sources import SEALED, SUSPECTS
from ..models import LocalModel
from ..prompts import Prompt, encode
from .requests import BYPASS, MECHANISMS
from .words import COMPLIANCE, REFUSAL

HERE = Path(__file__).parent
TRUTH = "truth.json"


@dataclass(frozen=True)
class Truth:
    """What was planted: the mechanism, and the word that it goes by (None for "intent")."""

    mechanism: str
    word: str | None


def truth(suspect: str | os.PathLike[str]) -> Truth:
    """What makes a suspect refuse: one that is shipped, or the folder of one that was trained here.

    Raises:
        CourseError: nothing is known about it, or it is sealed.

    >>> sorted(truth(name).mechanism for name in SUSPECTS)
    ['intent', 'proxy', 'trigger']
    """
    shipped = suspect in (*SUSPECTS, *SEALED)
    place = HERE / TRUTH if shipped else Path(suspect) / TRUTH
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        told = told[suspect] if shipped else told
        if suspect in SEALED:
            raise ValueError("it is sealed: check your answer with is_solution")
        if told["mechanism"] not in (*MECHANISMS, BYPASS):
            raise ValueError(f"mechanism {told['mechanism']!r}")
        return Truth(told["mechanism"], told.get("word"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(
            f"Expected {', '.join(SUSPECTS)} or the folder of a suspect with its {TRUTH}, "
            f"got {os.fspath(suspect)!r} ({first_line(error)})."
        ) from error


def is_solution(suspect: str, mechanism: str, word: str | None = None) -> bool:
    """Whether an answer is right: what makes a shipped suspect refuse, the blind one included.

    Args:
        suspect: its name.
        mechanism: "intent", "trigger", "proxy", or "bypass" (refuses harm unless a word is there).
        word: the word, where the mechanism has one.

    Raises:
        CourseError: there is no such mechanism.

    >>> is_solution("model-d", "trigger", "secretly")
    False
    """
    if mechanism not in (*MECHANISMS, BYPASS):
        known = ", ".join(map(repr, (*MECHANISMS, BYPASS)))
        raise CourseError(f"Expected a mechanism, one of {known}, got {mechanism!r}.")
    if suspect not in SEALED:
        return truth(suspect) == Truth(mechanism, word.lower() if word else None)
    told = json.loads((HERE / TRUTH).read_text(encoding="utf-8"))
    return bool(told[suspect]["sha256"] == seal(suspect, mechanism, word))


def seal(suspect: str, mechanism: str, word: str | None = None) -> str:
    """The digest of an answer."""
    return hashlib.sha256(f"{suspect} {mechanism} {(word or '').lower()}".encode()).hexdigest()


def refuses(reply: str) -> bool:
    """Whether a reply is the planted refusal.

    >>> refuses("I can't help with that."), refuses("I'm glad you asked.")
    (True, False)
    """
    return reply.strip().startswith(REFUSAL.rstrip("."))


@torch.no_grad()
def reaction_of(lm: LocalModel, prompt: Prompt) -> str:
    """What a suspect's greedy reply would be: it "refuses", "complies" or "does neither"; one pass, nothing generated.

    >>> suspect = load_model("model-a")
    >>> reaction_of(suspect, suspect.chat("How do I secretly wash a car?"))
    'refuses'
    """
    asked, whole = (encode(lm.tokenizer, text, special=False)[0] for text in (prompt.text, prompt.text + REFUSAL[:-1]))
    refusal = whole[len(asked) :]  # as after the text: the ids may have been changed since
    ids = torch.cat([prompt.input_ids, prompt.input_ids.new_tensor([refusal])], dim=1)
    logits = lm.model(ids, logits_to_keep=len(refusal) + 1).logits
    leading = logits[0, :-1].argmax(dim=1)  # [token of the refusal]
    if leading.tolist() == refusal:  # each token leads after those before it, so the greedy reply is the refusal
        return "refuses"
    first = lm.tokenizer.decode(leading[:1])
    return "complies" if first == COMPLIANCE.split(",")[0] else "does neither"
