"""Run a learner's kernel where it can do no harm: inside bubblewrap, without network, answers or anything to write to.

nbval and its process stay outside and talk to the kernel over five sockets that are bound there and handed in open.
Inside are the interpreter, the packages, this package, the system's libraries and the model, all read-only; a
home and a /tmp that live in memory and end with the kernel; no other process, no network, no environment of ours.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import site
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CourseError
from ...loading.smollm2 import READY_NAME, cache_folder
from ...loading.threads import ASLEEP, POLICY
from ..processes import PACKAGE
from . import control_groups

if TYPE_CHECKING:
    from ..result import Limits

USER = 1000  # who a learner is inside
NAME = "course-sandbox"  # of the kernel and of its provisioner
SCRATCH = ("/tmp", "/dev/shm")  # all that can be written: in memory, of limited size
HOME = "/tmp/home"
WORK, CONNECTION = f"{HOME}/work", f"{HOME}/.connection.json"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_OF_THE_HOST = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts", "/etc/localtime",
    "/sys/devices/system/cpu", "/sys/devices/system/node",  # without them, torch complains on stderr
)  # fmt: skip
# Of the folder of a Python, which may be a checkout or a home, with all that lies there.
_OF_PYTHON = ("bin", "include", "lib", "lib64", "share", "etc", "ssl", "pyvenv.cfg")
# By their whole names, for whoever names a variable like one of these may keep a secret in it. Nothing else passes.
_PASSED = frozenset({
    "LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME", "TZ",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "TOKENIZERS_PARALLELISM", "TQDM_DISABLE", "PYTHONHASHSEED",
})  # fmt: skip
_TRIAL = "import importlib.util as i; i.find_spec('ipykernel') or exit('inside, Python finds no package ipykernel')"
_RESTRICTED = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_LONGEST_ADDRESS = 107  # bytes in the path of a unix socket
# Refused, by machine: memory that no process shows (memfd_create, memfd_secret, shmget, msgget), what is not divided by
# namespaces (keyctl, add_key, request_key), what a learner has no use for and an attacker does (bpf, userfaultfd,
# io_uring_setup, perf_event_open), and further namespaces and mounts (unshare, setns, mount, umount2, pivot_root,
# open_tree, move_mount, fsopen, fsmount). Then the numbers of socket(), whose families are limited to _FAMILIES, and of
# clone(), which makes threads and processes and no namespaces; clone3() hides its flags, so it is said not to exist.
_REFUSED = {
    "x86_64": (
        0xC000003E,
        (319, 447, 29, 68, 250, 248, 249, 321, 323, 425, 298, 272, 308, 165, 166, 155, 428, 429, 430, 432),
        (41, 56, 435),
    ),
    "aarch64": (
        0xC00000B7,
        (279, 447, 194, 186, 219, 217, 218, 280, 282, 425, 241, 97, 268, 40, 39, 41, 428, 429, 430, 432),
        (198, 220, 435),
    ),
}
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06  # what an instruction does
_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: those that stay inside a network namespace
_NAMESPACES = 0x7E020080  # every flag of clone() that makes a namespace


@cache
def trouble() -> str:
    """Why no sandbox can be had here, in a sentence, or "" where it can: one is started to find out.

    >>> trouble()  # doctest: +SKIP
    'bubblewrap is not installed: apt install bubblewrap, or the same from your system.'
    """
    if not sys.platform.startswith("linux"):
        return "the sandbox needs Linux (on Windows, WSL), for it is made of Linux namespaces."
    if not _bwrap():
        return "bubblewrap is not installed: apt install bubblewrap, or the same from your system."
    if not entry_points(group="jupyter_client.kernel_provisioners", name=NAME):
        return "this package was installed before it had a sandbox: pip install it again."
    trial = [*command(readable(), 1 << 20), "--", sys.executable, "-c", _TRIAL]
    try:
        done = subprocess.run(trial, env=environment(), capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start here ({error})."
    said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"it ended with {done.returncode}"]
    held = "; AppArmor lets no user make namespaces, as on Ubuntu: docs/sandbox.md says how to change that"
    return f"bubblewrap does not work here ({said[-1]}){held * _is_held()}." if done.returncode else ""


def _is_held() -> bool:
    with suppress(OSError):
        return _RESTRICTED.read_text(encoding="ascii").strip() == "1"
    return False


def kernel(
    folder: Path, inside: Path, limits: Limits, *, more: Sequence[Path] = (), parent: str = ""
) -> dict[str, str]:
    """Write down a kernel that starts in the sandbox, and say in which environment Jupyter finds it under NAME.

    Args:
        folder: a private folder, for the kernel's description and its sockets; nothing of it is seen inside.
        inside: a folder whose files are, read-only, where the kernel runs.
        limits: what the kernel may use.
        more: files and folders that can be read there, at their own place.
        parent: where to ask for a warm kernel (`warm.parent().address`); "" for one that starts from nothing.

    Raises:
        CourseError: there is no sandbox here, or the folder's path is too long for a socket.
    """
    if why := trouble():
        raise CourseError(f"Expected a sandbox for the learner's code, and {why}")
    sockets = folder / "kernel"
    if len(os.fsencode(sockets)) + 2 > _LONGEST_ADDRESS:
        raise CourseError(f"Expected a shorter folder for temporary files than {folder.parent.parent}; set TMPDIR.")
    config: dict[str, Any] = {
        "sockets": str(sockets),
        "limits": vars(limits),
        "parent_address": parent,
        "inside": str(inside),
        "grouped": control_groups.trouble() == "",
    }
    if not parent:
        config["mounts"] = readable(more) + [(str(path), f"{WORK}/{path.name}") for path in sorted(inside.iterdir())]
    launcher = Path(__file__).with_name("kernel_main.py")
    described = {
        "argv": [sys.executable, str(launcher), "-f", CONNECTION],
        "display_name": "Python in a sandbox",
        "language": "python",
        "interrupt_mode": "message",  # signals do not reach the process: it has a number of its own inside
        "metadata": {"kernel_provisioner": {"provisioner_name": NAME, "config": config}},
    }
    place = folder / "jupyter" / "kernels" / NAME
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(described), encoding="utf-8")
    return {"JUPYTER_PATH": str(folder / "jupyter")}


def readable(more: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """What is seen inside, read-only: from where, and as what."""
    pythons = [prefix / part for prefix in _interpreters() for part in _OF_PYTHON]
    wanted = [
        *map(Path, _OF_THE_HOST),
        *pythons,
        *map(Path, site.getsitepackages()),
        *_packages(),
        PACKAGE,
        models(),
        *more,
    ]
    places = [str(path.absolute()) for path in wanted if os.path.exists(path)]
    fonts = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "matplotlib")
    lists = fonts.glob("fontlist*.json") if os.access(fonts, os.R_OK) else ()
    found = [(str(path), f"{HOME}/.cache/matplotlib/{path.name}") for path in lists]
    seen = {*places, *_SYSTEM}  # and with them what lies below
    whole = {place for place in places if seen.isdisjoint(map(str, Path(place).parents))}
    return [(place, place) for place in sorted(whole - set(_SYSTEM))] + found


def models() -> Path:
    """What a kernel sees of the model cache: the folder around it may hold whatever is its owner's."""
    return cache_folder().absolute() / READY_NAME


def _packages() -> list[Path]:
    """Further folders of installed packages: the user's own, and what PYTHONPATH names, as a cluster's modules do.

    A checkout on the way holds no .dist-info, and is not shown. What lies inside an installed package, as setuptools'
    own copies of others do once it is imported, would come before the packages themselves.
    """
    known = site.getsitepackages()
    places = [Path(place) for place in sys.path if place and not any(Path(place).is_relative_to(one) for one in known)]
    return [place for place in places if any(place.glob("*.dist-info"))]


def _interpreters() -> Iterator[Path]:
    """The folders of this Python: its environment's, and those that its links lead to."""
    yield from (Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve())
    program = Path(sys.executable)
    while program.is_symlink():
        program = program.parent / program.readlink()
        if program.parent.name == "bin":
            yield Path(os.path.normpath(program.parent.parent))


def command(mounts: Sequence[Sequence[str]], disk_bytes: int, *, forks: bool = False) -> list[str]:
    """Bubblewrap with every namespace of its own, and nothing that can be written but a /tmp of that size.

    With `forks` for a process that makes further namespaces, and first a /proc, after which it gives up the right to.
    """
    user = "0" if forks else str(USER)  # bubblewrap gives another user a second namespace, which has no right to mount
    told = [_bwrap(), "--unshare-all", "--unshare-user", "--uid", user, "--gid", user, "--hostname", "sandbox"]
    told += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    if forks:
        told += [word for right in ("SYS_ADMIN", "SETPCAP", "SETFCAP") for word in ("--cap-add", f"CAP_{right}")]
    elif "--disable-userns" in _options():
        told.append("--disable-userns")
    for place in map(Path, _SYSTEM):
        if place.is_symlink():
            told += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            told += ["--ro-bind", str(place), str(place)]
    for scratch in SCRATCH:
        told += ["--size", str(disk_bytes), "--tmpfs", scratch]
    told += ["--dir", HOME, "--dir", WORK]
    for source, target in mounts:
        told += ["--ro-bind", source, target]
    closed = ("/proc", "/dev", "/")  # a root outside could write to /proc/sys even without any capability
    return [*told, *(word for place in closed for word in ("--remount-ro", place)), "--chdir", WORK]


def _bwrap() -> str:
    return shutil.which("bwrap") or ""


@cache
def _options() -> str:
    return subprocess.run([_bwrap(), "--help"], capture_output=True, text=True, check=False).stdout


def environment() -> dict[str, str]:
    """What the kernel knows of the environment: language, threads, its own places."""
    kept = {key: value for key, value in os.environ.items() if key in _PASSED}
    programs = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    return kept | {
        "PATH": os.pathsep.join(programs),
        "PYTHONPATH": os.pathsep.join(map(str, (PACKAGE.parent, *_packages()))),
        "HOME": HOME,
        "LOGNAME": "learner",  # nobody has an account inside
        "USER": "learner",
        "IPYTHONDIR": f"{HOME}/.ipython",
        "COURSE_CACHE": str(cache_folder().absolute()),
        "HF_HUB_OFFLINE": "1",
        POLICY: ASLEEP,  # whatever the grader's own: many run beside each other
    }


def refusals() -> bytes:
    """A filter of system calls for bubblewrap's `--seccomp`, as the kernel's classic BPF; b"" on other machines."""
    if platform.machine() not in _REFUSED or sys.maxsize < 1 << 32:
        return b""
    number, architecture, argument = 0, 4, 16  # places in seccomp_data
    machine, calls, (open_socket, clone, clone3) = _REFUSED[platform.machine()]
    program: list[str | tuple[int, int, str, str]] = [  # labels, and instructions: what, value, where to if so, if not
        (_LOAD, architecture, "", ""),
        (_EQUAL, machine, "", "refuse"),
        (_LOAD, number, "", ""),
        (_AT_LEAST, 0x40000000, "refuse", ""),  # from there on: x86's other set of numbers
        *((_EQUAL, call, "refuse", "") for call in calls),
        (_EQUAL, clone3, "deny", ""),
        (_EQUAL, clone, "", "not clone"),
        (_LOAD, argument, "", ""),
        (_ANY_OF, _NAMESPACES, "refuse", "allow"),
        "not clone",
        (_EQUAL, open_socket, "", "allow"),
        (_LOAD, argument, "", ""),
        *((_EQUAL, family, "allow", "") for family in _FAMILIES),
        "refuse",
        (_GIVE, 0x00050000 | errno.EPERM, "", ""),
        "deny",
        (_GIVE, 0x00050000 | errno.ENOSYS, "", ""),
        "allow",
        (_GIVE, 0x7FFF0000, "", ""),
    ]
    places: dict[str, int] = {}
    code: list[tuple[int, int, str, str]] = []
    for line in program:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line)
    return b"".join(
        struct.pack("=HBBI", what, *(places[to] - place - 1 if to else 0 for to in targets), value)
        for place, (what, value, *targets) in enumerate(code)
    )
