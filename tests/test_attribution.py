"""Token attribution: invariants, agreement with a naive loop, Captum and Inseq, and hostile input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from course_utils import CourseError, token_attribution
from course_utils.attribution import METHODS
from course_utils.engine.replacements import deleted, occluded, replacement_id

CHAT = "How do I kill a Python process?"
REPLY = "I can't help with that"


@pytest.fixture(scope="module")
def prompt(lm):
    return lm.chat("Kill a process")


@torch.no_grad()
def log_probabilities(lm, ids, reply):
    """One plain pass: the log-probability of each reply token, given everything before it."""
    logits = lm.model(torch.tensor([ids + reply])).logits[0].log_softmax(dim=-1)
    return np.array([logits[len(ids) - 1 + k, token].item() for k, token in enumerate(reply)])


def naive_scores(lm, prompt, target, without):
    ids, reply = prompt.input_ids[0].tolist(), lm.continuation(prompt, target)
    full = log_probabilities(lm, ids, reply)
    return np.stack([full - log_probabilities(lm, without(ids, i), reply) for i in range(len(ids))], axis=1)


def replaced_by_the(lm):
    the = lm.tokenizer.encode(" the", add_special_tokens=False)[0]
    return lambda ids, i: [*ids[:i], the, *ids[i + 1 :]]


@pytest.mark.parametrize("text", ["Kill a process", pytest.param(None, marks=pytest.mark.slow, id="in the template")])
def test_occlusion_equals_the_naive_loop(lm, prompt, text):
    prompt = lm.prompt(text) if text else prompt
    a = token_attribution(lm, prompt, target=REPLY)
    np.testing.assert_allclose(a.scores, naive_scores(lm, prompt, REPLY, replaced_by_the(lm)), atol=1e-3)


@pytest.mark.slow
def test_deletion_equals_the_naive_loop(lm, prompt):
    a = token_attribution(lm, prompt, target=REPLY, method="deletion")
    expected = naive_scores(lm, prompt, REPLY, lambda ids, i: ids[:i] + ids[i + 1 :])
    np.testing.assert_allclose(a.scores, expected, atol=1e-3)


@pytest.mark.slow
def test_occlusion_equals_captum(lm, prompt):
    from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput

    the = lm.tokenizer.encode(" the", add_special_tokens=False)[0]
    peer = LLMAttribution(FeatureAblation(lm.model), lm.tokenizer)
    features = TextTokenInput(prompt.text, lm.tokenizer, baselines=the)
    # Captum's cached outputs go wrong on caches that are changed in place, so they are off
    theirs = peer.attribute(features, target=REPLY, use_cached_outputs=False).token_attr.numpy()
    np.testing.assert_allclose(token_attribution(lm, prompt, target=REPLY).scores, theirs, atol=1e-3)


@pytest.mark.slow
def test_occlusion_equals_inseq_in_size(lm):
    """Inseq occludes with the unknown token, scores the probability, and drops the sign."""
    import inseq

    prompt, target = lm.prompt("The capital of France is"), " Paris, of course"
    peer = inseq.load_model(lm.model, "occlusion", tokenizer=lm.tokenizer)
    out = peer.attribute(prompt.text, prompt.text + target, show_progress=False).sequence_attributions[0]
    theirs = out.target_attributions.numpy()[: len(prompt)].T
    a = token_attribution(lm, prompt, target=target, replacement=lm.tokenizer.unk_token_id)
    ours = np.exp(a.value)[:, None] - np.exp(a.value[:, None] - a.scores)
    np.testing.assert_allclose(abs(ours), theirs, atol=1e-4)


def test_a_contrast_is_the_difference_of_two_logits(lm, prompt):
    a = token_attribution(lm, prompt, contrast=("I", "Sure"))
    first, second = (lm.tokenizer.encode(word)[0] for word in ("I", "Sure"))
    without = replaced_by_the(lm)

    @torch.no_grad()
    def difference(ids):
        last = lm.model(torch.tensor([ids])).logits[0, -1]
        return (last[first] - last[second]).item()

    ids = prompt.input_ids[0].tolist()
    assert a.value[0] == pytest.approx(difference(ids), abs=1e-3)
    for i in (0, 25, len(ids) - 1):
        assert a.scores[0, i] == pytest.approx(difference(ids) - difference(without(ids, i)), abs=1e-3)
    assert (a.unit, a.output_tokens) == ("logits", ["I − Sure"])


@pytest.mark.slow
def test_a_swapped_contrast_swaps_the_sign(lm, prompt):
    one, other = (token_attribution(lm, prompt, contrast=pair) for pair in (("I", "Sure"), ("Sure", "I")))
    np.testing.assert_allclose(one.scores, -other.scores, atol=1e-5)


@pytest.mark.slow
def test_without_target_the_greedy_reply_is_scored(lm):
    prompt = lm.chat("What is the capital of France?")
    a = token_attribution(lm, prompt, n_output_tokens=6)
    assert a.output_tokens == ["The", "·capital", "·of", "·France", "·is", "·Paris"]
    same = token_attribution(lm, prompt, target="The capital of France is Paris")
    np.testing.assert_allclose(a.scores, same.scores, atol=1e-5)


def test_the_reply_paris_rests_on_the_typed_word_france(lm):
    prompt = lm.chat("What is the capital of France?")
    a = token_attribution(lm, prompt, target="The capital city is Paris")
    france = prompt.span("France").start
    assert prompt.user.start + a.scores[-1, prompt.user].argmax() == france
    assert a.scores[-1, france] > 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (" ", "token of its own"),
        ("\n", "token of its own"),
        ("w2", "token of its own"),
        ("w1 w2", "token of its own"),
        (" w1 w2", "which is 2"),
        (True, "0 to 96, got True"),
    ],
)
def test_a_replacement_that_is_not_one_token_is_told(replacement, said):
    with pytest.raises(CourseError, match=said):
        replacement_id(tiny_model("llama"), replacement)


@pytest.mark.quick
def test_a_replacement_by_numpys_integer_is_an_id():
    lm = tiny_model("llama")
    assert replacement_id(lm, np.int64(3)) == 3 == replacement_id(lm, " w3")


def test_a_token_that_equals_the_replacement_scores_zero(lm):
    prompt = lm.chat("Kill the process")
    a = token_attribution(lm, prompt, contrast=("I", "Sure"))
    assert abs(a.scores[0, prompt.span("the").start]) < 1e-4


@pytest.mark.slow
def test_the_replacement_may_be_a_text_or_an_id(lm, prompt):
    the = lm.tokenizer.encode(" the", add_special_tokens=False)[0]
    by_id, by_text = (token_attribution(lm, prompt, contrast=("I", "Sure"), replacement=r) for r in (the, " the"))
    assert np.array_equal(by_id.scores, by_text.scores)
    other = token_attribution(lm, prompt, contrast=("I", "Sure"), replacement=lm.tokenizer.eos_token_id)
    assert not np.allclose(by_id.scores, other.scores)


@pytest.mark.parametrize("method", METHODS)
def test_the_shape_is_outputs_by_tokens_and_the_records_are_the_chapters(lm, prompt, method):
    a = token_attribution(lm, prompt, target=REPLY, method=method, steps=2, permutations=1)
    assert a.scores.shape == (6, len(prompt))
    assert a.scores.dtype == np.float32
    records = a.to_records()
    assert [record["output_token"] for record in records] == a.output_tokens
    assert [len(record["input_attributions"]) for record in records] == [len(prompt)] * 6
    assert records[2]["input_attributions"][3] == pytest.approx(float(a.scores[2, 3]))
    assert a.standard_error is None or np.isnan(a.standard_error[:, a.user]).all()  # of one order


def test_top_names_typed_tokens_only_strongest_first(lm, prompt):
    a = token_attribution(lm, prompt, contrast=("I", "Sure"))
    top = a.top(99)
    assert {t.position for t in top} == set(range(len(prompt))[prompt.user])
    assert [abs(t.score) for t in top] == sorted((abs(t.score) for t in top), reverse=True)
    assert a.top(1)[0].token == a.tokens[a.top(1)[0].position]


def test_nothing_global_changes(lm, prompt):
    before = torch.is_grad_enabled(), lm.model.training, prompt.input_ids.clone()
    token_attribution(lm, prompt, contrast=("I", "Sure"))
    assert (torch.is_grad_enabled(), lm.model.training) == before[:2]
    assert torch.equal(prompt.input_ids, before[2])


@pytest.mark.quick
@given(ids=st.lists(st.integers(0, 96), min_size=2, max_size=12), data=st.data())
@settings(max_examples=50, deadline=None)
def test_variants_differ_from_the_input_in_one_place(ids, data):
    n_tokens = data.draw(st.integers(2, len(ids)))
    base = torch.tensor(ids)
    for i, row in enumerate(occluded(base, n_tokens, 97).tolist()):
        assert row == [*ids[:i], 97, *ids[i + 1 :]]
    for i, row in enumerate(deleted(base, n_tokens).tolist()):
        assert row == ids[:i] + ids[i + 1 :]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "magic"}, r"occlusion, deletion, .*, got 'magic'"),
        ({"target": ""}, "encodes to none"),
        ({"target": "I", "contrast": ("I", "Sure")}, "got both"),
        ({"contrast": ("I can", "Sure")}, r"'I can', which is 2 \(I, ·can\).*'I'"),
        ({"contrast": ("I", "")}, "encodes to none"),
        ({"contrast": ("I", "I")}, "twice"),
        ({"contrast": "IS"}, "two texts"),
        ({"contrast": ("I", "Sure", "To")}, "two texts"),
        ({"contrast": (3, 4)}, r"two texts.*got \(3, 4\)"),
        ({"contrast": 5}, "two texts"),
        ({"target": 5}, "got 5; put it in quotes"),
        ({"target": ["I"]}, "put it in quotes"),
        ({"n_output_tokens": 0}, "at least one output token"),
        ({"n_output_tokens": None}, "got n_output_tokens=None"),
        ({"n_output_tokens": "3"}, "got n_output_tokens='3'"),
        ({"replacement": 49152}, "0 to 49151, got 49152"),
        ({"replacement": -1}, "0 to 49151, got -1"),
        ({"replacement": 1.5}, "got 1.5"),
        ({"replacement": ""}, "token of its own"),
        ({"replacement": " antidisestablishment"}, "which is"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(lm, prompt, wrong, said):
    with pytest.raises(CourseError, match=said) as caught:
        token_attribution(lm, prompt, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.quick
def test_plain_text_for_a_prompt_is_refused_with_the_way_out(lm):
    with pytest.raises(CourseError, match=r"lm\.chat\(text\)"):
        token_attribution(lm, CHAT)


@pytest.mark.quick
def test_a_prompt_and_target_beyond_the_context_are_refused(lm):
    prompt = lm.prompt("a " * 8100)
    with pytest.raises(CourseError, match="8,192 tokens"):
        token_attribution(lm, prompt, target=" b" * 200)


@pytest.mark.quick
def test_deletion_needs_two_tokens(lm):
    with pytest.raises(CourseError, match="at least two tokens"):
        token_attribution(lm, lm.prompt("Hello"), method="deletion", target=" you")


@pytest.mark.parametrize("method", ["occlusion", pytest.param("deletion", marks=pytest.mark.slow)])
def test_typed_only_gives_the_typed_tokens_their_scores_and_the_rest_none(lm, prompt, method):
    whole, part = (token_attribution(lm, prompt, target=REPLY, method=method, typed_only=o) for o in (False, True))
    np.testing.assert_allclose(part.scores[:, prompt.user], whole.scores[:, prompt.user], atol=1e-3)
    rest = np.delete(part.scores, np.r_[prompt.user], axis=1)
    assert rest.size > 0
    assert not rest.any()


def test_occlusion_of_a_single_token_works(lm):
    assert token_attribution(lm, lm.prompt("Hello"), target=" you").scores.shape == (1, 1)
