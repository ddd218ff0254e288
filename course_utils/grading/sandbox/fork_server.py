"""Inside the sandbox: one process that has imported what learners import, and forks a kernel for each who asks.

Run as a script by `warm`, never imported. Importing torch and transformers takes seconds, forking takes milliseconds.
Each kernel gets namespaces of its own (user, mount, process, network, IPC), a fresh home, /tmp, /dev/shm and /proc, and
then loses every capability: it is as much alone as one that bubblewrap started for it.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

HOME = Path("/tmp/home")
WORK, CONNECTION = HOME / "work", HOME / ".connection.json"
_NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mount, IPC, user, process, network
_NOSUID, _NODEV, _NOEXEC, _READ_ONLY, _BIND, _REC, _PRIVATE = 2, 4, 8, 1, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def main(listener: socket.socket, ready: int, modules: list[str]) -> NoReturn:
    """Import what is asked for, say so, then fork whenever somebody connects."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # what ipykernel would say
    for module in modules:
        with suppress(ImportError):  # not everybody has all of them
            importlib.import_module(module)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise SystemExit(f"{threads} threads after the imports: they would not survive a fork")
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)  # whole, so that children may mount one, too
    _drop_capabilities(but=31)  # CAP_SETFCAP, without which a child could not map our user to its own
    home = {path.relative_to(HOME): path.read_bytes() for path in HOME.rglob("*") if path.is_file()}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for those that end
    gc.collect()
    gc.freeze()  # what is shared stays shared
    os.write(ready, b"ready")
    os.close(ready)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _or_end(_keep, connection, home)
        connection.close()


def _or_end(what: Any, *arguments: Any) -> NoReturn:
    """Do something and end, whatever comes: a fork must not go on with what its parent was at."""
    try:
        what(*arguments)
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:
        with suppress(OSError):
            os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def _keep(connection: socket.socket, home: dict[Path, bytes]) -> None:
    """Start a kernel in namespaces of its own; end it as soon as whoever asked for it is gone."""
    _, handed, _, _ = socket.recv_fds(connection, 1, 8)
    payload, *sockets = handed
    with open(payload, "rb") as file:
        told = json.load(file)
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_NAMESPACES))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{told['user']} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{told['user']} {group} 1")
    first = os.fork()
    if first == 0:
        _or_end(_begin, connection, told, sockets, home)
    for number in sockets:
        os.close(number)
    ended = os.pidfd_open(first)
    select.select([connection.fileno(), ended], [], [])
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)


def _begin(connection: socket.socket, told: dict[str, Any], sockets: list[int], home: dict[Path, bytes]) -> None:
    """The first process of a kernel's namespaces: furnish them, give up all rights, start the kernel, outlive it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)  # which for a first process means: ignore
    _furnish(told, home)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nothing, number)  # the log outside is for us
    os.close(nothing)
    _drop_capabilities()
    _filter(base64.b64decode(told["refusals"]))
    connection.send(b"!")  # and the system says, with it, who we are
    connection.close()
    kernel = os.fork()
    if kernel == 0:
        _or_end(_be_a_kernel, told, sockets)
    _prctl(4, 0)  # PR_SET_DUMPABLE: nobody inside traces this process
    for number in sockets:
        os.close(number)
    while os.wait()[0] != kernel:
        pass


def _furnish(told: dict[str, Any], home: dict[Path, bytes]) -> None:
    """A /tmp, /dev/shm and /proc of its own, in them what it may read; all else is read-only already."""
    _mount("none", "/", "", _REC | _PRIVATE)
    kept = [(place, os.open(place, os.O_PATH)) for place in told["below"]]  # what the new /tmp would cover
    for scratch in told["scratch"]:
        _mount("tmpfs", scratch, "tmpfs", _NOSUID | _NODEV, f"size={told['disk_bytes']},mode=0755")
    for place, number in kept:
        Path(place).mkdir(parents=True) if os.path.isdir(f"/proc/self/fd/{number}") else _touch(Path(place))
        _mount(f"/proc/self/fd/{number}", place, "", _BIND | _REC)
        os.close(number)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC | _READ_ONLY)
    files = {WORK / name: base64.b64decode(content) for name, content in told["files"].items()}
    files |= {HOME / name: content for name, content in home.items()}
    files[CONNECTION] = told["connection"].encode()
    WORK.mkdir(parents=True)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:  # the way to oneself
        fcntl.ioctl(ours, 0x8914, struct.pack("16sH22x", b"lo", 0x1 | 0x40))


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _be_a_kernel(told: dict[str, Any], sockets: list[int]) -> None:
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(WORK)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all kernels would draw the same
    from course_utils.grading.sandbox import kernel_main

    sys.argv = ["ipykernel_launcher.py", "-f", str(CONNECTION), *kernel_main.QUIET]
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    limits = told["resources"]
    limits["DATA"] += 1024 * int(status["VmData"].split()[0])  # what it came into the world with is not its own
    ours = len(told["addresses"])
    kernel_main.main(limits, dict(zip(told["addresses"], sockets[:ours], strict=True)), sockets[ours:])


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()))


def _drop_capabilities(but: int | None = None) -> None:
    """For good: from the bounding and ambient sets, and from what is in force."""
    for capability in range(64):
        _libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; the highest numbers do not exist
    _prctl(47, 4)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
    kept = 0 if but is None else 1 << but
    header, sets = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    _check(_libc.capset(header, sets))
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def _filter(program: bytes) -> None:
    """Refuse the system calls that a filter names."""
    if not program:
        return

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    wanted = Program(len(program) // 8, program)
    _check(_libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(wanted), 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _prctl(*arguments: int) -> None:
    _check(_libc.prctl(*[ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:5]]))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have names of their own
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), json.loads(sys.argv[3]))
