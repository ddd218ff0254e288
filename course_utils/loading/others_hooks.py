"""Hooks on a model: which are this package's own edits, and which belong to the model for all that is known.

An edit of ours has an attribute `tokenwise`: whether it does the same to every token, wherever it stands. A hook
without it, that transformers did not hang there either, may do anything: it is taken for a part of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_KINDS = ("_forward_pre_hooks", "_forward_hooks")


def _hooks(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """Each hook on a model or inside it, with the number that torch gave it, but for transformers' own."""
    for module in model.modules():
        for kind in _KINDS:
            for number, hook in getattr(module, kind).items():
                if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                    yield number, hook


def unknown_hooks(model: nn.Module) -> tuple[int, ...]:
    """The numbers of hooks that are no edits of this package's; torch never gives a number twice."""
    return tuple(number for number, hook in _hooks(model) if not hasattr(hook, "tokenwise"))


def disturbed(model: nn.Module) -> bool:
    """Whether hooks hang on a model that may treat tokens by where they stand."""
    return not all(getattr(hook, "tokenwise", False) for _, hook in _hooks(model))


@contextmanager
def unedited(model: nn.Module) -> Iterator[None]:
    """Let this package's edits of a model rest for a while."""
    resting = []
    for module in model.modules():
        for kind in _KINDS:
            hooks = getattr(module, kind)
            if any(hasattr(hook, "tokenwise") for hook in hooks.values()):
                resting.append((module, kind, hooks))
                rest = [(number, hook) for number, hook in hooks.items() if not hasattr(hook, "tokenwise")]
                setattr(module, kind, OrderedDict(rest))
    try:
        yield
    finally:
        for module, kind, hooks in resting:
            setattr(module, kind, hooks)
