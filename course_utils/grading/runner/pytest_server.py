"""One process that has imported pytest and nbval, and runs one notebook after the other, each in a fork of itself.

Importing them takes longer than running most notebooks. It reads one line for each run and answers with the exit code.
It is the grader's own: the learner's code runs in a kernel elsewhere. Where there is no fork it does one run and ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

from ..processes import Pool, begun, with_package, without_grammar

PLUGINS = ("nbval.plugin", "course_utils.grading.runner.nbval_plugin")  # handed over: a search by name takes long
_FORKS = sys.platform.startswith("linux")
_closed = threading.Event()


def run_pytest(
    arguments: list[str], folder: Path, environment: dict[str, str], log: Path, seconds: float
) -> int | None:
    """Run pytest in a process of its own; its exit code, None where it took too long and was ended with all it started.

    It knows this environment alone, and what it says is in the log. A RuntimeError where nothing begins any more.
    """
    told = {"arguments": arguments, "folder": str(folder), "environment": environment, "log": str(log)}
    with _session() as session:
        if _closed.is_set():  # looked at when the process is there: who closes first and then ends all misses none
            raise RuntimeError("nothing begins any more")
        late = threading.Event()
        watch = threading.Timer(seconds, _end, (session, late))
        watch.start()
        try:
            assert session.stdin is not None
            assert session.stdout is not None
            session.stdin.write(json.dumps(told) + "\n")
            session.stdin.flush()
            answer = session.stdout.readline()
        finally:
            watch.cancel()
        if late.is_set():
            return None
        return int(answer) if answer.strip() else session.wait()


@contextmanager
def nothing_begins() -> Iterator[None]:
    """For who ends what runs: else a run whose kernel is gone would take that for bad luck, and begin once more."""
    _closed.set()
    try:
        yield
    finally:
        _closed.clear()


@contextmanager
def _session() -> Iterator[Popen[str]]:
    """A session that nobody else uses, put back if it can be used again."""
    session = POOL.take()
    try:
        yield session
    except BaseException:
        _end(session, threading.Event())
        session.kill()
        raise
    if _FORKS and session.poll() is None:
        POOL.give_back(session)


def _begun() -> Popen[str]:
    return begun("-m", "course_utils.grading.runner.pytest_server", environment=with_package(), text=True)


POOL = Pool(_begun)


def _end(session: Popen[str], late: threading.Event) -> None:
    """End what a session runs, and all that this has started; nothing of it may outlive the limit."""
    late.set()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(session.pid)
        for each in process.children(recursive=True) if _FORKS else [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _import_all() -> None:
    """What takes long, once for all runs: pytest with its plugins, nbval, jupyter_client, nbformat's validator."""
    import gc

    without_grammar()
    import nbformat
    from _pytest.config import default_plugins
    from jupyter_client.provisioning.factory import KernelProvisionerFactory

    others = (*PLUGINS, "course_utils.grading.sandbox.provisioner", "IPython.display")
    for name in (*(f"_pytest.{plugin}" for plugin in default_plugins), *others):
        import_module(name)
    nbformat.validate(nbformat.v4.new_notebook())
    KernelProvisionerFactory.instance()  # which reads the metadata of every package
    gc.freeze()  # no fork looks through it again


def _main() -> None:
    _import_all()
    for line in sys.stdin:
        told = json.loads(line)
        if not _FORKS:
            sys.exit(_run(told))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _run(told)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            print(code, flush=True)
        except BrokenPipeError:  # nobody is there any more
            os._exit(0)


def _run(told: dict[str, Any]) -> int:
    import pytest

    with Path(told["log"]).open("wb") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    return int(pytest.main(told["arguments"], [import_module(name) for name in PLUGINS]))


if __name__ == "__main__":
    _main()
