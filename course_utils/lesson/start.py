"""The page that `course lab` opens at, `my/start.md`: what comes next, and how far a learner is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._files import write_whole
from .own import PREFIX, ROOT, Standing, following, standings

START = "start.md"
_BAR = 30  # characters


def write_start(root: Path = ROOT) -> None:
    """Write the page anew, from the copies as they are saved."""
    if found := standings(root):
        write_whole(root / "my" / START, _page(found).encode())


def after_save(os_path: str, **_: Any) -> None:
    """What the server calls when a file was saved; whatever is wrong with a notebook, its saving must not fail."""
    path = Path(os_path).resolve()
    if path.suffix == ".ipynb" and path.parent == ROOT / "my":
        with suppress(OSError, ValueError, KeyError, TypeError):
            write_start(ROOT)


def _page(found: Sequence[Standing]) -> str:
    coming = following(found)
    finished = sum(one.finished for one in found)
    filled = round(_BAR * finished / len(found))
    next_one = f"## Next: {_link(coming)}" if coming else "## All done. You know which suspect to deploy, and why."
    begun = "" if coming is None or not coming.minutes else f"\n\nAbout {coming.minutes} minutes."
    rows = "\n".join(f"| {one.sign} | {_link(one)} | {one.minutes or ''} | {one.told} |" for one in found)
    return f"""# Interpretability: your own copy

{next_one}{begun}

`{"█" * filled}{"░" * (_BAR - filled)}` {finished} of {len(found)} done

| done | lesson or exercise | minutes | how far you are |
| :---: | :--- | ---: | :--- |
{rows}

- **Lessons** count the lines that you fill in, as last saved. The originals, with their outputs, are in `notebooks/`.
- **Exercises** count when you run `course check`, here in JupyterLab: *File → New → Terminal*.
- Spoilt one? `course reset 08_1` begins it anew and keeps yours.
- Shut a lesson's kernel down when you are done with it (*Kernel* menu); a notebook whose tab you closed is shut down
  after an hour.
"""


def _link(one: Standing) -> str:
    number = "" if one.name.startswith(PREFIX) else f"{int(one.name[:2])}.{one.name[3]} "  # an exercise's title has it
    return f"[{number}{one.title.replace('|', '/')}]({one.name}.ipynb)"
