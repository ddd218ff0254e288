"""What the grader's own processes begin with."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psutil

PACKAGE = Path(__file__).resolve().parents[1]
_TOLD = Path("/proc/thread-self/children").exists()  # whether the system says what each process has begun


def with_package() -> dict[str, str]:
    """The environment of a process that is to import this package, wherever it runs."""
    cache = os.environ.get("COURSE_CACHE")
    whole = {"COURSE_CACHE": os.path.abspath(os.path.expanduser(cache))} if cache else {}
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **whole, "PYTHONPATH": os.pathsep.join(paths)}


def without_grammar() -> None:
    """Keep jsonschema, which nbformat imports and leaves unused, from making a grammar of web addresses first.

    It takes a second or two, and is for processes of the grader's own: jsonschema takes the package for not installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def below(first: psutil.Process) -> list[psutil.Process]:
    """All processes below one (or NoSuchProcess), asked of each what it has begun: psutil reads about all anywhere."""
    found: list[psutil.Process] = []
    if not _TOLD:
        found += first.children(recursive=True)
        return found
    if not first.is_running():
        raise psutil.NoSuchProcess(first.pid)
    places = [first.pid]
    for pid in places:
        with suppress(OSError):  # it ended meanwhile, as may those below
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    places += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split())
    for pid in places[1:]:
        with suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def begun(*arguments: str, environment: Mapping[str, str], **options: Any) -> Popen[Any]:
    """A Python process of the grader's own.

    It begins in this package's folder: Python looks for modules where it begins, and the grader may have been started
    among what students handed in.
    """
    command, where = [sys.executable, *arguments], PACKAGE.parent
    return Popen(command, stdin=PIPE, stdout=PIPE, env=environment, cwd=where, start_new_session=True, **options)


class Pool:
    """Processes that wait for work, each with one user at a time; `begin` starts another."""

    def __init__(self, begin: Callable[[], Popen[Any]]) -> None:
        self.idle: list[Popen[Any]] = []
        self._begin, self._lock = begin, threading.Lock()

    def start(self, count: int) -> None:
        """Have so many begin, for who will come."""
        with self._lock:
            self.idle.extend(self._begin() for _ in range(count - len(self.idle)))

    def take(self) -> Popen[Any]:
        """One that nobody else uses."""
        with self._lock:
            while self.idle:
                if (one := self.idle.pop()).poll() is None:
                    return one
        return self._begin()

    def give_back(self, one: Popen[Any]) -> None:
        """For the next who comes."""
        with self._lock:
            self.idle.append(one)
