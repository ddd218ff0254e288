"""The one error that this package raises on purpose: a sentence that says what was expected, what came, what to do."""


class CourseError(ValueError):
    """Wrong input or a missing precondition, told in one sentence (the `course` command prints it and exits with 2)."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of another library's error, to quote inside a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
