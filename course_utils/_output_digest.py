"""The seal of a printed text: a digest, which tells whether two texts are the same and says nothing about either."""

from __future__ import annotations

import hashlib

SEAL = r'seal="([^"]*)"'  # as it stands in a check cell


def sealed(text: str) -> str:
    """The digest of a printed text, in which spaces at the ends of lines do not count.

    >>> sealed("0.123") == sealed("0.123 ")
    True
    """
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:12]
