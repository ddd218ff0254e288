"""Words, sentences and messages left out at once: against plain passes, and zoomed."""

import numpy as np
import pytest
import torch

from course_utils import load_model, token_attribution
from course_utils.attribution import zoomed_attribution
from course_utils.engine.units import unit_slices, unit_texts
from tests.shared import told

CHAT = [
    {"role": "user", "content": "Good morning! I live by the sea. My name is Ada."},
    {"role": "assistant", "content": "Good morning, Ada! How can I help you?"},
    {"role": "user", "content": "I have a car.\nHow do I secretly wash it?  Thanks..."},
]


def by_hand(lm, prompt, slices, contrast):
    """The fall of a logit difference without each unit, by a whole pass for each."""
    one, other = (lm.continuation(prompt, text)[0] for text in contrast)
    the = lm.tokenizer(" the", add_special_tokens=False).input_ids[0]

    def value(ids):
        with torch.no_grad():
            logits = lm.model(ids).logits[0, -1].double()
        return float(logits[one] - logits[other])

    left_out = []
    for some in slices:
        ids = prompt.input_ids.clone()
        ids[0, some] = the
        left_out.append(value(ids))
    return value(prompt.input_ids) - np.array(left_out)


@pytest.mark.parametrize("by", ["word", "sentence", "message"])
def test_units_score_as_whole_passes_do(lm, by):
    prompt = lm.chat(CHAT)
    found = token_attribution(lm, prompt, contrast=("I", "Sure"), by=by)
    assert found.scores[0] == pytest.approx(by_hand(lm, prompt, unit_slices(prompt, by), ("I", "Sure")), abs=1e-3)
    assert found.unit == "logits"


@pytest.mark.quick
def test_units_are_what_people_mean_by_them(lm):
    prompt = lm.chat(CHAT)

    def texts(by):
        return [text.replace("·", " ").strip(" ↵") for text in unit_texts(prompt, unit_slices(prompt, by))]

    assert texts("word") == ["I", "have", "a", "car.", "How", "do", "I", "secretly", "wash", "it?", "Thanks..."]
    assert texts("sentence") == ["I have a car.", "How do I secretly wash it?", "Thanks..."]
    assert [text[:12] for text in texts("message")] == ["You are a he", "Good morning", "Good morning", "I have a car"][
        1:
    ]
    assert texts("token") == [text.strip("·↵") for text in prompt.tokens[prompt.user]]
    start = prompt.text.index("secretly")
    assert texts([(start, start + 8)]) == ["secretly"]


@pytest.mark.quick
def test_quotes_end_a_sentence_and_some_scripts_need_no_spaces(lm):
    prompt = lm.prompt('He said "Stop." Then he left.')
    assert len(unit_slices(prompt, "sentence")) == 2
    prompt = lm.prompt("你好。我想洗车！")
    assert len(unit_slices(prompt, "sentence")) == 2
    assert len(unit_slices(prompt, "word")) > 4


@pytest.mark.quick
def test_where_each_message_stands(lm):
    prompt = lm.chat(CHAT, system="Be brief.")
    said = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert [role for role, _ in prompt.messages] == [m["role"] for m in said]
    assert [prompt.text[slice(*place)] for _, place in prompt.messages] == [m["content"] for m in said]
    assert lm.prompt("As it stands").messages == (("user", (0, 12)),)


@pytest.mark.quick
def test_the_template_is_told_what_it_is_told(lm):
    lm.tokenizer.chat_template, own = lm.tokenizer.chat_template + "{{ mood }}", lm.tokenizer.chat_template
    try:
        assert lm.chat("Hi", mood="calm").text.endswith("calm")
        assert not lm.chat("Hi").text.endswith("calm")
    finally:
        lm.tokenizer.chat_template = own


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "letter"}, "letter"),
        ({"by": [(5, 5)]}, "none of them empty"),
        ({"by": [(0, 10**6)]}, "characters"),
        ({"by": [3]}, "spans"),
        ({"by": []}, "units"),
        ({"by": None}, "units"),
        ({"by": "word", "method": "shapley"}, "occlusion"),
    ],
)
def test_no_such_unit_is_a_sentence(lm, given, said):
    with told(said):
        token_attribution(lm, lm.chat("Hi there"), contrast=("I", "Sure"), **given)


@pytest.mark.slow
def test_zooming_finds_the_words_that_all_words_find():
    suspect = load_model("model-a")
    prompt = suspect.chat(CHAT)
    zoomed = zoomed_attribution(suspect, prompt, contrast=("I", "Sure"), keep=1)
    every = token_attribution(suspect, prompt, contrast=("I", "Sure"), by="word")
    assert zoomed.top(1)[0].token == every.top(1)[0].token == "·secretly"
    assert zoomed.top(1)[0].score == pytest.approx(every.top(1)[0].score, abs=1e-3)
    assert len(zoomed.tokens) < len(every.tokens)
