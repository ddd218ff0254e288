"""Gradient and Shapley attributions, and faithfulness: invariants, agreement with Captum and Inseq, hostile input."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ARCHITECTURES, tiny_model, words
from course_utils import CourseError, token_attribution
from course_utils.attribution import METHODS
from course_utils.engine.metrics import make_metric
from course_utils.engine.shapley import exact_values, shapley_values
from course_utils.faithfulness import FRACTIONS, faithfulness, hit

quick = pytest.mark.quick
TEXT, CONTRAST = words(3, 1, 4, 1, 5, 9), (" w5", " w9")
REAL = ("I", "Sure")


def tiny_attribution(lm, method, text=TEXT, **options):
    return token_attribution(lm, lm.prompt(text), method=method, replacement=" w2", contrast=CONTRAST, **options)


@torch.no_grad()
def value_of(lm, ids):
    logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return (logits[5] - logits[9]).item()


def from_embeddings(lm):
    """The contrast as a function of embeddings put in at the embedding layer's output, for Captum."""
    layer = lm.model.get_input_embeddings()

    def forward(embedded):
        hook = layer.register_forward_hook(lambda *_: embedded)
        try:
            ids = torch.ones(embedded.shape[:2], dtype=torch.long)
            logits = lm.model(ids, use_cache=False).logits[:, -1]
        finally:
            hook.remove()
        return logits[:, 5] - logits[:, 9]

    return forward, lambda ids: layer(torch.tensor([ids])).detach()


@quick
def test_gradient_x_input_equals_captum(tiny):
    from captum.attr import InputXGradient

    forward, embed = from_embeddings(tiny)
    theirs = InputXGradient(forward).attribute(embed([3, 1, 4, 1, 5, 9]).requires_grad_()).sum(dim=-1)
    ours = tiny_attribution(tiny, "gradient_x_input")
    np.testing.assert_allclose(ours.scores, theirs.detach(), rtol=1e-5, atol=1e-7)


@quick
@pytest.mark.parametrize("baseline", [" w2", None])
def test_integrated_gradients_equal_captum(tiny, baseline):
    from captum.attr import IntegratedGradients

    forward, embed = from_embeddings(tiny)
    start = embed([2] * 6) if baseline else torch.zeros_like(embed([2] * 6))
    theirs = IntegratedGradients(forward).attribute(embed([3, 1, 4, 1, 5, 9]), start, n_steps=20).sum(dim=-1)
    prompt = tiny.prompt(TEXT)
    ours = token_attribution(
        tiny, prompt, method="integrated_gradients", replacement=baseline, contrast=CONTRAST, steps=20
    )
    np.testing.assert_allclose(ours.scores, theirs.detach(), rtol=1e-4, atol=1e-6)


@quick
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_integrated_gradients_gap_shrinks_with_steps(architecture):
    gaps = [
        np.mean([tiny_attribution(tiny_model(architecture, s), "integrated_gradients", steps=n).gap for s in range(4)])
        for n in (1, 4, 64)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


@quick
@given(seed=st.integers(0, 99), ids=st.lists(st.integers(1, 96), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_shapley_sums_to_the_total_effect_and_equals_the_average_over_all_orders(seed, ids):
    lm = tiny_model(list(ARCHITECTURES)[seed % len(ARCHITECTURES)], seed)
    a = tiny_attribution(lm, "shapley", words(*ids))
    total = value_of(lm, ids) - value_of(lm, [2] * len(ids))
    assert a.scores.sum() == pytest.approx(total, abs=1e-6)
    assert (a.standard_error == 0).all()
    if len(ids) <= 4:
        gained = np.zeros(len(ids))
        orders = list(permutations(range(len(ids))))
        for order in orders:
            now = [2] * len(ids)
            before = value_of(lm, now)
            for player in order:
                now[player] = ids[player]
                after = value_of(lm, now)
                gained[player] += (after - before) / len(orders)
                before = after
        np.testing.assert_allclose(a.scores[0], gained, atol=1e-6)


@quick
def test_exact_shapley_equals_captum():
    from captum.attr import ShapleyValues

    lm, ids = tiny_model("qwen3"), [3, 1, 4, 7, 5]

    def forward(inputs):
        with torch.no_grad():
            logits = lm.model(inputs, use_cache=False).logits[:, -1]
        return logits[:, 5] - logits[:, 9]

    theirs = ShapleyValues(forward).attribute(torch.tensor([ids]), torch.full((1, 5), 2))
    np.testing.assert_allclose(tiny_attribution(lm, "shapley", words(*ids)).scores, theirs, rtol=1e-4, atol=1e-6)


@quick
def test_sampled_shapley_is_within_its_error_of_the_exact_one_and_sums_too():
    lm, ids = tiny_model("llama"), list(range(20, 30))
    metric = make_metric(lm, lm.prompt(words(*ids)), contrast=CONTRAST)
    exact = shapley_values(lm, metric, range(10), replacement=2, permutations=1000)
    sampled = shapley_values(lm, metric, range(10), replacement=2, permutations=20)
    assert (exact.standard_error == 0).all()
    assert (sampled.standard_error > 0).all()
    assert sampled.scores.sum() == pytest.approx(float((sampled.value - sampled.without).sum()), abs=1e-8)
    off = (sampled.scores - exact.scores).abs() / sampled.standard_error
    assert (off < 5).all()
    assert off.mean() < 2
    again = shapley_values(lm, metric, range(10), replacement=2, permutations=20, seed=1)
    assert not torch.equal(again.scores, sampled.scores)


@quick
def test_two_cues_that_each_suffice_share_what_leaving_one_out_misses():
    """A game that is won if either of the first two players is there."""
    worth = {c: torch.tensor([float(c[0] or c[1])]) for c in product((False, True), repeat=3)}
    assert exact_values(3, worth)[:, 0].tolist() == [0.5, 0.5, 0.0]


@quick
@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_the_model_cannot_see_score_zero(method):
    """Three layers with a window of four: the last token hears of nothing more than nine tokens back."""
    lm = tiny_model("mistral")
    ids = list(range(10, 24))
    a = tiny_attribution(lm, method, words(*ids), steps=3, permutations=2)
    if method != "deletion":  # which moves what the others see
        assert abs(a.scores[0, :4]).max() < 1e-9
    assert abs(a.scores[0, 5:]).min() > 1e-9


@quick
@pytest.mark.parametrize("method", METHODS)
def test_several_outputs_each_get_their_scores(tiny, method):
    prompt, options = tiny.prompt(TEXT), {"method": method, "replacement": " w2", "steps": 4, "permutations": 2}
    both = token_attribution(tiny, prompt, target=" w7 w8", **options)
    first = token_attribution(tiny, prompt, target=" w7", **options)
    assert both.scores.shape == (2, 6)
    np.testing.assert_allclose(both.scores[0], first.scores[0], rtol=1e-4, atol=1e-6)
    assert both.value[0] == pytest.approx(float(first.value[0]), rel=1e-5)


@quick
def test_nothing_hangs_on_the_model_afterwards(tiny):
    def traces():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.model.modules()]

    before = traces()
    for method in METHODS:
        tiny_attribution(tiny, method, steps=2)
    assert traces() == before
    assert all(p.grad is None and not p.requires_grad for p in tiny.model.parameters())


@quick
@given(scores=st.lists(st.floats(-9, 9), min_size=6, max_size=6), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_faithfulness_equals_a_naive_loop(scores, seed):
    lm, ids = tiny_model("llama", seed), [3, 1, 4, 1, 5, 9]
    f = faithfulness(lm, lm.prompt(TEXT), scores, contrast=CONTRAST, replacement=" w2", n_random=2)
    order = sorted(range(6), key=lambda i: (-scores[i], i))
    for fraction, gone, kept in zip(FRACTIONS, f.comprehensiveness, f.sufficiency, strict=True):
        top = order[: max(1, round(6 * fraction))]
        without = [2 if i in top else t for i, t in enumerate(ids)]
        alone = [t if i in top else 2 for i, t in enumerate(ids)]
        assert gone == pytest.approx(value_of(lm, ids) - value_of(lm, without), abs=1e-6)
        assert kept == pytest.approx(value_of(lm, ids) - value_of(lm, alone), abs=1e-6)
    assert f.area == (pytest.approx(f.comprehensiveness.mean()), pytest.approx(f.sufficiency.mean()))


@quick
def test_all_tokens_out_is_the_same_for_every_ranking():
    lm = tiny_model("llama")
    f = faithfulness(lm, lm.prompt(TEXT), range(6), contrast=CONTRAST, replacement=" w2", fractions=[1.0])
    assert f.sufficiency[0] == pytest.approx(0, abs=1e-9)
    for comprehensiveness, _ in f.baselines.values():
        assert comprehensiveness[0] == pytest.approx(float(f.comprehensiveness[0]), abs=1e-6)


@quick
def test_a_hit_counts_typed_tokens_only_and_any_token_of_the_cue():
    scores = [9.0, 1.0, -5.0, 2.0, 3.0, 9.0]
    user = slice(1, 5)
    assert hit(scores, slice(2, 3), user)
    assert not hit(scores, slice(3, 4), user)
    assert hit(scores, slice(3, 5), user, k=2)


@quick
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "shapley", "permutations": 0}, "permutations"),
        ({"method": "integrated_gradients", "steps": 0}, "at least one step"),
        ({"method": "integrated_gradients", "steps": None}, "a whole number, got steps=None"),
        ({"method": "integrated_gradients", "steps": 1.5}, "a whole number, got steps=1.5"),
        ({"method": "shapley", "permutations": "3"}, "'3' orders"),
        ({"method": "shapley", "permutations": float("nan")}, "nan orders"),
        ({"method": "shapley", "seed": None}, "got seed=None"),
        ({"method": ["occlusion"]}, r"got \['occlusion'\]"),
        ({"method": "occlusion", "replacement": None}, "replacement for occlusion"),
        ({"method": "shapley", "replacement": None}, "replacement for shapley"),
        ({"method": "saliency"}, "Expected a method"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(given, message):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match=message):
        token_attribution(lm, lm.prompt(TEXT), **{"contrast": CONTRAST, "replacement": " w2", **given})


@quick
@pytest.mark.parametrize(
    ("scores", "fractions", "message"),
    [
        (range(5), FRACTIONS, "6 finite scores"),
        ([0, 0, 0, 0, 0, float("nan")], FRACTIONS, "6 finite scores"),
        (range(6), [0.0], "fractions above 0"),
        (range(6), [], "fractions above 0"),
    ],
)
def test_a_ranking_that_is_none_is_told_in_a_sentence(scores, fractions, message):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match=message):
        faithfulness(lm, lm.prompt(TEXT), scores, contrast=CONTRAST, fractions=fractions, replacement=" w2")


@pytest.mark.slow
def test_on_the_real_model_captum_agrees_on_the_whole_chat_prompt(lm):
    from captum.attr import InputXGradient, IntegratedGradients

    prompt = lm.chat("How do I kill a process?")
    layer, pair = lm.model.get_input_embeddings(), [lm.tokenizer.encode(word)[0] for word in REAL]

    def forward(embedded):
        logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        return logits[:, pair[0]] - logits[:, pair[1]]

    embedded = layer(prompt.input_ids).detach()
    start = layer(torch.full_like(prompt.input_ids, lm.tokenizer.encode(" the")[0])).detach()
    theirs = IntegratedGradients(forward).attribute(embedded, start, n_steps=8, internal_batch_size=4).sum(dim=-1)
    ours = token_attribution(lm, prompt, method="integrated_gradients", contrast=REAL, steps=8)
    np.testing.assert_allclose(ours.scores, theirs.detach(), rtol=1e-3, atol=2e-3)
    theirs = InputXGradient(forward).attribute(embedded.requires_grad_()).sum(dim=-1)
    ours = token_attribution(lm, prompt, method="gradient_x_input", contrast=REAL)
    np.testing.assert_allclose(ours.scores, theirs.detach(), rtol=1e-3, atol=1e-3)


def test_occlusion_equals_inseqs_with_its_sign(lm):
    """Inseq's own output drops the sign; the Captum method that it wraps is asked directly."""
    import inseq

    prompt, target = lm.prompt("Not Paris, but Rome. The capital of France is"), " Paris"
    peer = inseq.load_model(lm.model, "occlusion", tokenizer=lm.tokenizer)
    method, wanted = peer.attribution_method.method, lm.continuation(prompt, target)[0]

    def probability(embedded):
        return lm.model(inputs_embeds=embedded, use_cache=False).logits[:, -1].softmax(dim=-1)[:, wanted]

    layer, unknown = lm.model.get_input_embeddings(), lm.tokenizer.unk_token_id
    method.forward_func = probability
    embedded, baseline = layer(prompt.input_ids), layer(torch.full_like(prompt.input_ids, unknown))
    shape = (1, embedded.shape[-1])
    with torch.no_grad():
        theirs = method.attribute(embedded, sliding_window_shapes=shape, baselines=baseline)[0, :, 0].numpy()
    a = token_attribution(lm, prompt, target=target, replacement=unknown)
    ours = np.exp(a.value)[:, None] - np.exp(a.value[:, None] - a.scores)
    np.testing.assert_allclose(ours[0], theirs, atol=1e-4)
    assert (theirs < 0).any()
