"""A sparse dictionary of the residual stream at one layer: each vector as a sum of few directions of many.

A top-k autoencoder (Makhzani & Frey 2013; Gao et al. 2024): of all latents only the k largest speak, so that each can
come to stand for one thing. Small, and trained on a few thousand tokens: enough to try the idea, not to settle it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._progress import progress


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Directions in the residual stream, and how to read off which of them a vector is made of.

    Attributes:
        directions: float32 `[latent, d_model]`, each of length 1.
        readers: float32 `[latent, d_model]`: the latents' inputs.
        middle: float32 `[d_model]`, what is taken away before.
        k: how many latents speak.
    """

    directions: Tensor
    readers: Tensor
    middle: Tensor
    k: int

    def latents(self, stream: Tensor) -> Tensor:
        """How strongly each latent speaks in each vector, `[..., latent]` of `[..., d_model]`; all but k are 0.

        >>> one = Dictionary(torch.eye(3), torch.eye(3), torch.zeros(3), k=1)
        >>> one.latents(torch.tensor([1.0, 2.0, 0.0]))
        tensor([0., 2., 0.])
        """
        read = ((stream - self.middle) @ self.readers.T).relu()
        strongest = read.topk(self.k, dim=-1)
        return torch.zeros_like(read).scatter(-1, strongest.indices, strongest.values)

    def rebuilt(self, stream: Tensor) -> Tensor:
        """The vectors as the dictionary has them."""
        return self.latents(stream) @ self.directions + self.middle

    def unexplained(self, stream: Tensor) -> float:
        """The share of the variance that the dictionary misses: 0 for a perfect one, 1 for the mean vector."""
        missed = (stream - self.rebuilt(stream)).square().sum()
        return float(missed / (stream - stream.mean(dim=0)).square().sum())


def train_dictionary(
    stream: Tensor, *, n_latents: int = 1024, k: int = 16, steps: int = 600, batch: int = 512, seed: int = 0
) -> Dictionary:
    """Learn a dictionary of vectors, float32 `[vector, d_model]`, on the device where they are.

    The same seed gives the same dictionary on the same machine. Latents start as random vectors of the data.

    >>> train_dictionary(torch.randn(64, 8), n_latents=16, k=2, steps=3).directions.shape
    torch.Size([16, 8])
    """
    draw = torch.Generator().manual_seed(seed)
    middle = stream.mean(dim=0)
    scale = (stream - middle).norm(dim=1).mean()
    vectors = (stream - middle) / scale
    first = vectors[torch.randint(len(vectors), (n_latents,), generator=draw).to(stream.device)]
    directions = torch.nn.Parameter(torch.nn.functional.normalize(first, dim=1))
    readers = torch.nn.Parameter(directions.detach().clone())
    optimiser = torch.optim.Adam([directions, readers], lr=1e-3)
    zero = torch.zeros_like(middle)
    with progress(steps, "sparse dictionary", unit="step") as bar:
        for _ in range(steps):
            some = vectors[torch.randint(len(vectors), (batch,), generator=draw).to(stream.device)]
            loss = (some - Dictionary(directions, readers, zero, k).rebuilt(some)).square().sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                directions.div_(directions.norm(dim=1, keepdim=True))
            bar.update()
    return Dictionary(directions.detach(), readers.detach(), middle, k)
