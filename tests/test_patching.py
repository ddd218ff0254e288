"""Circuits and patching: invariants, agreement with naive hooked passes, hostile input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model, words
from course_utils import (
    CourseError,
    activation_patching,
    analyze_attention,
    direct_logit_attribution,
    load_model,
    logit_lens,
)
from course_utils.engine.pairs import INTO, OVER
from course_utils.hooks import edit, find_parts, record
from course_utils.patching import attribution_patching, patch_together, path_patching

CONTRAST = (" w5", " w9")
CLEAN, CORRUPTED = words(3, 1, 4, 1, 5, 9, 2, 6), words(3, 1, 8, 1, 5, 9, 2, 6)
quick = pytest.mark.quick


def pair_of(lm):
    return lm.prompt(CLEAN), lm.prompt(CORRUPTED)


@torch.no_grad()
def difference(lm, prompt):
    logits = lm.model(prompt.input_ids, use_cache=False).logits[0, -1]
    return (logits[5] - logits[9]).item()


@torch.no_grad()
def everything_in(lm, prompt):
    sites = [(kind, layer) for kind in OVER for layer in range(lm.n_layers)]
    with record(lm, sites) as seen:
        lm.model(prompt.input_ids, use_cache=False)
    return dict(seen)


def naive_patch(lm, site, place, into, position=None):
    """One patch, by hand, in one whole pass; the share of the difference that it moves."""
    runs = dict(zip(("clean", "corrupted"), pair_of(lm), strict=True))
    base = runs[into]
    source = everything_in(lm, runs["corrupted" if into == "clean" else "clean"])[site]

    def change(activation):
        new = activation.clone()
        if site[0] == "heads":
            size = source.shape[-1] // lm.n_heads
            tokens = slice(None) if position is None else slice(position, position + 1 or None)
            new[:, tokens, place * size : (place + 1) * size] = source[:, tokens, place * size : (place + 1) * size]
        else:
            new[:, place] = source[:, place]
        return new

    with edit(lm, {site: change}):
        value = difference(lm, base)
    values = {name: difference(lm, prompt) for name, prompt in runs.items()}
    other = values["corrupted" if into == "clean" else "clean"]
    return (value - values[into]) / (other - values[into])


@quick
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("into", INTO)
def test_patching_equals_naive_hooked_passes(tiny, over, into):
    patching = activation_patching(tiny, *pair_of(tiny), over=over, contrast=CONTRAST, into=into)
    assert patching.effects.shape == (tiny.n_layers, tiny.n_heads if over == "heads" else 8)
    for layer in range(tiny.n_layers):
        for place in (0, 2, 3):
            naive = naive_patch(tiny, (over, layer), place, into)
            assert patching.effects[layer, place] == pytest.approx(naive, rel=1e-5, abs=1e-6)


@quick
@pytest.mark.parametrize("position", [-1, -3])
def test_heads_can_be_patched_at_one_token(tiny, position):
    patching = activation_patching(tiny, *pair_of(tiny), over="heads", contrast=CONTRAST, position=position)
    naive = naive_patch(tiny, ("heads", 1), 2, "corrupted", position)
    assert patching.effects[1, 2] == pytest.approx(naive, rel=1e-5, abs=1e-6)


@quick
def test_a_position_counts_the_prompts_tokens_not_the_targets():
    lm = tiny_model("llama")
    options = {"over": "heads", "target": " w5 w6 w7"}
    for function in (activation_patching, attribution_patching):
        last, same = (function(lm, *pair_of(lm), position=p, **options).effects for p in (-1, 7))
        assert np.array_equal(last, same)
    by_token = activation_patching(lm, *pair_of(lm), target=" w5 w6 w7").effects
    assert by_token.shape == (3, 8)
    assert by_token[0, 2] == pytest.approx(1, abs=1e-6)


@quick
def test_the_stream_before_the_difference_moves_nothing_and_at_the_last_layers_end_all(tiny):
    effects = activation_patching(tiny, *pair_of(tiny), contrast=CONTRAST).effects
    assert (effects[:, :2] == 0).all()
    assert effects[0, 2] == pytest.approx(1, abs=1e-6)  # the embedding of the one word that differs
    assert abs(effects[0, 3:]).max() < 1e-6


@quick
@given(seed=st.integers(0, 99), architecture=st.sampled_from(["llama", "gpt2", "gpt_neox", "qwen3", "olmo2", "falcon"]))
@settings(max_examples=12, deadline=None)
def test_patching_every_head_and_mlp_gives_the_other_run(seed, architecture):
    lm = tiny_model(architecture, seed)
    clean, corrupted = pair_of(lm)
    source = everything_in(lm, clean)
    sites = [("residual", 0)] + [(kind, layer) for kind in ("attention", "mlp") for layer in range(lm.n_layers)]
    with edit(lm, {site: (lambda _, site=site: source[site].clone()) for site in sites}):
        assert difference(lm, corrupted) == pytest.approx(difference(lm, clean), abs=1e-9)


@quick
def test_patching_an_activation_with_itself_changes_nothing(tiny):
    _, corrupted = pair_of(tiny)
    own = everything_in(tiny, corrupted)
    with edit(tiny, {site: (lambda _, site=site: own[site].clone()) for site in own}):
        changed = difference(tiny, corrupted)
    assert changed == pytest.approx(difference(tiny, corrupted), abs=1e-9)


@quick
@pytest.mark.parametrize("into", INTO)
def test_heads_together_equal_all_of_them_by_hand(tiny, into):
    heads = [(1, 0), (1, 3), (2, 2)]
    one = patch_together(tiny, *pair_of(tiny), heads[2:], contrast=CONTRAST, into=into)
    alone = activation_patching(tiny, *pair_of(tiny), over="heads", contrast=CONTRAST, into=into).effects[2, 2]
    assert one == pytest.approx(float(alone), rel=1e-5, abs=1e-6)
    assert patch_together(tiny, *pair_of(tiny), [], contrast=CONTRAST, into=into) == pytest.approx(0, abs=1e-9)


@quick
@pytest.mark.parametrize("over", OVER)
def test_the_gradient_is_the_slope_of_small_patches(tiny, over):
    """Against finite differences: patch a hundredth of the way, there and back, by hand."""
    clean, corrupted = pair_of(tiny)
    ours = attribution_patching(tiny, clean, corrupted, over=over, contrast=CONTRAST)
    was, wanted, step = everything_in(tiny, corrupted), everything_in(tiny, clean), 0.01
    gap = difference(tiny, clean) - difference(tiny, corrupted)
    for layer in range(tiny.n_layers):
        site, place = (over, layer), 2
        moved = torch.zeros_like(was[site])
        size = moved.shape[-1] // tiny.n_heads
        where = (0, slice(None), slice(place * size, (place + 1) * size)) if over == "heads" else (0, place)
        moved[where] = (wanted[site] - was[site])[where] * step
        with edit(tiny, {site: lambda a, moved=moved: a + moved}):
            up = difference(tiny, corrupted)
        with edit(tiny, {site: lambda a, moved=moved: a - moved}):
            down = difference(tiny, corrupted)
        assert ours.effects[layer, place] == pytest.approx((up - down) / (2 * step * gap), rel=0.02, abs=5e-3)


@quick
def test_agreement_is_a_correlation():
    lm = tiny_model("llama")
    exact = activation_patching(lm, *pair_of(lm), contrast=CONTRAST)
    assert exact.agreement(exact) == pytest.approx(1)
    approximate = attribution_patching(lm, *pair_of(lm), contrast=CONTRAST)
    expected = np.corrcoef(exact.effects.ravel(), approximate.effects.ravel())[0, 1]
    assert exact.agreement(approximate) == pytest.approx(expected)


@torch.no_grad()
def naive_path(lm, sender, receiver):
    """All later heads and MLPs held at the corrupted run's; only the receiver (or the output) hears of the sender."""
    clean, corrupted = pair_of(lm)
    wanted, was = everything_in(lm, clean), everything_in(lm, corrupted)
    layer, head = sender
    size = was["heads", 0].shape[-1] // lm.n_heads
    own = slice(head * size, (head + 1) * size)

    def send(activation):
        new = was["heads", layer].clone()
        new[..., own] = wanted["heads", layer][..., own]
        return new

    hold = {(k, at): (lambda a, s=(k, at): was[s].clone()) for k in ("attention", "mlp") for at in range(lm.n_layers)}
    del hold["attention", layer]  # it is what the sender, and no other head, changes
    hold["heads", layer] = send
    base = difference(lm, corrupted)
    gap = difference(lm, clean) - base
    if receiver is None:
        with edit(lm, hold):
            return (difference(lm, corrupted) - base) / gap
    to, number = receiver
    seen = {}

    def hear(activation):
        seen["heads"] = activation.clone()

    with edit(lm, {**hold, ("heads", to): hear}):
        lm.model(corrupted.input_ids, use_cache=False)
    into = slice(number * size, (number + 1) * size)

    def receive(activation):
        new = activation.clone()
        new[..., into] = seen["heads"][..., into]
        return new

    with edit(lm, {("heads", to): receive}):
        return (difference(lm, corrupted) - base) / gap


@quick
@pytest.mark.parametrize("receiver", [None, (2, 1)])
def test_path_patching_equals_holding_everything_else_by_hand(tiny, receiver):
    ours = path_patching(tiny, *pair_of(tiny), contrast=CONTRAST, receiver=receiver)
    for sender in [(0, 0), (1, 3), (1, 1)]:
        assert ours.effects[sender] == pytest.approx(naive_path(tiny, sender, receiver), rel=1e-5, abs=1e-6)
    if receiver:
        assert (ours.effects[receiver[0] :] == 0).all()


@quick
def test_direct_attributions_sum_to_the_logits(tiny):
    prompt = tiny.prompt(CLEAN)
    d = direct_logit_attribution(tiny, prompt, contrast=CONTRAST)
    assert d.value == pytest.approx(difference(tiny, prompt), rel=1e-6)
    assert d.total == pytest.approx(d.value, rel=1e-5, abs=1e-6)
    one = direct_logit_attribution(tiny, prompt, target=" w5")
    assert one.total == pytest.approx(one.value, rel=1e-5, abs=1e-6)


@quick
@given(seed=st.integers(0, 999), ids=st.lists(st.integers(1, 96), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_direct_attributions_sum_for_any_prompt(seed, ids):
    lm = tiny_model(["llama", "gpt2", "olmo2", "gemma3_text"][seed % 4], seed)
    d = direct_logit_attribution(lm, lm.prompt(words(*ids)), contrast=CONTRAST)
    assert d.total == pytest.approx(d.value, rel=1e-4, abs=1e-5)


@quick
def test_heads_sum_to_their_block_where_it_has_no_bias(tiny):
    d = direct_logit_attribution(tiny, tiny.prompt(CLEAN), contrast=CONTRAST)
    if find_parts(tiny).out_projection[0].bias is None:
        np.testing.assert_allclose(d.heads.sum(axis=1), d.attention, rtol=1e-4, atol=1e-6)


@quick
def test_the_lens_ends_at_the_models_own_output_and_begins_at_the_embedding(tiny):
    prompt = tiny.prompt(CLEAN)
    lens = logit_lens(tiny, prompt, contrast=CONTRAST)
    with torch.no_grad():
        logits = tiny.model(prompt.input_ids).logits[0].float()
    np.testing.assert_allclose(lens.contrast[-1], logits[:, 5] - logits[:, 9], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(lens.probability[-1], logits.softmax(dim=-1).max(dim=-1).values, rtol=1e-4)
    assert lens.predictions[-1] == [f"·w{i}" for i in logits.argmax(dim=-1).tolist()]
    assert lens.contrast.shape == (tiny.n_layers + 1, 8)


@quick
@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        ((CLEAN, "w1 w2"), {}, "same number of tokens, got 8 and 2"),
        ((CLEAN, CLEAN), {}, "different outputs"),
        ((CLEAN, CORRUPTED), {"over": "neurons"}, "something to patch"),
        ((CLEAN, CORRUPTED), {"into": "both"}, "run to patch into"),
        ((CLEAN, CORRUPTED), {"contrast": None}, "target or a contrast"),
        ((CLEAN, CORRUPTED), {"over": "heads", "position": 8}, "position"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(texts, given, message):
    lm = tiny_model("llama")
    for function in (activation_patching, attribution_patching):
        with pytest.raises(CourseError, match=message):
            function(lm, *map(lm.prompt, texts), **{"contrast": CONTRAST, **given})


@quick
def test_heads_that_are_not_there_are_told_in_a_sentence():
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match="heads as"):
        patch_together(lm, *pair_of(lm), [(3, 0)], contrast=CONTRAST)
    with pytest.raises(CourseError, match="head as"):
        path_patching(lm, *pair_of(lm), contrast=CONTRAST, receiver=(0, 4))
    with pytest.raises(CourseError, match="either a target or a contrast"):
        direct_logit_attribution(lm, lm.prompt(CLEAN))


@pytest.mark.slow
def test_patching_a_target_works_on_the_real_model_and_direct_parts_sum(lm):
    clean, corrupted = lm.chat("What is the capital of France?"), lm.chat("What is the capital of Spain?")
    target = "The capital of France is Paris"
    patching = activation_patching(lm, clean, corrupted, target=target, over="attention")
    assert patching.unit == "nats"
    assert patching.effects.shape == (30, len(clean))
    d = direct_logit_attribution(lm, clean, target="The")
    assert d.total == pytest.approx(d.value, rel=1e-3)
    lens = logit_lens(lm, clean)
    assert lens.predictions[-1][-1] == "The"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_the_same_parts_write_as_much_as_rounding_lets_them(lm, dtype):
    half, prompt, asked = load_model(dtype=dtype), lm.chat("How do I steal a car?"), {"contrast": ("I", "Sure")}
    exact, rough = (direct_logit_attribution(model, prompt, **asked) for model in (lm, half))
    for name in ("attention", "heads", "mlps"):
        right, found = getattr(exact, name), getattr(rough, name)
        assert abs(found - right).max() < 0.1 * abs(right).max(), name
    right, found = (analyze_attention(model, prompt).value_weighted() for model in (lm, half))
    np.testing.assert_allclose(found, right, atol=0.03 * right.max())
