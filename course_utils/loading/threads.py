"""torch's threads wait asleep: by default they spin, and beside any other program a pass takes ten times as long.

The system's OpenMP reads its variable when torch is loaded, so every door to the course calls `wait_asleep` before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

POLICY, ASLEEP = "OMP_WAIT_POLICY", "PASSIVE"


def wait_asleep() -> None:
    """Have torch, here and in what is started from here, wait without using the processor; a choice of yours stays."""
    os.environ.setdefault(POLICY, ASLEEP)


@contextmanager
def waiting_asleep() -> Iterator[None]:
    """The same for a torch that is loaded meanwhile; the environment is left as it was."""
    missing = POLICY not in os.environ
    wait_asleep()
    try:
        yield
    finally:
        if missing:
            os.environ.pop(POLICY, None)
