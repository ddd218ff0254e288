"""A pytest plugin beside nbval: the kernel runs elsewhere, no cell hangs, each cell's outcome is written down.

nbval compares; what is added here is a kernel whose folder is not the notebook's, whose death is noticed at once, that
is interrupted after a cell's time, and whose output is counted. Only the process that `run` starts loads it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import nbval.plugin
import psutil
import pytest
import zmq
from jupyter_client.manager import KernelManager
from nbval.kernel import NbvalKernelspecManager, RunningKernel

from ...loading.threads import wait_asleep
from ..processes import below
from ..result import SETTINGS
from ..sandbox.kernel_main import QUIET

MOST_MESSAGES = 20_000  # of one cell
LONGEST, MOST_SHOWN = 100_000, 8_000_000  # characters that are kept of a printed text, and of all outputs
GONE = "ended the Python process it ran in"
_PATIENCE = 3  # seconds on the wall for each that a cell may take of the processor
_GRACE = 10  # seconds for a cell that was interrupted
_settings: dict[str, Any] = {"cell": -1}
_told: dict[int, dict[str, Any]] = {}


class KernelEnded(RuntimeError):
    """The kernel is gone: it died, would not be interrupted, or flooded its output."""


class Clock:
    """How long a cell, below this process, has been at it: by its own share of the processor where others use that."""

    def __init__(self, first: psutil.Process | None = None) -> None:
        self.first, self.began = first, time.monotonic()
        self.before: float | None = None  # looked up with the first question: most cells end before it

    def lasted(self, least: float) -> float:
        """Seconds; on the wall if these are fewer than `least`, and never less than a third of those on the wall."""
        wall = time.monotonic() - self.began
        if self.before is None:
            self.before = _worked(self.first)
        return wall if wall <= least else max(wall / _PATIENCE, min(wall, self._worked_since()))

    @property
    def waits(self) -> bool:
        """Whether it has hardly used the processor so far."""
        return self._worked_since() < (time.monotonic() - self.began) / 20

    def _worked_since(self) -> float:
        return _worked(self.first) - (self.before or 0.0)


def _worked(first: psutil.Process | None) -> float:
    """Seconds of processor time of a process and of all below it, those that have ended among them."""
    total = 0.0
    try:
        for process in [first, *below(first)] if first else []:
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
    except psutil.Error:
        pass
    return total


class WatchedKernel(RunningKernel):  # type: ignore[misc]
    """nbval's kernel, in a folder of its own and under watch."""

    def __init__(self, kernel_name: str, cwd: str | None = None, startup_timeout: float = 60) -> None:
        self.clock, self.looked, self.interrupted, self.ended, self.waits = Clock(), 0.0, 0.0, "", False
        self.asked, self.cells = "", dict[str, int]()  # which request is being answered; which cell's each was
        self.heard: deque[Any] = deque()  # what was said while the reply was waited for
        self.sent: Counter[int] = Counter()
        self.messages: Counter[int] = Counter()
        wait_asleep()  # what starts now inherits it, on a worker of a cluster, too
        self.km = KernelManager(kernel_name=kernel_name, kernel_spec_manager=NbvalKernelspecManager())
        with Path(os.devnull).open("w") as nothing:
            self.km.start_kernel(stderr=nothing, cwd=_settings["folder"], extra_arguments=[*QUIET])
        self.kc = self.km.client()
        self.kc.start_channels()
        self._ask_until_heard(time.monotonic() + startup_timeout)

    def _ask_until_heard(self, until: float) -> None:
        """Ask the kernel who it is until the answer comes, and what it says beside it: then it is ready.

        jupyter_client's own way listens for a fifth of a second more, to be sure that nothing else comes.
        """
        while time.monotonic() < until:
            asked = self.kc.kernel_info()
            with suppress(Empty):
                self.await_reply(asked, timeout=until - time.monotonic())
                self.await_idle(asked, timeout=0.2)  # what was said before we could listen is lost
                return
        raise RuntimeError("it does not answer")

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> Any:
        self.clock, self.interrupted, self.waits = Clock(self._first()), 0.0, False
        self.asked = super().execute_cell_input(cell_input, allow_stdin)
        self.cells[self.asked] = _settings["cell"]
        return self.asked

    def get_message(self, stream: str, timeout: float | None = None) -> Any:
        """The next message; a kernel that died, or that goes on after its time, is not waited for.

        While a reply is waited for, what else is said is taken too: who says too much is ended while at it.
        """
        until = time.monotonic() + (timeout if timeout is not None else 1e9)
        while True:
            if time.monotonic() - self.looked > 0.25:
                self._look_after()
            if stream == "iopub" and self.heard:
                return self.heard.popleft()
            wait = min(0.5, max(0.01, until - time.monotonic()))
            ready = self._ready(("shell", "iopub") if stream == "shell" else ("iopub",), wait)
            for _ in range(100 if stream == "shell" and "iopub" in ready else 0):
                if (said := self._taken("iopub")) is None:
                    break
                self.heard.append(said)
            if stream in ready and (message := self._taken(stream)) is not None:
                self._look_for_exit(message)
                return message
            if time.monotonic() >= until:
                if stream == "iopub" and self.asked:  # the system drops what is sent too fast, the end among it
                    self._end("did not come to the end of its output")
                raise Empty

    def _ready(self, streams: tuple[str, ...], seconds: float) -> set[str]:
        """Which of these have something to say, within so much time."""
        poller, names = zmq.Poller(), {getattr(self.kc, f"{name}_channel").socket: name for name in streams}
        for socket in names:
            poller.register(socket, zmq.POLLIN)
        return {names[socket] for socket in dict(poller.poll(int(1000 * seconds)))}

    def _taken(self, stream: str) -> Any:
        """The next message of those that are there, counted, or None; jupyter_client's way costs an event loop each."""
        channel = getattr(self.kc, f"{stream}_channel")
        try:
            parts = channel.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        message = channel.session.deserialize(channel.session.feed_identities(parts)[1])
        self._count(message)
        return message

    def _count(self, message: Any) -> None:
        """Count what was said to the cell that said it, though it may come when the next is at work.

        What tells which code is run is the learner's source, and no output.
        """
        cell = self.cells.get(message["parent_header"].get("msg_id", ""), _settings["cell"])
        said = message["content"]
        if "traceback" in said:  # which is long, and which nobody reads here
            said["traceback"] = []
        self.sent[cell] += len(str(said)) if message["msg_type"] != "execute_input" else 0
        self.messages[cell] += 1
        if self.sent[cell] > _settings["output_bytes"]:
            self._end(f"showed more than {_settings['output_bytes'] / 1e6:g} MB", cell)
        if self.messages[cell] > MOST_MESSAGES:
            self._end(f"sent more than {MOST_MESSAGES} messages", cell)

    def _look_for_exit(self, message: Any) -> None:
        """A cell that asked to end the kernel has ended it: not a moment later, whatever it gets done until then."""
        if message["parent_header"].get("msg_id") == self.asked and message["msg_type"] == "execute_reply":
            for told in message["content"].get("payload") or []:
                if told.get("source") == "ask_exit" and not told.get("keepkernel"):
                    self._end(GONE)

    def _look_after(self) -> None:
        self.looked = time.monotonic()
        if psutil.Process(os.getppid()).ppid() != _settings["parent"]:  # above us is the session, above it the grader
            self._end("was left alone by the grader")
        if not self.is_alive():
            self._end(self.why_gone())
        if self.interrupted and self.looked - self.interrupted > _GRACE:
            self._end(f"took more than {_settings['cell_seconds']:.0f} s and would not be interrupted")
        most = _settings["cell_seconds"]
        if self.asked and not self.interrupted and self.clock.lasted(most) > most:
            self.interrupted, self.waits = self.looked, self.clock.waits
            self.interrupt()

    def why_no_more(self) -> str:
        """Why no other cell can run, or "": the kernel is gone, or its sandbox uses more than it may and is ended."""
        watch, why = getattr(self.km.provisioner, "watch", None), ""
        with suppress(psutil.Error):  # it is gone
            why = watch.look() if watch else ""
        if why and self.is_alive():
            self.stop()
        return why or ("" if self.is_alive() else self.why_gone())

    def why_gone(self) -> str:
        """What ended the kernel: the sandbox's word, if it was that."""
        provisioner = getattr(getattr(self, "km", None), "provisioner", None)
        return getattr(provisioner, "why", "") or GONE

    def _first(self) -> psutil.Process | None:
        provisioner = self.km.provisioner
        watch = getattr(provisioner, "watch", None)
        with suppress(psutil.Error):
            return watch.first if watch else psutil.Process(provisioner.process.pid)
        return None

    def _end(self, why: str, cell: int | None = None) -> None:
        self.ended = self.ended or why
        if self.is_alive():
            self.stop()
        if cell is not None and cell != _settings["cell"]:
            _blame(cell, why)
        raise KernelEnded(self.ended)


def pytest_configure(config: pytest.Config) -> None:
    _settings.update(json.loads(Path(os.environ.pop(SETTINGS)).read_text(encoding="utf-8")))
    nbval.plugin.RunningKernel = WatchedKernel
    nbval.plugin.coalesce_streams = _coalesced


def _coalesced(outputs: Any, merge: Any = nbval.plugin.coalesce_streams) -> Any:
    """Outputs as nbval compares them; of a check what it printed itself, from where it began to its token.

    What else is shown meanwhile comes from threads that a learner's cell has left at work. Two ends are no check's.
    """
    outputs, token = merge(outputs), _settings["token"]
    for output in outputs:
        if output.output_type == "stream" and output.name == "stdout":
            _, began, printed = output.text.partition(token[::-1])
            if began and printed.count(token) == 1:
                output.text = printed.partition(token)[0] + token
                return [output]
    return outputs


def pytest_collection_finish(session: pytest.Session) -> None:
    """The notebook has been read: the learner's code must not find it, with the expected outputs in it."""
    Path(_settings["notebook"]).unlink()


def pytest_runtest_setup(item: pytest.Item) -> None:
    before, _settings["cell"] = _settings["cell"], getattr(item, "cell_num", -1)
    kernel = getattr(item.parent, "kernel", None)
    if kernel is not None and not kernel.ended:
        kernel.ended = kernel.why_no_more()
        if kernel.ended:  # what the last cell did shows only now
            _blame(before, kernel.ended)
    _tell({"began": _settings["cell"]})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "teardown" or (call.when == "setup" and call.excinfo is None):
        return
    kernel = getattr(item.parent, "kernel", None)
    error = None if call.excinfo is None else call.excinfo.value
    number = getattr(item, "cell_num", -1)
    _told[number] = {
        "cell": number,
        "agrees": error is None,
        "seconds": round(call.duration, 3),
        "outputs": [_short(output) for output in getattr(item, "test_outputs", None) or []],
        "interrupted": bool(getattr(kernel, "interrupted", False)),
        "waits": getattr(kernel, "waits", False),
        "ended": getattr(kernel, "ended", ""),
        "trouble": "" if isinstance(error, (nbval.plugin.NbCellError, type(None))) else str(error),
        "kernel": call.when == "call",
    }
    _tell(_told[number])


def _blame(cell: int, why: str) -> None:
    """What an earlier cell did turns out only now: its line is written again."""
    if cell in _told:
        _told[cell]["ended"] = why
        _tell(_told[cell])


def _short(output: Any) -> Any:
    """An output as it came, as long as a reader can take; an error without its traceback, which nobody reads here."""
    if output["output_type"] == "error":
        return {**output, "evalue": str(output["evalue"])[:2000], "traceback": []}
    size, is_text = len(str(output)), output["output_type"] == "stream"
    shown = _settings.get("shown", 0) + (min(size, LONGEST) if is_text else size)
    if shown > MOST_SHOWN:
        return {"output_type": "stream", "name": "stderr", "text": "(more than is kept)\n"}
    _settings["shown"] = shown
    if is_text and size > LONGEST:
        return {**output, "text": str(output["text"])[:LONGEST]}
    return output


def _tell(line: dict[str, Any]) -> None:
    with Path(_settings["report"]).open("a", encoding="utf-8") as report:
        report.write(json.dumps({**line, "at": time.time()}) + "\n")
