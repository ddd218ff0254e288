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
from collections.abc import Iterable
from typing import Any

_own: dict[str, Any] = {"__name__": "__main__", "__builtins__": vars(builtins).copy()}
_given: dict[str, Any] = {}  # what the course's cells have defined, and have it again after each check
_lent: set[str] = set()  # names that the learner has from checks alone
_kept: dict[str, dict[str, Any]] = {}  # item -> the learner's names as they were where its checks stand


def locked(source: str, name: str) -> None:
    """Run a cell of the course's own, and hand what it defines to the learner."""
    _fill(())
    before = dict(_own)
    try:
        _run(source, name)
    finally:
        new = {key: value for key, value in _own.items() if key not in before or before[key] is not value}
        _given.update(new)
        _learners().update(new)


def keep(item: str) -> None:
    """Remember what names mean here, for a check of this item that runs later."""
    _kept[item] = dict(_learners())


def check(source: str, name: str, names: Iterable[str], token: str, item: str = "") -> None:
    """Run a check of the functions with these names, and say at its end, by a token, that it was run.

    With an item, names mean what they meant when `keep(item)` was called.
    """
    learners = _learners()
    if kept := _kept.get(item):
        learners.clear()
        learners.update(kept)
    _fill(names)
    before = dict(_own)
    try:
        _run(source, name)
    finally:
        new = {key: value for key, value in _own.items() if key not in before or before[key] is not value}
        free = [key for key in new if key in _lent or key not in learners]
        learners.update({key: new[key] for key in free})
        _lent.update(free)
        _own.update(_given)
    sys.stdout.write(token)


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
        return compile(source, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
