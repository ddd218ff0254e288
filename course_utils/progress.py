"""Progress bars for the terminal and the notebook."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def progress(total: int, label: str, *, delay: float = 2, **options: Any) -> Any:
    """A tqdm bar that shows itself after `delay` seconds and leaves nothing behind; TQDM_DISABLE=1 silences it.

    >>> with progress(3, "occlusion", unit="variant") as bar:
    ...     _ = bar.update(3)
    """
    silent = bool(os.environ.get("TQDM_DISABLE"))  # tqdm reads it by itself, except for its notebook bar
    return tqdm(total=total, desc=label, delay=delay, leave=False, disable=silent, **options)
