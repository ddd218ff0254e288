"""Watch what a model is asked and what is read from it, and plant a cause in it: tools of the exercises' checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..loading.stored_keys import cache_in

if TYPE_CHECKING:
    from ..models import LocalModel


@dataclass
class Asked:
    """What a model was given while it was watched.

    Attributes:
        passes: each input in turn, ids `[batch, token]` or embeddings `[batch, token, d_model]`.
        before: for each pass, how many tokens it had stored keys and values of (0: the input is the whole text).
    """

    passes: list[Tensor] = field(default_factory=list)
    before: list[int] = field(default_factory=list)

    @property
    def rows(self) -> list[list[int]]:
        """Each row of ids, of all passes, in the order they were run."""
        return [row for ids in self.passes if ids.dim() == 2 for row in ids.tolist()]

    @property
    def lengths(self) -> set[int]:
        """The lengths of all texts, in tokens."""
        return {ids.shape[1] + stored for ids, stored in zip(self.passes, self.before, strict=True)}

    def changed(self, ids: Tensor) -> list[set[int]]:
        """For each row as long as `ids` `[token]`: the positions at which it differs from them."""
        base = ids.tolist()
        rows = [row for row in self.rows if len(row) == len(base)]
        return [{i for i, (one, other) in enumerate(zip(row, base, strict=True)) if one != other} for row in rows]


@contextmanager
def asked(lm: LocalModel) -> Iterator[Asked]:
    """Record each input that the model is given inside the block.

    >>> with asked(lm) as seen:
    ...     _ = lm.model(lm.prompt("Hi there").input_ids)
    >>> seen.lengths
    {2}
    """
    seen = Asked()

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        cache = cache_in(kwargs)
        if given is not None:
            seen.passes.append(given.detach().clone())
            seen.before.append(int(cache.get_seq_length()) if cache is not None else 0)

    keep.tokenwise = True  # type: ignore[attr-defined]  # it changes nothing
    hook = lm.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def as_tensor(value: Any) -> Tensor:
    """A tensor, array, number or list of these as float64, detached, on the CPU.

    >>> as_tensor([torch.ones(2), [3, 4]])
    tensor([[1., 1.],
            [3., 4.]], dtype=torch.float64)
    """
    if isinstance(value, (list, tuple)) and not all(isinstance(part, (int, float)) for part in value):
        return torch.stack([as_tensor(part) for part in value])
    return torch.as_tensor(value).detach().cpu().double()


@contextmanager
def _edit_logits(lm: LocalModel, edit: Callable[[Tensor, Asked], Tensor]) -> Iterator[Asked]:
    """Let a function of the logits `[batch, kept token, vocabulary]` and of what was asked take their place."""
    with asked(lm) as seen:
        hook = lm.model.get_output_embeddings().register_forward_hook(lambda m, a, logits: edit(logits, seen))
        try:
            yield seen
        finally:
            hook.remove()


@torch.no_grad()
def rows_read(lm: LocalModel, call: Callable[[], Any]) -> list[int]:
    """The positions (of the text, from 0) at which the result of a call depends on the model's logits.

    The logits at each position in turn are disturbed; the result depends on those where it changes.

    >>> rows_read(lm, lambda: lm.model(lm.prompt("Hi there").input_ids).logits[0, 0, 0])
    [0]
    """

    def result(disturbed: int | None) -> tuple[Tensor, int]:
        def edit(logits: Tensor, seen: Asked) -> Tensor:
            length = seen.passes[-1].shape[1] + seen.before[-1]
            row = -1 if disturbed is None else disturbed - (length - logits.shape[1])
            if 0 <= row < logits.shape[1]:
                logits = logits.clone()
                logits[:, row] += 3 * torch.arange(logits.shape[-1]).to(logits).cos()
            return logits

        with _edit_logits(lm, edit) as seen:
            return as_tensor(call()), max(seen.lengths, default=0)

    plain, length = result(None)
    return [p for p in range(length) if not torch.allclose(result(p)[0], plain, rtol=1e-6, atol=1e-9)]


@contextmanager
def planted(
    lm: LocalModel, rule: Callable[[Tensor], Tensor], target: int | None = None, *, strength: float = 8.0
) -> Iterator[None]:
    """Make the model listen to one rule and nothing else: a planted cause, so that an attribution can be judged.

    Args:
        lm: the model.
        rule: maps ids `[batch, token]` to true or false, `[batch]`.
        target: the token whose logit is `strength` where the rule holds, all other logits being 0; or None: then the
            model's own logits stay, and all of them rise by `strength` where the rule holds, which changes no
            probability.
        strength: how much; below 0, the rule lowers.

    >>> with planted(lm, lambda ids: (ids == 7).any(dim=1), target=3):
    ...     lm.model(torch.tensor([[7, 8], [8, 8]])).logits[:, -1, 3]
    tensor([8., 0.])
    """

    def edit(logits: Tensor, seen: Asked) -> Tensor:
        holds = rule(seen.passes[-1]).to(logits)[:, None]  # [batch, 1]
        if target is None:
            return logits + strength * holds[:, :, None]
        logits = torch.zeros_like(logits)
        logits[:, :, target] = strength * holds
        return logits

    with _edit_logits(lm, edit):
        yield
