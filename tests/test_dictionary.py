"""The sparse dictionary: what it promises of latents, and that it finds directions that are there."""

import pytest
import torch

from course_utils.engine.dictionary import Dictionary, train_dictionary

pytestmark = pytest.mark.quick


def planted(n=4000, d_model=24, n_directions=32, seed=0):
    """Vectors that are sums of two of 32 directions."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n_directions, d_model, generator=draw), dim=1)
    which = torch.rand(n, n_directions, generator=draw).topk(2, dim=1).indices
    strengths = torch.zeros(n, n_directions).scatter(1, which, 1 + torch.rand(n, 2, generator=draw))
    return strengths @ directions + 3, directions


def test_at_most_k_latents_speak_and_directions_have_length_one():
    stream, _ = planted(400)
    dictionary = train_dictionary(stream, n_latents=48, k=3, steps=20)
    assert dictionary.latents(stream).count_nonzero(dim=1).max() <= 3
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(48))
    assert (dictionary.latents(stream) >= 0).all()


def test_planted_directions_are_found_and_more_training_explains_more():
    stream, directions = planted()
    one, more = (train_dictionary(stream, n_latents=64, k=2, steps=steps) for steps in (5, 1500))
    assert more.unexplained(stream) < 0.25 < one.unexplained(stream)
    found = (directions @ more.directions.T).max(dim=1).values
    assert (found > 0.9).float().mean() > 0.6


def test_the_same_seed_gives_the_same_dictionary():
    stream, _ = planted(200)
    one, same, other = (train_dictionary(stream, n_latents=16, k=2, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.directions, same.directions)
    assert not torch.equal(one.directions, other.directions)


def test_a_perfect_dictionary_misses_nothing():
    stream = torch.eye(4)[[0, 1, 2, 3, 1]] * 2
    exact = Dictionary(torch.eye(4), torch.eye(4), torch.zeros(4), 1)
    assert exact.unexplained(stream) == pytest.approx(0)
