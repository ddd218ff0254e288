"""torch's threads wait asleep: by default they spin, and beside any other program a pass takes ten times as long.

The system's OpenMP reads its variable when torch is loaded, so every door to the course calls `wait_asleep` before.
Where a notebook has imported torch first, in a Jupyter that is not ours, `too_many` has the same effect.
"""

from __future__ import annotations

import os
import sys
import threading
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


def too_many() -> None:
    """Hold a second team of threads where torch is here already and spins; a choice of yours stays.

    Once it has more threads than there are processors, GNU's OpenMP hardly spins.
    """
    torch = sys.modules.get("torch")
    if torch is None or POLICY in os.environ or not sys.platform.startswith("linux") or torch.get_num_threads() == 1:
        return
    there = threading.Event()

    def hold() -> None:
        torch.zeros(1 << 20).exp_()  # large enough to be shared out
        there.set()
        threading.Event().wait()

    threading.Thread(target=hold, name="second-team", daemon=True).start()
    there.wait()
