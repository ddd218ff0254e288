"""The evidence table: it grows from lesson to lesson, out of the lessons' own stored outputs."""

import json

import nbformat
import pytest

from course_utils import CourseError
from course_utils.lesson.evidence import MIME, evidence, stored_rows

pytestmark = pytest.mark.quick


def store(folder, name, table):
    """A notebook that holds a table as Jupyter stores it."""
    cell = nbformat.v4.new_code_cell("evidence(…)", id="evidence")
    cell.outputs = [nbformat.v4.new_output("execute_result", table._repr_mimebundle_(), execution_count=1)]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / name)


def test_each_lesson_adds_its_rows_below_those_before(tmp_path):
    store(tmp_path, "08_0_why.ipynb", evidence("8.0", {"agree?": {"model-a": "yes"}}, folder=tmp_path))
    store(tmp_path, "08_2_look.ipynb", evidence("8.2", {"look?": {"model-b": "no"}}, folder=tmp_path))
    table = evidence("8.3", {"probe?": {"model-a": "layer 3"}, "used?": {"model-a": "no"}}, folder=tmp_path)
    assert [(row.lesson, row.question) for row in table.rows] == [
        ("8.0", "agree?"), ("8.2", "look?"), ("8.3", "probe?"), ("8.3", "used?"),
    ]  # fmt: skip
    assert table.suspects == ["model-a", "model-b"]
    assert "8.2  look?\n     model-b: no" in repr(table)


def test_a_lesson_run_again_replaces_its_rows_everywhere(tmp_path):
    store(tmp_path, "08_1_x.ipynb", evidence("8.1", {"q": {"m": "old"}}, folder=tmp_path))
    store(tmp_path, "08_2_y.ipynb", evidence("8.2", {"r": {"m": "s"}}, folder=tmp_path))
    store(tmp_path, "08_1_x.ipynb", evidence("8.1", {"q": {"m": "new"}}, folder=tmp_path))
    assert [row.findings["m"] for row in evidence("8.3", {"t": {"m": "u"}}, folder=tmp_path).rows] == ["new", "s", "u"]


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"cells": 3}', '{"cells": [{"outputs": []}]}'])
def test_a_lesson_that_was_not_run_or_is_none_has_no_rows(tmp_path, text):
    path = tmp_path / "08_1_x.ipynb"
    path.write_text(text, encoding="utf-8")
    assert stored_rows(path) == []


def test_what_is_shown_is_escaped_and_what_is_stored_is_json():
    table = evidence("8.1", {"<b>?": {"m": "<i>"}}, folder="nowhere")
    bundle = table._repr_mimebundle_()
    assert "<b>" not in bundle["text/html"]
    assert json.loads(json.dumps(bundle[MIME]))[0]["findings"] == {"m": "<i>"}


@pytest.mark.parametrize("lesson", ["8", "eight.1", "", "8."])
def test_a_wrong_number_is_refused(lesson):
    with pytest.raises(CourseError, match="Expected a lesson such as"):
        evidence(lesson, {"q": {"m": "x"}})


def test_no_findings_are_refused():
    with pytest.raises(CourseError, match="Expected"):
        evidence("8.1", {})
