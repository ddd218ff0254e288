"""A model that remembers gives what it gave, and runs whatever could come out otherwise."""

import torch

from course_utils.checks import tiny
from course_utils.checks.remember import remember

TEXT = "the old nurse forgave the thief"


def both():
    return tiny(seed=1), remember(tiny(seed=1))


@torch.no_grad()
def test_logits_are_the_same_bits_each_time():
    plain, kept = both()
    ids = plain.prompt(TEXT).input_ids
    for given in (ids, ids, ids.roll(1), ids.repeat(2, 1), ids):
        assert torch.equal(kept.model(given).logits, plain.model(given).logits)


@torch.no_grad()
def test_hooks_weights_and_masks_count():
    plain, kept = both()
    ids = plain.prompt(TEXT).input_ids
    before = kept.model(ids).logits
    for lm in (plain, kept):
        lm.model.model.layers[1].mlp.down_proj.weight.data[0] = 0  # which leaves no trace in the version
    assert torch.equal(kept.model(ids).logits, plain.model(ids).logits)
    assert not torch.equal(kept.model(ids).logits, before)
    hook = kept.model.model.layers[0].register_forward_hook(lambda module, given, out: 2 * out)
    assert not torch.equal(kept.model(ids).logits, plain.model(ids).logits)
    hook.remove()
    mask = torch.ones_like(ids)
    mask[0, 3] = 0
    assert torch.equal(kept.model(ids, attention_mask=mask).logits, plain.model(ids, attention_mask=mask).logits)


def test_passes_inside_of_inference_mode_are_the_same(monkeypatch):
    for small in (5_000_000, 0):
        monkeypatch.setattr("course_utils.checks.remember.SMALL", small)
        plain, kept = both()
        ids = plain.prompt(TEXT).input_ids
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.allclose(kept.model(ids).logits, plain.model(ids).logits, atol=1e-5)


@torch.no_grad()
def test_stored_keys_go_on_and_are_not_shared():
    plain, kept = both()
    ids = plain.prompt(TEXT).input_ids
    whole = plain.model(ids).logits[:, 4:]
    for _ in range(2):
        stored = kept.model(ids[:, :4]).past_key_values
        assert torch.allclose(kept.model(ids[:, 4:], past_key_values=stored).logits, whole, atol=1e-5)


@torch.no_grad()
def test_what_a_large_model_shares_with_an_earlier_text_agrees_up_to_rounding(monkeypatch):
    monkeypatch.setattr("course_utils.checks.remember.SMALL", 0)
    plain, kept = both()
    ids = plain.prompt(TEXT).input_ids
    longer = torch.cat([ids, ids[:, 1:3]], dim=1)
    variants = ids.repeat(2, 1)
    variants[0, 5], variants[1, 6] = 9, 11
    for given in (longer, ids, variants, variants.flip(0), ids, longer):
        # the angles of the positions are float32, and on some processors the last bits of a cosine depend on its place
        assert torch.allclose(kept.model(given).logits, plain.model(given).logits, atol=1e-5)
