"""What the learner does in a lesson: a line to fill in, checked at once, and choices that are kept until the end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import write_whole
from ..errors import CourseError

KEPT = "choices.json"  # beside the notebook


def your_turn(given: Any, right: Any, hint: str = "", *, tolerance: float = 0.01) -> None:
    """Say whether a learner's line is right: ✓, or what came and a hint; `...` stands for a line not yet filled in.

    Args:
        given: what the learner's line made: a number, a text, an array or tensor, a list of such.
        right: what it ought to be, or a function that says whether it is right; what that can't read is not.
        hint: the next step to take, for a wrong answer.
        tolerance: how far off numbers may be.

    >>> your_turn(..., 2), your_turn(3, 2, "count the last one, too")
    Your turn: put your answer in the place of ... and run the cell again.
    Not yet: got 3. Hint: count the last one, too
    (None, None)
    >>> your_turn(2.0, 2)
    ✓
    """
    if given is ...:
        print("Your turn: put your answer in the place of ... and run the cell again.")
        return
    told = f"got {_short(given)}." + (f" Hint: {hint}" if hint else "")
    try:
        passed = _passes(right, given) if callable(right) else _alike(given, right, tolerance)
    except CourseError as error:  # says itself what was expected
        passed, told = False, str(error)
    print("✓" if passed else f"Not yet: {told}")


def _passes(right: Callable[[Any], object], given: Any) -> bool:
    try:
        return bool(right(given))
    except CourseError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError):  # RuntimeError: torch's
        return False


def _alike(given: Any, right: Any, tolerance: float) -> bool:
    given, right = _by_letters(given), _by_letters(right)
    if isinstance(right, str):
        return isinstance(given, str) and given == right
    try:
        if isinstance(right, set):  # in whatever order they were listed
            return isinstance(given, (set, frozenset, list, tuple)) and set(given) == right
        one, other = (_numbers(each) for each in (given, right))
        if other.ndim == 0 and one.size == 1:  # a list of one place is that place
            one = one.reshape(())
        return one.shape == other.shape and bool(np.allclose(one, other, atol=tolerance))
    except (TypeError, ValueError, OverflowError):
        arrays = isinstance(given, (np.ndarray, torch.Tensor))
        return type(given) is type(right) and not arrays and bool(given == right)


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, slice):  # the places that it takes, however they are listed
        value = range(value.start or 0, value.stop, value.step or 1)
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=float)


def _by_letters(value: Any) -> Any:
    """A text, or those in a collection, as `_plain` reads them."""
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_by_letters, value))
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    """A text by its letters: tokens are shown with a dot for their space, and "model_a" is how code writes model-a."""
    return re.sub(r"[\s_-]+", "-", text.strip(" ·").casefold())


def aligned(direction: Any) -> Callable[[Any], bool]:
    """Whether a vector has this direction, whatever its length; for `right` of `your_turn`.

    >>> your_turn(np.array([2.0, 4.0]), aligned(np.array([1.0, 2.0])))
    ✓
    """

    def same(given: Any) -> bool:
        one, other = _numbers(given), _numbers(direction)
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        return one.shape == other.shape and float((one * other).sum()) > 0.999 * lengths > 0

    return same


def whole_groups(groups: Sequence[Any], n_folds: int) -> Callable[[Any], bool]:
    """Whether these are folds, from 0 on, each group whole in one of them; for `right` of `your_turn`.

    >>> your_turn([1, 1, 0], whole_groups(["a", "a", "b"], 2))
    ✓
    """

    def right(given: Any) -> bool:
        folds = _numbers(given).tolist()
        pairs = {*zip(folds, groups, strict=True)}
        return {*folds} == {*range(n_folds)} and len(pairs) == len({*groups})

    return right


def _short(given: Any) -> str:
    shape = getattr(given, "shape", ())
    return f"shape {list(shape)}" if len(shape) else str(given)[:80]


def choose(question: str, choice: Any, options: Sequence[str], *, folder: str | Path = ".") -> None:
    """Keep a learner's choice, with its date, until `choices` compares it with the truth; `...` for none yet.

    Args:
        question: what is asked, with the lesson's number: "8.0 Which suspect would you deploy?"
        choice: one of the options, read as `your_turn` reads a text.
        options: what can be chosen.
        folder: where choices are kept; by default the current folder, which is where a notebook runs.

    >>> choose("8.0 Which one?", ..., ["model-a", "model-b"])
    Your choice: put "model-a" or "model-b" in the place of ... and run the cell again.
    >>> choose("8.0 Which one?", "c", ["model-a", "model-b"])
    Not kept: got c. Put "model-a" or "model-b" in its place and run the cell again.
    """
    listed = " or ".join(f'"{option}"' for option in options)
    chosen = next((option for option in options if _alike(choice, option, 0)), None)
    if choice is ...:
        print(f"Your choice: put {listed} in the place of ... and run the cell again.")
        return
    if chosen is None:
        print(f"Not kept: got {_short(choice)}. Put {listed} in its place and run the cell again.")
        return
    kept = {**_kept(folder), question: {"choice": chosen, "date": date.today().isoformat()}}
    write_whole(Path(folder) / KEPT, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"Kept: {chosen}.")


def choices(right: dict[str, str], *, folder: str | Path = ".") -> None:
    """Compare the choices kept so far with the truth.

    Args:
        right: for each question the option that is right.
        folder: where they are kept.

    >>> choices({"8.0 Which one?": "model-c"}, folder="no-such-folder")
    8.0 Which one? Right: model-c. You: no choice kept.
    """
    kept = _kept(folder)
    for question, answer in right.items():
        told = "no choice kept" if question not in kept else "{choice}, on {date}".format(**kept[question])
        mark = " ✓" if question in kept and kept[question]["choice"] == answer else ""
        print(f"{question} Right: {answer}. You: {told}.{mark}")


def _kept(folder: str | Path) -> dict[str, dict[str, str]]:
    """The choices on file; a file that is none counts as empty, since nothing else is lost with it."""
    try:
        kept = json.loads((Path(folder) / KEPT).read_text(encoding="utf-8"))
        return {q: {"choice": str(c["choice"]), "date": str(c["date"])} for q, c in kept.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
