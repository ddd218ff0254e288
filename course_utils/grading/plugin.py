"""A pytest plugin beside nbval: the kernel runs elsewhere, no cell hangs, each cell's outcome is written down.

nbval compares; what is added here is a kernel whose folder is not the notebook's, whose death is noticed at once, that
is interrupted after a cell's time, and whose output is counted. Only the process that `run` starts loads it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from queue import Empty
from typing import Any

import nbval.plugin
import psutil
import pytest
from nbval.kernel import RunningKernel

from ..threads import wait_asleep
from .run import SETTINGS

_settings: dict[str, Any] = {}


class KernelEnded(RuntimeError):
    """The kernel is gone: it died, would not be interrupted, or flooded its output."""


class WatchedKernel(RunningKernel):  # type: ignore[misc]
    """nbval's kernel, in a folder of its own and under watch."""

    def __init__(self, kernel_name: str, cwd: str | None = None, startup_timeout: float = 60) -> None:
        self.bytes, self.started, self.interrupted, self.ended = 0, time.monotonic(), False, ""
        wait_asleep()  # what starts now inherits it, on a worker of a cluster, too
        super().__init__(kernel_name, cwd=_settings["folder"], startup_timeout=startup_timeout)

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> Any:
        self.started, self.interrupted, self.bytes = time.monotonic(), False, 0
        return super().execute_cell_input(cell_input, allow_stdin)

    def get_message(self, stream: str, timeout: float | None = None) -> Any:
        """The next message; a kernel that died, or that goes on after its time, is not waited for."""
        until = time.monotonic() + (timeout if timeout is not None else 1e9)
        while True:
            try:
                message = super().get_message(stream, timeout=min(0.5, max(0.01, until - time.monotonic())))
                self._count(stream, message)
                if time.monotonic() - self.started > _settings["cell_seconds"]:
                    self._look_after()  # one that goes on printing leaves no other moment for it
                return message
            except Empty:
                self._look_after()
                if time.monotonic() >= until:
                    raise

    def _count(self, stream: str, message: Any) -> None:
        if stream == "iopub":
            said = message["content"]  # of an error without its traceback, which is long and which nobody reads here
            self.bytes += len(str({key: said[key] for key in said if key != "traceback"}))
            if self.bytes > _settings["output_bytes"]:
                self._end(f"printed more than {_settings['output_bytes'] // 1000} kB")

    def _look_after(self) -> None:
        if psutil.Process(os.getppid()).ppid() != _settings["parent"]:  # above us is the session, above it the grader
            self._end("was left alone by the grader")
        if not self.is_alive():
            why = getattr(self.km.provisioner, "why", "")  # the sandbox's, if it was that
            self._end(why or "ended the Python process it ran in")
        lasted = time.monotonic() - self.started
        if lasted > _settings["cell_seconds"] and not self.interrupted:
            self.interrupted = True
            self.interrupt()
        if lasted > _settings["cell_seconds"] + 5:
            self._end(f"took more than {_settings['cell_seconds']:.0f} s and would not be interrupted")

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        if self.is_alive():
            self.stop()
        raise KernelEnded(self.ended)


def pytest_configure(config: pytest.Config) -> None:
    _settings.update(json.loads(Path(os.environ.pop(SETTINGS)).read_text(encoding="utf-8")))
    nbval.plugin.RunningKernel = WatchedKernel


def pytest_collection_finish(session: pytest.Session) -> None:
    """The notebook has been read: the learner's code must not find it, with the expected outputs in it."""
    Path(_settings["notebook"]).unlink()


def pytest_runtest_setup(item: pytest.Item) -> None:
    _tell({"began": getattr(item, "cell_num", -1)})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown" or (call.when == "setup" and call.excinfo is None):
        return
    kernel = getattr(item.parent, "kernel", None)
    error = None if call.excinfo is None else call.excinfo.value
    _tell(
        {
            "cell": getattr(item, "cell_num", -1),
            "agrees": error is None,
            "seconds": round(call.duration, 3),
            "outputs": [_short(output) for output in getattr(item, "test_outputs", None) or []],
            "interrupted": bool(getattr(kernel, "interrupted", False)),
            "ended": getattr(kernel, "ended", ""),
            "trouble": "" if isinstance(error, (nbval.plugin.NbCellError, type(None))) else str(error),
            "kernel": call.when == "call",
        }
    )


def _short(output: Any) -> Any:
    """An output as it came, an error without its traceback, which nobody reads here."""
    if output["output_type"] != "error":
        return output
    return {**output, "evalue": str(output["evalue"])[:2000], "traceback": []}


def _tell(line: dict[str, Any]) -> None:
    with Path(_settings["report"]).open("a", encoding="utf-8") as report:
        report.write(json.dumps({**line, "at": time.time()}) + "\n")
