"""Pictures: safe HTML that reads on any page, and figures that show what they say."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

from conftest import tiny_model, words
from course_utils import (
    ablation_sweep,
    activation_patching,
    direct_logit_attribution,
    logit_lens,
    plots,
    token_attribution,
)
from course_utils.attribution import Attribution, attribution_html, attribution_text, describe, tokens_text
from course_utils.faithfulness import faithfulness
from course_utils.plots import tokens_html

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


# Sweeps, patching, lens


@pytest.fixture(scope="module")
def small():
    return tiny_model("llama")


def prompts_of(lm):
    return [lm.prompt(words(3, 1, 4, 1, 5)), lm.prompt(words(3, 1, 8, 1, 5))]


def colour_limits(ax):
    return ax.images[0].norm.vmin, ax.images[0].norm.vmax


@pytest.mark.parametrize("over", ["heads", "mlps", "layers", "neurons"])
def test_a_sweep_names_its_strongest_component_and_its_unit(small, over):
    sweep = ablation_sweep(small, prompts_of(small), over=over, kind="zero", contrast=(" w5", " w9"), layers=[0, 2])
    ax = sweep.plot()
    assert str(sweep.top(1)[0][0]) in ax.get_title(loc="left")
    if over == "heads":
        shown = ax.images[0].get_array().filled(np.nan)  # [head, layer]
        assert np.isnan(shown[:, 1]).all()
        np.testing.assert_allclose(shown[:, 2], sweep.effects[1])
    else:
        assert "logits" in ax.get_ylabel()
        assert len(ax.patches) == (20 if over == "neurons" else 2)


def test_patching_is_drawn_with_layers_up_on_a_symmetric_scale(small):
    patching = activation_patching(small, *prompts_of(small), contrast=(" w5", " w9"))
    ax = patching.plot()
    low, high = colour_limits(ax)
    assert low == -high == -abs(patching.effects).max()
    assert ax.images[0].origin == "lower"
    assert [label.get_text() for label in ax.get_xticklabels()] == patching.tokens
    heads = activation_patching(small, *prompts_of(small), over="heads", contrast=(" w5", " w9"))
    assert "head" in heads.plot().get_title(loc="left")


def test_the_lens_is_scaled_without_the_embeddings_own_outliers(small):
    lens = logit_lens(small, prompts_of(small)[0], contrast=(" w5", " w9"))
    assert colour_limits(lens.plot())[1] == pytest.approx(float(abs(lens.contrast[1:]).max()))
    plain = logit_lens(small, prompts_of(small)[0])
    assert plain.predictions[-1][-1] in plain.plot().get_title(loc="left")


def test_direct_attribution_has_two_bars_a_layer(small):
    direct = direct_logit_attribution(small, prompts_of(small)[0], contrast=(" w5", " w9"))
    ax = direct.plot()
    assert len(ax.patches) == 2 * small.n_layers
    assert ax.get_legend_handles_labels()[1] == ["attention", "MLP"]


def test_sampled_scores_show_their_errors_and_a_path_its_gap(small):
    prompt = small.prompt(words(*range(20, 32)))
    options = {"contrast": (" w5", " w9"), "replacement": " w2"}
    sampled = token_attribution(small, prompt, method="shapley", permutations=3, **options)
    assert len(sampled.plot().containers) == 2  # bars, and their errors
    path = token_attribution(small, prompt, method="integrated_gradients", steps=3, **options)
    assert "completeness gap" in describe(path)


def test_faithfulness_is_drawn_beside_a_random_order(small):
    prompt = small.prompt(words(3, 1, 4, 1, 5, 9))
    faithful = faithfulness(small, prompt, range(6), contrast=(" w5", " w9"), replacement=" w2")
    ax = faithful.plot()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), faithful.comprehensiveness)
    np.testing.assert_allclose(ax.lines[3].get_ydata(), faithful.baselines["random"][1])
    assert len(ax.get_legend_handles_labels()[1]) == 4


@pytest.mark.parametrize("tokens", [["·你好", "·a"], ["न[1/2]", "🦉[2/3]"], ["\u0378", "x"], ["Füße", "Ελ"]], ids=ascii)
def test_a_script_that_no_font_has_is_shown_by_its_codes_and_nothing_as_a_box(tokens, recwarn):
    scores, many = np.ones(2), np.ones((2, 2))
    drawn = [
        plots.plot_bars(tokens, scores, unit="x", title=tokens[0]),
        plots.plot_heatmap(many, tokens, tokens, unit="x", title=tokens[0]),
        plots.plot_attention(many, tokens, title=tokens[0]),
        plots.plot_layers(many, tokens, label="x", title=tokens[0]),
    ]
    for ax in drawn:
        ax.figure.canvas.draw()
        for said in (*(label.get_text() for label in ax.get_xticklabels()), ax.get_title("left")):
            assert said in [plots.legible(token) for token in tokens]
    assert not [warning for warning in recwarn if "missing from" in str(warning.message) or "findfont" in str(warning)]


def test_what_the_courses_own_font_has_stays_as_it_is():
    text = "·How ↵ ⇥ − naïve Ελληνικά кот"
    assert plots.legible(text) == text
    assert plots.legible("a\u0378") == "aU+0378"  # not assigned: no font can have it
