"""What a learner does in a lesson: lines that are checked, choices that are kept."""

import numpy as np
import pytest
import torch

from course_utils.lesson.turns import KEPT, aligned, choices, choose, whole_groups, your_turn
from course_utils.organisms.suspects import is_solution

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (2, 2.004),
        ("  Steal ", "steal"),
        (torch.ones(2, requires_grad=True), [1, 1]),
        (np.float32(1), 1.0),
        ([1, 2], np.array([1, 2])),
        (3, lambda n: n > 2),
        (True, True),
        (("a", "b"), ("a", "b")),
        (torch.tensor([[38]]), 38),
        (" secretly", "·secretly"),
        (["Model_a", "model b"], ["model-a", "model-b"]),
        ([(1, 2), (0, 3)], {(0, 3), (1, 2)}),
        (torch.tensor([2.0, 4.0]), aligned([1.0, 2.0])),
        (torch.tensor([1, 1, 0]), whole_groups([5, 5, 7], 2)),
        (slice(128, 192, 1), slice(128, 192)),
        (range(2, 4), slice(2, 4)),
        (torch.arange(2), slice(2)),
    ],
)
def test_what_is_right_is_ticked(capsys, given, right):
    your_turn(given, right)
    assert capsys.readouterr().out == "✓\n"


@pytest.mark.parametrize(
    ("given", "right", "told"),
    [
        (2, 2.5, "got 2"),
        ("wash", "steal", "got wash"),
        (1, "1", "got 1"),
        (torch.ones(2, 3), torch.ones(3), "got shape [2, 3]"),
        (float("nan"), 1.0, "got nan"),
        ("three", 3, "got three"),
        (None, 3, "got None"),
        ([38, 38], 38, "got [38, 38]"),
        (np.full(2, "a"), np.ones(2), "got shape [2]"),
        ([(1, 2)], {(0, 3), (1, 2)}, "got [(1, 2)]"),
        ([[1, 2]], {1}, "got [[1, 2]]"),
        (3, lambda names: sorted(names) == ["a"], "got 3"),
        (slice(128, 193), slice(128, 192), "got slice(128, 193, None)"),
        (slice(None), slice(128, 192), "got slice(None, None, None)"),
        ("c", lambda name: choices({}, folder=name.folder), "got c"),
        (torch.tensor([-2.0, -4.0]), aligned([1.0, 2.0]), "got shape [2]"),
        (torch.zeros(2), aligned([1.0, 2.0]), "got shape [2]"),
        ("up", aligned([1.0, 2.0]), "got up"),
        ([1, 0, 0], whole_groups([5, 5, 7], 2), "got [1, 0, 0]"),
        ([2, 2, 1], whole_groups([5, 5, 7], 2), "got [2, 2, 1]"),
        (np.arange(2), whole_groups([5, 5, 7], 2), "got shape [2]"),
        (torch.ones(2), lambda found: bool(found > 0), "got shape [2]"),
        ({}, lambda found: found["a"], "got {}"),
        (10**400, 1.0, "got 1000"),
    ],
)
def test_what_is_wrong_is_told_with_a_hint(capsys, given, right, told):
    your_turn(given, right, "look again")
    out = capsys.readouterr().out
    assert told in out
    assert "look again" in out
    assert "✓" not in out


def test_what_a_checked_line_is_told_by_the_course_itself_stops_no_run_of_all_cells(capsys):
    your_turn("harm", lambda given: is_solution("model-d", given, "a word"), "look again")
    out = capsys.readouterr().out
    assert out.startswith("Not yet: Expected ")
    assert "'harm'" in out
    assert "bypass" in out


def test_a_choice_is_kept_until_the_end_and_can_be_changed(capsys, tmp_path):
    for choice in (..., "model-a", "model-c"):
        choose("8.0 Which one?", choice, ["model-a", "model-c"], folder=tmp_path)
    choices({"8.0 Which one?": "model-c", "8.1 Where?": "here"}, folder=tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Your choice")
    assert out[1:3] == ["Kept: model-a.", "Kept: model-c."]
    assert out[3].startswith("8.0 Which one? Right: model-c. You: model-c, on ")
    assert out[3].endswith("✓")
    assert out[4].endswith("no choice kept.")


@pytest.mark.parametrize("choice", ["secretly", " secretly", "·Secretly"])
def test_a_token_can_be_chosen_without_the_dot_that_no_keyboard_has(capsys, tmp_path, choice):
    choose("Which?", choice, ["?", "·secretly"], folder=tmp_path)
    choices({"Which?": "·secretly"}, folder=tmp_path)
    out = capsys.readouterr().out
    assert "Kept: ·secretly." in out
    assert "✓" in out


def test_what_was_not_asked_is_refused_and_a_damaged_file_costs_only_itself(capsys, tmp_path):
    for other, told in (("c", "c"), (np.array(["a", "b"]), "shape [2]"), (None, "None"), ("", "")):
        choose("Which?", other, ["a", "b"], folder=tmp_path)  # no traceback: it would stop Run All
        assert capsys.readouterr().out == f'Not kept: got {told}. Put "a" or "b" in its place and run the cell again.\n'
    assert not (tmp_path / KEPT).exists()
    (tmp_path / KEPT).write_text('{"Which?": ["a"]}')
    choose("Where?", "a", ["a", "b"], folder=tmp_path)
    choices({"Where?": "a"}, folder=tmp_path)
    assert "✓" in capsys.readouterr().out
