"""Progress bars for the terminal and the notebook."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def progress(total: int, label: str, *, seconds: float = 0, delay: float = 2, **options: Any) -> Any:
    """A tqdm bar that leaves nothing behind; TQDM_DISABLE=1 silences it.

    Args:
        total: how many steps there are.
        label: what they are.
        seconds: roughly how long it will take, if known: over ten, the bar says so and shows itself at once.
        delay: otherwise it shows itself after so many seconds.
        options: of tqdm.

    >>> with progress(3, "occlusion", unit="variant") as bar:
    ...     _ = bar.update(3)
    """
    if seconds > 10:
        label, delay = f"{label}, about {_rounded(seconds)}", 0
    silent = bool(os.environ.get("TQDM_DISABLE"))  # tqdm reads it by itself, except for its notebook bar
    return tqdm(total=total, desc=label, delay=delay, leave=False, disable=silent, **options)


def _rounded(seconds: float) -> str:
    return f"{round(seconds, -1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
