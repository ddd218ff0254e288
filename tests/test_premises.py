"""A shortcut is taken only where it gives what plain passes give, is tried once, and leaves no trace."""

import gc
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from weakref import ref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks_for_all

from conftest import tiny_model, words
from course_utils import CourseError, ablation_sweep, token_attribution
from course_utils.ablation import ablate
from course_utils.directions import project_out, steer
from course_utils.engine import blocks, premises
from course_utils.engine.activations import can_pack, next_logits
from course_utils.engine.interventions import can_restart, run_once
from course_utils.engine.prefix_sharing import can_share
from course_utils.hooks import edit
from course_utils.loading.stored_keys import cache_in
from course_utils.patching import attribution_patching

pytestmark = pytest.mark.quick
TEXT, CONTRAST = words(3, 14, 15, 9, 26, 5, 35, 8), (" w1", " w2")


@contextmanager
def passes_counted(lm):
    counted = []
    plain = lm.model.model.forward
    lm.model.model.forward = lambda *args, **named: counted.append(1) or plain(*args, **named)
    try:
        yield counted
    finally:
        del lm.model.model.forward


@torch.no_grad()
def occlusion(lm, prompt, replacement=7):
    """By plain passes, one a token."""

    def value(ids):
        logits = lm.model(input_ids=ids[None], use_cache=False).logits[0, -1]
        return float(logits[1] - logits[2])

    ids = prompt.input_ids[0]
    return [value(ids) - value(torch.where(torch.arange(len(ids)) == i, replacement, ids)) for i in range(len(ids))]


def scores(lm, prompt):
    return token_attribution(lm, prompt, contrast=CONTRAST, replacement=7).scores[0]


def test_what_was_tried_is_not_tried_again():
    lm = tiny_model("llama")
    with passes_counted(lm) as first:
        next_logits(lm, [lm.prompt(TEXT)])
        tried = len(first)
        next_logits(lm, [lm.prompt(TEXT)])
        assert len(first) == tried + 1 < tried * 2
        next_logits(lm, [lm.prompt(words(*range(1, 40)))])  # longer than what was tried
        assert len(first) > tried + 2


def test_a_window_is_found_at_the_length_that_is_asked_for():
    lm = tiny_model("mistral", sliding_window=20)
    assert [can_share(lm, length) for length in (8, 16, 20, 21, 40, 18)] == [True, True, True, False, False, True]
    assert [can_pack(lm, 2 * length) for length in (8, 16, 20, 21, 32, 18)] == [True, True, True, False, False, True]


@pytest.mark.parametrize(("dtype", "tried"), [(torch.float32, [16, 64, 8]), (torch.bfloat16, [9, 40, 8])])
def test_in_half_precision_each_length_is_tried_itself(dtype, tried):
    lm, lengths = tiny_model("llama"), []
    lm.model.to(dtype)
    for length in (9, 40, 39, 40):
        assert premises.holds(lm, "any", lambda lm, length: lengths.append(length) is None, length)
    assert premises.holds(lm, "another", lambda lm, length: lengths.append(length) is None, 3)
    assert lengths == tried


def test_a_model_that_is_run_in_another_way_is_tried_again():
    lm = tiny_model("llama")
    assert can_restart(lm)
    assert can_share(lm, 8)
    layer = lm.model.model.layers[1]

    def from_the_cache(self, hidden_states, **named):
        past = cache_in(named)
        shift = 0 if past is None else past.get_seq_length()
        return hidden_states + shift + 0 * type(self).forward(self, hidden_states, **named)

    layer.forward = MethodType(from_the_cache, layer)
    assert not can_share(lm, 8)
    np.testing.assert_allclose(scores(lm, lm.prompt(TEXT)), occlusion(lm, lm.prompt(TEXT)), atol=1e-5)
    del layer.forward
    assert can_share(lm, 8)


def test_a_function_that_took_the_place_of_another_in_memory_is_another():
    lm = tiny_model("llama")
    layer = lm.model.model.layers[1]
    marks = set()
    for _ in range(8):  # each is freed, so that the next may get its id
        layer.forward = partial(type(layer).forward, layer)
        marks.add(id(premises.facts(lm)))
        del layer.forward
    assert len(marks) == 8


def test_what_is_known_of_a_model_keeps_it_from_nothing():
    lm = tiny_model("llama")
    model = lm.model
    model.forward = MethodType(type(model).forward, model)  # as accelerate leaves one there
    assert can_restart(lm)
    gone = ref(model)
    del lm, model
    gc.collect()
    assert gone() is None


def test_a_configuration_that_is_changed_is_another_model():
    lm = tiny_model("mistral", sliding_window=None)
    prompt = lm.prompt(words(*range(3, 33)))
    before = scores(lm, prompt)
    lm.model.config.sliding_window = 6
    found = scores(lm, prompt)
    np.testing.assert_allclose(found, occlusion(lm, prompt), atol=1e-5)
    assert not np.allclose(found, before)


def by_position(activation):
    changed = activation.clone()
    changed[:, -3:] *= -3
    return changed


def prompts_of(lm):
    return [lm.prompt(words(*ids)) for ids in ([3, 14, 15, 9, 26, 5, 35, 8], [3, 14, 15, 2, 6, 5, 3, 58])]


AROUND = {
    "an edit by position": lambda lm: edit(lm, {("residual", 1): by_position}),
    "a mean, position by position": lambda lm: ablate(lm, [("mlps", 1)], kind="mean", reference=prompts_of(lm)),
    "another prompt's activation": lambda lm: ablate(lm, [("heads", 1, 2)], kind="resample", reference=prompts_of(lm)),
    "steering at one token": lambda lm: steer(lm, np.eye(24)[3], 1, 5.0, positions=[-2]),
    "steering at all": lambda lm: steer(lm, np.eye(24)[3], 1, 5.0),
    "a direction less": lambda lm: project_out(lm, np.eye(24)[3]),
    "zero": lambda lm: ablate(lm, [("mlps", 1), ("layers", 2)]),
}


@pytest.mark.parametrize("around", AROUND)
def test_inside_an_edit_the_edited_model_is_scored(around):
    lm = tiny_model("llama")
    prompt = prompts_of(lm)[0]
    without = scores(lm, prompt)
    with AROUND[around](lm):
        expected = occlusion(lm, prompt)
        np.testing.assert_allclose(scores(lm, prompt), expected, atol=1e-5)
        logits = next_logits(lm, prompts_of(lm))
    assert not np.allclose(expected, without, atol=1e-3)
    with AROUND[around](lm):
        for found, one in zip(logits, prompts_of(lm), strict=True):
            plain = lm.model(input_ids=one.input_ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)
    assert np.array_equal(scores(lm, prompt), without)


def test_trials_are_unseen_by_hooks_which_are_back_afterwards():
    lm = tiny_model("llama")
    seen, edited = [], []
    hook = lm.model.model.layers[1].register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    try:
        with edit(lm, {("residual", 1): edited.append}):
            assert len(scores(lm, lm.prompt(TEXT))) == 8
            assert set(seen) == {8}  # whole passes of the prompt, and no trial
            assert len(edited) == len(seen)
    finally:
        hook.remove()


def test_beside_a_hook_of_which_nothing_is_known_whole_passes_are_run():
    lm = tiny_model("llama")
    assert can_restart(lm)
    entered = []
    first, last = lm.model.model.layers[0], lm.model.model.layers[2]
    hooks = [
        first.register_forward_hook(lambda module, given, out: entered.append(out)),
        last.register_forward_hook(lambda module, given, out: out + entered[-1]),  # a second stream
    ]
    try:
        assert not can_restart(lm)
        sweep = ablation_sweep(lm, lm.prompt(TEXT), over="heads", kind="zero", contrast=CONTRAST)
        with ablate(lm, [("heads", 1, 2)]):
            logits = lm.model(lm.prompt(TEXT).input_ids).logits[0, -1]
        assert sweep.value[0] - sweep.effects[1, 2] == pytest.approx(float(logits[1] - logits[2]), abs=1e-5)
    finally:
        for hook in hooks:
            hook.remove()
    assert can_restart(lm)


def on(*places):
    """A hook that adds to what a module gives out, at some rows, tokens and channels."""

    def hook(module, given, out):
        changed = (out if isinstance(out, torch.Tensor) else out.logits).clone()
        changed[places] += 3
        return changed if isinstance(out, torch.Tensor) else replace(out, logits=changed)

    return hook


def of_all(hook, chosen):
    return hooks_for_all.register_module_forward_hook(lambda m, *rest: hook(m, *rest) if m is chosen else None)


OF_ONES_OWN = {  # as people write them for one prompt a pass
    "a layer, in the first row": lambda model: model.model.layers[1].register_forward_hook(on(0)),
    "a layer, at one token": lambda model: model.model.layers[1].register_forward_hook(on(0, 2)),
    "the head, at the last token": lambda model: model.lm_head.register_forward_hook(on(slice(None), -1, 1)),
    "the model, at the last token": lambda model: model.register_forward_hook(on(slice(None), -1, 1)),
    "all modules": lambda model: of_all(on(0, 2), model.model.layers[1]),
}


@pytest.mark.parametrize("hung", OF_ONES_OWN)
def test_beside_ones_own_hooks_the_model_with_them_is_scored(hung):
    lm = tiny_model("llama")
    prompts = [*prompts_of(lm), lm.prompt(words(3, 14, 15))]
    without = next_logits(lm, prompts)
    hook = OF_ONES_OWN[hung](lm.model)
    try:
        np.testing.assert_allclose(scores(lm, prompts[0]), occlusion(lm, prompts[0]), atol=1e-5)
        path = token_attribution(lm, prompts[0], method="integrated_gradients", contrast=CONTRAST, replacement=7)
        plain = [lm.model(input_ids=one.input_ids, use_cache=False).logits[0, -1] for one in prompts]
        torch.testing.assert_close(next_logits(lm, prompts), torch.stack(plain), atol=1e-6, rtol=1e-6)
    finally:
        hook.remove()
    assert path.gap[0] < 1e-3
    assert not torch.allclose(torch.stack(plain), without, atol=1e-3)


def test_what_pytorch_runs_with_every_module_rests_in_trials():
    lm = tiny_model("llama")
    seen = []
    hook = of_all(lambda module, given, out: seen.append(out.shape[1]), lm.model.model.layers[1])
    try:
        assert not can_restart(lm)
        assert len(scores(lm, lm.prompt(TEXT))) == 8
    finally:
        hook.remove()
    assert set(seen) == {8}


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients"])
def test_gradients_are_not_refused_for_ever_after_inference_mode(method):
    lm = tiny_model("llama")
    asked = {"method": method, "contrast": CONTRAST, "replacement": 7}
    with torch.inference_mode():
        prompt, other = lm.prompt(TEXT), lm.prompt(words(3, 14, 15, 9, 26, 5, 35, 9))
        with pytest.raises(CourseError, match=r"outside of it"):
            token_attribution(lm, prompt, **asked)
        with pytest.raises(CourseError, match=r"outside of it"):
            attribution_patching(lm, prompt, other, contrast=CONTRAST)
        assert len(scores(lm, prompt)) == 8
    found = token_attribution(lm, prompt, **asked).scores
    np.testing.assert_allclose(found, token_attribution(lm, lm.prompt(TEXT), **asked).scores)
    assert attribution_patching(lm, prompt, other, contrast=CONTRAST).effects.shape == (3, 8)


def test_a_model_in_training_mode_is_told_to_leave_it():
    lm = tiny_model("llama", attention_dropout=0.5)
    lm.model.train()
    with pytest.raises(CourseError, match=r"call lm.model.eval\(\) first"):
        scores(lm, lm.prompt(TEXT))
    lm.model.eval()
    assert len(scores(lm, lm.prompt(TEXT))) == 8
    lm.model.model.train()  # a part of it
    with pytest.raises(CourseError, match=r"call lm.model.eval\(\) first"):
        scores(lm, lm.prompt(TEXT))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj", "lm_head"])
def test_numbers_that_are_none_are_told(where, bad):
    lm = tiny_model("llama")
    assert len(scores(lm, lm.prompt(TEXT))) == 8  # known to be sound, and broken afterwards
    lm.model.get_submodule(where).weight.data[0, 0] = bad
    with pytest.raises(CourseError, match="not finite numbers"):
        scores(lm, lm.prompt(TEXT))


class OnePlus(nn.Module):
    """A layer norm whose weight is stored less one, as Nemotron's."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.norm.weight + 1, self.norm.bias)


NORMS = {
    "layer norm": lambda: nn.LayerNorm(24),
    "layer norm, weight + 1": lambda: OnePlus(24),
    "RMS norm": lambda: nn.RMSNorm(24, eps=1e-6),
    "multiplier": lambda: nn.Linear(24, 24, bias=False),
    "none": nn.Identity,
}


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_a_frozen_norm_splits_its_output_exactly(norm):
    torch.manual_seed(0)
    made = NORMS[norm]().double()
    for weight in made.parameters():
        weight.copy_(torch.eye(24) * 0.3 if weight.dim() == 2 else torch.randn(24))
    parts = torch.randn(5, 24, dtype=torch.float64) * 7
    linear, bias = blocks.frozen(tiny_model("llama"), made, parts.sum(dim=0))
    torch.testing.assert_close(linear(parts).sum(dim=0) + bias, made(parts.sum(dim=0)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear(2 * parts), 2 * linear(parts))


@pytest.mark.parametrize("bent", [torch.tanh, lambda x: x.abs(), lambda x: x.flip(-1), lambda x: x.cumsum(-1)])
def test_what_is_no_norm_is_refused(bent):
    with pytest.raises(CourseError, match="cannot be split"):
        blocks.frozen(tiny_model("llama"), bent, torch.randn(24, generator=torch.Generator().manual_seed(0)))


def test_the_ending_is_all_the_model_does_after_its_last_layer(tiny):
    base = run_once(tiny, torch.arange(1, 9), keep=8)
    torch.testing.assert_close(blocks.ending(tiny, base, base.residual[-1]), base.logits)


def test_a_broken_premise_is_a_no_whatever_the_model_raises():
    def trial(lm, length):
        raise ZeroDivisionError

    lm = tiny_model("llama")
    assert not premises.holds(lm, "some premise", trial)
    assert premises.holds(lm, "some other premise", lambda lm, length: length == premises.LENGTH)
