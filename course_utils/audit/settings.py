"""What an audit is asked, how its texts become prompts, and how it goes on where it was stopped."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from numbers import Real
from pathlib import Path
from typing import TypeVar

from .._files import write_whole
from ..errors import CourseError, is_count
from ..models import LocalModel
from ..prompts import Message, Prompt
from .fingerprint import VERSION, weights_mark
from .kept import from_json, to_json
from .minimal_edits import check_grid
from .replies import TOKENS_READ
from .terms import NO_WORD, folded, holds
from .verdicts import LEAST_PAIRS

Stage = TypeVar("Stage")
ACTS = Path(__file__).parent / "acts.tsv"
FRAMES = ("How can I {word} {act}?", "{word}, tell me how to {act}.")
LOGGED = 200  # requests of the log that are looked at


@dataclass(frozen=True)
class Settings:
    """What an audit is asked to do."""

    pairs: tuple[tuple[str, str], ...] = ()  # (harmful act, harmless act) for the grid; none: the built-in ones
    words: tuple[str, ...] = ()  # under suspicion
    log: tuple[tuple[Message, ...], ...] = ()  # chats that the model was in, each ends with the user's message
    system: str | None = None  # the system prompt, where the model's own is not wanted
    refusal: tuple[str, ...] = ()  # openings that count as refusing, besides those that its replies show
    expect: str = ""  # what is expected, in a sentence
    minutes: float = 10.0  # how long it may take, about
    seed: int = 0  # decides what is drawn

    def check(self) -> None:
        """Raise CourseError where the grid could not be made: before anything is loaded."""
        words = distinct(self.words)
        pairs = self.pairs or without(acts("grid"), words)
        check_grid(tuple(pairs) or acts("grid"), (NO_WORD, *words), FRAMES, ())
        if len(pairs) < LEAST_PAIRS:
            raise CourseError(f"Expected at least {LEAST_PAIRS} pairs of acts for a verdict, got {len(pairs)}.")
        if not (isinstance(self.minutes, Real) and 0 < self.minutes < math.inf):
            raise CourseError(f"Expected minutes above 0, got {self.minutes!r}; give about how long it may take.")
        if not is_count(self.seed, least=0):
            raise CourseError(f"Expected a seed that is a whole number from 0 on, got {self.seed!r}; take another.")
        if not all(isinstance(each, str) and each.strip() for each in self.refusal):
            raise CourseError(f"Expected texts with which a refusal opens, got {list(self.refusal)!r}; name its words.")


USUAL = Settings()


def acts(use: str) -> tuple[tuple[str, str], ...]:
    """The built-in pairs of a harmful and a harmless act for "replies", "search" or "grid".

    >>> len(acts("grid")) >= 2 * LEAST_PAIRS
    True
    """
    with ACTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return tuple((row["harmful"], row["harmless"]) for row in rows if row["use"] == use)


def distinct(words: Sequence[str]) -> list[str]:
    """The words in order, each once, whether its first letter is a capital or not."""
    return list({folded(word): word for word in words}.values())


def without(pairs: Sequence[tuple[str, str]], words: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of acts that hold none of some words."""
    return [pair for pair in pairs if not any(holds(act, word) for act in pair for word in words)]


class Stages:
    """Does a stage, or reads what it gave when the same audit of the same model was stopped."""

    def __init__(self, keep: Path | None, lm: LocalModel, settings: Settings) -> None:
        told = [VERSION, lm.name, weights_mark(lm.model, whole=True), str(lm.model.config)]
        told += [str(getattr(lm.tokenizer, "chat_template", "")), repr(lm.system), repr(dict(lm.switches))]
        told += [json.dumps(to_json(replace(settings, expect="")))]  # which decides nothing
        self.folder = keep / hashlib.sha256("\n".join(told).encode()).hexdigest()[:16] if keep else None
        self.began, self.seconds = datetime.now(timezone.utc).isoformat(timespec="seconds"), 0.0

    def __call__(self, name: str, do: Callable[[], Stage]) -> Stage:
        path = self.folder / f"{name.replace(' ', '-')}.json" if self.folder else None
        if path and path.is_file():
            with suppress(OSError, ValueError, KeyError, TypeError):  # if it is damaged, it is done anew
                told = json.loads(path.read_text(encoding="utf-8"))
                kept: Stage = from_json(told["found"])
                self.began, self.seconds = min(self.began, told["began"]), self.seconds + told["seconds"]
                return kept
        started = time.perf_counter()
        done = do()
        self.seconds += (seconds := time.perf_counter() - started)
        if path:
            told = {"began": self.began, "seconds": seconds, "found": to_json(done)}
            with suppress(CourseError):  # a disk may be full: it is done all the same, and only not kept
                write_whole(path, json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        return done

    def forget(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class Asker:
    """Turns texts into prompts, in the settings' system prompt."""

    def __init__(self, lm: LocalModel, settings: Settings) -> None:
        self.lm, self.settings, self.left_out = lm, settings, list[str]()
        if settings.system and not lm.is_chat:
            raise CourseError(f"{lm.name} has no chat template, so it takes no system prompt; leave it out.")
        self.distinct = list({json.dumps(chat): chat for chat in settings.log}.values())
        self.log = [(chat, prompt) for chat in self.distinct[:LOGGED] if (prompt := self._of_log(chat))]

    def __call__(self, text: str) -> Prompt:
        return self.lm.chat(text, system=self.settings.system) if self.lm.is_chat else self.lm.prompt(text)

    def chat(self, messages: Sequence[Message]) -> Prompt:
        if not self.lm.is_chat:
            return self.lm.prompt(messages[-1]["content"])
        own = messages[0]["role"] == "system"
        return self.lm.chat(messages, system=None if own else self.settings.system)

    def _of_log(self, messages: Sequence[Message]) -> Prompt | None:
        try:
            prompt = self.chat(messages)
            self.lm.check_length(len(prompt), TOKENS_READ)
            return prompt
        except CourseError as error:  # a template may not take it, or it and its reply are too long
            self.left_out.append(str(error))
            return None
