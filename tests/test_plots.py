"""Pictures: safe HTML that reads on any page, and figures that show what they say."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

from course_utils.attribution import Attribution
from course_utils.plots import (
    attribution_html,
    attribution_text,
    describe,
    tokens_html,
    tokens_text,
)

mpl.use("Agg")
pytestmark = pytest.mark.quick
HOSTILE = ["<|im_start|>", "·<script>alert(1)</script>", '"·onmouseover="x', "&amp;", "↵", "·猫"]


def an_attribution(outputs=1, tokens=("<s>", "·How", "·kill", "?", "↵")):
    scores = np.linspace(-2, 3, outputs * len(tokens), dtype=np.float32).reshape(outputs, len(tokens))
    names = ["I − Sure"] if outputs == 1 else [f"·o{i}" for i in range(outputs)]
    unit = "logits" if outputs == 1 else "nats"
    value = np.full(outputs, -1.5, dtype=np.float32)
    return Attribution(scores, list(tokens), names, value, unit, slice(1, len(tokens) - 1), "occlusion", "·the")


class Parsed(HTMLParser):
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.attributes = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_tokens_stay_text_whatever_they_hold():
    parsed = Parsed(tokens_html(HOSTILE, [0.5] * len(HOSTILE), unit="<b>"))
    assert set(parsed.tags) <= {"div", "span", "br"}
    assert {name for name, _ in parsed.attributes} <= {"style", "title"}
    assert parsed.text == "".join(HOSTILE)


def test_every_token_tells_its_number_on_hover():
    html = attribution_html(an_attribution())
    titles = re.findall(r'title="([^"]*)"', html)
    assert titles[2] == "token 2: +0.50 logits"
    assert titles[0] == "token 0 (from the template): -2.00 logits"


def test_the_figure_has_a_text_alternative_that_names_the_strongest_token():
    assert re.search(r'aria-label="[^"]*·kill \+0\.50', attribution_html(an_attribution()))


@pytest.mark.parametrize(("page", "ink"), [((255, 255, 255), (33, 33, 33)), ((17, 17, 17), (224, 224, 224))])
@pytest.mark.parametrize("score", [-9.0, -3.0, 0.0, 3.0, 9.0])
def test_coloured_text_keeps_its_contrast_on_light_and_dark_pages(page, ink, score):
    html = tokens_html(["x", "y"], [score, 9.0])
    red, green, blue, alpha = map(float, re.search(r"rgba\((.*?)\)", html).group(1).split(","))
    ground = [alpha * c + (1 - alpha) * p for c, p in zip((red, green, blue), page, strict=True)]
    assert contrast(ground, ink) >= 4.5


def contrast(one, other):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_raised_and_lowered_have_different_colours_and_zero_has_none():
    up, down, zero = (re.search(r"rgba\((.*?)\)", tokens_html(["x", "y"], [s, 1.0])).group(1) for s in (1, -1, 0))
    assert up.rsplit(",", 1)[0] != down.rsplit(",", 1)[0]
    assert zero.endswith(",0.00")


def test_all_zero_scores_draw_without_dividing_by_zero():
    a = an_attribution()
    flat = Attribution(a.scores * 0, a.tokens, a.output_tokens, a.value, a.unit, a.user, a.method, a.replacement)
    assert "nan" not in attribution_html(flat) + attribution_text(flat) + tokens_text(flat).markup
    flat.plot()


def test_the_terminal_text_has_the_typed_tokens_and_a_bar_each():
    a = an_attribution()
    assert tokens_text(a).plain == "·How·kill?"
    text = attribution_text(a)
    assert text.splitlines()[0] == describe(a) == "I − Sure = -1.50 logits, occlusion with ·the"
    assert len(text.splitlines()) == 4
    assert repr(a) == text


def test_the_heat_map_is_symmetric_about_zero_and_labelled():
    ax = an_attribution(outputs=3).plot()
    low, high = ax.images[0].get_clim()
    assert low == -high
    assert [t.get_text() for t in ax.get_xticklabels()] == ["·How", "·kill", "?"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["·o0", "·o1", "·o2"]
    assert ax.figure.axes[1].get_ylabel() == "effect (nats)"


def test_bars_show_the_typed_scores_in_order():
    a = an_attribution()
    ax = a.plot()
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(a.total[a.user].tolist())
    assert ax.get_ylabel() == "effect (logits)"


def test_plot_draws_into_the_axes_it_is_given_and_changes_nothing_global():
    import matplotlib.pyplot as plt

    before = mpl.rcParams.copy()
    _, ax = plt.subplots()
    assert an_attribution().plot(ax=ax) is ax
    assert an_attribution(outputs=2).plot(ax=ax) is ax
    assert mpl.rcParams == before


def test_labels_are_at_least_nine_points():
    ax = an_attribution(outputs=3).plot()
    assert min(t.get_fontsize() for t in [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.title]) >= 9
