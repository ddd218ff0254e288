"""Whatever bytes a student hands in and a kernel sends: a sentence at most, never a traceback, and no long wait."""

import json
import random
import time

import pytest

from course_utils import CourseError
from course_utils.grading.classroom.feedback import cell_html, write_feedback
from course_utils.grading.classroom.grade import Work, grade_one
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.marking import Marking
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.limited import within
from course_utils.grading.marks import judge
from course_utils.grading.merge import merge
from course_utils.grading.notebook import read, student_view, write
from course_utils.grading.runner import run as running
from course_utils.grading.runner.schedule import schedule
from tests.shared import cell_of

TOKEN = "\x1e0\n"
ODD = [None, True, -1, 1.5, 10**30, "", "x", "\ud800", "\x00", "\x1e", [], {}, [[]], {"a": {}}, ["x", 3], "BEGIN SOLUTION",
       "### BEGIN MARK SCHEME", "### BEGIN HIDDEN TESTS\n", "![p](attachment:p.png)", "<a", "# " * 99, "```", "$$", "\\"]  # fmt: skip


def _spoilt(value, chance):
    """The same JSON value with something in it that is odd."""
    if chance.random() < 0.03:
        return chance.choice(ODD)
    if isinstance(value, dict):
        kept = {key: _spoilt(each, chance) for key, each in value.items() if chance.random() > 0.02}
        return kept | (
            {chance.choice(["attachments", "id", "outputs", "text", "nbgrader"]): chance.choice(ODD)}
            if chance.random() < 0.05
            else {}
        )
    if isinstance(value, list):
        return [_spoilt(each, chance) for each in value for _ in range(1 + (chance.random() < 0.02))]
    if isinstance(value, str) and value and chance.random() < 0.1:
        place = chance.randrange(len(value))
        return value[:place] + str(chance.choice(ODD)) + value[place:]
    return value


def _bytes(notebook, chance):
    text = json.dumps(_spoilt(notebook, chance)).encode("utf-8", "surrogatepass")
    for _ in range(chance.choice([0, 0, 0, 1, 5])):
        place = chance.randrange(len(text))
        text = (
            text[:place]
            + chance.choice([b"", b"\xff", b'"', b"{", b"0" * 5000, bytes([chance.randrange(256)])])
            + text[place + 1 :]
        )
    return text


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_damaged_notebooks_are_read_merged_and_shown_or_refused(seed, solution):
    chance, refused = random.Random(seed), 0
    mine = json.loads(write(student_view(solution)))
    for _ in range(500):
        try:
            notebook = read(_bytes(mine, chance), "x")
        except CourseError:
            refused += 1
            continue
        merged = merge(solution, notebook)
        write(schedule(merged, TOKEN).notebook)
        write(merged.notebook)
        assert all(mark.earned in (0, None) for _, mark in judge(merged.notebook.cells, {}))
        assert "".join(map(cell_html, merged.notebook.cells))
    assert 20 < refused < 450


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_whatever_a_kernel_sends_becomes_marks_and_a_page(seed, solution, tmp_path):
    chance = random.Random(seed)
    plan = schedule(merge(solution, student_view(solution)), TOKEN)
    forms = [
        {"output_type": "stream", "name": "stdout", "text": "3.0 -8\n"},
        {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "x", "image/png": "iVBORw0KGgo="}},
        {"output_type": "execute_result", "metadata": {}, "data": {"text/html": "<b>"}, "execution_count": 1},
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]},
    ]
    lines = [{"cell": k, "agrees": False, "seconds": 0.1, "outputs": forms, "interrupted": False, "ended": "", "trouble": ""}
             for k in range(-1, 12)]  # fmt: skip
    book = Gradebook(tmp_path / "g.db")
    for number in range(150):
        sent = [
            {**line, "outputs": [o for o in (_spoilt(o, chance) for o in line["outputs"]) if isinstance(o, dict)]}
            for line in lines
        ]
        outcome = running._by_place(plan, sent)
        marks = tuple(mark for _, mark in judge(plan.cells, outcome))
        shown = {plan.places[index]: found for index, found in outcome.items() if plan.places[index] >= 0}
        executed = running._executed(merge(solution, student_view(solution)).notebook, shown)
        result = running.Result("done", marks, (), (), write(executed), 0.1)
        book.record(book.take(Submission(f"s{number}", "toy", tmp_path), str(number).encode()), "r", "v", result)
    assert write_feedback(book, tmp_path / "f") == 150


def test_a_step_that_takes_too_long_or_ends_its_process_is_a_sentence():
    began = time.monotonic()
    for function, given, told in (
        (time.sleep, 60, "takes more than 1 s"),
        (json.loads, b"[", "JSONDecodeError"),
        (exit, 3, "memory"),
    ):
        with pytest.raises(CourseError, match=told):
            within(function, given, seconds=1)
    assert within(len, [1]) == 1
    assert time.monotonic() - began < 20


BLANKS = {"blank lines": "\n" * 157_000, "signs": "#" * 157_000, "spaces": " " * 157_000, "marks": "# NBVAL\n" * 20_000,
          "begins": "BEGIN SOLUTION\n" * 20_000, "brackets": "[" * 157_000, "dollars": "$" * 157_000, "ticks": "`" * 100_000,
          "stars": "*a " * 50_000, "quotes": "> " * 80_000, "tags": "<a " * 50_000}  # fmt: skip


@pytest.mark.parametrize("text", BLANKS)
def test_a_long_text_of_one_kind_keeps_nobody_waiting(text, solution, tmp_path):
    mine = student_view(solution)
    for name in ("double", "why"):
        cell_of(mine, name).source = BLANKS[text] + "\nx"
    began = time.monotonic()
    merged = merge(solution, read(write(mine)))
    schedule(merged, TOKEN)
    assert time.monotonic() - began < 3
    with Gradebook(tmp_path / "g.db") as book:
        marks = tuple(mark for _, mark in judge(merged.notebook.cells, {}))
        result = running.Result("done", marks, (), (), write(merged.notebook), 0.1)
        book.record(book.take(Submission("s", "toy", tmp_path), b""), "r", "v", result)
        marking = Marking(book, {"toy": write(solution)})
        assert marking.answer() is not None
        write_feedback(book, tmp_path / "f")
    assert time.monotonic() - began < 40
    assert "toy: 0 of 8 points" in (tmp_path / "f" / "s.html").read_text()


def test_a_pasted_picture_is_shown_and_keeps_nobody_s_page_from_being_written(solution, tmp_path):
    mine = json.loads(write(student_view(solution)))
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    for cell in mine["cells"]:
        if cell["id"] == "why":
            cell["source"] = "Look: ![image.png](attachment:image.png) and ![gone](attachment:gone.png)"
            cell["attachments"] = {
                "image.png": {"image/png": dot},
                "evil": {"text/html": "<script>", "image/png": '"><b>'},
            }
    result = grade_one(Work(write(solution), json.dumps(mine).encode(), sandboxed=False))
    with Gradebook(tmp_path / "g.db") as book:
        for name in "ab":
            book.record(book.take(Submission(name, "toy", tmp_path), name.encode()), "r", "v", result)
        assert write_feedback(book, tmp_path / "f") == 2
        assert list(Marking(book, {"toy": write(solution)}).answer().pictures) == ["evil", "image.png"]
    html = (tmp_path / "f" / "a.html").read_text()
    assert f"data:image/png;base64,{dot}" in html
    assert "<b>" not in html


def test_what_ends_the_grader_s_own_reading_is_refused(solution):
    result = grade_one(Work(write(solution), b'{"cells": [' + b'{"a":' * 40_000, sandboxed=False))
    assert result.status == "refused"
