"""Temporary folders that are named by the process that made them: those that a killed one left are removed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

_NAME = re.compile(r"course-(?P<pid>\d+)-(?P<began>[0-9a-f]+)-")


def name_of_ours() -> str:
    """The beginning of the names of all that this process makes: its number, and when it began, for numbers return."""
    return f"course-{os.getpid()}-{_began(os.getpid()):x}"


def is_over(name: str) -> bool:
    """Whether what is called so was made by a process that is no more."""
    found = _NAME.match(name)
    return found is not None and abs(_began(int(found["pid"])) - int(found["began"], 16)) > 2


def _began(pid: int) -> int:
    """When a process began, in seconds, which move a little as the clock is set; 0 if there is none."""
    try:
        process = psutil.Process(pid)
        return 0 if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time())
    except psutil.NoSuchProcess:
        return 0


def new_folder() -> Path:
    """A temporary folder, private, for its maker to remove; those whose makers are gone are removed now."""
    _sweep_once(os.getpid(), tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=f"{name_of_ours()}-"))


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that is removed afterwards."""
    made = new_folder()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep() -> None:
    """Remove our own folders whose makers are no more."""
    for path in Path(tempfile.gettempdir()).glob("course-*-*-*"):
        with suppress(OSError):
            if is_over(path.name) and _is_ours(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


@cache
def _sweep_once(pid: int, where: str) -> None:
    sweep()
