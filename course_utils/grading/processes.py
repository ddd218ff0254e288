"""What the grader's own processes begin with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def with_package() -> dict[str, str]:
    """The environment of a process that is to import this package, wherever it runs."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def without_grammar() -> None:
    """Keep jsonschema, which nbformat imports and leaves unused, from making a grammar of web addresses first.

    It takes a second or two, and is for processes of the grader's own: jsonschema takes the package for not installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
