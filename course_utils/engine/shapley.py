"""Shapley values: a token's effect averaged over all the company it may keep (Shapley 1953; Lundberg & Lee 2017).

Leaving one token out says nothing of two that each suffice alone; here each also gets its share of what they do
together. The players are the typed tokens; one that is out of the game is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from numbers import Integral

import torch
from torch import Tensor

from ..errors import CourseError, is_count
from ..models import LocalModel
from .metrics import Metric, Scored
from .prefix_sharing import score_variants

Coalition = tuple[bool, ...]  # for each player, whether it is in


def shapley_values(
    lm: LocalModel, metric: Metric, players: range, *, replacement: int, permutations: int = 25, seed: int = 0
) -> Scored:
    """Shapley values of some tokens; exact where all coalitions cost no more than the sampled ones (errors are 0 then).

    Sampled, players join one by one in a random order, and then in its reverse (Mitchell et al. 2022); a player's score
    is the mean of what the output gained when it joined. What the variants share in the beginning is computed once.
    Tokens that are no players stay as they are and score 0; `replacement` stands in for a player who is out.
    One order alone, with its reverse, has no standard error (NaN).

    >>> metric = make_metric(lm, prompt, contrast=("I", "Sure"))
    >>> s = shapley_values(lm, metric, range(24, 26), replacement=260)
    >>> bool(torch.isclose(s.scores.sum(), (s.value - s.without).sum(), atol=1e-3))
    True
    """
    if not players or not is_count(permutations):
        raise CourseError(f"Expected players and permutations, got {len(players)} tokens and {permutations!r} orders.")
    if not isinstance(seed, Integral):
        raise CourseError(f"Expected a whole number to decide the orders, got seed={seed!r}.")
    n = len(players)
    exact = 2**n <= 2 * permutations * n
    orders = [] if exact else _orders(n, permutations, int(seed))
    wanted = product((False, True), repeat=n) if exact else (c for order in orders for c in _walk(order))
    coalitions = list(dict.fromkeys(wanted))
    variants = _variants(metric.ids, players, coalitions, replacement)
    value, scores = score_variants(lm, metric.ids, variants, metric.score, keep=metric.keep, label="shapley")
    worth = dict(zip(coalitions, scores, strict=True))
    if exact:
        mean = exact_values(n, worth)
        error = torch.zeros_like(mean)
    else:
        gains = torch.stack([_gains(order, worth) for order in orders])  # [order, player, output]
        pairs = gains.reshape(-1, 2, *gains.shape[1:]).mean(dim=1)  # an order and its reverse are not independent
        mean = pairs.mean(dim=0)
        error = pairs.std(dim=0) / math.sqrt(len(pairs)) if len(pairs) > 1 else torch.full_like(mean, torch.nan)
    return Scored(_placed(metric, players, mean), value, worth[(False,) * n], _placed(metric, players, error))


def _orders(n: int, permutations: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(n, generator=generator).tolist() for _ in range(permutations)]
    return [order for one in drawn for order in (one, one[::-1])]


def _walk(order: list[int]) -> Iterator[Coalition]:
    """The coalitions that grow as players join in some order, from nobody to everyone."""
    joined = [False] * len(order)
    yield tuple(joined)
    for player in order:
        joined[player] = True
        yield tuple(joined)


def _gains(order: list[int], worth: dict[Coalition, Tensor]) -> Tensor:
    """What the output gained when each player joined, `[player, output]`."""
    values = torch.stack([worth[coalition] for coalition in _walk(order)])
    gains = torch.empty_like(values[1:])
    gains[order] = values.diff(dim=0)
    return gains


def exact_values(n: int, worth: dict[Coalition, Tensor]) -> Tensor:
    """Each player's gain, averaged over all orders of joining, `[player, output]`, from the output of every coalition.

    >>> exact_values(1, {(False,): torch.zeros(1), (True,): torch.ones(1)})
    tensor([[1.]])
    """
    mean = torch.zeros(n, len(worth[(False,) * n]), dtype=worth[(False,) * n].dtype)
    for coalition, value in worth.items():
        size = sum(coalition)
        for player, joined in enumerate(coalition):
            if not joined:
                weight = 1 / (n * math.comb(n - 1, size))  # how often just these are in when the player joins
                after = (*coalition[:player], True, *coalition[player + 1 :])
                mean[player] += weight * (worth[after] - value)
    return mean


def _variants(ids: Tensor, players: range, coalitions: list[Coalition], replacement: int) -> Tensor:
    """The input with every player who is out replaced, int64 `[coalition, token]`."""
    variants = ids.repeat(len(coalitions), 1)
    out = ~torch.tensor(coalitions, device=ids.device)
    variants[:, players.start : players.stop] = variants[:, players.start : players.stop].masked_fill(out, replacement)
    return variants


def _placed(metric: Metric, players: range, values: Tensor) -> Tensor:
    """Values of the players `[player, output]` among all tokens of the input, `[output, token]`."""
    placed = torch.zeros(values.shape[1], len(metric.ids), dtype=values.dtype)
    placed[:, players.start : players.stop] = values.T
    return placed
