"""The fast path must be exact: the same scores as one full pass a variant, on every architecture."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from course_utils._progress import progress
from course_utils.engine import prefix_sharing
from course_utils.engine.prefix_sharing import batches, fill_rows, first_differences, rows_in_budget, score_variants


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
@given(seed=st.integers(0, 999), keep=st.integers(1, 6), tokens=st.integers(1, 99), rows=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_scores_do_not_depend_on_how_variants_are_batched(seed, keep, tokens, rows):
    lm = tiny_model("llama")
    base = torch.randint(1, 97, (12,), generator=torch.Generator().manual_seed(seed))
    inputs = random_variants(base, 9, 12, seed)
    before = prefix_sharing.BATCH_TOKENS, prefix_sharing.rows_in_budget
    try:
        prefix_sharing.BATCH_TOKENS, prefix_sharing.rows_in_budget = tokens, lambda *_: rows
        _, scores = score_variants(lm, base, inputs, everything, keep=keep)
    finally:
        prefix_sharing.BATCH_TOKENS, prefix_sharing.rows_in_budget = before
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, keep), rtol=1e-8, atol=1e-8)


@pytest.mark.quick
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
@pytest.mark.parametrize(("window", "shared"), [(18, True), (17, False)])
def test_a_sliding_window_is_packed_only_where_it_covers_the_input(architecture, window, shared):
    lm = tiny_model(architecture, sliding_window=window)
    assert prefix_sharing.can_share(lm, 18) is shared
    base = torch.randint(1, 97, (18,), generator=torch.Generator().manual_seed(1))
    inputs = random_variants(base, 12, 18)
    _, scores = score_variants(lm, base, inputs, everything, keep=3)
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, 3), rtol=1e-8, atol=1e-8)


@pytest.mark.quick
@pytest.mark.parametrize(("length", "of_the_variants"), [(17, 16), (16, 17), (18, 17), (17, 18)])
def test_positions_that_are_scaled_from_some_length_on(length, of_the_variants):
    scaled = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 3,
        "long_factor": [4.0, 6.0, 8.0],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    }
    lm = tiny_model("phi3", rope_parameters=scaled, original_max_position_embeddings=16)
    base = torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(1))
    inputs = random_variants(base, 12, of_the_variants)
    value, scores = score_variants(lm, base, inputs, everything, keep=1)
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, 1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value, by_full_passes(lm, base[None], 1)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.quick
def test_attention_with_linear_biases_takes_full_passes():
    lm = tiny_model("falcon", alibi=True)
    base = torch.randint(1, 97, (18,), generator=torch.Generator().manual_seed(1))
    inputs = random_variants(base, 12, 18)
    _, scores = score_variants(lm, base, inputs, everything, keep=3)
    torch.testing.assert_close(scores, by_full_passes(lm, inputs, 3), rtol=1e-8, atol=1e-8)


@pytest.mark.quick
def test_eager_attention_gives_the_same(tiny):
    base = torch.randint(1, 97, (18,), generator=torch.Generator().manual_seed(1))
    inputs = random_variants(base, 6, 18)
    before = tiny.model.config._attn_implementation
    tiny.model.set_attn_implementation("eager")
    try:
        expected = by_full_passes(tiny, inputs, 2)
        _, scores = score_variants(tiny, base, inputs, everything, keep=2)
    finally:
        tiny.model.set_attn_implementation(before)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)  # its softmax is in float32


@pytest.mark.quick
def test_no_hook_stays_behind_when_a_pass_fails():
    lm = tiny_model("llama")
    head = lm.model.get_output_embeddings()

    def broken(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_variants(lm, torch.arange(1, 9), torch.arange(1, 9)[None], broken, keep=1)
    assert not head._forward_pre_hooks


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
@given(starts=st.lists(st.integers(0, 300), min_size=1, max_size=60), most=st.integers(1, 20))
def test_rows_and_batches_hold_every_variant_once_within_the_limits(starts, most):
    length = 301
    rows = fill_rows(starts, length)
    assert sorted(index for row in rows for index in row) == list(range(len(starts)))
    assert all(sum(length - starts[i] for i in row) <= length - min(starts) for row in rows)
    divided = list(batches(rows, length - min(starts), most))
    assert [row for batch in divided for row in batch] == rows
    assert max(map(len, divided)) <= most


@pytest.mark.quick
def test_packing_leaves_hardly_a_gap_for_leave_one_out():
    rows = fill_rows(list(range(62)), 67)
    assert len(rows) * 67 <= 1.02 * sum(67 - start for start in range(62))


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


@pytest.mark.quick
def test_what_is_tried_once_is_no_part_of_what_the_bar_foretells(monkeypatch):
    tried, told = [], []

    def slow_at_first(*_):
        time.sleep(0 if tried else 0.5)
        tried.append(True)
        return True

    def shown(*arguments, seconds, **more):
        told.append(seconds)
        return progress(*arguments, **more)

    lm = tiny_model("llama")
    monkeypatch.setattr(prefix_sharing, "can_share", slow_at_first)
    monkeypatch.setattr(prefix_sharing, "progress", shown)
    ids = torch.arange(1, 9)
    prefix_sharing.score_variants(lm, ids, ids.roll(1).repeat(20, 1), lambda logits: logits[:, -1, :1], keep=1)
    assert tried
    assert told[0] < 5
