"""Hooks on a model: whether they may change what it computes, and a while without them.

An edit of this package has an attribute `tokenwise`: whether it does the same to every token, wherever it stands. A
hook without it, that transformers did not hang there either, is a learner's own and may do anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_KINDS = ("_forward_pre_hooks", "_forward_hooks")


def disturbed(model: nn.Module) -> bool:
    """Whether hooks hang on a model that may treat tokens by where they stand."""
    return not all(getattr(hook, "tokenwise", False) for hook in _hooks(model))


def has_unknown_hooks(model: nn.Module) -> bool:
    """Whether hooks hang on a model that are no edits of this package's."""
    return not all(hasattr(hook, "tokenwise") for hook in _hooks(model))


def _hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for kind in _KINDS:
            yield from (hook for hook in getattr(module, kind).values() if not _of_transformers(hook))


def _of_transformers(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Let the hooks that somebody hung on a model rest for a while."""
    resting = [
        (module, kind, hooks) for module in model.modules() for kind in _KINDS if (hooks := getattr(module, kind))
    ]
    for module, kind, hooks in resting:
        setattr(module, kind, OrderedDict((n, hook) for n, hook in hooks.items() if _of_transformers(hook)))
    try:
        yield
    finally:
        for module, kind, hooks in resting:
            setattr(module, kind, hooks)
