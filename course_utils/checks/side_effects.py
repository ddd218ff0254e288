"""What a function leaves behind: changed arguments, and hooks, weights or modes of a model that are not as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..loading.others_hooks import of_transformers

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
SMALL = 5_000_000  # parameters; of a larger model no copy of the weights is kept


class Snapshot:
    """A record of some arguments, taken before a call; `restore` puts them back and says what had changed."""

    def __init__(self, arguments: list[Any]) -> None:
        self._models = [_ModelState(model) for model in _models(arguments)]
        arrays = [array for value in arguments for array in _arrays(value)]
        self._tensors = [(a, a.detach().clone() if isinstance(a, Tensor) else a.copy()) for a in arrays]
        self._lists = [(value, list(value)) for value in arguments if isinstance(value, list)]

    def restore(self) -> str:
        """Undo every change; a clause that names the first one found, "" if there was none."""
        found = [clause for state in self._models if (clause := state.restore())]
        for tensor, before in self._tensors:
            if tensor.shape != before.shape or not (tensor == before).all():
                found.append("changed its argument in place: clone it first, the caller still needs it as it was.")
                with torch.no_grad():
                    tensor[...] = before
        for value, kept in self._lists:
            if len(value) != len(kept) or any(one is not other for one, other in zip(value, kept, strict=True)):
                found.append("changed a list that it was given: copy it first, the caller still needs it as it was.")
                value[:] = kept
        return found[0] if found else ""


class _ModelState:
    """The hooks, weights, mode and methods of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        named = inside_of(model)
        inside = [(module, module.__dict__) for _, module in named]
        self.hooks = [(module, kind, set(its[kind])) for module, its in inside for kind in _HOOKS]
        self.training = [(module, its["training"]) for module, its in inside]
        self.forward = [(module, its.get("forward")) for module, its in inside]
        self.parameters = parameters_of(model, named)
        self.versions = {name: (id(p), p._version, p.requires_grad) for name, p in self.parameters.items()}
        small = sum(p.numel() for p in set(self.parameters.values())) < SMALL
        self.weights = {name: p.detach().clone() for name, p in self.parameters.items()} if small else {}

    def restore(self) -> str:
        hooks, methods, parameters = self._hooks(), self._methods(), self._parameters()  # each puts its own back
        return hooks or methods or parameters

    def _hooks(self) -> str:
        left = 0
        for module, kind, before in self.hooks:
            hooks = module.__dict__[kind]
            for key in [key for key in hooks if key not in before and not of_transformers(hooks[key])]:
                del hooks[key]
                left += 1
        count = "a hook" if left == 1 else f"{left} hooks"
        return f"left {count} on the model: remove each in a `finally`, or every later run is changed too." * bool(left)

    def _methods(self) -> str:
        patched = [(module, before) for module, before in self.forward if module.__dict__.get("forward") is not before]
        for module, before in patched:
            module.__dict__.pop("forward", None)
            if before is not None:
                module.__dict__["forward"] = before
        retrained = [(module, before) for module, before in self.training if module.training is not before]
        for module, before in retrained:
            module.training = before
        if patched:
            return "left another `forward` on a part of the model: put the old one back, in a `finally`."
        return "left the model in another mode (`train` for `eval`): put it back." * bool(retrained)

    def _parameters(self) -> str:
        now = parameters_of(self.model)
        changed = [name for name, p in now.items() if self._differs(name, p)]
        for name in changed:
            p = now[name].requires_grad_(self.versions[name][2])
            if name in self.weights and not torch.equal(p, self.weights[name]):
                p.data.copy_(self.weights[name])
        return f"changed the model's weights ({changed[0]}): work on a copy, or through a hook." if changed else ""

    def _differs(self, name: str, p: nn.Parameter) -> bool:
        if name not in self.versions or (id(p), p._version, p.requires_grad) != self.versions[name]:
            return True
        return name in self.weights and not torch.equal(p, self.weights[name])


def inside_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What `named_modules` gives, by level and many times as fast: checks ask thousands of times."""
    found = [("", model)]
    for where, module in found:
        parts = module.__dict__["_modules"]
        found += [(f"{where}.{name}" if where else name, part) for name, part in parts.items() if part is not None]
    return found


def parameters_of(model: nn.Module, named: list[tuple[str, nn.Module]] | None = None) -> dict[str, nn.Parameter]:
    """What `named_parameters` gives, likewise; a tied one stands under each of its names.

    `named` is what `inside_of(model)` gave, for who has it.
    """
    inside = ((where, module.__dict__["_parameters"]) for where, module in named or inside_of(model))
    return {f"{where}.{name}": p for where, own in inside for name, p in own.items() if p is not None}


def _models(arguments: list[Any]) -> Iterator[nn.Module]:
    for value in arguments:
        model = getattr(value, "model", value)
        if isinstance(model, nn.Module):
            yield model


def _arrays(value: Any) -> Iterator[Any]:
    """Every tensor and array inside an argument: in lists, tuples, dictionaries and dataclasses too."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _arrays(part)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))
    elif (
        is_dataclass(value) and not isinstance(value, type) and not isinstance(getattr(value, "model", None), nn.Module)
    ):
        yield from _arrays([getattr(value, part.name) for part in fields(value)])
