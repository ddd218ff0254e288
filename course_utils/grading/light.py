"""nbformat without what takes seconds to import and is not used."""

from __future__ import annotations

import sys


def without_grammar() -> None:
    """Keep jsonschema, which nbformat imports and leaves unused, from making a grammar of web addresses first.

    For processes of the grader's own, before they import nbformat: jsonschema takes the package for not installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
