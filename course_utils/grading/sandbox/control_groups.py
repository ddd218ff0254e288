"""A control group for each kernel in the sandbox: the system itself counts memory and processes, and limits them.

What is held in socket buffers or page tables belongs to no process that a watch could ask, and is counted here. Needs a
group below which others can be made: root, a user's session of systemd, or a container that was given its own. Both
versions are known; the processes go in by themselves, through a file that was opened outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from ..scratch import is_over, name_of_ours

_number = count()
_TRIAL = 1 << 30
_ENTER = "import os, sys; os.write(int(sys.argv[1]), b'0')"


@dataclass(frozen=True)
class Group:
    """The folders of one kernel's group: one, or in version 1 one for memory and one for processes."""

    folders: tuple[Path, ...]

    def doors(self) -> list[int]:
        """Open files, through which a process that writes 0 to them goes in."""
        return [os.open(folder / "cgroup.procs", os.O_WRONLY) for folder in self.folders]

    def excess(self) -> str:
        """What the group has had too much of, "memory" or "processes", or ""."""
        for folder in self.folders:
            if _counter(folder / "pids.events", "max"):
                return "processes"
            if any(_counter(folder / name, "oom_kill") for name in ("memory.events", "memory.oom_control")):
                return "memory"
        return ""

    def remove(self, seconds: float = 2) -> None:
        """Remove it, as soon as the last process has left."""
        until = time.monotonic() + seconds
        for folder in self.folders:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > until:
                        break
                    time.sleep(0.01)


def make(memory_bytes: int, processes: int) -> Group:
    """A new group with these limits, where there is no `trouble`; what killed graders left of theirs is removed."""
    sweep()
    name = f"{name_of_ours()}-{next(_number)}"
    wanted = {
        "memory.max": memory_bytes,
        "memory.swap.max": 0,
        "memory.limit_in_bytes": memory_bytes,
        "memory.memsw.limit_in_bytes": memory_bytes,  # with what is swapped out
        "pids.max": processes,
    }
    group = Group(tuple(above / name for above in _above()))
    for folder in group.folders:
        folder.mkdir()
        for file, value in wanted.items():
            with suppress(FileNotFoundError, PermissionError):  # which the other version has
                (folder / file).write_text(str(value))
    return group


def sweep() -> None:
    """Remove what groups are left of graders that were killed."""
    for above in _above():
        for folder in above.glob("course-*"):
            if is_over(folder.name):
                with suppress(OSError):
                    folder.rmdir()


@cache
def trouble() -> str:
    """Why the system cannot count a kernel's memory here, in a sentence, or "": it is tried."""
    if not sys.platform.startswith("linux"):
        return "control groups need Linux."
    if not _above():
        return "there is no control group below which others can be made (systemd-run --user --scope makes one)."
    try:
        group = make(_TRIAL, 64)
        try:
            return _trouble_with(group)
        finally:
            group.remove()
    except OSError as error:
        return f"no control group can be made here ({error})."


def _trouble_with(group: Group) -> str:
    files = [folder / name for folder in group.folders for name in ("memory.max", "memory.limit_in_bytes")]
    if not any(path.is_file() and path.read_text().strip() == str(_TRIAL) for path in files):
        return "control groups have no limit on memory here."
    for door in group.doors():
        command = [sys.executable, "-I", "-S", "-c", _ENTER, str(door)]
        entered = subprocess.run(command, pass_fds=[door], capture_output=True, check=False).returncode == 0
        os.close(door)
        if not entered:
            return "no process can be moved into a control group here."
    return ""


def _above() -> list[Path]:
    """The folders below which a group can be made: of version 2 one, of version 1 one for memory, one for processes."""
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return []
    found: dict[str, Path] = {}
    for mount in mounts:
        after = mount[mount.index("-") + 1 :]
        for _, controllers, path in own:
            below = os.path.relpath(path, mount[3])
            if below.startswith(".."):
                continue
            here = Path(os.path.normpath(f"{mount[4]}/{below}"))
            if after[0] == "cgroup2" and not controllers:
                found.update(("v2", above) for above in _delegated(here, Path(mount[4])))
            for each in {"memory", "pids"} & set(controllers.split(",")) & set(after[2].split(",")):
                if after[0] == "cgroup" and os.access(here, os.W_OK):
                    found[each] = here
    if "v2" in found:
        return [found["v2"]]
    return [found[each] for each in ("memory", "pids") if each in found] if "memory" in found else []


def _delegated(here: Path, top: Path) -> Iterator[Path]:
    """The nearest group from here upwards that hands its memory on to groups below it, and that we may change."""
    for folder in (here, *here.parents):
        with suppress(OSError):
            handed = (folder / "cgroup.subtree_control").read_text().split()
            if "memory" in handed and os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
                yield folder
                return
        if folder == top:
            return


def _counter(path: Path, name: str) -> int:
    try:
        lines = dict(line.split() for line in path.read_text().splitlines())
        return int(lines.get(name, 0))
    except (OSError, ValueError):  # it has been removed, or is another version's
        return 0
