"""Attention: invariants over architectures, naive loops and recorded activations as oracles, and facts of SmolLM2."""

import copy
import html

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ARCHITECTURES, tiny_model
from course_utils import CourseError, analyze_attention
from course_utils.attention import ATTENTION_KINDS, AttentionAnalysis, attention_weights, head_detail
from course_utils.engine import attention_pass
from course_utils.engine.attention_pass import written_out
from course_utils.engine.repeated_tokens import _prompt_of, repeated_random
from course_utils.hooks import find_parts, record
from course_utils.models import LocalModel
from course_utils.plots import plot_attention, plot_heads

mpl.use("Agg")
quick = pytest.mark.quick
IDS = list(range(1, 11))
DETAILED = [name for name in ARCHITECTURES if name != "falcon"]
ids_of_a_prompt = st.lists(st.integers(0, 96), min_size=1, max_size=16)


def prompt_of(lm, ids=IDS):
    return _prompt_of(lm, list(ids), 0)


def synthetic(ids, *, layers=2, heads=3, seed=0, tokens=None, threshold=0.1):
    """An analysis of random causal weights in float64."""
    generator = np.random.default_rng(seed)
    weights = np.tril(generator.exponential(size=(layers, heads, len(ids), len(ids))))
    weights /= weights.sum(axis=-1, keepdims=True)
    reach = generator.exponential(size=(layers, heads, len(ids)))
    tokens = tokens or [f"t{i}" for i in ids]
    return AttentionAnalysis(weights, reach, tokens, list(ids), slice(0, len(ids)), threshold)


def with_weights(weights, ids):
    weights = np.array(weights, dtype=float)[None, None]  # one layer, one head
    return AttentionAnalysis(weights, np.ones((1, 1, len(ids))), [str(i) for i in ids], list(ids), slice(0, 1), 0.1)


# The weights are the model's


@quick
@given(ids=ids_of_a_prompt)
@settings(max_examples=8, deadline=None)
def test_rows_sum_to_one_and_nothing_looks_ahead(tiny, ids):
    weights = attention_weights(tiny, torch.tensor([ids])).numpy()
    assert weights.shape == (3, 4, len(ids), len(ids))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)  # some architectures take their softmax in float32
    assert (weights >= 0).all()
    assert not np.triu(weights, k=1).any()


@quick
@given(ids=ids_of_a_prompt)
@settings(max_examples=5, deadline=None)
def test_rollout_and_shares_sum_to_one(tiny, ids):
    a = analyze_attention(tiny, prompt_of(tiny, ids))
    np.testing.assert_allclose(a.rollout().sum(axis=1), 1, atol=1e-8)
    assert not np.triu(a.rollout(), k=1).any()
    assert a.from_last("mean").sum() == pytest.approx(1, abs=1e-6)
    without = a.mean_without_first
    assert not without[0].any()
    assert not without[:, 0].any()
    np.testing.assert_allclose(without[1:].sum(axis=1), 1, atol=1e-8)


@quick
def test_nothing_in_the_model_has_changed_afterwards(tiny):
    ids = torch.tensor([IDS])
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules())
    chosen, before = tiny.model.config._attn_implementation, tiny.model(ids).logits
    assert chosen == "sdpa"
    analyze_attention(tiny, prompt_of(tiny))
    if tiny.name in DETAILED:
        head_detail(tiny, prompt_of(tiny), 1, 2)
    assert tiny.model.config._attn_implementation == chosen
    assert torch.equal(tiny.model(ids).logits, before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules()) == hooks


@quick
def test_after_an_exception_everything_is_as_it_was(tiny, monkeypatch):
    from transformers.models.llama import modeling_llama

    chosen, eager = tiny.model.config._attn_implementation, modeling_llama.eager_attention_forward

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny.model, "forward", interrupt)
    for run in (analyze_attention, lambda lm, prompt: head_detail(lm, prompt, 0, 0)):
        with pytest.raises((KeyboardInterrupt, CourseError)):
            run(tiny, prompt_of(tiny))
        assert tiny.model.config._attn_implementation == chosen
        assert modeling_llama.eager_attention_forward is eager


def contributions(lm, layer, weights):
    """What each head writes for a look at each key, float64 [head, key, d_model], from recorded activations alone.

    The mix of values that enters the output projection is weights @ values, so the values come from solving for them.
    """
    with written_out(lm), record(lm, [("heads", layer), ("attention", layer)]) as seen, torch.no_grad():
        lm.model(torch.tensor([IDS]))
    mixed = seen["heads", layer][0].unflatten(1, (lm.n_heads, -1)).transpose(0, 1)  # [head, query, d_head]
    values = torch.linalg.solve_triangular(weights[layer], mixed, upper=False)  # [head, key, d_head]
    projection = find_parts(lm).out_projection[layer]
    alone = torch.zeros(lm.n_heads, len(IDS), lm.n_heads, values.shape[-1], dtype=torch.float64)
    for head in range(lm.n_heads):
        alone[head, :, head] = values[head]
    empty = projection(torch.zeros(1, alone[0, 0].numel(), dtype=torch.float64))  # the bias
    return projection(alone.flatten(2)) - empty, empty, seen["attention", layer][0]


@quick
@pytest.mark.parametrize("layer", [0, 2])
def test_looks_times_what_they_carry_add_up_to_the_output_of_the_attention_block(tiny, layer):
    a = analyze_attention(tiny, prompt_of(tiny))
    written, bias, output = contributions(tiny, layer, torch.tensor(a.weights))
    total = torch.einsum("hqk,hkm->qm", torch.tensor(a.weights[layer]), written) + bias
    torch.testing.assert_close(total, output, atol=1e-8, rtol=1e-8)
    np.testing.assert_allclose(a.reach[layer], written.norm(dim=-1).numpy(), atol=1e-7)
    expected = a.weights[layer] * written.norm(dim=-1).numpy()[:, None, :]
    np.testing.assert_allclose(a.value_weighted()[layer], expected, atol=1e-7)


@quick
def test_the_weights_are_those_of_the_model_as_it_runs_by_itself(tiny):
    """Its own (fused) attention gives the same logits and the same mix of values as the one written out."""
    ids = torch.tensor([IDS])
    sites = [("attention", layer) for layer in range(3)]
    with record(tiny, sites) as plain:
        logits = tiny.model(ids).logits
    with written_out(tiny), record(tiny, sites) as eager:
        torch.testing.assert_close(tiny.model(ids).logits, logits, atol=1e-5, rtol=1e-5)
    for site in sites:
        torch.testing.assert_close(eager[site], plain[site], atol=1e-5, rtol=1e-5)


def naive_value_weighted(lm, prompt, layer):
    """Kobayashi's norm for a Llama, with values from a hook on v_proj and W_O from the weights, head by head."""
    block, seen = lm.model.model.layers[layer].self_attn, []
    with_hook = block.v_proj.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    weights = attention_weights(lm, prompt.input_ids)[layer].numpy()
    with_hook.remove()
    values, d_head = seen[0].numpy(), block.head_dim
    group = lm.n_heads // (values.shape[1] // d_head)
    result = np.zeros_like(weights)
    for head in range(lm.n_heads):
        theirs = head // group
        matrix = block.o_proj.weight[:, head * d_head : (head + 1) * d_head].numpy()
        for key in range(len(prompt)):
            vector = matrix @ values[key, theirs * d_head : (theirs + 1) * d_head]
            result[head, :, key] = weights[head, :, key] * np.sqrt((vector**2).sum())
    return result


@quick
def test_value_weighted_is_the_naive_loop_on_a_tiny_llama():
    lm = tiny_model("llama")
    a = analyze_attention(lm, prompt_of(lm))
    np.testing.assert_allclose(a.value_weighted()[1], naive_value_weighted(lm, prompt_of(lm), 1), atol=1e-8)


@quick
def test_heads_that_are_grouped_the_other_way_are_noticed(monkeypatch):
    lm = tiny_model("llama")
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, n, dim: self.repeat(n, 1, 1))  # h % n_kv
    with pytest.raises(CourseError, match=r"layers \[0, 1, 2\] do more to them"):
        analyze_attention(lm, prompt_of(lm)).value_weighted()


def test_value_weighted_is_the_naive_loop_on_the_real_model(lm):
    prompt = lm.chat("Kill a process")
    a = analyze_attention(lm, prompt)
    np.testing.assert_allclose(a.value_weighted()[20], naive_value_weighted(lm, prompt, 20), rtol=1e-4, atol=1e-6)


# What is made of the weights


@quick
@given(ids=st.lists(st.integers(0, 5), min_size=1, max_size=9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_mean_connections_and_rollout_are_the_naive_loops(ids, seed):
    a = synthetic(ids, seed=seed)
    n, records = len(ids), []
    for query in range(n):
        for key in range(n):
            weight = sum(a.weights[layer, head, query, key] for layer in range(2) for head in range(3)) / 6
            assert a.mean[query, key] == pytest.approx(weight, abs=1e-12)
            if weight > 0.1:
                records.append((a.tokens[query], a.tokens[key], weight, query, key))
    theirs = [tuple(record.values()) for record in a.connections]
    assert sorted(t[3:] for t in theirs) == sorted(r[3:] for r in records)
    assert {t[3:]: t[:2] for t in theirs} == {r[3:]: r[:2] for r in records}
    assert [t[2] for t in theirs] == pytest.approx(sorted((r[2] for r in records), reverse=True))
    np.testing.assert_allclose(a.rollout(), naive_rollout(a.weights), atol=1e-12)


def naive_rollout(weights):
    """How much of each position's final mix stems from each position, followed up through the layers by hand."""
    n = weights.shape[-1]
    stems = [[float(i == j) for j in range(n)] for i in range(n)]
    for layer in weights:
        mixed = []
        for query in range(n):
            row = [0.5 * stems[query][origin] for origin in range(n)]
            for key in range(n):
                share = sum(head[query][key] for head in layer) / len(layer)
                row = [row[origin] + 0.5 * share * stems[key][origin] for origin in range(n)]
            mixed.append(row)
        stems = mixed
    return np.array(stems)


@quick
def test_the_chapters_mean_over_the_first_two_dimensions_is_another_thing():
    """On transformers' stack [layer, batch, head, query, key] it averages the batch away and keeps the heads."""
    lm = tiny_model("llama")
    with written_out(lm):
        stack = torch.stack(lm.model(torch.tensor([IDS]), output_attentions=True).attentions)
    mean = analyze_attention(lm, prompt_of(lm)).mean
    naive = stack.mean(dim=[0, 1])
    assert naive.shape == (4, 10, 10)  # [head, query, key]
    assert not any(np.allclose(mean, head, atol=1e-3) for head in naive)
    np.testing.assert_allclose(mean, stack.mean(dim=[0, 1, 2]), atol=1e-8)


@quick
def test_the_order_of_the_layers_matters_to_rollout():
    a = synthetic(IDS)
    backwards = AttentionAnalysis(a.weights[::-1], a.reach, a.tokens, a.ids, a.user, 0.1)
    assert not np.allclose(a.rollout(), backwards.rollout(), atol=1e-3)


@quick
def test_equal_tokens_are_told_apart_by_position():
    records = synthetic([7, 7, 7]).connections
    assert {record["from"] for record in records} == {"t7"}
    assert len({(record["from_position"], record["to_position"]) for record in records}) == len(records) == 6
    assert list(records[0]) == ["from", "to", "weight", "from_position", "to_position"]
    assert all(record["to_position"] <= record["from_position"] for record in records)


@quick
def test_the_threshold_itself_is_not_above_the_threshold():
    a = with_weights([[1, 0], [0.5, 0.5]], [1, 2])
    at_half = AttentionAnalysis(a.weights, a.reach, a.tokens, a.ids, a.user, 0.5)
    assert [record["from_position"] for record in at_half.connections] == [0]
    assert len(a.connections) == 3


@quick
def test_what_the_last_position_sees():
    a = synthetic(IDS)
    np.testing.assert_allclose(a.from_last("mean"), a.mean[-1])
    np.testing.assert_allclose(a.from_last("rollout"), a.rollout()[-1])
    np.testing.assert_allclose(a.from_last("value_weighted"), a.value_weighted()[:, :, -1].mean(axis=(0, 1)))
    for kind in ATTENTION_KINDS:
        assert a.from_last(kind).shape == (10,)
    with pytest.raises(CourseError, match=r"mean, rollout, value_weighted.*'flow'"):
        a.from_last("flow")


# Scores of heads


def naive_score(a, is_look):
    """Mean over the queries that have such a key of the weight on all of them, for layer 1, head 2."""
    sums = []
    for query in range(len(a.ids)):
        keys = [key for key in range(query + 1) if is_look(a.ids, query, key)]
        if keys:
            sums.append(sum(a.weights[1, 2, query, key] for key in keys))
    return np.mean(sums) if sums else None


SCORES = {
    "sink_share": lambda ids, q, k: k == 0 and q > 0,
    "previous_token_scores": lambda ids, q, k: k == q - 1 and k > 0,
    "duplicate_token_scores": lambda ids, q, k: ids[k] == ids[q] and 0 < k < q,
    "induction_scores": lambda ids, q, k: 0 < k < q - 1 and ids[k - 1] == ids[q] and ids[k] != ids[q],
}


@quick
@pytest.mark.parametrize("name", SCORES)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=9), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_head_scores_are_the_naive_loops(name, ids, seed):
    a = synthetic(ids, seed=seed)
    expected = naive_score(a, SCORES[name])
    if expected is None:
        with pytest.raises(CourseError, match="Expected a prompt with"):
            getattr(a, name)()
    else:
        scores = getattr(a, name)()
        assert scores.shape == (2, 3)
        assert scores[1, 2] == pytest.approx(expected, abs=1e-12)


@quick
def test_a_perfect_head_of_each_kind_scores_one_and_nothing_for_the_others():
    ids = [9, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    places = {
        "sink_share": lambda q: 0,
        "previous_token_scores": lambda q: max(q - 1, 0),
        "duplicate_token_scores": lambda q: q - 5 if q > 5 else 0,
        "induction_scores": lambda q: q - 4 if q > 5 else 0,
    }
    for kind, place in places.items():
        a = with_weights([[float(key == place(query)) for key in range(11)] for query in range(11)], ids)
        scores = {name: float(getattr(a, name)()[0, 0]) for name in places}
        assert scores[kind] == 1
        assert all(
            score < 0.6 if name == "sink_share" else score == 0 for name, score in scores.items() if name != kind
        )


# One head in detail


@quick
@pytest.mark.parametrize("architecture", DETAILED)
def test_the_softmax_of_the_scores_gives_the_weights(architecture):
    lm = tiny_model(architecture)
    prompt = prompt_of(lm)
    weights = analyze_attention(lm, prompt).weights
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        detail = head_detail(lm, prompt, layer, head)
        softmax = torch.tensor(detail.scores).softmax(dim=-1).numpy()
        np.testing.assert_allclose(softmax, detail.weights, atol=1e-6)
        np.testing.assert_allclose(detail.weights, weights[layer, head], atol=1e-8)
        allowed = np.isfinite(detail.scores)
        product = detail.queries @ detail.keys.T * detail.scaling
        np.testing.assert_allclose(detail.scores[allowed], product[allowed], atol=1e-8)
        assert (detail.weights[~allowed] == 0).all()


@quick
def test_queries_and_keys_are_those_of_the_projections_turned():
    """Rotation leaves position 0 and every length as they are; query head 3 of 4 reads key head 1 of 2."""
    lm = tiny_model("llama")
    block, seen = lm.model.model.layers[1].self_attn, {}
    hooks = [
        getattr(block, name).register_forward_hook(lambda m, a, output, name=name: seen.update({name: output[0]}))
        for name in ("q_proj", "k_proj")
    ]
    detail = head_detail(lm, prompt_of(lm), 1, 3)
    for hook in hooks:
        hook.remove()
    for ours, theirs in ((detail.queries, seen["q_proj"][:, 18:24]), (detail.keys, seen["k_proj"][:, 6:12])):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-8)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), theirs.norm(dim=-1), atol=1e-8)
        assert not np.allclose(ours[5], theirs[5], atol=1e-3)


@quick
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gemma3_text", {"query_pre_attn_scalar": 2}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4}),
    ],
)
def test_unusual_scaling_and_grouping(architecture, changes):
    lm = tiny_model(architecture, **changes)
    detail = head_detail(lm, prompt_of(lm), 2, 3)
    np.testing.assert_allclose(detail.weights, analyze_attention(lm, prompt_of(lm)).weights[2, 3], atol=1e-8)


def other_model(architecture, **settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 97, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
    config = AutoConfig.for_model(architecture, **{**small, **settings})
    return LocalModel(architecture, AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), None)


@quick
def test_capped_scores_are_shown_capped():
    grouped = {"num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 2, "sliding_window": 4}
    lm = other_model("gemma2", **grouped, attn_logit_softcapping=1e-4, query_pre_attn_scalar=1)
    detail = head_detail(lm, prompt_of(lm), 1, 2)
    product = detail.queries @ detail.keys.T * detail.scaling
    allowed = np.isfinite(detail.scores)
    assert abs(product[allowed]).max() > 2e-4
    assert abs(detail.scores[allowed]).max() <= 1e-4


@quick
def test_an_architecture_that_cannot_be_taken_apart_is_named():
    grouped = {"num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 2, "num_local_experts": 4}
    for lm, name in ((tiny_model("falcon"), "Falcon"), (other_model("gpt_oss", **grouped), "GptOss")):
        with pytest.raises(CourseError, match=rf"^{name}ForCausalLM.*cannot be taken apart"):
            head_detail(lm, prompt_of(lm), 0, 0)


@quick
def test_an_architecture_without_attention_is_named():
    lm = other_model("mamba", num_hidden_layers=2)
    with pytest.raises(CourseError, match="MambaBlock has no attention"):
        analyze_attention(lm, prompt_of(lm))


@quick
def test_an_architecture_that_gives_no_weights_is_named(monkeypatch):
    lm = tiny_model("llama")
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", lambda **given: forward(**{**given, "output_attentions": False}))
    with pytest.raises(CourseError, match="LlamaForCausalLM does not give attention weights for each of its 3 layers"):
        analyze_attention(lm, prompt_of(lm))


# Wrong input


@quick
@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.1", None])
def test_a_wrong_threshold_is_told(threshold):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match="threshold from 0 to 1"):
        analyze_attention(lm, prompt_of(lm), threshold=threshold)


@quick
@pytest.mark.parametrize(
    ("layer", "head", "said"),
    [(3, 0, "layer from 0 to 2, got 3"), (0, 4, "head from 0 to 3, got 4"), (-1, 0, "got -1"), (0, 1.0, "got 1.0")],
)
def test_a_wrong_layer_or_head_is_told(layer, head, said):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match=said):
        head_detail(lm, prompt_of(lm), layer, head)


@quick
def test_an_index_from_numpy_is_fine():
    lm = tiny_model("llama")
    layer, head = np.unravel_index(7, (3, 4))
    assert head_detail(lm, prompt_of(lm), layer, head).layer == 1


@quick
def test_plain_text_for_a_prompt_is_refused():
    for run in (analyze_attention, lambda lm, text: head_detail(lm, text, 0, 0)):
        with pytest.raises(CourseError, match=r"lm\.chat\(text\)"):
            run(tiny_model("llama"), "How do I kill a Python process?")


@quick
def test_broken_weights_are_told():
    lm = tiny_model("llama")
    broken = LocalModel("broken", copy.deepcopy(lm.model), None)
    broken.model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = float("nan")
    for run in (analyze_attention, lambda lm, prompt: head_detail(lm, prompt, 1, 0)):
        with pytest.raises(CourseError, match="broken gives values that are not finite"):
            run(broken, prompt_of(broken))


@quick
def test_a_prompt_too_long_for_the_memory_is_refused_before_it_runs(monkeypatch):
    lm = tiny_model("llama")
    monkeypatch.setattr(attention_pass, "free_memory", lambda device: 100)
    with pytest.raises(CourseError, match=r"got 10 tokens.*shorten"):
        analyze_attention(lm, prompt_of(lm))


@quick
def test_a_prompt_of_one_token():
    lm = tiny_model("llama")
    a = analyze_attention(lm, prompt_of(lm, [5]))
    assert a.mean.tolist() == a.rollout().tolist() == [[1.0]]
    assert a.mean_without_first.tolist() == [[0.0]]
    with pytest.raises(CourseError, match="at least two tokens"):
        a.sink_share()
    assert "No others" in a._repr_html_()


# Random tokens twice over


@quick
def test_repeated_random_works_without_a_tokenizer(tiny):
    tiny = LocalModel(tiny.name, tiny.model, None)
    prompt = repeated_random(tiny, length=20, seed=3)
    ids = prompt.input_ids[0].tolist()
    assert ids[:20] == ids[20:]
    assert len(set(ids)) == 20
    assert prompt.tokens[0] == f"#{ids[0]}"
    assert [prompt.text[start:end] for start, end in prompt.offsets] == prompt.tokens
    assert torch.equal(prompt.input_ids, repeated_random(tiny, length=20, seed=3).input_ids)
    assert not torch.equal(prompt.input_ids, repeated_random(tiny, length=20, seed=4).input_ids)
    assert analyze_attention(tiny, prompt).induction_scores().shape == (3, 4)


@quick
@pytest.mark.parametrize(
    ("length", "said"), [(2, "3 to 97"), (98, "3 to 97, .*got 98"), (2.5, "2.5"), (40, "64 tokens")]
)
def test_a_wrong_length_is_told(length, said):
    with pytest.raises(CourseError, match=said):
        repeated_random(LocalModel("llama", tiny_model("llama").model, None), length)


def test_random_tokens_leave_out_special_ones_and_keep_what_the_tokenizer_puts_first(lm):
    from tokenizers.processors import TemplateProcessing

    special = set(lm.tokenizer.all_special_ids) | {0, 1, 2}
    assert not special & set(repeated_random(lm, 4000).input_ids[0].tolist())
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    prompt = repeated_random(LocalModel("with a beginning", lm.model, tokenizer), 5)
    assert prompt.input_ids[0, 0] == 1
    assert prompt.user == slice(1, 11)
    assert prompt.tokens[1:6] == prompt.tokens[6:]


# The real model


@pytest.fixture(scope="module")
def repeated(lm):
    return analyze_attention(lm, repeated_random(lm))


def test_about_half_of_the_last_look_rests_on_the_first_token(lm):
    a = analyze_attention(lm, lm.chat("How do I kill a Python process?"))
    assert a.weights.dtype == a.rollout().dtype == a.value_weighted().dtype == np.float32
    assert 0.4 < a.mean[-1, 0] < 0.6
    assert a.sink_share().mean() > 0.4
    assert a.rollout()[-1, 0] > 0.99  # in thirty layers it has drifted there
    share = a.from_last("value_weighted")
    assert share[0] / share.sum() < 0.75 * a.mean[-1, 0]  # the sink's values are short: it looks there to do nothing
    kill = a.tokens.index("·kill")
    assert not any(r["to_position"] == kill for r in a.connections if r["from_position"] == len(a.tokens) - 1)


def test_few_heads_do_induction_and_far_more_than_by_chance(lm, repeated):
    scores = repeated.induction_scores()
    chance = synthetic(repeated.ids, layers=30, heads=9).induction_scores()
    assert scores.max() > 0.5
    assert scores.max() > 10 * chance.max()
    assert (scores > 0.5).mean() < 0.05
    others = analyze_attention(lm, repeated_random(lm, seed=1)).induction_scores()
    assert np.corrcoef(scores.ravel(), others.ravel())[0, 1] > 0.9  # the same heads again


def test_a_head_in_detail(lm, repeated):
    layer, head = np.unravel_index(repeated.induction_scores().argmax(), (30, 9))
    detail = head_detail(lm, repeated_random(lm), layer, head)
    np.testing.assert_allclose(detail.weights, repeated.weights[layer, head], rtol=1e-4, atol=1e-6)
    assert (detail.scaling, detail.queries.shape) == (0.125, (50, 64))
    assert (detail.scores[30:].argmax(axis=1) == np.arange(6, 26)).mean() > 0.7  # what followed last time


# Pictures


@quick
def test_the_table_escapes_tokens_and_leaves_out_sink_and_self():
    hostile = ["<|im_start|>", "<script>", '"·x', "&amp;"]
    a = synthetic([1, 2, 3, 4], tokens=hostile, threshold=0)
    table = a._repr_html_()
    assert "<script>" not in table
    assert html.escape("<script>") in table
    assert table.count("<tr>") == 1 + 3
    assert repr(a).startswith(
        "attention of 2 layers x 3 heads over 4 tokens; connections above 0 in the mean of all heads: 10, of which 4 "
    )
    assert "color:" not in table.replace("background-color:", "")


@quick
def test_a_table_without_connections_says_so():
    a = synthetic(IDS, threshold=1)
    assert "<table>" not in a._repr_html_()
    assert "No others" in a._repr_html_()


@quick
@pytest.mark.parametrize("n", [2, 38, 60, 200])
def test_the_attention_map_names_its_tokens_or_says_which(n):
    a = synthetic(range(n))
    ax = a.plot()
    names = [label.get_text() for label in ax.get_xticklabels()]
    every = round((n - 1) / max(len(names) - 1, 1)) or 1
    assert names == [label.get_text() for label in ax.get_yticklabels()] == a.tokens[::every]
    assert (f"one name in {every}" in ax.get_xlabel()) == (every > 1) == (n > 38)
    assert min(label.get_fontsize() for label in ax.get_xticklabels()) >= 9
    assert len(names) * 9 <= 7.2 * 72
    mpl.pyplot.close(ax.figure)


@quick
def test_the_attention_map_hides_the_future_and_takes_a_limit_and_axes():
    _, ax = mpl.pyplot.subplots()
    before = mpl.rcParams.copy()
    weights = synthetic(IDS).mean
    assert plot_attention(weights, [str(i) for i in IDS], limit=0.2, ax=ax) is ax
    assert (ax.images[0].get_array().mask == np.triu(np.ones((10, 10), bool), k=1)).all()
    assert ax.images[0].get_clim() == (0, 0.2)
    assert mpl.rcParams == before


@quick
def test_a_map_of_heads_is_symmetric_for_signed_numbers_only():
    values = np.arange(12.0).reshape(4, 3)
    ax = plot_heads(values, label="score")
    assert ax.images[0].get_array().shape == (3, 4)  # heads down, layers across
    assert (ax.images[0].get_clim(), ax.images[0].get_cmap().name) == ((0, 11), "viridis")
    signed = plot_heads(values - 3, label="effect (logits)", limit=5)
    assert (signed.images[0].get_clim(), signed.images[0].get_cmap().name) == ((-5, 5), "RdBu_r")
    assert signed.figure.axes[1].get_ylabel() == "effect (logits)"
    plot_heads(np.zeros((2, 2)), label="score")
    plot_heads(np.full((2, 2), np.nan), label="score")
    mpl.pyplot.close("all")
