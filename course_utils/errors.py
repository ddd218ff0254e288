"""The one error that this package raises on purpose: a sentence that says what was expected, what came, what to do."""

from numbers import Integral

_QUOTED = 300  # characters of another library's error, at most


class CourseError(ValueError):
    """Wrong input or a missing precondition, told in one sentence (the `course` command prints it and exits with 2)."""


def is_count(value: object, least: int = 1) -> bool:
    """Whether something is a whole number of at least so much (NumPy's are), and no text, None or half of one.

    >>> is_count(3), is_count(0), is_count(1.5), is_count(None)
    (True, False, False, False)
    """
    return isinstance(value, Integral) and int(value) >= least


def first_line(error: BaseException) -> str:
    """The first non-empty line of another library's error, to quote inside a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return (line if len(line) <= _QUOTED else line[:_QUOTED] + "…").rstrip(".")
