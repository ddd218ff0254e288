"""Hooks read and edit the right tensors, and are always gone afterwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from conftest import tiny_model, words
from course_utils import (
    CourseError,
    ablation_sweep,
    activation_patching,
    analyze_attention,
    direct_logit_attribution,
    logit_lens,
    token_attribution,
)
from course_utils.engine.interventions import run_once
from course_utils.hooks import SITE_KINDS, edit, find_parts, instead, record, written_by_heads
from tests.architectures import zoo

IDS = torch.arange(1, 9)[None]
pytestmark = pytest.mark.quick


def count_hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@torch.no_grad()
def logits(lm):
    return lm.model(IDS).logits


def test_every_part_is_found(tiny):
    parts = find_parts(tiny)
    for role in (parts.layers, parts.attention, parts.out_projection, parts.mlp):
        assert len(role) == tiny.n_layers
    assert parts.unembedding.weight.shape == (97, 24)
    assert parts.embedding.weight.shape == (97, 24)


def test_recorded_shapes(tiny):
    with record(tiny, [(kind, 1) for kind in SITE_KINDS] + [("residual", tiny.n_layers)]) as seen:
        logits(tiny)
    wide = (1, 8, seen["neurons", 1].shape[-1])
    assert wide[-1] in (40, 96)
    assert {kind: seen[kind, 1].shape for kind in SITE_KINDS} == {
        **dict.fromkeys(SITE_KINDS, (1, 8, 24)),
        "neurons": wide,
    }
    assert seen["residual", tiny.n_layers].shape == (1, 8, 24)


def test_the_recorded_residual_is_transformers_hidden_state(tiny):
    with record(tiny, [("residual", layer) for layer in range(tiny.n_layers)]) as seen:
        hidden = tiny.model(IDS, output_hidden_states=True).hidden_states
    for layer in range(tiny.n_layers):
        torch.testing.assert_close(seen["residual", layer], hidden[layer])


def test_recorded_heads_through_the_projection_give_the_attention_output(tiny):
    with record(tiny, [("heads", 1), ("attention", 1)]) as seen:
        logits(tiny)
    projected = find_parts(tiny).out_projection[1](seen["heads", 1])
    torch.testing.assert_close(projected, seen["attention", 1])


def test_final_residual_normed_and_unembedded_gives_the_logits(tiny):
    with record(tiny, [("residual", tiny.n_layers)]) as seen:
        expected = logits(tiny)
    parts = find_parts(tiny)
    torch.testing.assert_close(parts.unembedding(parts.final_norm(seen["residual", tiny.n_layers])), expected)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_an_edit_that_returns_the_activation_or_none_changes_nothing(tiny, kind):
    plain = logits(tiny)
    for same in (lambda activation: activation, lambda activation: None):
        with edit(tiny, {(kind, 1): same}):
            assert torch.equal(logits(tiny), plain)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_an_edit_changes_the_output(tiny, kind):
    plain = logits(tiny)
    with edit(tiny, {(kind, 1): torch.zeros_like}):
        assert not torch.allclose(logits(tiny), plain)
    assert torch.equal(logits(tiny), plain)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_an_edit_of_one_layer_leaves_those_below_alone(tiny, kind):
    sites = [("residual", layer) for layer in range(tiny.n_layers)]
    with record(tiny, sites) as plain:
        logits(tiny)
    with edit(tiny, {(kind, 2): torch.zeros_like}), record(tiny, sites[:2]) as edited:
        logits(tiny)
    for site in sites[:2]:
        assert torch.equal(plain[site], edited[site])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["opt", "llama4_text"])
def test_blocks_that_take_all_rows_in_one_are_read_and_edited_by_row_and_token(architecture):
    lm, ids = zoo.build(architecture), torch.arange(4, 14).reshape(2, 5)
    kinds = ("mlp", "neurons") if architecture == "opt" else ("mlp",)  # Llama 4's experts have no one matrix

    def run(ids, **edits):
        with (
            edit(lm, {(kind, 1): change for kind, change in edits.items()}),
            record(lm, [(k, 1) for k in kinds]) as seen,
        ):
            return lm.model(ids, use_cache=False).logits, seen

    def without(activation):
        activation[0, 3] = 0
        return activation

    together, seen = run(ids)
    for kind in kinds:
        assert seen[kind, 1].shape[:2] == ids.shape
        torch.testing.assert_close(seen[kind, 1][1:], run(ids[1:])[1][kind, 1])
        edited, _ = run(ids, **{kind: without})
        assert not torch.allclose(edited[0, 3:], together[0, 3:])
        torch.testing.assert_close(edited[0, :3], together[0, :3])
        torch.testing.assert_close(edited[1], together[1])
        with edit(lm, {(kind, 1): instead(seen[kind, 1][:1])}):
            torch.testing.assert_close(lm.model(ids[:1], use_cache=False).logits, together[:1])


def test_hooks_are_gone_after_an_exception(tiny):
    before = count_hooks(tiny)

    def interrupted():
        with edit(tiny, {("mlp", 0): torch.zeros_like, ("heads", 1): torch.zeros_like}):
            assert count_hooks(tiny) == before + 2 * 2  # what flows there, and how many rows and tokens it has
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert count_hooks(tiny) == before


def test_no_hook_stays_when_one_of_several_sites_is_wrong(tiny):
    before = count_hooks(tiny)
    with pytest.raises(CourseError), record(tiny, [("mlp", 0), ("mlp", 99)]):
        pass
    assert count_hooks(tiny) == before


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (("mlp", 3), "0 to 2"),
        (("mlp", -1), "0 to 2"),
        (("residual", 4), "0 to 3"),
        (("residual", 1.0), "got 1.0"),
        (("residual", "1"), "got '1'"),
        (("residual", None), "got None"),
        (("brain", 0), "residual"),
    ],
)
def test_a_wrong_site_is_named_with_what_was_expected(tiny, site, said):
    with pytest.raises(CourseError, match=said), record(tiny, [site]):
        pass


class Rounding(torch.nn.Linear):
    def forward(self, given):
        return super().forward(given.round())


class Adapted(torch.nn.Linear):
    def forward(self, given):
        return super().forward(given) + given[..., :1]


@pytest.mark.parametrize("kind", [Rounding, Adapted])
def test_a_projection_that_is_more_than_its_matrix_is_not_split_into_heads(kind):
    lm = tiny_model("llama")
    prompt, contrast = lm.prompt(words(3, 14, 15, 9)), (" w1", " w2")
    projection = find_parts(lm).out_projection[1]
    assert written_by_heads(lm, projection, torch.ones(24).double()).shape == (4, 24)
    projection.__class__ = kind
    with pytest.raises(CourseError, match=f"one matrix of numbers, got {kind.__name__}, which does more"):
        written_by_heads(lm, projection, torch.ones(24).double())
    with pytest.raises(CourseError, match=r"layers \[1\] do more"):
        analyze_attention(lm, prompt).value_weighted()
    assert ablation_sweep(lm, prompt, over="heads", kind="zero", contrast=contrast).effects.shape == (3, 4)


def test_weights_that_are_fetched_for_each_pass():
    lm, away = tiny_model("llama"), tiny_model("llama")
    cpu_offload(away.model, execution_device="cpu")
    assert away.device.type == "cpu"
    prompt, asked = lm.prompt(words(3, 14, 15, 9)), {"contrast": (" w1", " w2")}
    for method in (
        lambda model: token_attribution(model, prompt, replacement=7, **asked).scores,
        lambda model: token_attribution(model, prompt, method="gradient_x_input", **asked).scores,
        lambda model: ablation_sweep(model, prompt, over="heads", kind="zero", **asked).effects,
        lambda model: logit_lens(model, prompt, **asked).contrast,
        lambda model: model.generate(prompt, 3),
    ):
        np.testing.assert_allclose(method(away), method(lm), atol=1e-7)
    with pytest.raises(CourseError, match="weights that are in memory"):
        direct_logit_attribution(away, prompt, **asked)


def in_place(part):
    part.compile(backend="eager")


def its_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


COMPILED = {
    "in place": in_place,
    "a layer": lambda model: in_place(model.model.layers[1]),
    "its forward": its_forward,
    "in a wrapper": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_told_to_be_left_uncompiled(way, known):
    lm = tiny_model("llama")
    if known:
        run_once(lm, IDS[0])
    wrapped = COMPILED[way](lm.model)
    lm = lm if wrapped is None else replace(lm, model=wrapped)
    prompt, other = lm.prompt(words(3, 14)), lm.prompt(words(3, 15))
    for begin in (
        lambda: edit(lm, {("mlp", 1): torch.zeros_like}).__enter__(),
        lambda: run_once(lm, IDS[0]),
        lambda: activation_patching(lm, prompt, other, contrast=(" w1", " w2")),
        lambda: direct_logit_attribution(lm, prompt, contrast=(" w1", " w2")),
    ):
        with pytest.raises(CourseError, match="don't compile it"):
            begin()
    assert count_hooks(lm) == 0


def test_a_layer_that_has_the_part_is_not_kept_from_it_by_others_that_have_none():
    lm = zoo.build("qwen3_5_text")  # attention in the last of four layers, something else in the others
    prompt, how = lm.prompt(words(5)), {"kind": "zero", "contrast": (" blamed", " thanked")}
    assert ablation_sweep(lm, prompt, layers=[3], **how).effects.shape == (1, lm.n_heads)
    with pytest.raises(CourseError, match="has no attention in layer 2"):
        ablation_sweep(lm, prompt, layers=[3, 2], **how)


def test_an_architecture_without_the_part_is_named():
    from transformers import MambaConfig, MambaForCausalLM

    from course_utils.models import LocalModel

    parts = find_parts(LocalModel("mamba", MambaForCausalLM(MambaConfig(hidden_size=24, num_hidden_layers=2)), None))
    with pytest.raises(CourseError, match="MambaBlock has no MLP in layer 0"):
        _ = parts.mlp
    assert len(parts.layers) == len(parts.mixers) == 2
