"""Progress bars for the terminal and the notebook."""

from __future__ import annotations

import os
import sys
from io import StringIO
from typing import Any

from tqdm import tqdm


class _CellBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar below a cell, as text that is taken back: of tqdm's widget an error stays in what is saved and reopened."""

    _shown: Any = None

    def __init__(self, **options: Any) -> None:
        super().__init__(file=StringIO(), ascii=False, ncols=80, **options)  # else it writes line ends to the cell

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the bar as it is, or nothing where the message is empty."""
        from IPython.display import display

        data = {} if msg == "" else {"text/plain": str(self)}
        if self._shown is not None:
            self._shown.update(data, raw=True)
        elif data:
            self._shown = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        return False  # no line end is due


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
    silent = bool(os.environ.get("TQDM_DISABLE"))
    bar = _CellBar if _in_notebook() else tqdm
    return bar(total=total, desc=label, delay=delay, leave=False, disable=silent, **options)


def _in_notebook() -> bool:
    """Whether a kernel runs this."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _rounded(seconds: float) -> str:
    return f"{round(seconds, -1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
