"""Ablation: invariants, agreement with a naive loop of hooked passes and with nothing but torch, hostile input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model, words
from course_utils import CourseError, ablate, ablation_sweep
from course_utils.ablation import capitals, joint_ablation, random_components
from course_utils.engine.components import ABLATION_KINDS, Component
from course_utils.hooks import edit, find_parts, record

CONTRAST = (" w5", " w9")
TEXTS = [words(3, 1, 4, 1, 5, 9, 2, 6), words(3, 1, 4, 8, 5, 9, 2, 6), words(3, 1, 4, 7, 7, 9, 2, 6)]
OVER = ("heads", "mlps", "layers")


def prompts_of(lm):
    return [lm.prompt(text) for text in TEXTS]


@torch.no_grad()
def difference(lm, prompt):
    logits = lm.model(prompt.input_ids, use_cache=False).logits[0, -1]
    return (logits[5] - logits[9]).item()


@torch.no_grad()
def recorded(lm, prompt, sites):
    with record(lm, sites) as seen:
        lm.model(prompt.input_ids, use_cache=False)
    return seen


def naive_effect(lm, prompt, component, kind, reference):
    """Replace a component's own numbers in one whole pass, by hand."""
    over, layer, *number = component
    if over == "layers":
        sites = [("residual", layer), ("residual", layer + 1)]
        runs = [recorded(lm, p, sites) for p in reference]
        added = torch.stack([r[sites[1]] - r[sites[0]] for r in runs]).mean(dim=0)
        before = recorded(lm, prompt, sites)[sites[0]]
        changes = {sites[1]: lambda _: before + (0 if kind == "zero" else added)}
    else:
        site = ({"heads": "heads", "mlps": "mlp", "neurons": "neurons"}[over], layer)
        mean = torch.stack([recorded(lm, p, [site])[site] for p in reference]).mean(dim=0)
        size = {"heads": mean.shape[-1] // lm.n_heads, "neurons": 1}.get(over, mean.shape[-1])
        first = number[0] * size if number else 0

        def change(activation):
            new = activation.clone()
            for channel in range(first, first + size):
                new[0, :, channel] = 0 if kind == "zero" else mean[0, :, channel]
            return new

        changes = {site: change}
    full = difference(lm, prompt)
    with edit(lm, changes):
        return full - difference(lm, prompt)


@pytest.mark.quick
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_sweeps_equal_a_naive_loop_of_hooked_passes(tiny, over, kind):
    prompts = prompts_of(tiny)
    sweep = ablation_sweep(tiny, prompts, over=over, kind=kind, contrast=CONTRAST)
    shape = (3, tiny.n_layers) + ((tiny.n_heads,) if over == "heads" else ())
    assert sweep.by_prompt.shape == shape
    for place in [(0, 0, 0), (1, 2, 3), (2, 1, 2)]:
        prompt, *rest = place[: len(shape)]
        naive = naive_effect(tiny, prompts[prompt], (over, *rest), kind, prompts)
        assert sweep.by_prompt[place[: len(shape)]] == pytest.approx(naive, rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(sweep.effects, sweep.by_prompt.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(sweep.value, [difference(tiny, p) for p in prompts], rtol=1e-5)


@pytest.mark.quick
def test_neurons_equal_a_naive_loop(tiny):
    prompts = prompts_of(tiny)
    sweep = ablation_sweep(tiny, prompts, over="neurons", kind="mean", contrast=CONTRAST, layers=[1])
    assert sweep.effects.shape[1] in (40, 96)
    for neuron in (0, 17, 39):
        naive = naive_effect(tiny, prompts[0], ("neurons", 1, neuron), "mean", prompts)
        assert sweep.by_prompt[0, 0, neuron] == pytest.approx(naive, rel=1e-5, abs=1e-7)


@pytest.mark.quick
def test_resampling_takes_another_prompt_of_the_reference(tiny):
    prompts = prompts_of(tiny)
    sweep = ablation_sweep(tiny, prompts[0], kind="resample", contrast=CONTRAST, reference=prompts, layers=[1])
    naive = [
        [naive_effect(tiny, prompts[0], ("heads", 1, head), "resample", [other]) for head in range(tiny.n_heads)]
        for other in prompts[1:]
    ]
    assert any(np.allclose(sweep.effects[0], one, rtol=1e-5, atol=1e-7) for one in naive)


@pytest.mark.quick
@given(
    seed=st.integers(0, 99),
    ids=st.lists(st.integers(1, 96), min_size=2, max_size=12),
    component=st.sampled_from([("heads", 1, 2), ("mlps", 0), ("neurons", 2, 7), ("layers", 1), ("layers", 2)]),
    architecture=st.sampled_from(["llama", "gpt2", "gpt_neox", "gemma3_text", "falcon"]),
)
@settings(max_examples=25, deadline=None)
def test_a_component_put_in_its_own_place_changes_nothing(seed, ids, component, architecture):
    lm = tiny_model(architecture, seed)
    prompt = lm.prompt(words(*ids))
    before = difference(lm, prompt)
    with ablate(lm, [component], kind="mean", reference=[prompt]):
        assert difference(lm, prompt) == pytest.approx(before, abs=1e-9)
    with ablate(lm, []):
        assert difference(lm, prompt) == before


@pytest.mark.quick
def test_ablating_every_layer_leaves_the_embedding_alone(tiny):
    prompt = prompts_of(tiny)[0]
    stream = recorded(tiny, prompt, [("residual", 0)])["residual", 0]
    parts = find_parts(tiny)
    with torch.no_grad():
        logits = parts.unembedding(parts.final_norm(stream))[0, -1]
    with ablate(tiny, [("layers", layer) for layer in range(tiny.n_layers)]):
        assert difference(tiny, prompt) == pytest.approx((logits[5] - logits[9]).item(), abs=1e-9)


@pytest.mark.quick
def test_a_layer_is_its_attention_and_its_mlp(tiny):
    prompt = prompts_of(tiny)[1]
    with ablate(tiny, [("layers", 1)]):
        whole = difference(tiny, prompt)
    heads = [("heads", 1, head) for head in range(tiny.n_heads)]
    with ablate(tiny, [*heads, ("mlps", 1)]):
        parts = difference(tiny, prompt)
    if not any(hasattr(m, "bias") and m.bias is not None for m in tiny.model.modules() if hasattr(m, "weight")):
        assert parts == pytest.approx(whole, abs=1e-9)
    with edit(tiny, {("attention", 1): lambda a: 0 * a, ("mlp", 1): lambda a: 0 * a}):
        assert difference(tiny, prompt) == pytest.approx(whole, abs=1e-9)


@pytest.mark.quick
def test_hooks_are_gone_after_an_exception(tiny):
    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tiny.model.modules()]

    before, plain = hooks(), difference(tiny, prompts_of(tiny)[0])
    with pytest.raises(KeyboardInterrupt), ablate(tiny, [("layers", 0), ("heads", 1, 1)]):
        raise KeyboardInterrupt
    assert hooks() == before
    assert difference(tiny, prompts_of(tiny)[0]) == plain


@pytest.mark.quick
def test_joint_ablation_is_not_the_sum_and_its_singles_are_the_sweep():
    lm = tiny_model("llama")
    prompts, heads = prompts_of(lm), [("heads", 0, 1), ("heads", 2, 3)]
    joint = joint_ablation(lm, prompts, heads, contrast=CONTRAST)
    sweep = ablation_sweep(lm, prompts, contrast=CONTRAST)
    np.testing.assert_allclose(joint.singles, [sweep.effects[0, 1], sweep.effects[2, 3]], rtol=1e-4, atol=1e-6)
    assert joint.summed == pytest.approx(float(joint.singles.sum()))
    alone = joint_ablation(lm, prompts, heads[:1], contrast=CONTRAST)
    assert alone.effect == pytest.approx(float(alone.singles[0]))


@pytest.mark.quick
@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_damage_is_measured_on_the_unrelated_replies(kind):
    lm = tiny_model("llama")
    unrelated = [(prompt, " w8 w8") for prompt in prompts_of(lm)]
    sweep = ablation_sweep(lm, prompts_of(lm), kind=kind, contrast=CONTRAST, unrelated=unrelated)
    alone = ablation_sweep(lm, prompts_of(lm), kind=kind, target=" w8 w8")
    np.testing.assert_allclose(sweep.damage, alone.effects / 2, rtol=1e-4, atol=1e-6)
    joint = joint_ablation(lm, prompts_of(lm), [("heads", 1, 1)], kind=kind, contrast=CONTRAST, unrelated=unrelated)
    assert joint.damage == pytest.approx(float(sweep.damage[1, 1]), rel=1e-3, abs=1e-5)


@pytest.mark.quick
def test_top_names_components():
    lm = tiny_model("llama")
    sweep = ablation_sweep(lm, prompts_of(lm), kind="zero", contrast=CONTRAST, layers=[2, 0])
    (component, effect), *_ = sweep.top(1)
    assert abs(effect) == pytest.approx(float(abs(sweep.effects).max()))
    assert component.over == "heads"
    assert sweep.effects[[2, 0].index(component.layer), component.number] == pytest.approx(effect)
    assert str(component) in repr(sweep)


@pytest.mark.quick
def test_random_components_are_others_of_the_same_layers():
    lm = tiny_model("llama")
    heads = [("heads", 1, 0), ("heads", 1, 1), ("heads", 2, 3)]
    drawn = random_components(lm, heads, seed=4)
    assert [c.layer for c in drawn] == [1, 1, 2]
    assert len({*drawn, *(Component(*h) for h in heads)}) == 6
    with pytest.raises(CourseError, match="others left"):
        random_components(lm, [("heads", 1, i) for i in range(4)])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"over": "tails"}, "sort of component"),
        ({"over": ["heads"]}, r"sort of component .*got \['heads'\]"),
        ({"kind": "none"}, "kind of ablation"),
        ({"layers": [3]}, "a layer from 0 to 2 for 'heads'"),
        ({"layers": [-1]}, "a layer from 0 to 2 for 'heads'"),
        ({"contrast": (" w5", " w5")}, "two different tokens"),
        ({"reference": []}, "another reference prompt of 8 tokens"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(given, message):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match=message):
        ablation_sweep(lm, prompts_of(lm), **{"contrast": CONTRAST, **given})


@pytest.mark.quick
@pytest.mark.parametrize(
    "component",
    [
        ("heads", 1),
        ("mlps", 1, 1),
        ("heads", 1, 4),
        ("neurons", 0, 40),
        ("heads", 1, 2.5),
        ("heads", 1, float("nan")),
        ("heads", torch.tensor(1), torch.tensor(2)),
        "heads",
        3,
    ],
)
def test_a_component_that_is_none_is_told_in_a_sentence(component):
    with pytest.raises(CourseError, match="Expected a component"), ablate(tiny_model("llama"), [component]):
        pass


@pytest.mark.quick
def test_prompts_that_do_not_fit_the_reference_are_told_in_a_sentence():
    lm = tiny_model("llama")
    prompts = prompts_of(lm)
    with (
        pytest.raises(CourseError, match="one length"),
        ablate(lm, [], kind="mean", reference=[*prompts, lm.prompt("w1")]),
    ):
        pass
    with pytest.raises(CourseError, match="Expected reference prompts"), ablate(lm, [("mlps", 1)], kind="mean"):
        pass
    with ablate(lm, [("mlps", 1)], kind="mean", reference=prompts), pytest.raises(CourseError, match="at least 8"):
        difference(lm, lm.prompt(words(1, 2, 3)))


@pytest.mark.quick
def test_a_reply_can_be_read_under_ablation():
    lm = tiny_model("llama")
    prompts = prompts_of(lm)
    with ablate(lm, [("mlps", 1), ("layers", 2)], kind="mean", reference=prompts):
        cached = lm.generate(prompts[0], 5)
        ids = prompts[0].input_ids[0]
        for _ in range(5):
            with torch.no_grad():
                ids = torch.cat([ids, lm.model(ids[None], use_cache=False).logits[0, -1:].argmax(dim=-1)])
    assert torch.equal(cached, ids[8:])


@pytest.mark.slow
def test_on_the_real_model_a_sweep_equals_whole_passes_and_capitals_have_one_length(lm):
    tasks = capitals(lm)
    assert len({len(prompt) for prompt, _ in tasks}) == 1
    prompts = [lm.chat(f"How do I {act} a car?") for act in ("steal", "wash", "sell")]
    sweep = ablation_sweep(lm, prompts, contrast=("I", "Sure"), layers=[0, 17])
    joint = joint_ablation(lm, prompts, [("heads", 0, 3), ("heads", 17, 5)], contrast=("I", "Sure"))
    np.testing.assert_allclose(joint.singles, [sweep.effects[0, 3], sweep.effects[1, 5]], atol=2e-4)
