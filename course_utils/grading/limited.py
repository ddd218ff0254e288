"""Do what reads a student's bytes in a process of its own, with limits: whatever they are, nobody else waits for them.

The process imports this package, runs nothing of a student's, and is kept for the next call; one that takes too long or
too much memory is ended, and the next call starts another.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from subprocess import DEVNULL, Popen
from typing import Any, TypeVar

from ..errors import CourseError, first_line
from .processes import Pool, begun, with_package, without_grammar

SECONDS = 30.0  # for one step; the largest notebook needs two
_MEMORY = 8_000_000_000  # bytes of address space
T = TypeVar("T")


def within(function: Callable[..., T], *arguments: Any, seconds: float = SECONDS) -> T:
    """What a function of this package gives, from a process with limits; whatever goes wrong is a CourseError.

    >>> within(len, [1, 2])
    2
    """
    worker = POOL.take()
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        pickle.dump((function, arguments), worker.stdin)
        worker.stdin.flush()
        if not _readable(worker, seconds):
            raise TimeoutError(f"it takes more than {seconds:.0f} s")
        value, sentence = pickle.load(worker.stdout)
    except BaseException as error:
        worker.kill()
        worker.wait()
        if isinstance(error, (OSError, EOFError, pickle.UnpicklingError)):
            why = str(error) if isinstance(error, TimeoutError) else "it takes too much memory"
            raise CourseError(f"Expected something that can be read, and {why}.") from error
        raise
    POOL.give_back(worker)
    if sentence:
        raise CourseError(sentence)
    return value  # type: ignore[no-any-return]


def _readable(worker: Popen[bytes], seconds: float) -> bool:
    if sys.platform == "win32":  # no select on pipes there: a timer ends the worker, and reading then fails
        timer = threading.Timer(seconds, worker.kill)
        timer.daemon = True
        timer.start()
        return True
    assert worker.stdout is not None
    return bool(select.select([worker.stdout], [], [], seconds)[0])


def _begun() -> Popen[bytes]:
    environment = with_package() | {"OMP_NUM_THREADS": "1"}
    program = "from course_utils.grading.limited import main; main()"
    return begun("-c", program, environment=environment, stderr=DEVNULL)


POOL = Pool(_begun)


@atexit.register
def _end() -> None:
    for worker in POOL.idle:
        worker.kill()


def main() -> None:
    """Answer call after call, until nobody asks any more."""
    without_grammar()
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            told = (function(*arguments), "")
        except CourseError as error:
            told = (None, str(error))
        except (Exception, RecursionError, MemoryError) as error:  # a student's bytes can make a library raise anything
            what = f"{type(error).__name__} came of it ({first_line(error)})"
            told = (None, f"Expected something that can be read, and {what}.")
        pickle.dump(told, answers)
        answers.flush()
