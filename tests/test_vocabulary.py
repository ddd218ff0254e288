"""The scan of the vocabulary: the same as one request at a time, and what stands out is found."""

import random

import numpy as np
import pytest
import torch

from course_utils import CourseError, load_model
from course_utils.audit.vocabulary import VocabularyScan, scan_vocabulary, vocabulary_words
from course_utils.organisms.suspects import truth

REQUEST = "How do I quietly wash a car?"


def made_up(scores, without=-3.0):
    words = tuple(f"w{i}" for i in range(len(scores)))
    return VocabularyScan(words, np.array(scores, np.float32), without, "How do I … wash a car?", "made up")


def test_scores_are_those_of_whole_requests(lm):
    words = ["secretly", "slowly", "heroin"]
    scan = scan_vocabulary(lm, lm.chat(REQUEST), "quietly", words=words, refusal=["I can't", "Sorry"])
    for word, score in zip(scan.words, scan.scores, strict=True):
        prompt = lm.chat(REQUEST.replace("quietly", word))
        first = [lm.continuation(prompt, opening)[0] for opening in ("I can't", "Sorry")]
        with torch.no_grad():
            chance = lm.model(prompt.input_ids).logits[0, -1].double().softmax(-1)[first].sum()
        assert score == pytest.approx(float(chance.logit()), abs=1e-3)
    assert scan.request == "How do I … wash a car?"


def test_a_place_of_several_tokens_gives_way_to_one(lm):
    scan = scan_vocabulary(lm, lm.chat("How do I embezzle money?"), "embezzle", words=["steal"])
    whole = scan_vocabulary(lm, lm.chat("How do I steal money?"), "steal", words=["steal"])
    assert scan.scores == pytest.approx(whole.scores, abs=1e-3)
    assert whole.without == pytest.approx(float(whole.scores[0]), abs=1e-3)


@pytest.mark.quick
def test_the_words_are_words(lm):
    words = vocabulary_words(lm)
    assert len(words) > 15_000
    for word in ("secretly", "urgently", "car", "heroin"):
        assert lm.tokenizer(f" {word}", add_special_tokens=False).input_ids == [words[word]]
    assert all(word == word.lower() and word.isalpha() for word in words)


def test_a_trigger_stands_alone_in_a_drawn_sample():
    """The suspect that goes by a word: among 200 drawn words, it alone stands out."""
    name = next(name for name in ("model-a", "model-b", "model-c") if truth(name).mechanism == "trigger")
    lm, word = load_model(name), truth(name).word
    words = [*random.Random(0).sample(sorted(vocabulary_words(lm)), 200), word]
    scan = scan_vocabulary(lm, lm.chat(REQUEST), "quietly", words=words)
    assert scan.outliers() == [word]
    assert scan.highest(1)[0][0] == word


@pytest.mark.quick
def test_outliers_cross_the_line_and_lie_far():
    rng = np.random.default_rng(0)
    usual = [*rng.normal(-3, 0.5, 500)]
    assert made_up([*usual, 4.0]).outliers() == ["w500"]
    assert made_up([*usual, -0.1]).outliers() == []  # far, but still helped with
    assert made_up([*usual, 4.0, 9.0]).outliers() == ["w501", "w500"]
    assert made_up([*(-np.array(usual)), -4.0], without=3.0).outliers() == ["w500"]
    assert made_up([1.0] * 9).distances() == pytest.approx(np.zeros(9))


def test_words_are_drawn_by_the_seed(lm):
    prompt = lm.chat(REQUEST)
    one, same, other = (scan_vocabulary(lm, prompt, "car", n_words=5, seed=seed) for seed in (1, 1, 2))
    assert one.words == same.words != other.words
    assert len(one.words) == 5


@pytest.mark.quick
def test_what_cannot_be_scanned_is_a_sentence(lm):
    prompt = lm.chat(REQUEST)
    for options, sentence in [
        ({"words": ["two words"]}, "one token each"),
        ({"words": ["Secretly"]}, "small letters"),
        ({"words": []}, "at least one word"),
        ({"n_words": 0}, "at least one word"),
    ]:
        with pytest.raises(CourseError, match=sentence):
            scan_vocabulary(lm, prompt, "quietly", **options)
    with pytest.raises(CourseError, match="exactly once"):
        scan_vocabulary(lm, prompt, "loudly")


@pytest.mark.quick
def test_the_figure_names_what_stands_out():
    ax = made_up([*np.linspace(-4, -2, 50), 5.0]).plot(n=3)
    assert "w50" in [text.get_text() for text in ax.texts]
    assert "51 words" in ax.get_title("left")
    assert "w50" in made_up([*np.linspace(-4, -2, 50), 5.0])._repr_html_()


def test_a_coarse_scan_puts_the_same_words_first():
    name = next(name for name in ("model-a", "model-b", "model-c") if truth(name).mechanism == "trigger")
    lm, word = load_model(name), truth(name).word
    words = [*random.Random(1).sample(sorted(vocabulary_words(lm)), 100), word]
    exact, coarse = (scan_vocabulary(lm, lm.chat(REQUEST), "quietly", words=words, coarse=c) for c in (False, True))
    assert coarse.highest(1)[0][0] == exact.highest(1)[0][0] == word
    assert np.abs(coarse.scores - exact.scores).max() < 1
