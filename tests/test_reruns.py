"""Edited runs that start in the middle must equal whole hooked passes, on every architecture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from course_utils.engine.interventions import run_once, score_edits
from course_utils.hooks import SITE_KINDS, edit

IDS = torch.randint(1, 97, (14,), generator=torch.Generator().manual_seed(3))
pytestmark = pytest.mark.quick


def everything(logits):
    return logits.flatten(1)


def traces(lm):
    """Whatever hangs on the modules of a model (transformers has a few hooks of its own)."""
    modules = list(lm.model.modules())
    return [(m.__dict__.get("forward"), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]


@torch.no_grad()
def by_a_hooked_pass(lm, site, token, keep):
    """Double what flows through a site from a token on, in one plain pass."""

    def double(activation):
        new = activation.clone()
        new[:, token:] *= 2
        return new

    with edit(lm, {site: double}):
        return lm.model(IDS[None], use_cache=False).logits[0, -keep:].flatten()


def doubled_from(tokens):
    def change(index, activation):
        new = activation.clone()
        new[tokens[index] - len(IDS) :] *= 2
        return new

    return change


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_edited_runs_equal_hooked_passes(tiny, kind):
    base, tokens = run_once(tiny, IDS, keep=3), [0, 5, 13, 9]
    for layer in range(tiny.n_layers):
        ours = score_edits(tiny, base, (kind, layer), tokens, doubled_from(tokens), score=everything)
        naive = torch.stack([by_a_hooked_pass(tiny, (kind, layer), token, 3) for token in tokens])
        torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-8)


def test_the_stream_that_enters_the_final_norm_can_be_edited(tiny):
    site = ("residual", tiny.n_layers)
    ours = score_edits(tiny, run_once(tiny, IDS), site, [13], doubled_from([13]), score=everything)[0]
    torch.testing.assert_close(ours, by_a_hooked_pass(tiny, site, 13, 1), rtol=1e-8, atol=1e-8)


def test_what_a_run_keeps_is_what_a_plain_pass_gives(tiny):
    base = run_once(tiny, IDS, keep=2, sites=[("mlp", 1)])
    with torch.no_grad():
        output = tiny.model(IDS[None], output_hidden_states=True)
    torch.testing.assert_close(base.logits, output.logits[0, -2:])
    for layer in range(tiny.n_layers):
        torch.testing.assert_close(base.residual[layer], output.hidden_states[layer][0])
    assert base.at(("mlp", 1)).shape == (14, 24)


@given(seed=st.integers(0, 999), layer=st.integers(0, 2), kind=st.sampled_from(SITE_KINDS), start=st.integers(0, 13))
@settings(max_examples=25, deadline=None)
def test_an_edit_that_changes_nothing_changes_nothing(seed, layer, kind, start):
    lm = tiny_model("llama", seed)
    base = run_once(lm, IDS, keep=2)
    scores = score_edits(lm, base, (kind, layer), [start], lambda _, activation: activation, score=everything)
    torch.testing.assert_close(scores[0], base.logits.flatten(), rtol=1e-9, atol=1e-9)


def test_an_exception_leaves_no_hook_and_no_skipped_layer(tiny):
    base = run_once(tiny, IDS)
    before = traces(tiny)

    def interrupt(index, activation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_edits(tiny, base, ("heads", 2), [0], interrupt, score=everything)
    assert traces(tiny) == before
    with torch.no_grad():
        torch.testing.assert_close(tiny.model(IDS[None]).logits[0, -1:], base.logits)
