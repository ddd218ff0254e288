"""Inside a learner's kernel: the course's own cells run in a namespace that the learner's names do not reach.

A learner may call a helper `show`, keep a number in `sum`, or define one name twice: the checks go on meaning what
they meant. What the course's cells define is there for the learner as in any notebook; what the learner defines is
there for the checks, unless the course or Python has that name already.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import linecache
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

_builtins = vars(builtins).copy()
_stdout: Any = sys.stdout
_stderr: Any = sys.stderr
_modules: dict[ModuleType, dict[str, Any]] = {}  # the course's own, and what they held before a learner came
_functions: dict[FunctionType, tuple[Any, ...]] = {}  # the same of each of their functions
_own: dict[str, Any] = {"__name__": "__main__", "__builtins__": _builtins.copy()}
_given: dict[str, Any] = {}  # what the course's cells have defined, and have it again after each check
_lent: set[str] = set()  # names that the learner has from checks alone
_kept: dict[str, dict[str, Any]] = {}  # place -> the learner's names as they were where a hidden check stands


def begin(modules: Iterable[str]) -> None:
    """Before any cell: remember what the course's modules hold, these among them."""
    for name in modules:
        with contextlib.suppress(ImportError):
            import_module(name)
    _remember()


def _remember() -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "course_utils" and module not in _modules:
            _modules[module] = {key: value for key, value in vars(module).items() if callable(value)}
            for value in _modules[module].values():
                if isinstance(value, FunctionType):
                    _functions.setdefault(value, (value.__code__, value.__defaults__, value.__kwdefaults__))


def _restore() -> None:
    """Put back what a learner's code may have changed under the course's own."""
    vars(builtins).update(_builtins)
    for name, stream in (("stdout", _stdout), ("stderr", _stderr)):
        if getattr(sys, name) is not stream:  # it has not been told since which cell is being run
            setattr(sys, name, stream)
            _told(stream)
    for module, names in _modules.items():
        vars(module).update(names)
    for function, (code, defaults, named) in _functions.items():
        function.__code__, function.__defaults__, function.__kwdefaults__ = code, defaults, named
    if torch := sys.modules.get("torch"):
        torch.set_default_device(None)


def _told(stream: Any) -> None:
    from IPython import get_ipython

    stream.set_parent(get_ipython().get_parent())  # type: ignore[no-untyped-call]


def locked(source: str, name: str) -> None:
    """Run a cell of the course's own, and hand what it defines to the learner."""
    _restore()
    _fill(())
    before = dict(_own)
    try:
        _run(source, name)
    finally:
        new = _new(before)
        _given.update(new)
        _learners().update(new)
        _remember()


def keep(place: str) -> None:
    """Remember what names mean here, for a check that runs later."""
    _kept[place] = dict(_learners())


def check(source: str, name: str, names: Iterable[str], token: str, place: str = "") -> None:
    """Run a check of the functions with these names, and say at its end, by a token, that it was run.

    The token backwards says where it began.

    With a place, names mean what they meant when `keep(place)` was called.
    """
    learners = _learners()
    _restore()
    with _printing_alone():
        _stdout.write(token[::-1])
        _check(learners, source, name, names, place)
        _stdout.write(token)


def _check(learners: dict[str, Any], source: str, name: str, names: Iterable[str], place: str) -> None:
    if kept := _kept.get(place):
        learners.clear()
        learners.update(kept)
    _fill(names)
    before = dict(_own)
    try:
        with _without_pictures():
            _run(source, name)
    finally:
        new = _new(before)
        free = [key for key in new if key in _lent or key not in learners]
        learners.update({key: new[key] for key in free})
        _lent.update(free)
        _own.update(_given)


def _new(before: dict[str, Any]) -> dict[str, Any]:
    """What the course's names have come to mean since."""
    return {key: value for key, value in _own.items() if key not in before or before[key] is not value}


@contextlib.contextmanager
def _printing_alone() -> Iterator[None]:
    """Let no other thread print: a learner's may still be at it, and a check is judged by what is printed."""
    write, ours = _stdout.write, threading.get_ident()
    _stdout.write = lambda text: write(text) if threading.get_ident() == ours else len(text)
    try:
        yield
    finally:
        del _stdout.write


@contextlib.contextmanager
def _without_pictures() -> Iterator[None]:
    """Show nothing of what a learner's function displays or draws while it is checked."""
    from IPython import get_ipython

    publisher = get_ipython().display_pub  # type: ignore[no-untyped-call]
    publisher.publish = lambda *_, **__: None
    try:
        yield
    finally:
        del publisher.publish
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close("all")


def _learners() -> dict[str, Any]:
    """The learner's names."""
    return vars(sys.modules["__main__"])


def _fill(names: Iterable[str]) -> None:
    """Let the course's cells see the learner's names: those asked for, and others that nobody else has."""
    learners, asked = _learners(), frozenset(names)
    for key in [key for key in _own if key not in _given and not key.startswith("__")]:
        del _own[key]
    for key, value in learners.items():
        if key in asked or not (key in _given or key in _own["__builtins__"] or key.startswith("__")):
            _own[key] = value


def _run(source: str, name: str) -> None:
    """Run a cell's source, magics and a last bare expression included, as the notebook would."""
    from IPython.core.inputtransformer2 import TransformerManager
    from IPython.display import display

    transformer: Any = TransformerManager
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    tree = ast.parse(transformer().transform_cell(source), file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec"), _own)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), file, "eval"), _own)
        if value is not None and not source.rstrip().endswith(";"):
            show: Any = display
            show(value)


def salvage(source: str) -> None:
    """Of an answer that is no Python as a whole, run the functions that are: each is graded on its own."""
    from IPython.core.inputtransformer2 import TransformerManager

    transformer: Any = TransformerManager
    plain = transformer().transform_cell(source)
    if _compiled(plain) is not None:
        return
    blocks: list[list[str]] = [[]]
    for line in plain.splitlines(keepends=True):
        begins = line[:1] not in ("", " ", "\t", "\n", "#", ")", "]", "}")
        if begins and not (blocks[-1] and blocks[-1][0].startswith("@") and len(blocks[-1]) == 1):
            blocks.append([])
        blocks[-1].append(line)
    for code in filter(None, (_compiled("".join(block)) for block in blocks)):
        with contextlib.suppress(Exception):  # what else is wrong with it, its check says
            exec(code, _learners())


def _compiled(source: str) -> Any:
    try:
        return compile(source, "<answer>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
