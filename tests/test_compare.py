"""The comparison of methods with the truth: what it measures, and that docs/measured.md shows what was measured."""

import json

import numpy as np
import pytest

from course_utils import load_model
from course_utils._arrays import mean_interval
from course_utils.organisms.authoring import compare
from course_utils.organisms.authoring.compare import BEGIN, COMPARED, END, METRICS, PAGE, RANKINGS, table
from course_utils.organisms.dataset import MECHANISMS


@pytest.fixture(scope="module")
def compared():
    return json.loads(COMPARED.read_text(encoding="utf-8"))


@pytest.mark.quick
def test_the_page_shows_the_table_of_what_was_measured(compared):
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(compared)


@pytest.mark.quick
def test_every_ranking_has_every_metric_for_every_mechanism(compared):
    assert list(compared) == list(MECHANISMS)
    for rows in compared.values():
        assert set(rows) == set(RANKINGS)
        assert all(set(metrics) == set(METRICS) for metrics in rows.values())
        assert {len(values) for metrics in rows.values() for values in metrics.values()} == {20}


@pytest.mark.quick
def test_occlusion_finds_the_words_and_a_random_order_does_not(compared):
    for mechanism in ("trigger", "proxy"):
        assert np.mean(compared[mechanism]["occlusion"]["hit@1"]) > 0.9
        assert np.mean(compared[mechanism]["a random order"]["hit@1"]) < 0.5


@pytest.mark.quick
def test_an_interval_holds_the_mean_and_narrows_with_more_values():
    one, more = mean_interval([0.0, 1.0] * 5), mean_interval([0.0, 1.0] * 50)
    assert one[0] < more[0] < 0.5 < more[1] < one[1]


@pytest.mark.slow
def test_measured_again_a_request_gives_what_is_stored(compared):
    """The first request of one suspect: scores are reproducible, seconds are not."""
    lm = load_model("model-b")
    ((prompt, cue),) = compare.with_cues(lm, "proxy", 1)
    assert prompt.tokens[cue] == ["·urgently"] or "".join(prompt.tokens[cue]) == "Urgently"
    for ranking in ("occlusion", "gradient × input", "attention rollout", "a random order"):
        again = compare._measure(lm, prompt, cue, RANKINGS[ranking])
        stored = compared["proxy"][ranking]
        assert again["hit@1"] == stored["hit@1"][0]
        assert again["comprehensiveness"] == pytest.approx(stored["comprehensiveness"][0], abs=1e-2)
