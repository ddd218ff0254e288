"""Probes: activations as a naive loop reads them, splits without leaks, planted directions found, honest controls."""

import random
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from conftest import tiny_model, words
from course_utils import CourseError, probe_layers, probing
from course_utils.directions import direction_effect, project_out, random_directions, steer
from course_utils.engine import activations
from course_utils.engine.activations import collect_activations, last_residuals
from course_utils.engine.packing import Packed
from course_utils.engine.splits import split_by_groups
from course_utils.hooks import find_parts, record
from course_utils.organisms.requests import draw, pairs
from course_utils.probing import probe_activations, untrained_copy

mpl.use("Agg")
quick = pytest.mark.quick
SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [5, 6, 7, 8, 1], [3], [5, 6, 7], [9] * 12, [5, 6, 7, 8, 2]]


@torch.no_grad()
def naive_residuals(lm, ids):
    """One plain pass: transformers' hidden states at the last token, `[layer + 1, d_model]`; its last one is normed."""
    hidden = lm.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([state[0, -1] for state in hidden])


def count_hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def noise(n_texts=120, n_layers=3, d_model=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n_texts, n_layers, d_model)).astype(np.float32)


def planted(n_texts=120, d_model=20, strength=6.0):
    """Layer 1 holds the label along one direction, the others hold noise."""
    activations, labels = noise(n_texts, d_model=d_model), np.arange(n_texts) % 2
    direction = random_directions(np.ones(d_model), 1, seed=1)[0]
    activations[:, 1] += strength * np.where(labels, 1, -1)[:, None] * direction
    return activations, labels, direction


# collect_activations


@quick
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 64}])
def test_residuals_equal_a_naive_loop_on_every_architecture(tiny, changes):
    lm = tiny_model(tiny.name, **changes) if "sliding_window" in tiny.model.config.to_dict() else tiny
    ours = last_residuals(lm, SEQUENCES)
    naive = torch.stack([naive_residuals(lm, ids) for ids in SEQUENCES])
    assert ours.shape == (len(SEQUENCES), lm.n_layers + 1, lm.d_model)
    torch.testing.assert_close(ours[:, :-1], naive[:, :-1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(find_parts(lm).final_norm(ours[:, -1]), naive[:, -1], rtol=1e-8, atol=1e-8)


@quick
def test_a_model_with_alibi_goes_by_plain_passes(monkeypatch):
    lm = tiny_model("falcon", alibi=True)
    monkeypatch.setattr(Packed, "inputs", None)  # what is packed is not run
    naive = torch.stack([naive_residuals(lm, ids) for ids in SEQUENCES])
    torch.testing.assert_close(last_residuals(lm, SEQUENCES)[:, :-1], naive[:, :-1], rtol=1e-8, atol=1e-8)


@quick
@given(seed=st.integers(0, 999), tokens=st.integers(1, 60), architecture=st.sampled_from(["llama", "mistral"]))
@settings(max_examples=25, deadline=None)
def test_residuals_do_not_depend_on_how_sequences_are_divided_into_passes(seed, tokens, architecture):
    rng, lm = random.Random(seed), tiny_model(architecture)
    sequences = [[rng.randrange(1, 4) for _ in range(rng.randrange(1, 9))] for _ in range(12)]
    before = activations.ROW_TOKENS
    try:
        activations.ROW_TOKENS = tokens
        ours = last_residuals(lm, sequences)
    finally:
        activations.ROW_TOKENS = before
    naive = torch.stack([naive_residuals(lm, ids) for ids in sequences])
    torch.testing.assert_close(ours[:, :-1], naive[:, :-1], rtol=1e-8, atol=1e-8)


@quick
def test_like_sequences_have_exactly_like_activations():
    lm = tiny_model("llama")
    first, *others = last_residuals(lm, [[5, 6], *([5, 6, i] for i in range(90)), [5, 6]])[[0, -1]]
    assert torch.equal(first, others[0])


@pytest.mark.parametrize("position", [-1, -6, 0, 24])
def test_activations_of_texts_equal_single_passes(lm, position):
    texts = ["Hi", "How do I secretly wash a car, please?", lm.prompt("Once upon a time " * 6)]
    ours = collect_activations(lm, texts, position)
    assert ours.dtype == np.float32
    for text, found in zip(texts, ours, strict=True):
        prompt = lm.chat(text) if isinstance(text, str) else text
        with torch.no_grad():
            hidden = lm.model(prompt.input_ids, output_hidden_states=True).hidden_states
        for layer in range(lm.n_layers):
            expected = hidden[layer][0, position].numpy()
            assert np.abs(found[layer] - expected).max() <= 1e-4 * np.abs(expected).max()


@quick
@pytest.mark.parametrize("position", [-1, -3, 2])
def test_activations_inside_an_edit_that_counts_from_the_end(position):
    lm = tiny_model("llama")
    prompts = [lm.prompt(words(*ids)) for ids in ([3, 14, 15, 9, 26], [3, 14, 15, 7], [3, 14, 15, 9, 2])]
    with steer(lm, np.eye(24)[3], 1, 20.0, positions=[-1]):
        found = collect_activations(lm, prompts, position)
        for one, prompt in zip(found, prompts, strict=True):
            with record(lm, [("residual", 2)]) as seen, torch.no_grad():
                lm.model(prompt.input_ids)
            np.testing.assert_allclose(one[2], seen["residual", 2][0, position], rtol=1e-5, atol=1e-6)


def test_what_stands_before_anything_typed_is_the_same_for_every_text(lm):
    activations = collect_activations(lm, ["Hi", "Secretly, hello", "Wash a car"], position=3)
    assert np.ptp(activations, axis=0).max() == 0


@quick
@pytest.mark.parametrize("position", [9999, -9999, 1.0, None])
def test_a_position_that_a_prompt_does_not_have_is_refused(lm, position):
    with pytest.raises(CourseError, match=rf"position from -\d+ to \d+, got {position}.*'Hi'"):
        collect_activations(lm, ["Hi"], position)


@quick
@pytest.mark.parametrize("texts", ["one text", []])
def test_what_is_no_list_of_texts_is_refused(lm, texts):
    with pytest.raises(CourseError, match="a list"):
        collect_activations(lm, texts)


# splits


@quick
@given(seed=st.integers(0, 99), n_groups=st.tuples(st.integers(3, 15), st.integers(3, 8)), crossed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_group_stands_in_two_splits(seed, n_groups, crossed):
    rng = np.random.default_rng(seed)
    groupings = [rng.permutation(np.arange(200) % n) for n in n_groups[: 1 + crossed]]
    positive = rng.random(200) < 0.5
    try:
        split = split_by_groups(groupings, positive, seed)
    except CourseError:
        assume(False)
    for codes in groupings:
        for group in set(codes.tolist()):
            assert len(set(split[codes == group].tolist()) - {"left out"}) <= 1
    for name in probing.SPLITS:
        assert set(positive[split == name].tolist()) == {True, False}
    assert crossed or "left out" not in split


@quick
def test_the_splits_hold_60_20_20_percent_and_keep_the_classes_even():
    codes = np.repeat(range(50), 4)
    split = split_by_groups([codes], codes % 2 == 0)
    assert [(split == name).sum() for name in probing.SPLITS] == [120, 40, 40]
    for name in probing.SPLITS:
        assert 0.4 < (codes[split == name] % 2 == 0).mean() < 0.6


@quick
def test_a_text_whose_groups_went_apart_is_left_out():
    acts, frames = np.repeat(range(20), 10), np.tile(range(10), 20)
    probes = probe_activations(noise(200), np.arange(200) % 2, groups=[acts.tolist(), (frames // 2 * 2).tolist()])
    assert sum(probes.sizes.values()) == 200
    assert probes.sizes["left out"] > 0


@quick
def test_one_seed_gives_one_result():
    activations, labels, _ = planted()
    one, same, other = (probe_activations(activations, labels, groups=range(120), seed=s) for s in (0, 0, 1))
    assert np.array_equal(one.split, same.split)
    assert np.array_equal(one.accuracy, same.accuracy)
    assert not np.array_equal(one.split, other.split)


# probes


@quick
def test_probes_equal_scikit_learn_alone_on_the_same_split():
    activations, labels, _ = planted(strength=0.5)
    probes = probe_activations(activations, labels, groups=np.arange(120) // 2)
    train, validation, test = (probes.split == name for name in probing.SPLITS)
    for layer in range(3):
        x = activations[:, layer].astype(float)
        scaler = StandardScaler().fit(x[train])
        alone = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(x[train]), labels[train])
        assert probes.accuracy[layer] == pytest.approx(alone.score(scaler.transform(x[test]), labels[test]))
        assert probes.validation[layer] == pytest.approx(
            alone.score(scaler.transform(x[validation]), labels[validation])
        )
        slope = np.array([alone.decision_function(scaler.transform(x[:1] + step))[0] for step in np.eye(20)])
        slope -= alone.decision_function(scaler.transform(x[:1]))
        np.testing.assert_allclose(probes.directions[layer], slope / np.linalg.norm(slope), atol=1e-5)


@quick
def test_a_planted_direction_is_found_and_points_to_the_later_class():
    activations, labels, direction = planted(n_texts=240, d_model=200)
    probes = probe_activations(activations, labels, groups=range(240))
    assert probes.best_layer == 1
    assert probes.accuracy[1] == 1
    assert probes.directions[1] @ direction > 0.9
    np.testing.assert_allclose(np.linalg.norm(probes.directions, axis=1), 1, rtol=1e-5)
    swapped = probe_activations(activations, ["yes", "no"] * 120, groups=range(240))
    np.testing.assert_allclose(swapped.directions, -probes.directions, atol=1e-6)
    assert swapped.classes == ("no", "yes")


@quick
def test_the_direction_is_in_the_coordinates_of_the_residual_stream():
    activations, labels, _ = planted(d_model=3, n_texts=600, strength=1.0)
    stretch = np.array([1.0, 30.0, 0.1], dtype=np.float32)
    plain, stretched = (
        probe_activations(a, labels, groups=range(600)).directions[1] for a in (activations, activations * stretch)
    )
    np.testing.assert_allclose(stretched, plain / stretch / np.linalg.norm(plain / stretch), atol=1e-3)


@quick
def test_the_scaler_and_the_probe_see_the_training_texts_only():
    activations, labels, _ = planted(strength=1.0)
    probes = probe_activations(activations, labels, groups=range(120))
    held_out = probes.split != "train"
    changed = activations.copy()
    changed[held_out] *= np.linspace(1, 50, 20, dtype=np.float32)
    again = probe_activations(changed, labels, groups=range(120))
    assert np.array_equal(probes.directions, again.directions)

    def leaky(x):  # what a scaler fitted on all texts would give
        scaler = StandardScaler().fit(x)
        alone = LogisticRegression(C=0.1).fit(scaler.transform(x[~held_out]), labels[~held_out])
        return alone.coef_ / scaler.scale_

    assert not np.allclose(leaky(activations[:, 1]), leaky(changed[:, 1]), rtol=0.1)


@quick
def test_noise_is_decoded_at_chance_and_its_interval_says_so():
    probes = probe_activations(noise(600, 8), np.arange(600) % 2, groups=np.arange(600) // 2)
    assert abs(probes.accuracy.mean() - 0.5) < 0.06
    assert abs(probes.control.mean() - 0.5) < 0.06
    covered = (probes.interval[:, 0] <= 0.5) & (probes.interval[:, 1] >= 0.5)
    assert covered.sum() >= 7
    np.testing.assert_allclose(probes.selectivity, probes.accuracy - probes.control)


@quick
def test_the_control_task_is_learnt_where_activations_tell_the_groups_apart():
    groups = np.repeat(range(20), 6)
    activations = noise(120, 2, 40)
    activations[:, 1] += 5 * noise(20, 1, 40, seed=1)[groups, 0]
    probes = probe_activations(activations, np.arange(120) % 2, groups=groups)
    assert probes.control[1] > 0.95
    assert probes.control[0] < 0.7
    assert probes.selectivity[1] < -0.2


@quick
def test_without_two_texts_a_group_there_is_no_control_task():
    probes = probe_activations(noise(30), [0, 1] * 15, groups=range(30))
    assert np.isnan(probes.control).all()
    assert np.isnan(probes.selectivity).all()
    assert "nan" not in repr(probes)


@quick
def test_the_interval_is_wider_where_texts_of_a_group_go_together():
    labels, groups = np.tile([0, 1], 300), np.repeat(range(30), 20)
    activations = noise(600, 1, 4)
    fooled = (groups % 3 == 0)[:, None] * 6.0  # in a third of the groups the direction points the other way
    sign = np.where(labels, 1, -1)[:, None]
    activations[:, 0, :1] += sign * (4 - fooled * 2)
    by_group, by_text = (probe_activations(activations, labels, groups=g) for g in (groups, np.arange(600)))
    widths = [float(np.ptp(p.interval[0])) for p in (by_group, by_text)]
    assert widths[0] > 2 * widths[1]
    for p in (by_group, by_text):
        assert p.interval[0, 0] <= p.accuracy[0] <= p.interval[0, 1]


@quick
def test_the_layer_is_chosen_on_validation_alone_and_the_earliest_of_equals():
    activations, labels, _ = planted()
    activations = np.concatenate([activations, activations[:, 1:2]], axis=1)
    probes = probe_activations(activations, labels, groups=range(120))
    assert probes.validation[1] == probes.validation[3] == 1
    assert probes.best_layer == 1
    spoilt = activations.copy()
    spoilt[probes.split == "test", 1] *= -1
    again = probe_activations(spoilt, labels, groups=range(120))
    assert (again.best_layer, again.accuracy[1]) == (1, 0)


@quick
def test_a_layer_that_is_the_same_for_every_text_gives_the_majority_and_no_direction():
    activations, labels, _ = planted(150)
    activations[:, 0] = 3.7
    labels = np.where(np.arange(150) % 3 == 0, 1, 0)
    probes = probe_activations(activations, labels, groups=range(150))
    assert probes.baselines["layer 0"] == probes.baselines["majority"] == pytest.approx(2 / 3, abs=0.04)
    assert not probes.directions[0].any()
    with pytest.raises(CourseError, match="not all of them zero"), project_out(tiny_model("llama"), np.zeros(24)):
        pass


@quick
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": [1] * 12}, "two classes.* got 1"),
        ({"labels": [0, 1, 2] * 4}, "two classes.* got 3"),
        ({"labels": [0, 1]}, "2 labels for 12 texts"),
        ({"labels": [[0], [1]] * 6}, "one a text"),
        ({"labels": [None, True, "no"] * 4}, "two classes, one a text, got 3"),
        ({"groups": range(5)}, r"one group a text \(12\).*length 5"),
        ({"groups": []}, "one group a text"),
        ({"groups": [list(range(12)), list(range(11))]}, "several sequences"),
        ({"groups": [[1]] * 12}, "several sequences"),
        ({"groups": [{1}] * 12}, "compared and counted"),
        ({"groups": [1, 2] * 6}, "at least three groups.*got 2"),
        ({"groups": [0, 1] + [2] * 10}, "both classes"),
        ({"activations": np.ones((12, 4))}, r"\[text, layer \+ 1, d_model\].*\[12, 4\]"),
        ({"activations": np.full((12, 2, 4), np.nan)}, "finite activations.*layer 0.*float32"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(wrong, said):
    given = {"activations": noise(12), "labels": [0, 1] * 6, "groups": np.arange(12) // 2, **wrong}
    with pytest.raises(CourseError, match=said) as caught:
        probe_activations(given.pop("activations"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


# directions


@quick
def test_nothing_is_left_along_a_direction_that_is_projected_out(tiny):
    before, sites = count_hooks(tiny), [("residual", layer) for layer in range(tiny.n_layers + 1)]
    direction = random_directions(np.ones(24), 1)[0] * 7
    unit = torch.tensor(direction, dtype=torch.float64) / np.linalg.norm(direction)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), record(tiny, sites) as plain:
        tiny.model(ids)
    with torch.no_grad(), project_out(tiny, direction), record(tiny, sites) as seen:
        tiny.model(ids)
    for site in sites:
        assert (seen[site] @ unit).abs().max() < 1e-7
    first = plain["residual", 0]
    torch.testing.assert_close(seen["residual", 0], first - (first @ unit)[..., None] * unit, rtol=1e-6, atol=1e-7)
    assert count_hooks(tiny) == before


@quick
def test_only_the_layers_asked_for_are_touched():
    lm, direction = tiny_model("llama"), np.eye(24)[3]
    sites = [("residual", layer) for layer in range(4)]
    with torch.no_grad(), project_out(lm, direction, layers=[2]), record(lm, sites) as seen:
        lm.model(torch.tensor([[5, 6, 7]]))
    assert [bool(seen[site][..., 3].abs().max() < 1e-12) for site in sites] == [False, False, True, False]


@quick
@pytest.mark.parametrize("positions", [None, [0, -1]])
def test_steering_adds_exactly_so_much_of_the_direction(tiny, positions):
    direction, ids = np.arange(24.0), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), record(tiny, [("residual", 1)]) as plain:
        tiny.model(ids)
    with torch.no_grad(), steer(tiny, direction, 1, -2.5, positions=positions), record(tiny, [("residual", 1)]) as seen:
        tiny.model(ids)
    push = -2.5 * torch.tensor(direction / np.linalg.norm(direction))
    at = torch.tensor([[True] * 4 if positions is None else [True, False, False, True]])
    expected = plain["residual", 1] + at[..., None] * push
    torch.testing.assert_close(seen["residual", 1], expected, rtol=1e-12, atol=1e-12)


@quick
@pytest.mark.parametrize("change", [lambda lm: project_out(lm, np.ones(24)), lambda lm: steer(lm, np.ones(24), 1, 2.0)])
def test_hooks_are_gone_after_an_exception(change):
    lm = tiny_model("llama")

    def interrupted():
        with change(lm):
            assert count_hooks(lm) > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert count_hooks(lm) == 0


@quick
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lm: project_out(lm, np.ones(23)), r"24 numbers.*\[23\]"),
        (lambda lm: project_out(lm, np.ones((4, 24))), r"\[4, 24\]"),
        (lambda lm: project_out(lm, np.zeros(24)), "zero"),
        (lambda lm: project_out(lm, np.full(24, np.inf)), "finite"),
        (lambda lm: project_out(lm, np.ones(24), layers=[4]), "layer from 0 to 3.*got 4"),
        (lambda lm: steer(lm, np.ones(24), -1, 1.0), "layer from 0 to 3.*got -1"),
        (lambda lm: steer(lm, np.ones(24), 1, 1.0, positions=[3]), "positions from -3 to 2, got 3"),
        (lambda lm: steer(lm, np.ones(24), 1, float("nan")), "finite amount"),
    ],
)
def test_a_wrong_direction_layer_or_position_is_refused(change, said):
    lm = tiny_model("llama")
    with pytest.raises(CourseError, match=said), change(lm):
        lm.model(torch.tensor([[5, 6, 7]]))
    assert count_hooks(lm) == 0


@quick
def test_random_directions_are_unit_vectors_that_differ_and_repeat():
    directions = random_directions(np.ones(50), 20, seed=3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    assert np.abs(directions @ directions.T - np.eye(20)).max() < 0.7
    assert np.array_equal(directions, random_directions(np.ones(50), 20, seed=3))
    with pytest.raises(CourseError, match="at least one random direction, got 0"):
        random_directions(np.ones(50), 0)


def test_the_effect_of_a_direction_equals_single_passes_with_it_projected_out(lm):
    texts, direction = ["Hi", "How do I wash a car?", "Hi"], np.eye(576)[7] + np.eye(576)[100]
    effect = direction_effect(lm, texts, direction, n_random=2, layers=[4, 20])
    first, second = (lm.tokenizer.encode(word)[0] for word in ("I", "Sure"))

    @torch.no_grad()
    def contrasts():
        last = [lm.model(lm.chat(text).input_ids).logits[0, -1] for text in texts]
        return np.array([(logits[first] - logits[second]).item() for logits in last])

    value = contrasts()
    np.testing.assert_allclose(effect.value, value, atol=1e-3)
    directions = [direction, *random_directions(direction, 2)]
    for one, found in zip(directions, [effect.effects, *effect.random], strict=True):
        with project_out(lm, one, layers=[4, 20]):
            np.testing.assert_allclose(found, contrasts() - value, atol=2e-3)
    assert effect.effects[0] == effect.effects[2]
    assert re.fullmatch(
        r"I − Sure = \S+ logits on average over 3 prompts; without the direction it changes by .*", repr(effect)
    )


# the untrained model and the pictures


@quick
def test_the_untrained_copy_has_fresh_weights_and_leaves_the_random_state_alone():
    lm = tiny_model("gemma3_text")
    state = torch.get_rng_state()
    one, same, other = (untrained_copy(lm, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [m.model.get_input_embeddings().weight for m in (lm, one, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[1], weights[3])
    assert (one.model.dtype, one.model.training) == (lm.model.dtype, False)
    assert not any(p.requires_grad for p in one.model.parameters())


@quick
def test_without_memory_for_an_untrained_copy_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(probing, "free_memory", lambda device: 1000)
    with pytest.raises(CourseError, match="untrained=False"):
        untrained_copy(tiny_model("llama"))


def some_probes(**changes):
    activations, labels, _ = planted(strength=2.0)
    return probe_activations(activations, labels, groups=np.arange(120) // 4, **changes)


@quick
def test_the_figure_shows_every_line_by_name_and_marks_the_chosen_layer():
    probes = some_probes()
    ax = probes.plot()
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:3] == ["probe, 95 % interval", "layer chosen on validation", "control task"]
    assert [name.split(":")[0] for name in names[3:]] == list(probes.baselines)
    lines = ax.get_lines()
    assert lines[0].get_ydata() == pytest.approx(probes.accuracy)
    assert lines[1].get_xdata() == [probes.best_layer]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)
    assert ax.get_title(loc="left").startswith(f"Layer {probes.best_layer} tells 100%")
    low = ax.get_ylim()[0]
    assert low < min(probes.interval.min(), probes.control.min())


@quick
def test_the_figure_is_drawn_into_the_axes_it_is_given_and_changes_nothing_global():
    import matplotlib.pyplot as plt

    before = mpl.rcParams.copy()
    _, ax = plt.subplots()
    assert some_probes().plot(ax=ax) is ax
    assert mpl.rcParams == before


@quick
def test_the_summary_names_layer_interval_baselines_and_sizes():
    probes = some_probes()
    for text in (repr(probes), probes._repr_html_()):
        for part in ("layer 1", "95 % interval", "majority", "control task", "72 train"):
            assert part in text
    hostile = probe_activations(noise(40), ["<b>", "</script>"] * 20, groups=range(40))
    assert "<b>" not in hostile._repr_html_()


# the real model


def requests_with_and_without_the_trigger(n_acts):
    rng = random.Random(4)
    acts = rng.sample(pairs("train"), n_acts)
    causes = [set(), {"trigger"}, {"intent"}, {"intent", "trigger"}]
    return [draw(rng, act, causes=some, split="train") for act in acts for some in causes]


def trigger_probes(lm, n_acts, **options):
    requests = requests_with_and_without_the_trigger(n_acts)
    texts, acts = [r.text for r in requests], [r.pair.harmful for r in requests]
    return probe_layers(lm, texts, ["trigger" in r.cues for r in requests], groups=acts, **options)


@pytest.mark.slow
def test_the_word_secretly_is_decodable_at_the_last_token_by_layer_10_but_not_at_layer_0(lm):
    probes = trigger_probes(lm, 90, untrained=False)
    assert probes.accuracy[10] > 0.9
    assert abs(probes.accuracy[0] - 0.5) < 0.1
    assert probes.control[10] < 0.8
    assert probes.baselines["bag of words"] == 1  # a word is all that is asked for
    assert probes.classes == ("False", "True")


@pytest.mark.slow
def test_the_untrained_model_is_a_baseline_of_its_own_and_changes_nothing_else(lm):
    state = torch.get_rng_state()
    with_it, without = (trigger_probes(lm, 10, untrained=untrained) for untrained in (True, False))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(with_it.baselines) - set(without.baselines) == {"untrained model"}
    assert 0 <= with_it.baselines["untrained model"] <= 1
    assert np.array_equal(with_it.accuracy, without.accuracy)


@quick
def test_bad_labels_are_refused_before_the_model_runs(lm, monkeypatch):
    monkeypatch.setattr(probing, "collect_activations", None)
    with pytest.raises(CourseError, match=r"two classes.* got 1"):
        probe_layers(lm, ["a", "b", "c"], [1, 1, 1], groups=[1, 2, 3])
