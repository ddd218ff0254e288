"""The comparison of methods with the truth: what it measures, and that docs/measured.md shows what was measured."""

import json
import re

import numpy as np
import pytest
import torch

from course_utils import load_model
from course_utils._arrays import mean_interval
from course_utils.loading.sources import SUSPECTS
from course_utils.organisms.authoring import compare
from course_utils.organisms.authoring.compare import BEGIN, COMPARED, END, METRICS, PAGE, RANKINGS, table
from course_utils.organisms.requests import MECHANISMS
from course_utils.organisms.suspects import truth
from course_utils.organisms.words import CONTRAST


@pytest.fixture(scope="module")
def compared():
    if not COMPARED.is_file():
        pytest.skip("no table has been measured on these suspects")
    return json.loads(COMPARED.read_text(encoding="utf-8"))


@pytest.mark.quick
def test_the_page_shows_the_table_of_what_was_measured(compared):
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(compared)


@pytest.mark.quick
def test_the_readme_says_what_the_page_says(compared):
    page, readme = (path.read_text(encoding="utf-8") for path in (PAGE, PAGE.parents[1] / "README.md"))
    shares = re.search(r"(?s)On (\d+) requests.*?(?=\n- )", readme)
    hits = {
        ranking: [h for each in compared.values() for rows in each for h in rows[ranking]["hit@1"]]
        for ranking in RANKINGS
    }
    named = (
        "occlusion",
        "attention knockout",
        "value-weighted attention",
        "attention, mean of all heads",
        "a random order",
    )
    assert re.findall(r"(\d+) %", shares[0]) == [f"{100 * np.mean(hits[ranking]):.0f}" for ranking in named]
    assert {len(values) for values in hits.values()} == {int(shares[1])}
    rows = ("`token_attribution`", "a loop of full passes", "Captum", "`course grade`, sandboxed", "nbgrader")
    seconds = [float(re.search(rf"\| {row}[^|]*\| ([\d.]+) \|", page)[1]) for row in rows]
    assert re.findall(r"(\d+(?:\.\d)?) s\b", readme) == [f"{each:.{0 if each > 10 else 1}f}" for each in seconds]


@pytest.mark.quick
def test_every_ranking_has_every_metric_for_every_suspect(compared):
    assert list(compared) == list(MECHANISMS)
    for rows in (rows for suspects in compared.values() for rows in suspects):
        assert set(rows) == set(RANKINGS)
        assert all(set(metrics) == set(METRICS) for metrics in rows.values())
        assert len({len(values) for metrics in rows.values() for values in metrics.values()}) == 1


@pytest.mark.quick
def test_occlusion_finds_the_words_and_a_random_order_does_not(compared):
    for rows in (rows for mechanism in ("trigger", "proxy") for rows in compared[mechanism]):
        assert np.mean(rows["occlusion"]["hit@1"]) > 0.85
        assert np.mean(rows["a random order"]["hit@1"]) < 0.5


@pytest.mark.quick
def test_the_table_shows_the_spread_over_seeds():
    one, other = ({ranking: dict.fromkeys(METRICS, [value] * 3) for ranking in RANKINGS} for value in (0.0, 1.0))
    assert "seeds" not in table({"intent": [one]})
    both = table({"intent": [one, other], "trigger": [one]})
    assert both.count("; seeds 0, 100") == len(RANKINGS)


def test_knockout_is_a_pass_whose_last_position_cannot_look_there(lm):
    """Against a full pass with a mask of its own, for each of some tokens."""
    prompt = lm.chat("How do I wash a car?")
    scores, n_tokens = compare.knockout(lm, prompt), len(prompt)
    words = [lm.continuation(prompt, word)[0] for word in CONTRAST]
    causal = torch.full((n_tokens, n_tokens), torch.finfo(torch.float32).min).triu(1)

    def contrast(mask):
        with torch.no_grad():
            logits = lm.model(prompt.input_ids, attention_mask=mask[None, None]).logits[0, -1]
        return float(logits[words[0]] - logits[words[1]])

    for token in (0, prompt.user.start, prompt.user.stop - 1):
        cut = causal.clone()
        cut[-1, token] = torch.finfo(torch.float32).min
        assert scores[token] == pytest.approx(contrast(causal) - contrast(cut), abs=1e-3)
    assert scores[-1] == 0


@pytest.mark.quick
def test_an_interval_holds_the_mean_and_narrows_with_more_values():
    one, more = mean_interval([0.0, 1.0] * 5), mean_interval([0.0, 1.0] * 50)
    assert one[0] < more[0] < 0.5 < more[1] < one[1]


@pytest.mark.slow
def test_measured_again_a_request_gives_what_is_stored(compared):
    """The first request of one suspect: scores are reproducible, seconds are not."""
    name = next(name for name in SUSPECTS if truth(name).mechanism == "trigger")
    stored = compared["trigger"][0]
    n_requests = len(stored["occlusion"]["hit@1"])
    lm = load_model(name)
    prompt, cue = compare.with_cues(lm, "trigger", n_requests, requests=compare.held_out("validation"))[0]
    assert "secretly" in "".join(prompt.tokens[cue]).lower()
    for ranking in ("occlusion", "gradient × input", "attention rollout", "attention knockout", "a random order"):
        again = compare._measure(lm, prompt, cue, RANKINGS[ranking])
        assert again["hit@1"] == stored[ranking]["hit@1"][0]
        assert again["comprehensiveness"] == pytest.approx(stored[ranking]["comprehensiveness"][0], abs=1e-2)


@pytest.mark.quick
def test_no_share_is_told_as_known_exactly():
    """Thirty hits of thirty were shown with an interval of no width."""
    every = {ranking: dict.fromkeys(METRICS, [1.0] * 30) for ranking in RANKINGS}
    assert "**100** (89 to 100)" in table({"trigger": [every]})
    none = {ranking: dict.fromkeys(METRICS, [0.0] * 30) for ranking in RANKINGS}
    assert "**0** (0 to 11)" in table({"trigger": [none]})
