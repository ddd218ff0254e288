"""What a run is told, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .marks import Mark

SETTINGS = "COURSE_GRADING_RUN"  # the environment variable through which the plugin learns where its settings are
DONE, SLOW, BROKEN, REFUSED = "done", "timed out", "could not run", "refused"


@dataclass(frozen=True)
class Limits:
    """How long a run may take, in seconds, how much a cell may show, and what a sandbox holds."""

    cell_seconds: float = 60.0  # for one cell
    total_seconds: float = 300.0  # for the whole notebook
    output_bytes: int = 20_000_000  # what one cell may print and show
    memory_bytes: int = 4_000_000_000  # for the kernel and all that it starts (in a sandbox only, as what follows)
    processes: int = 512  # how many processes and threads there may be at once
    disk_bytes: int = 500_000_000  # what may be written, to a disk that is in memory


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    status: str  # DONE, SLOW (ended by the limit on the whole), BROKEN (no kernel, no nbval) or REFUSED (no notebook)
    marks: tuple[Mark, ...]  # one for each check and each manual item, in order
    repairs: tuple[str, ...]  # what in the submission was put right
    messages: tuple[str, ...]  # what else there is to say
    notebook: bytes = field(repr=False)  # the notebook as it was run, with what came out
    seconds: float  # how long it all took

    @property
    def passed(self) -> bool:
        """Whether every check that a machine can judge passed."""
        return self.status == DONE and all(mark.passed for mark in self.marks if mark.earned is not None)
