"""Watch what a model is asked and what is read from it, and plant a cause in it: tools of the exercises' checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
        texts: for each pass the whole text, those tokens in front of the input.
    """

    passes: list[Tensor] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> list[list[int]]:
        """Each text in ids, of all passes, in the order they were run."""
        return [row for ids in self.texts if ids.dim() == 2 for row in ids.tolist()]

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
            seen.texts.append(_whole(seen.passes[-1], cache, seen.before[-1]))

    def name(module: Any, args: tuple[Any, ...], out: Any) -> None:
        cache = cache_in(out) if isinstance(out, Mapping) else None
        if cache is not None and seen.texts:
            setattr(cache, _TEXT, seen.texts[-1])

    keep.tokenwise = name.tokenwise = True  # type: ignore[attr-defined]  # they change nothing
    base = lm.model.base_model
    with hanging([base.register_forward_pre_hook(keep, with_kwargs=True), base.register_forward_hook(name)]):
        yield seen


@contextmanager
def hanging(hooks: Iterable[Any]) -> Iterator[None]:
    """Some hooks, which are gone after the block."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_TEXT = "_text_in_ids"  # on stored keys and values: what they are of, so that copies of them know it too


def _whole(given: Tensor, cache: Any, stored: int) -> Tensor:
    """An input with the ids in front of it whose keys and values are stored, where these are known."""
    begun = getattr(cache, _TEXT, None) if stored and given.dim() == 2 else None
    if begun is None or begun.dim() != 2 or len(given) % len(begun):
        return given
    return torch.cat([begun[:, :stored].repeat_interleave(len(given) // len(begun), dim=0), given], dim=1)


def as_tensor(value: Any) -> Tensor:
    """A tensor, array, number or list of these as float64, detached, on the CPU.

    >>> as_tensor([torch.ones(2), [3, 4]])
    tensor([[1., 1.],
            [3., 4.]], dtype=torch.float64)
    """
    if isinstance(value, (list, tuple)) and not all(isinstance(part, (int, float)) for part in value):
        return torch.stack([as_tensor(part) for part in value])
    return torch.as_tensor(value).detach().cpu().double()


def rows_read(lm: LocalModel, call: Callable[[], Any]) -> list[int]:
    """The positions (of the text, from 0) at which the result of a call depends on the model's logits.

    What is unembedded is disturbed at each position in turn, and so are the logits there, however few are asked for;
    the result depends on those where it changes.

    >>> rows_read(lm, lambda: lm.model(lm.prompt("Hi there").input_ids).logits[0, 0, 0])
    [0]
    """

    def result(disturbed: int) -> tuple[Tensor, int]:
        def disturb(module: Any, args: Any, out: Any) -> Any:
            row, hidden = disturbed - seen.before[-1], out.last_hidden_state
            if 0 <= row < hidden.shape[1]:
                hidden = hidden.clone()
                hidden[:, row] += 3 * torch.arange(hidden.shape[-1]).to(hidden).cos()
                out.last_hidden_state = hidden
                if out.get("hidden_states"):
                    out.hidden_states = (*out.hidden_states[:-1], hidden)
            return out

        with asked(lm) as seen, lm.model.base_model.register_forward_hook(disturb):
            return as_tensor(call()), max(seen.lengths, default=0)

    plain, length = result(-1)
    return [p for p in range(length) if not torch.allclose(result(p)[0], plain, rtol=1e-6, atol=1e-9)]


@contextmanager
def planted(
    lm: LocalModel, rule: Callable[[Tensor], Tensor], target: int | None = None, *, strength: float = 8.0
) -> Iterator[None]:
    """Make the model listen to one rule and nothing else: a planted cause, so that an attribution can be judged.

    Args:
        lm: the model.
        rule: maps ids `[batch, token]`, whole texts, to true or false, `[batch]`.
        target: the token whose logit is `strength` where the rule holds, all other logits being 0; or None: then the
            model's own logits stay, and all of them rise by `strength` where the rule holds, which changes no
            probability.
        strength: how much; below 0, the rule lowers.

    >>> with planted(lm, lambda ids: (ids == 7).any(dim=1), target=3):
    ...     lm.model(torch.tensor([[7, 8], [8, 8]])).logits[:, -1, 3]
    tensor([8., 0.])
    """

    def edit(module: Any, args: Any, logits: Tensor) -> Tensor:  # [batch, (kept token,) vocabulary]
        holds = rule(seen.texts[-1]).to(logits).view(-1, *[1] * (logits.dim() - 2))  # [batch, 1], or [batch] of one row
        if target is None:
            return logits + strength * holds[..., None]
        logits = torch.zeros_like(logits)
        logits[..., target] = strength * holds
        return logits

    with asked(lm) as seen, lm.model.get_output_embeddings().register_forward_hook(edit):
        yield
