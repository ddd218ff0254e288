"""Hooks on a model: whether they may change what it computes, and a while without them.

An edit of this package has an attribute `tokenwise`: whether it does the same to every token, wherever it stands. A
hook without it, that transformers did not hang there either, is a learner's own and may do anything; so may one that
PyTorch was told to run with every module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks_for_all

_KINDS = ("_forward_pre_hooks", "_forward_hooks")


def disturbed(model: nn.Module) -> bool:
    """Whether hooks hang on a model that may treat tokens by where they stand."""
    return not all(getattr(hook, "tokenwise", False) for hook in _hooks(model.modules()))


def has_unknown_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether hooks hang on some modules that are no edits of this package's."""
    return not all(hasattr(hook, "tokenwise") for hook in _hooks(modules))


def _hooks(modules: Iterable[nn.Module]) -> Iterator[Any]:
    for _, _, hooks in _held(modules):
        yield from (hook for hook in hooks.values() if not of_transformers(hook))


def _held(modules: Iterable[nn.Module]) -> Iterator[tuple[Any, str, Any]]:
    """Where hooks are held, by what name, and which: those of some modules, and those of all there are."""
    for holder, prefix in ((hooks_for_all, "_global"), *((module, "") for module in modules)):
        names = [prefix + kind for kind in _KINDS]
        yield from ((holder, name, hooks) for name in names if (hooks := getattr(holder, name)))


def of_transformers(hook: Any) -> bool:
    """Whether a hook is the library's own: `output_hidden_states=True` puts some on a model, once and for all."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Let the hooks that somebody hung on a model rest for a while."""
    resting = list(_held(model.modules()))
    for holder, name, hooks in resting:
        setattr(holder, name, OrderedDict((i, hook) for i, hook in hooks.items() if of_transformers(hook)))
    try:
        yield
    finally:
        for holder, name, hooks in resting:
            setattr(holder, name, hooks)
