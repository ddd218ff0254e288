"""Whether each method is right about a model, says a sentence, or is wrong: checks run, compared and summed up."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from course_utils import CourseError

from . import zoo
from .oracles import METHODS, Check
from .plain import Case, NoOracle

RIGHT, SENTENCE, WRONG, TRACEBACK, NO_ORACLE = "right", "sentence", "wrong", "traceback", "no oracle"
NOT_BUILDABLE = "not buildable"
FAILED = "the oracle failed: "
WORST_FIRST = (TRACEBACK, WRONG, SENTENCE, RIGHT, NO_ORACLE)
TOLERANCE = 1e-3  # of the largest score
FLOOR = 2e-5  # what float32 leaves of a difference of logits


class Verdict(NamedTuple):
    """What came of a method on a model; the text is the sentence, the error, both numbers, or why there is no oracle."""

    kind: str
    text: str = ""


@torch.no_grad()
def judged(check: Check) -> Verdict:
    """The verdict of one comparison."""
    try:
        got = array(check.got())
    except CourseError as error:  # whatever is right: the oracle need not be asked
        return Verdict(SENTENCE, str(error))
    except NoOracle as reason:
        return Verdict(NO_ORACLE, str(reason))
    except Exception as error:
        ours = in_the_package(error)  # what is asked for comes from the oracle, too
        return Verdict(TRACEBACK if ours else NO_ORACLE, f"{check.label}: {'' if ours else FAILED}{told(error)}")
    try:
        want = array(check.want())
    except Exception as error:  # an oracle that fails establishes nothing
        why = str(error) if isinstance(error, NoOracle) else f"{FAILED}{type(error).__name__}: {error}"
        return Verdict(NO_ORACLE, f"{check.label}: {why}")
    return compared(check.label, got, want)


def array(values: object) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=np.float64)


def compared(label: str, got: np.ndarray, want: np.ndarray) -> Verdict:
    """Right where nothing is off by more than a thousandth of the largest score; NaN in `want` is not compared."""
    if got.shape != want.shape:
        return Verdict(WRONG, f"{label}: shape {got.shape}, right {want.shape}")
    known = ~np.isnan(want)
    if not known.any() or not np.isfinite(want[known]).all():
        return Verdict(WRONG, f"{label}: numbers, where the model's own are not finite")
    off = np.where(known, np.abs(np.nan_to_num(got, nan=np.inf) - np.where(known, want, 0)), 0)
    largest = float(np.abs(want[known]).max(initial=0))
    if off.max(initial=0) <= max(TOLERANCE * largest, FLOOR):
        weak = largest < FLOOR / TOLERANCE and largest > 0  # float32 leaves too little for a thousandth
        return Verdict(RIGHT, f"{label}: all below {largest:.1e}" if weak else "")
    where = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    return Verdict(
        WRONG, f"{label}: {got[where]:.4g} at {list(where)}, right {want[where]:.4g} (largest {largest:.4g})"
    )


def in_the_package(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an error passed through the package."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if f"{os.sep}course_utils{os.sep}" in frame.filename]


def told(error: BaseException) -> str:
    """An error in one line, with the package's line that raised it."""
    ours = in_the_package(error)
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}{place}"


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of several; one that is right says what could be compared only roughly, or not at all."""
    found = min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.kind), default=Verdict(NO_ORACLE))
    if found.kind != RIGHT:
        return found
    rough = [verdict.text for verdict in verdicts if verdict.kind == RIGHT and verdict.text]
    unknown = [f"not compared: {verdict.text}" for verdict in verdicts if verdict.kind == NO_ORACLE]
    return Verdict(RIGHT, "; ".join([*rough, *unknown]))


def judge(make: Callable[[], Case], methods: Iterable[str] = METHODS) -> Iterator[tuple[str, Verdict]]:
    """Each method's verdict on one model: the worst of its checks."""
    try:
        case = make()
    except CourseError as error:  # not even a prompt
        yield from ((name, Verdict(SENTENCE, str(error))) for name in methods)
        return
    for name in methods:
        try:
            yield name, worst([judged(check) for check in METHODS[name](case)])
        except CourseError as error:  # the long prompt is too long
            yield name, Verdict(SENTENCE, str(error))


def by_architecture(name: str, methods: Iterable[str] = METHODS) -> Iterator[tuple[str, Verdict]]:
    """The same for one of the zoo; one that cannot be built has that verdict for every method."""
    try:
        lm = zoo.build(name)
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([[1, 5, 6, 7]]), use_cache=False)
    except zoo.NotBuildable as reason:
        yield from ((one, Verdict(NOT_BUILDABLE, str(reason))) for one in methods)
        return
    except Exception as error:
        text = f"its own forward pass fails on text alone: {told(error)}"
        yield from ((one, Verdict(NOT_BUILDABLE, text)) for one in methods)
        return
    yield from judge(lambda: Case(lm, lambda: zoo.build(name, attention="eager").model), methods)


def apart(run: Callable[[], Iterator[tuple[str, Verdict]]], limit: float) -> tuple[dict[str, Verdict], float]:
    """Verdicts from a forked process, so that a crash or a hang is this architecture's alone; and its seconds of a core."""
    with tempfile.NamedTemporaryFile(mode="r", suffix=".jsonl") as told_in:
        if (child := os.fork()) == 0:
            _tell(run, told_in.name)
        code, seconds = _ended(child, time.monotonic() + limit)
        lines = [json.loads(line) for line in Path(told_in.name).read_text().splitlines()]
    found = {method: Verdict(*verdict) for method, verdict in lines}
    missing = f"not within {limit:.0f} s" if code is None else f"the process ended with code {code}"
    for method in METHODS:
        if method not in found:
            found[method] = Verdict(TRACEBACK, missing)
            missing = f"not reached ({missing})" if not missing.startswith("not reached") else missing
    return found, seconds


def _tell(run: Callable[[], Iterator[tuple[str, Verdict]]], path: str) -> None:
    """In the child: write one line a method, and end without the parent's clean-up."""
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        with open(path, "w", encoding="utf-8") as out:
            for method, verdict in run():
                out.write(json.dumps([method, list(verdict)]) + "\n")
                out.flush()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        os._exit(code)


def _ended(child: int, deadline: float) -> tuple[int | None, float]:
    """The exit code of a child, None where it had to be ended, and what it used of a core, in seconds."""
    pid, killed = 0, False
    while not pid:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if not pid and not killed and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0 if pid else 0.01)
    return None if killed else os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
