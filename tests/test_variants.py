"""The fast path must be exact: the same scores as one full pass a variant, on every architecture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from course_utils import variants
from course_utils.variants import batches, first_differences, rows_in_budget, score_variants


def everything(logits):
    return logits.flatten(1)


@torch.no_grad()
def by_full_passes(lm, inputs, keep):
    return torch.stack([lm.model(row[None], use_cache=False).logits[0, -keep:].flatten() for row in inputs])


def random_variants(base, count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 97, (count, length), generator=generator)
    for row, start in zip(rows, torch.randint(0, length, (count,), generator=generator), strict=True):
        shared = min(int(start), len(base))
        row[:shared] = base[:shared]
    return rows


@pytest.mark.quick
@pytest.mark.parametrize("length", [17, 18, 19])
def test_scores_equal_full_passes_on_every_architecture(tiny, length):
    base = torch.randint(1, 97, (18,), generator=torch.Generator().manual_seed(1))
    inputs = random_variants(base, 12, length)
    value, scores = score_variants(tiny, base, inputs, everything, keep=3)
    torch.testing.assert_close(scores, by_full_passes(tiny, inputs, 3), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(value, by_full_passes(tiny, base[None], 3)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.quick
@given(seed=st.integers(0, 999), keep=st.integers(1, 6), waste=st.integers(0, 99), rows=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_scores_do_not_depend_on_how_variants_are_batched(seed, keep, waste, rows):
    lm = tiny_model("llama")
    base = torch.randint(1, 97, (12,), generator=torch.Generator().manual_seed(seed))
    inputs = random_variants(base, 9, 12, seed)
    before = variants.WASTE, variants.rows_in_budget
    try:
        variants.WASTE, variants.rows_in_budget = waste, lambda *_: rows
        _, scores = score_variants(lm, base, inputs, everything, keep=keep)
    finally:
        variants.WASTE, variants.rows_in_budget = before
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, keep), rtol=1e-8, atol=1e-8)


@pytest.mark.quick
def test_an_unchanged_variant_scores_as_the_input_itself(tiny):
    base = torch.arange(1, 11)
    value, scores = score_variants(tiny, base, base[None], everything, keep=2)
    torch.testing.assert_close(scores[0], value, rtol=1e-8, atol=1e-8)


@pytest.mark.quick
def test_a_model_that_keeps_another_kind_of_state_takes_full_passes():
    from transformers import MambaConfig, MambaForCausalLM

    from course_utils.models import LocalModel

    config = MambaConfig(vocab_size=97, hidden_size=24, num_hidden_layers=2, state_size=4)
    lm = LocalModel("mamba", MambaForCausalLM(config).double().eval(), None)
    base = torch.arange(1, 11)
    inputs = random_variants(base, 5, 10)
    _, scores = score_variants(lm, base, inputs, everything, keep=2)
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, 2), rtol=1e-8, atol=1e-8)


@pytest.mark.quick
@given(starts=st.lists(st.integers(0, 300), min_size=1, max_size=60), rows=st.integers(1, 20))
def test_batches_hold_every_variant_once_within_the_limits(starts, rows):
    groups = list(batches(starts, rows))
    assert sorted(index for group in groups for index in group) == list(range(len(starts)))
    for group in groups:
        assert len(group) <= rows
        assert sum(starts[i] - starts[group[0]] for i in group) <= variants.WASTE


@pytest.mark.quick
def test_first_differences_of_shorter_and_longer_variants():
    base = torch.tensor([5, 6, 7])
    assert first_differences(base, torch.tensor([[5, 6], [1, 6]])) == [2, 0]
    assert first_differences(base, torch.tensor([[5, 6, 7, 8], [5, 0, 7, 8]])) == [3, 1]


@pytest.mark.quick
def test_a_batch_shrinks_as_prompts_grow_so_that_memory_is_bounded():
    lm = tiny_model("llama")
    assert rows_in_budget(lm, 10**9, 1) == 1
    assert rows_in_budget(lm, 100, 1) > rows_in_budget(lm, 10_000, 1)
