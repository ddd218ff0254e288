"""Jupyter's way to a kernel in the sandbox: start it, watch what it uses, end it with all that it started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.provisioning import LocalProvisioner
from traitlets import Bool, Dict, List, Unicode

from ..processes import below
from .bubblewrap import CONNECTION, SCRATCH, command, environment, refusals
from .control_groups import Group, make
from .fork_client import ask, request

MOST_FILES = 50_000  # on the disk in memory, where empty ones take memory too
MOST_HELD = 500_000_000  # bytes of what a kernel sends, held by us before nbval has looked at it
EVERY = 0.1  # seconds from one look at the sandbox to the next
_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class SandboxProvisioner(LocalProvisioner):  # type: ignore[misc]
    """Starts a kernel inside bubblewrap; `sandbox.kernel` writes down where and with what."""

    sockets = Unicode(help="where its sockets are, without their numbers")
    mounts: Any = List(help="what is seen inside: from where, and as what")
    limits: Any = Dict(help="the fields of Limits")
    inside = Unicode(help="the folder of the files that a warm kernel gets")
    parent_address = Unicode(help="where to ask for a warm kernel")
    grouped = Bool(help="whether it gets a control group of its own")
    process: Any = None
    watch: Watch | None = None

    @property
    def why(self) -> str:
        """What the kernel did to be ended by the watch or by the system, or ""."""
        return (self.watch.why or self.watch.too_much()) if self.watch else ""

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Have the kernel talk over unix sockets, which need no network."""
        manager = self.parent
        manager.transport, manager.ip, manager.cache_ports = "ipc", self.sockets, False
        manager.connection_file = f"{self.sockets}.json"
        told: dict[str, Any] = await super().pre_launch(**kwargs)
        return told

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start bubblewrap, hand it what is open, and watch it from its first moment."""
        with ExitStack() as ours:  # what is opened here stays open in the kernel alone
            connection = ours.enter_context(Path(self.parent.connection_file).open("rb"))
            refused = ours.enter_context(tempfile.TemporaryFile())
            refused.write(refusals())
            refused.seek(0)
            paths = [f"{self.sockets}-{self.connection_info[port]}" for port in _PORTS]
            group = make(self.limits["memory_bytes"], self.limits["processes"]) if self.grouped else None
            doors = group.doors() if group else []
            for door in doors:
                ours.callback(os.close, door)
            sockets = {f"ipc://{path}": ours.enter_context(_listening(path)).fileno() for path in paths}
            if self.parent_address:
                limits = self.limits | {"resources": _resources(self.limits)}
                told = request(limits, Path(self.inside), connection.read().decode(), list(sockets))
                self.process = ask(self.parent_address, told, list(sockets.values()), doors)
                self.watch = Watch(self.process.first, self.limits, group)
                self.watch.start()
                return self.connection_info
            told = {"limits": _resources(self.limits), "sockets": sockets, "doors": doors}
            ready, write = os.pipe()
            ours.callback(os.close, ready)
            start = [*command(self.mounts, self.limits["disk_bytes"]), "--info-fd", str(write)]
            start += ["--file", str(connection.fileno()), CONNECTION]
            start += ["--seccomp", str(refused.fileno())] if refusals() else []
            self.process = subprocess.Popen(
                [*start, "--", *cmd, json.dumps(told)],
                env=environment(),
                pass_fds=[*sockets.values(), *doors, connection.fileno(), refused.fileno(), write],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            os.close(write)
            self.watch = Watch(_first_process(ready), self.limits, group)
        self.watch.start()
        return self.connection_info

    async def kill(self, restart: bool = False) -> None:
        """End everything inside, of which bubblewrap's first process is the root: the system ends the rest with it."""
        if self.watch is not None:
            self.watch.end()

    async def terminate(self, restart: bool = False) -> None:
        """The same: nothing inside has a right to a last word."""
        await self.kill()

    async def send_signal(self, signum: int) -> None:
        """Nothing: interrupts go as messages, and no other signal but the last is for a kernel."""


class Watch(threading.Thread):
    """Looks at all that runs in a sandbox, and ends it once it uses more than it may.

    Attributes:
        why: what it did, as the end of a sentence that begins with a cell's name; "" while all is well.
    """

    def __init__(self, first: psutil.Process, limits: dict[str, Any], group: Group | None = None) -> None:
        super().__init__(name="sandbox-watch", daemon=True)
        self.first, self.limits, self.group, self.why = first, limits, group, ""
        self._looks, self._disks = threading.Lock(), dict[str, int]()
        self._ours = psutil.Process()
        self._held_before = _resident(self._ours)

    def run(self) -> None:
        """Look again and again until the sandbox has ended."""
        pause = threading.Event()
        try:
            while self.first.is_running() and not self.look():
                pause.wait(EVERY)
        except psutil.NoSuchProcess:
            pass
        finally:
            self.why = self.why or self.too_much()
            self.end()
            for number in self._disks.values():
                os.close(number)

    def look(self) -> str:
        """Look once, and say `why`; asked before each cell, too, so that the blame is on the one before."""
        with self._looks:
            self.why = self.why or self._excess()
        return self.why

    def end(self) -> None:
        """Kill the first process; when it is gone, so is everything."""
        try:
            self.first.kill()
            self.first.wait(10)
        except (psutil.NoSuchProcess, psutil.TimeoutExpired):
            pass
        if self.group is not None:
            self.why = self.why or self.too_much()
            self.group.remove()

    def too_much(self) -> str:
        """What the system itself has refused or ended, as `why`."""
        found = self.group.excess() if self.group is not None else ""
        return {"memory": self._memory, "processes": self._processes}.get(found, "")

    @property
    def _memory(self) -> str:
        return f"used more than {self.limits['memory_bytes'] / 1e9:.3g} GB of memory"

    @property
    def _processes(self) -> str:
        return f"started more than {self.limits['processes']} processes and threads"

    def _excess(self) -> str:
        if found := self.too_much():
            return found
        tree = below(self.first)
        if len(tree) > self.limits["processes"] or sum(map(_threads, tree)) > self.limits["processes"]:
            return self._processes
        written, files = self._on_disk(tree)
        if files > MOST_FILES:
            return f"made more than {MOST_FILES} files"
        if _resident(self._ours) - self._held_before > MOST_HELD:
            return "sent more than anybody could read"
        most = self.limits["memory_bytes"]
        if sum(map(_resident, tree)) + written > most and sum(map(_share, tree)) + written > most:
            return self._memory
        return ""

    def _on_disk(self, tree: list[psutil.Process]) -> tuple[int, int]:
        """Bytes and files on the disks in memory, which are opened before the learner's code could be in the way."""
        for place in SCRATCH:
            if place not in self._disks and tree:
                self._open(f"/proc/{tree[0].pid}/root{place}", place)
        found = [os.fstatvfs(number) for number in self._disks.values()]
        return sum((f.f_blocks - f.f_bfree) * f.f_frsize for f in found), sum(f.f_files - f.f_ffree for f in found)

    def _open(self, path: str, place: str) -> None:
        try:
            number = os.open(path, os.O_PATH | os.O_DIRECTORY)
        except OSError:  # not yet made
            return
        found = os.fstatvfs(number)
        if abs(found.f_blocks * found.f_frsize - self.limits["disk_bytes"]) <= found.f_frsize:
            self._disks[place] = number
        else:  # the system's own: bubblewrap has not got that far
            os.close(number)


def _threads(process: psutil.Process) -> int:
    try:
        return int(process.num_threads())
    except psutil.Error:  # it ended meanwhile
        return 0


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _share(process: psutil.Process) -> int:
    """The memory of a process, what it shares with others divided among them (slow: asked only when it matters)."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:  # it hides itself
        return _resident(process)
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _resources(limits: dict[str, Any]) -> dict[str, int]:
    """What the system limits for each process; the watch limits what they use together."""
    found = {
        "CORE": 0,
        "CPU": int(limits["total_seconds"]) * (os.cpu_count() or 1) + 60,
        "DATA": limits["memory_bytes"],  # an honest mistake is a MemoryError, and the kernel lives on
        "FSIZE": limits["disk_bytes"],
        "NOFILE": 1024,
    }
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 14):  # before, those outside would count too
        found["NPROC"] = 2 * limits["processes"]
    return found


def _first_process(ready: int) -> psutil.Process:
    """The process that everything else inside descends from, once bubblewrap has said which."""
    said = b""
    while b"}" not in said:
        more = os.read(ready, 4096)
        if not more:
            raise RuntimeError("bubblewrap ended before the kernel began")
        said += more
    return psutil.Process(json.loads(said)["child-pid"])


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    return listener
