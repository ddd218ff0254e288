"""What a student may be called in a roster, in the gradebook, as a file: letters of every script, and their marks."""

from __future__ import annotations

import unicodedata

BESIDE = " .@+-'’·"  # what a name may hold beside letters, marks, numbers and _
LONGEST = 100  # characters


def composed(text: str) -> str:
    """A text in the one Unicode form that names are kept and compared in: macOS's folders have another."""
    return unicodedata.normalize("NFC", text)


def fitting(text: str, instead: str) -> str:
    """A text in which something else stands for each character that no name holds."""
    return "".join(char if _fits(char) else instead for char in composed(text))


def is_name(text: str) -> bool:
    """Whether somebody can be called like this."""
    return 0 < len(text) <= LONGEST and text[0] not in BESIDE and text[-1] not in " ." and all(map(_fits, text))


def _fits(char: str) -> bool:
    return char == "_" or char in BESIDE or unicodedata.category(char)[0] in "LMN"
