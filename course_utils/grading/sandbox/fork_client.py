"""Kernels that are there at once: forked, in the sandbox, from one process that has done the imports.

That process lives as long as this one, and is started anew should it end. It holds nothing of anybody's: no submission,
no answers; and once it has done its imports it has no rights beyond those of the sandbox either.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from ...errors import CourseError
from .. import scratch
from ..processes import PACKAGE
from . import bubblewrap

MODULES = (
    "numpy", "torch", "transformers", "transformers.models.llama", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers", "tokenizers", "tokenizers.trainers", "scipy.stats",
    "sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline", "sklearn.preprocessing",
    "matplotlib.figure", "matplotlib.font_manager", "matplotlib.backends.backend_agg", "ipykernel.kernelapp",
    "ipykernel.debugger", "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger",
    "IPython.core.oinspect", "IPython.extensions.storemagic", "tornado.platform.asyncio", "pandas", "tqdm.auto",
    "course_utils.models", "course_utils.attribution", "course_utils.attention", "course_utils.probing",
    "course_utils.ablation", "course_utils.patching", "course_utils.plots",
    "course_utils.grading.sandbox.kernel_main",
    *sorted(f"course_utils.checks.{path.stem}" for path in (PACKAGE / "checks").glob("[a-z]*.py")),
)  # fmt: skip
_PATIENCE = 120  # seconds for the imports
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_lock = threading.Lock()
_parent: Parent | None = None


class Parent:
    """The process that forks; `address` is where to ask it. A CourseError where it does not start."""

    def __init__(self) -> None:
        self.folder, self.environment = scratch.new_folder(), bubblewrap.environment()
        self.models = _models()
        self.address = str(self.folder / "s")
        self.process: subprocess.Popen[bytes] | None = None
        ready, write = os.pipe()
        started = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(write, started), name="warm-kernels", daemon=True)
        keeper.start()
        started.wait()
        os.close(write)
        with open(ready, "rb") as said:
            if select.select([said], [], [], _PATIENCE)[0] and said.read(5) == b"ready":
                return
        self.end()
        told = (self.folder / "log").read_text(encoding="utf-8", errors="replace").strip()[-300:]
        shutil.rmtree(self.folder, ignore_errors=True)
        raise CourseError(f"Expected warm kernels, and their parent does not start here ({told or 'no reason given'}).")

    def _keep(self, write: int, started: threading.Event) -> None:
        """Start it and wait for its end, in a thread that lives as long: it would die with the thread that began it."""
        try:
            with socket.socket(socket.AF_UNIX) as listener, (self.folder / "log").open("wb") as log:
                listener.bind(self.address)
                listener.listen(100)
                script = str(Path(__file__).with_name("fork_server.py"))
                arguments = [script, str(listener.fileno()), str(write), json.dumps(MODULES)]
                self.process = subprocess.Popen(
                    [*bubblewrap.command(bubblewrap.readable(), 1 << 26, forks=True), "--", sys.executable, *arguments],
                    env=self.environment | {"OPENBLAS_NUM_THREADS": "1"},
                    pass_fds=[listener.fileno(), write],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:  # a socket's path may be too long, for one
            (self.folder / "log").write_text(str(error), encoding="utf-8")
            return
        finally:
            started.set()
        self.process.wait()

    @property
    def lives(self) -> bool:
        """Whether it can be asked."""
        return self.process is not None and self.process.poll() is None

    @property
    def knows_the_models(self) -> bool:
        """Whether its kernels look for models where they are now."""
        return self.models == _models()

    def end(self) -> None:
        """End it, and all kernels with it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            (self.folder / "s").unlink()


def _models() -> tuple[Path, bool]:
    """Where models are looked for now, and whether they are there."""
    return bubblewrap.models(), os.path.exists(bubblewrap.models())


def parent() -> Parent:
    """The process that forks, started if there is none, or if its kernels would look for models where none are now."""
    global _parent  # noqa: PLW0603
    with _lock:
        if _parent is None or not _parent.lives or not _parent.knows_the_models:
            end()
            _parent = Parent()
            atexit.register(end)
        return _parent


def end() -> None:
    """End the process that forks, if there is one."""
    global _parent  # noqa: PLW0603
    if _parent is not None:
        _parent.end()
        shutil.rmtree(_parent.folder, ignore_errors=True)
        _parent = None
        atexit.unregister(end)


@cache
def trouble() -> str:
    """Why no warm kernels can be had here, in a sentence, or "": a parent is started, and stays, to find out."""
    if why := bubblewrap.trouble():
        return why
    trial = {"disk_bytes": 1 << 20, "resources": {}}
    try:
        with scratch.folder() as empty:
            ask(parent().address, request(trial, empty, "", []), []).close()
    except (CourseError, OSError) as error:
        return f"warm kernels do not work here ({error})."
    return ""


class Forked:
    """A kernel's first process, as Jupyter wants to see a process; it ends when it is closed."""

    stdin = stdout = stderr = None

    def __init__(self, connection: socket.socket, first: psutil.Process) -> None:
        self.connection, self.first, self.pid = connection, first, first.pid

    def poll(self) -> int | None:
        """0 once it has ended."""
        with suppress(psutil.NoSuchProcess):
            if self.first.status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def wait(self) -> int:
        """Wait for its end."""
        while self.poll() is None:
            time.sleep(0.01)
        self.close()
        return 0

    def close(self) -> None:
        """Let it go: whoever keeps it ends it then."""
        self.connection.close()


def ask(address: str, told: dict[str, Any], sockets: list[int], doors: Sequence[int] = ()) -> Forked:
    """Ask for a kernel on sockets that are bound already, in the group to which these doors lead; or an OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        connection.connect(address)
        with tempfile.TemporaryFile() as payload:
            payload.write(json.dumps(told).encode())
            payload.seek(0)
            socket.send_fds(connection, [b"?"], [payload.fileno(), *sockets, *doors])
            said, beside, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not said:
            raise OSError("the kernel's parent could not start one")
        return Forked(connection, psutil.Process(_CREDENTIALS.unpack(beside[0][2])[0]))
    except BaseException:
        connection.close()
        raise


def request(limits: dict[str, Any], inside: Path, connection: str, addresses: list[str]) -> dict[str, Any]:
    """What a kernel is to be, for `ask`.

    Args:
        limits: the fields of Limits, and as "resources" what the system limits for each process.
        inside: a folder whose files are to be where the kernel runs.
        connection: the text of its connection file.
        addresses: of the sockets that are handed over, in order.
    """
    files = {path.relative_to(inside).as_posix(): path.read_bytes() for path in inside.rglob("*") if path.is_file()}
    seen = (place for _, place in bubblewrap.readable())
    below = [place for place in seen if place.startswith("/tmp/") and not place.startswith(bubblewrap.HOME)]
    return {
        "user": bubblewrap.USER,
        "disk_bytes": limits["disk_bytes"],
        "resources": limits["resources"],
        "scratch": bubblewrap.SCRATCH,
        "below": below,
        "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        "connection": connection,
        "addresses": addresses,
        "environment": bubblewrap.environment(),
        "refusals": base64.b64encode(bubblewrap.refusals()).decode(),
    }
