"""What the check cells of the exercises are made of: they ask a learner's function and say in one sentence what is off.

A check holds no answer. It asserts properties, watches what the function does to the model, and prints values last;
whether these are right is decided outside the kernel, by comparison with the output stored in the exercise.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import is_dataclass, replace
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch import Tensor, nn

from .._output_digest import sealed
from ..errors import first_line
from .side_effects import Snapshot
from .spies import as_tensor

Answer = Callable[..., Any]  # a learner's function
_OURS = Path(__file__).parents[1]


class CheckFailed(AssertionError):
    """An answer that a check found wrong; Jupyter shows its sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class NotAnswered(CheckFailed):
    """A stub that nobody has filled in yet."""


def expect(condition: object, sentence: str) -> None:
    """Fail with a sentence (what was expected, what came, the likely mistake) unless the condition holds.

    >>> expect(1 + 1 == 2, "Expected 2.")
    """
    if not condition:
        _fail(sentence)


def _fail(sentence: str) -> NoReturn:
    raise CheckFailed(sentence)


def ask(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Call a learner's function, quietly, and give back what it returns.

    Fails where it raises, where it changes its arguments, and where it leaves a hook, another weight, another mode or
    another `forward` on a model among them (which are put back, so that one slip costs one item only). Checks change a
    model between calls: each is given a handle of its own, by which a function may remember what it found.

    >>> ask(lambda numbers: sum(numbers), [1, 2])
    3
    """
    name = getattr(function, "__name__", "your function")
    arguments, named = tuple(map(_handle, arguments)), {key: _handle(value) for key, value in named.items()}
    watch = Snapshot([*arguments, *named.values()])
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = function(*arguments, **named)
    except CheckFailed:
        raise
    except (Exception, SystemExit) as error:  # whatever a learner's code raises becomes one sentence
        raise _told(name, error, _files_of_the_check(function)) from None
    finally:
        found = watch.restore()
    expect(not found, f"{name} {found}")
    return value


def _handle(argument: Any) -> Any:
    """Another handle of the same model; whatever else it is, the same."""
    is_handle = is_dataclass(argument) and isinstance(getattr(argument, "model", None), nn.Module)
    return replace(argument) if is_handle and not isinstance(argument, type) else argument


def _files_of_the_check(function: Callable[..., Any]) -> set[str]:
    """Where the code is that asks, and those that asked it: what hangs on the model for a check may stop in there."""
    found: set[str] = set()
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        found.add(frame.f_code.co_filename)
        frame = frame.f_back
    code = getattr(function, "__code__", None)
    return found - {code.co_filename if code else ""}


def _told(name: str, error: BaseException, checks: set[str]) -> CheckFailed:
    """An exception as a sentence that names the learner's line."""
    frame, number, last = _last_own_frame(error, checks)
    if isinstance(error, NotImplementedError) and last and frame is not None:
        step = str(error).rstrip(".")
        next_step = f" Next: {step}." if step else ""
        return NotAnswered(f"{frame.f_code.co_name} is not answered yet.{next_step}")
    line = linecache.getline(frame.f_code.co_filename, number).strip() if frame is not None else ""
    where = f" in your line {number}, `{line}`" if line else ""
    told = first_line(error)
    advice = " Give a new tensor the dtype of those you were handed." if "dtype" in told else ""
    return CheckFailed(f"{name} stopped with {type(error).__name__}{where}: {told}.{advice}")


def _last_own_frame(error: BaseException, checks: set[str]) -> tuple[FrameType | None, int, bool]:
    """The deepest frame of a learner's code, its line, and whether the exception was raised right there."""
    found: tuple[FrameType | None, int, bool] = (None, 0, False)
    trace = error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        library = _OURS in file.parents or "site-packages" in file.parts or str(file).startswith(sys.base_prefix)
        if not library and not str(file).startswith("<frozen") and str(file) not in checks:
            found = (trace.tb_frame, trace.tb_lineno, trace.tb_next is None)
        trace = trace.tb_next
    return found


def expect_shape(value: Any, axes: str, shape: tuple[int, ...], *, likely: Mapping[Any, str] | None = None) -> Tensor:
    """Fail unless the value is a tensor (array, list, number) of finite numbers and this shape; it as float64.

    `likely` says of some wrong shapes how one comes by them.

    >>> expect_shape([1, 2], "[token]", (2,))
    tensor([1., 2.], dtype=torch.float64)
    """
    wanted = f"{axes} of shape {list(shape)}" if shape else "one number"
    expect(value is not None, f"Expected {wanted}, got None: does your function end in `return`?")
    try:
        got = as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        _fail(f"Expected {wanted}, got a {type(value).__name__} that is no tensor.")
    if (came := tuple(got.shape)) != shape:
        turned = "the axes are the other way round" if came == shape[::-1] else ""
        hint = (likely or {}).get(came, turned)
        _fail(f"Expected {wanted}, got shape {list(came)}" + (f": {hint}." if hint else "."))
    odd = int((~got.isfinite()).sum())
    expect(not odd, f"Expected finite numbers, got {odd} of {got.numel()} that are not.")
    return got


def expect_heads(value: Any, candidates: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fail unless the value lists heads, each once and each a candidate; they as pairs (layer, head), in its order.

    >>> expect_heads([[0, 1], (1, 0)], [(0, 0), (0, 1), (1, 0)])
    [(0, 1), (1, 0)]
    """
    try:
        heads = [(int(layer), int(head)) for layer, head in value]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        _fail(f"Expected a list of heads, each (layer, head), got {str(value)[:60]}.")
    odd = [head for head in heads if head not in candidates]
    expect(not odd, f"Your team holds {odd[:2]}: expected heads of the candidates, (layer, head).")
    expect(len({*heads}) == len(heads), f"A head is in your team twice: {heads}.")
    return heads


def show(*values: Any, seal: str, digits: int = 3) -> None:
    """Print rounded values, the last thing that a check does; fail unless their seal is this one.

    A seal says nothing about the values: it is a digest of the printed text. With "" somebody else compares.

    >>> show([0.12345, -2], seal="74f762c3260b")
      0.123  -2.000
    """
    text = "\n".join(_table(value, digits) for value in values)
    print(text)
    expect(
        not seal or sealed(text) == seal,
        "Its shape and its properties are right, these values are not; `course check` shows them beside the expected.",
    )


def _table(value: Any, digits: int) -> str:
    """A number, vector or matrix as text, one row a line; -0 is 0."""
    if isinstance(value, str):
        return value
    numbers = as_tensor(value)
    rows = numbers.reshape(-1, numbers.shape[-1]) if numbers.dim() else numbers.reshape(1, 1)
    return "\n".join(" ".join(f"{round(x, digits) + 0.0:{digits + 4}.{digits}f}" for x in row) for row in rows.tolist())


class _Name(str):
    salt = 0

    def __hash__(self) -> int:
        return hash((str(self), _Name.salt))


def same_in_another_process(call: Callable[[list[str]], Sequence[Any]], names: list[str]) -> bool:
    """Whether a call gives the same in another process, where a set of the same names has another order.

    It is tried with the same names under other hashes; and where the call does not find them again by plain text,
    with other names of the same order.

    >>> same_in_another_process(sorted, ["tea", "car"])
    True
    >>> same_in_another_process(lambda names: [list({*names}).index(name) for name in names], ["tea", "car", "oak"])
    False
    """
    try:
        return all(call(_under_another_hash(names)) == call(names) for _ in range(4))
    except CheckFailed:
        return all(call([f"{name}{n}" for name in names]) == call(names) for n in range(8))


def _under_another_hash(names: list[str]) -> list[str]:
    _Name.salt += 1
    return [_Name(name) for name in names]
