"""Exercises, from the solution to the marks: release, merge, run, and the same marks from nbgrader itself."""

import csv
import json
import re
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils import CourseError
from course_utils._output_digest import sealed
from course_utils.cli import main
from course_utils.grading import limited, processes
from course_utils.grading.handout import release
from course_utils.grading.handout.assignment import exercise_from, faults
from course_utils.grading.merge import merge
from course_utils.grading.notebook import (
    ANSWER,
    CHECK,
    NOT_RUN,
    grade_id,
    kind,
    printed,
    read,
    student_view,
    write,
)
from course_utils.grading.people.roster import assign, student_names
from course_utils.grading.result import BROKEN, DONE, SLOW, Limits
from course_utils.grading.runner import pytest_server
from course_utils.grading.runner.run import run
from tests.shared import (
    ANSWERED,
    ANSWERED_TOO,
    SAFE,
    SAFE_TOO,
    cell_of,
    messages,
    nbgrader,
    nbgrader_marks,
    outcomes,
    right,
    with_sources,
)

ROOT = Path(__file__).resolve().parent.parent


def run_both(reference, submission, limits=Limits()):  # noqa: B008
    return run(write(reference), write(submission), limits)


@pytest.mark.quick
class TestRead:
    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (b"", "an empty file"),
            (b"hello", "a file that is not JSON"),
            (b"\xff\xfe\x00", "a file that is not JSON"),
            (b"[1, 2]", "JSON without cells"),
            (b'{"cells": 3}', "JSON without cells"),
            (b'{"cells": [], "nbformat": 9}', "of format 9"),
            (b'{"cells": []}', "of format None"),
            (b'{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "whose cells are damaged"),
            (b"[" * 100_000, "a file that is not JSON"),
            (b" " * 30_000_001, "at most 30 MB"),
        ],
        ids=lambda value: repr(value[:12]),
    )
    def test_what_is_no_notebook_gets_a_sentence(self, data, told):
        with pytest.raises(CourseError) as failed:
            read(data, "x.ipynb")
        assert told in str(failed.value)
        assert "\n" not in str(failed.value)

    def test_older_formats_and_missing_fields_are_mended(self):
        old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [
            {"cell_type": "code", "input": ["x = 1\n", "y"], "outputs": [], "language": "python"},
            {"cell_type": "heading", "level": 2, "source": "Title"}]}]}  # fmt: skip
        assert [cell.source for cell in read(json.dumps(old).encode()).cells] == ["x = 1\ny", "## Title"]
        bare = {
            "nbformat": 4,
            "nbformat_minor": 0,
            "cells": [{"cell_type": "code", "source": "x"}, {"cell_type": "markdown"}],
        }
        notebook = read(json.dumps(bare).encode("utf-8-sig"))
        nbformat.validate(notebook)
        assert [cell.id for cell in notebook.cells] == ["cell-0-0", "cell-1-1"]

    def test_doubled_ids_become_single(self, reference):
        reference.cells.append(nbformat.from_dict(reference.cells[0]))
        cells = read(write(reference)).cells
        assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.quick
class TestMerge:
    def test_untouched_it_is_the_reference(self, reference):
        merged = merge(reference, reference)
        assert write(merged.notebook) == write(reference)
        assert merged.repairs == []

    def test_checks_are_the_reference_s_and_answers_the_learner_s(self, reference):
        changed = with_sources(right(reference), double_check="print('3.0 -8')", setup="x = 1", title="# Mine")
        merged = merge(reference, changed)
        assert cell_of(merged.notebook, "double-check").source == SAFE
        assert cell_of(merged.notebook, "setup").source == 'SUSPECT = "model-a"'
        assert "x + x" in cell_of(merged.notebook, "double").source
        assert merged.repairs == [
            "Cell setup was edited: the original runs, then what you added.",
            "Cell double-check was edited: the original runs, then what you added.",
        ]
        assert [merged.notebook.cells[i].source for i in sorted(merged.added)] == ["x = 1", "print('3.0 -8')"]

    def test_outputs_saved_by_the_learner_do_not_count(self, reference):
        mine = right(reference)
        for cell in mine.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="my own\n")], 77
        merged = merge(reference, mine).notebook
        assert cell_of(merged, "double-check").outputs[0].text == "3.0 -8\n"
        assert cell_of(merged, "double").outputs == []
        assert cell_of(merged, "double").execution_count is None

    def test_added_cells_stay_where_they_are_put(self, reference):
        mine = right(reference)
        mine.cells.insert(3, new_code_cell("helper = 1"))
        mine.cells.insert(0, new_markdown_cell("my notes"))
        mine.cells.append(new_code_cell("the end"))
        merged = merge(reference, mine)
        assert [cell.source for cell in merged.notebook.cells] == [cell.source for cell in mine.cells]
        assert merged.added == {0, 4, 10}
        nbformat.validate(merged.notebook)

    def test_marks_that_would_spare_a_cell_its_check_are_taken_off(self, reference):
        mine = with_sources(
            reference, double="# NBVAL_SKIP\n  # NBVAL_RAISES_EXCEPTION\ndef double(x):\n    return 1  # NBVAL_SKIP"
        )
        mine.cells.append(
            new_code_cell("#NBVAL_IGNORE_OUTPUT\nx", metadata={"tags": ["raises-exception", "nbval-skip"]})
        )
        cell_of(mine, "double").metadata["tags"] = ["raises-exception"]
        merged = merge(reference, mine).notebook
        assert not re.search(r"(?m)^\s*#\s*NBVAL", "\n".join(cell.source for cell in merged.cells))
        assert not [cell for cell in merged.cells if "tags" in cell.metadata]
        assert len(cell_of(merged, "double").source.splitlines()) == 4

    def test_a_missing_answer_is_a_stub_and_a_missing_check_is_back(self, reference):
        mine = right(reference)
        mine.cells = [cell for cell in mine.cells if grade_id(cell) not in ("double", "halve-check")]
        merged = merge(reference, mine)
        assert "NotImplementedError" in cell_of(merged.notebook, "double").source
        assert cell_of(merged.notebook, "halve-check").source == SAFE_TOO
        assert merged.repairs == [
            "Cell double was missing: it is put back, not answered.",
            "Cell halve-check was missing: it is put back.",
        ]

    def test_of_a_doubled_answer_each_edited_copy_runs_where_it_stands(self, reference):
        mine = nbformat.from_dict(reference)
        first, second = (nbformat.from_dict(cell_of(mine, "double")) for _ in range(2))
        first.source, second.source = "def double(x): return 1", "def double(x): return 2"
        first.id, second.id = "copy-1", "copy-2"
        mine.cells[3:3] = [first, second]
        merged = merge(reference, mine)
        sources = [cell.source for cell in merged.notebook.cells if "def double" in cell.source]
        assert sources == ["def double(x): return 1", "def double(x): return 2"]
        assert list(merged.belongs.values()) == ["double"]
        assert merged.repairs == ["Cell double is there 3 times: each runs where it stands."]

    def test_a_doubled_check_runs_once(self, reference):
        copy = nbformat.from_dict(cell_of(reference, "double-check"))
        copy.id, copy.source = "other", "print('fake')"
        mine = nbformat.from_dict(reference)
        mine.cells.append(copy)
        merged = merge(reference, mine)
        assert "fake" not in str(merged.notebook)
        assert merged.repairs == ["Cell double-check is there 2 times: it runs once."]

    def test_an_answer_turned_into_text_is_code_again(self, reference):
        mine = right(reference)
        place = next(i for i, cell in enumerate(mine.cells) if cell.id == "double")
        mine.cells[place] = new_markdown_cell(
            mine.cells[place].source, id="double", metadata=mine.cells[place].metadata
        )
        merged = merge(reference, mine)
        assert cell_of(merged.notebook, "double").cell_type == "code"
        assert "x + x" in cell_of(merged.notebook, "double").source
        assert merged.repairs == ["Cell double had become a markdown cell: it is code again."]

    def test_reordered_cells_are_back_in_order(self, reference):
        mine = right(reference)
        mine.cells.reverse()
        assert [cell.id for cell in merge(reference, mine).notebook.cells] == [cell.id for cell in reference.cells]

    @pytest.mark.parametrize("lost", ["metadata", "ids", "both"])
    def test_answers_are_found_without_metadata_or_ids(self, reference, lost):
        mine = right(reference)
        for number, cell in enumerate(mine.cells):
            if lost != "ids":
                cell.metadata = nbformat.from_dict({})
            if lost != "metadata":
                cell.id = f"new-{number}"
        merged = merge(reference, read(write(mine)))
        assert "x + x" in cell_of(merged.notebook, "double").source
        assert "0.5" in cell_of(merged.notebook, "halve").source
        assert len(merged.notebook.cells) == len(reference.cells)

    def test_an_answer_retyped_into_a_new_cell_is_found_by_its_function(self, reference):
        mine = right(reference)
        place = next(i for i, cell in enumerate(mine.cells) if cell.id == "halve")
        mine.cells[place : place + 1] = [new_code_cell("scratch = 1"), new_code_cell("def halve(x): return x / 2")]
        merged = merge(reference, mine)
        assert cell_of(merged.notebook, "halve").source == "def halve(x): return x / 2"

    def test_an_empty_notebook_is_all_stubs(self, reference):
        merged = merge(reference, new_notebook())
        assert write(merged.notebook) == write(reference)
        assert len(merged.repairs) == 5


def _mangled(reference, draw):
    """Any submission that a notebook editor can make of an exercise."""
    cells = [nbformat.from_dict(cell) for cell in reference.cells]
    for number, (wanted, what) in enumerate(draw):
        place = wanted % max(1, len(cells))
        cell = cells[place] if cells else None
        if what == "add" or cell is None:
            cells.insert(place, new_code_cell(f"added_{number} = 1"))
        elif what == "drop":
            del cells[place]
        elif what == "double":
            cells.insert(0, nbformat.from_dict(cell))
        elif what == "edit":
            cell.source += f"\n# edited {number}"
        elif what == "retype":
            change = new_markdown_cell if cell.cell_type == "code" else new_code_cell
            cells[place] = change(cell.source, id=cell.id, metadata=cell.metadata)
        elif what == "move":
            cells.append(cells.pop(place))
        elif what == "unmark":
            cell.metadata = nbformat.from_dict({"nbgrader": 7} if number % 2 else {})
        else:
            cell.id = f"renamed-{number}"
    return nbformat.from_dict({**reference, "cells": cells})


EDITS = ["add", "drop", "double", "edit", "retype", "move", "unmark", "rename"]


@pytest.mark.quick
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(EDITS)), max_size=12))
def test_whatever_happens_to_a_notebook_its_checks_are_the_reference_s(reference, draw):
    mine = read(write(_mangled(reference, draw)))
    merged = merge(reference, mine)
    assert len({cell.id for cell in merged.notebook.cells}) == len(merged.notebook.cells)
    nbformat.validate(merged.notebook)
    names = [grade_id(cell) for cell in merged.notebook.cells if grade_id(cell)]
    assert names == [grade_id(cell) for cell in reference.cells]
    for cell in merged.notebook.cells:
        if grade_id(cell) and kind(cell) not in (ANSWER, "manual"):
            assert cell == cell_of(reference, grade_id(cell))
    added = {cell.source for cell in mine.cells if cell.source.startswith("added_")}
    sources = [cell.source for cell in merged.notebook.cells]
    assert all(any(source.startswith(text.split("\n")[0]) for source in sources) for text in added)


def test_what_takes_long_is_imported_before_the_fork_and_nothing_that_is_not_used():
    code = "from course_utils.grading.runner.pytest_server import _import_all; _import_all()\n"
    code += "import sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    wanted = {"nbval.plugin", "jupyter_client.manager", "course_utils.grading.runner.nbval_plugin"}
    assert {*wanted, "course_utils.grading.sandbox.provisioner", "fastjsonschema"} <= {*found}
    assert "rfc3987_syntax.syntax_helpers" not in found


class TestRun:
    def test_right_answers_pass(self, solution, reference):
        result = run_both(solution, right(reference))
        assert set(outcomes(result).items()) == {
            ("double-check", "passed"), ("double-hidden", "passed"), ("halve-check", "passed"), ("why", "to be read"),
        }  # fmt: skip
        assert [mark.earned for mark in result.marks] == [2, 1, 2, None]
        assert result.passed
        executed = read(result.notebook)
        assert cell_of(executed, "halve-check").outputs[0].text == "1.5 -2.5\n"

    def test_without_hidden_checks_as_a_student_has_it(self, reference):
        result = run_both(reference, right(reference))
        assert outcomes(result) == {"double-check": "passed", "halve-check": "passed", "why": "to be read"}
        assert result.passed

    def test_nothing_that_came_out_after_a_hidden_check_went_in_is_in_the_notebook(self, solution):
        spy = """
            seen = []
            def double(x):
                seen.append(x)
                return 2 * x
            def tell(*_): print(seen, [text for text in In if "4567" in text])
            get_ipython().events.register("post_run_cell", tell)
            """
        mine = with_sources(right(student_view(solution)), double=textwrap.dedent(spy))
        mine.cells.append(new_code_cell("tell()", id="last"))
        result = run_both(solution, mine)
        assert outcomes(result)["double-hidden"] == "passed"  # what it prints beside costs nothing
        executed = read(result.notebook)
        assert cell_of(executed, "last").outputs[0].text.startswith("[0, 1.5, -4] []")
        shown = [cell for cell in executed.cells if cell.id != "double-hidden"]
        assert "4567" not in "".join(str(cell.get("outputs")) for cell in shown)

    def test_a_hidden_check_meets_what_its_own_item_defined(self, solution):
        mine = with_sources(
            right(student_view(solution)),
            double="def helper(x): return x\ndef double(x): return 2 * helper(x)",
            halve="def helper(x): return -x\ndef halve(x): return -helper(x) / 2",
        )
        assert run_both(solution, mine).passed

    def test_a_kernel_that_ends_in_a_hidden_check_costs_its_item_alone(self, solution):
        deadly = "import os\ndef double(x): return os._exit(3) if x == 4567 else 2 * x"
        result = run_both(solution, with_sources(right(student_view(solution)), double=deadly))
        assert list(outcomes(result).values()) == ["failed", "failed", "passed", "to be read"]
        assert [mark.check for mark in result.marks] == ["double-check", "double-hidden", "halve-check", "why"]

    def test_a_wrong_value_is_told_beside_the_expected_one(self, solution, reference):
        result = run_both(solution, with_sources(right(reference), halve="def halve(x): return x // 2"))
        mark = result.marks[2]
        assert (mark.status, mark.earned) == ("failed", 0)
        assert (mark.expected, mark.received) == ("1.5 -2.5", "1 -3")

    def test_a_broken_cell_is_blamed_not_its_check(self, solution, reference):
        result = run_both(solution, with_sources(right(reference), double="def double(x:\n    return"))
        assert messages(result)["double-check"].startswith("your cell does not run: SyntaxError: ")
        assert outcomes(result)["halve-check"] == "passed"

    def test_the_kernel_finds_no_notebook_and_no_expected_output(self, solution, reference):
        spy = """
import glob, os
found = glob.glob("**", recursive=True) + glob.glob("../**/*.ipynb", recursive=True)
assert not [f for f in found if f.endswith(".ipynb")], found
assert not any("COURSE_GRADING" in name for name in os.environ)
def halve(x): return x / 2
"""
        assert outcomes(run_both(solution, with_sources(right(reference), halve=spy)))["halve-check"] == "passed"

    @pytest.mark.parametrize(
        ("code", "check", "status", "told"),
        [
            ("while True: pass", "double-check", "failed", "your cell does not run: KeyboardInterrupt"),
            pytest.param(
                "def double(x):\n    while True: pass",
                "double-check",
                "too slow",
                "endless loop",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                "import time\ndef double(x): time.sleep(99)",
                "double-check",
                "too slow",
                "look for a sleep",
                marks=pytest.mark.slow,
            ),
            ("import os; os._exit(3)", "double-check", "not run", "double ended the Python process"),
            ("def double(x):\n    import os; os._exit(3)", "double-check", "failed", "ended the Python process"),
            ("def double(x):\n    return input('?')", "double-check", "failed", "StdinNotImplementedError"),
            ("def double(x):\n    raise SystemExit", "double-check", "failed", ""),
            ("def double(x): return double(x)", "double-check", "failed", "RecursionError"),
            (
                "def doubled(x): return 2 * x",
                "double-check",
                "failed",
                "'double' is not defined: let your answer define",
            ),
            ("for i in range(10**6): print('flood' * 100)", "double-check", "not run", "showed more than"),
            ("%%bash\nexit 1", "double-check", "failed", "your cell does not run"),
        ],
    )
    def test_what_goes_wrong_is_blamed_on_its_cell(self, solution, reference, code, check, status, told):  # noqa: PLR0917
        limits = Limits(cell_seconds=2, total_seconds=40, output_bytes=200_000)
        began = time.monotonic()
        result = run_both(solution, with_sources(right(reference), double=code), limits)
        assert time.monotonic() - began < 35
        assert result.status == DONE
        assert outcomes(result)[check] == status
        assert told in messages(result)[check]
        assert outcomes(result)["halve-check"] == "passed"  # whatever became of the kernel

    def test_marks_earned_before_the_end_are_kept(self, solution, reference):
        result = run_both(solution, with_sources(right(reference), halve="import os; os._exit(1)"))
        assert outcomes(result)["double-check"] == "passed"
        assert messages(result)["halve-check"] == "not run: halve ended the Python process it ran in"

    def test_what_ends_the_kernel_costs_its_own_item_alone(self, solution):
        ends = "import os; os._exit(1)"
        own = right(student_view(solution))
        own.cells.insert(2, nbformat.v4.new_code_cell(ends))
        assert run_both(solution, own).passed
        both = with_sources(right(student_view(solution)), double=ends, halve="def halve(x): os._exit(1)\nimport os")
        result = run_both(solution, both)
        assert outcomes(result) == {
            "double-check": "not run", "double-hidden": "not run", "halve-check": "failed", "why": "to be read",
        }  # fmt: skip
        assert messages(result)["double-hidden"] == "not run: double ended the Python process it ran in"
        assert messages(result)["halve-check"] == "your code ended the Python process it ran in"

    @pytest.mark.slow
    def test_the_whole_has_a_limit_too_and_nothing_is_left_running(self, solution, reference):
        stubborn = "import time, os\nprint(os.getpid())\nwhile True:\n    try:\n        time.sleep(100)\n    except BaseException: pass"
        result = run_both(solution, with_sources(right(reference), halve=stubborn), Limits(60, 9))
        assert result.status == SLOW
        assert outcomes(result)["halve-check"] == "not run"
        assert messages(result)["halve-check"] == "not run: halve took too long"

    def test_a_patched_interpreter_does_not_pass(self, solution, reference):
        patched = "from IPython.core.interactiveshell import InteractiveShell\nInteractiveShell.showtraceback = lambda *a, **k: None"
        assert outcomes(run_both(solution, with_sources(right(reference), double=patched)))["double-check"] == "failed"

    def test_a_kernel_that_is_not_there_is_told(self, solution, reference):
        result = run(write(solution), write(reference), kernel="no-such-kernel")
        assert result.status == BROKEN
        assert not result.passed

    def test_the_same_twice(self, solution, reference):
        first, second = (run_both(solution, right(reference)) for _ in range(2))
        assert outcomes(first) == outcomes(second)
        assert first.notebook == second.notebook


@pytest.mark.quick
class TestRelease:
    def test_is_the_student_view_through_nbgrader(self, solution):
        released = read(exercise_from(write(solution)))
        view = student_view(solution)
        assert [cell.source for cell in released.cells] == [cell.source for cell in view.cells]
        for cell, same in zip(released.cells, view.cells, strict=True):
            shown, kept = printed(cell.get("outputs", [])), printed(same.get("outputs", []))
            assert shown == (NOT_RUN + kept if kind(cell) == CHECK and kept else kept)
        assert printed(cell_of(merge(released, released).notebook, "double-check").outputs) == "3.0 -8\n"

    def test_stubs_raise_the_next_step(self, solution):
        stub = cell_of(read(exercise_from(write(solution))), "double").source
        assert stub == 'def double(x):\n    """Twice x."""\n    raise NotImplementedError("multiply by two")'

    def test_two_functions_in_a_cell_have_two_steps(self, solution):
        both = with_sources(solution, double=ANSWERED.strip() + "\n\n" + ANSWERED_TOO.strip())
        steps = re.findall(r'Error\("(.*?)"\)', cell_of(read(exercise_from(write(both))), "double").source)
        assert steps == ["multiply by two", "divide by two"]

    def test_nothing_hidden_is_left(self, solution):
        text = exercise_from(write(solution)).decode()
        assert not re.search(r"4567|9134|secret|return 2 \* x|BEGIN|NEXT|HIDDEN|MARK SCHEME", text)
        assert "3.0 -8" in text

    def test_cells_are_locked_and_their_checksums_fit(self, solution):
        from nbgrader.utils import compute_checksum

        released = read(exercise_from(write(solution)))
        for cell in released.cells:
            assert cell.metadata["deletable"] is False
            assert cell.metadata.get("editable", True) is (kind(cell) in (ANSWER, "manual"))
            assert cell.metadata.nbgrader.checksum == compute_checksum(cell)

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda nb: cell_of(nb, "double-check").outputs.clear(), "has no stored output"),
            (lambda nb: cell_of(nb, "double-check").update(execution_count=None), "has no stored output"),
            (lambda nb: cell_of(nb, "halve-check").update(source=SAFE_TOO + '\nshow(1, seal="x")'), 'write seal="' + sealed("1.5 -2.5\n")),
            (lambda nb: cell_of(nb, "halve-check").outputs.append(nbformat.v4.new_output("stream", name="stderr", text="oh")), "something besides"),
            (lambda nb: cell_of(nb, "halve-check").outputs.append(nbformat.v4.new_output("execute_result", data={})), "something besides"),
            (lambda nb: cell_of(nb, "halve-check").outputs.append(nbformat.v4.new_output("error")), "fails on the solution"),
            (lambda nb: cell_of(nb, "halve").metadata.nbgrader.update(grade_id="double"), "two cells are called double"),
            (lambda nb: cell_of(nb, "halve").metadata.nbgrader.update(grade_id="a b"), "no name for a cell"),
            (lambda nb: cell_of(nb, "halve").update(source="def halve(x): return x / 2"), "no BEGIN SOLUTION"),
            (lambda nb: cell_of(nb, "halve-check").metadata.nbgrader.update(grade_id=""), "has no name and would not be graded"),
            (lambda nb: cell_of(nb, "halve-check").metadata.nbgrader.update(points=None), "is worth None points"),
            (lambda nb: cell_of(nb, "halve-check").metadata.nbgrader.update(points="two"), "is worth 'two' points"),
            (lambda nb: cell_of(nb, "halve-check").metadata.nbgrader.update(points=-1), "is worth -1 points"),
            (lambda nb: cell_of(nb, "halve").update(source="### BEGIN SOLUTION\nx"), "write ### BEGIN SOLUTION and ### END SOLUTION"),
        ],
    )  # fmt: skip
    def test_a_faulty_solution_is_refused(self, solution, spoil, told):
        spoil(solution)
        with pytest.raises(CourseError, match=re.escape(told)):
            exercise_from(write(solution), "x")

    def test_a_suspect_is_written_into_the_setup(self, solution):
        released = exercise_from(write(solution))
        assert 'SUSPECT = "model-c"' in cell_of(read(release.with_suspect(released, "model-c")), "setup").source
        assert merge(read(release.with_suspect(released, "model-c")), read(released)).repairs

    def test_suspects_are_handed_out_evenly_and_the_same_each_time(self):
        names = [f"student {i}" for i in range(20)]
        given = assign(names, release.SUSPECTS)
        assert given == assign(reversed(names), release.SUSPECTS)
        assert sorted(list(given.values()).count(suspect) for suspect in release.SUSPECTS) == [6, 7, 7]

    @pytest.mark.parametrize("text", ["", "\n\n", "../x", "a/b", "Ada\nada", ".hidden", "a\\b", "x."])
    def test_names_that_cannot_be_folders_are_refused(self, text):
        with pytest.raises(CourseError):
            student_names(text)

    def test_names_of_any_alphabet_are_fine(self):
        assert student_names("Zoë O'Neil\n李雷\n\nada@uni.edu\n") == ["Zoë O'Neil", "李雷", "ada@uni.edu"]


def course_command(*arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


class TestReleaseCommand:
    def test_makes_the_exercises_anew(self, course):
        assert course_command("release").exit_code == 0
        first = (course / "exercises" / "toy.ipynb").read_bytes()
        course_command("release")
        assert (course / "exercises" / "toy.ipynb").read_bytes() == first
        assert not list(course.rglob(".unfinished*"))

    def test_a_faulty_solution_does_not_keep_the_others_from_it(self, course, solution):
        Path("solutions", "a.ipynb").write_bytes(write(with_sources(solution, halve="x = 1")))
        done = course_command("release")
        assert done.exit_code == 2
        assert "halve has no BEGIN SOLUTION" in " ".join(done.output.split())
        assert [path.name for path in Path("exercises").glob("*")] == ["toy.ipynb"]
        assert course_command("release", "--out", "bundle").exit_code == 2
        assert not Path("bundle").exists()

    def test_a_mark_scheme_that_does_not_add_up_is_a_fault(self, solution):
        why = cell_of(solution, "why")
        for scheme, told in (
            ("- **A** (1): x\n- **B** (2): y", []),
            ("- **A** (1): x", ["criteria 1: make them agree"]),
        ):
            why.source = f"### BEGIN MARK SCHEME\n{scheme}\n### END MARK SCHEME"
            assert [told[0] in fault for fault in faults(solution)] == [True] * len(told)

    def test_a_bundle_has_no_solution_and_is_the_same_every_time(self, course):
        assert course_command("release", "--zip", "a.zip").exit_code == 0
        time.sleep(2.1)  # the grain of times in a zip file
        course_command("release", "--zip", "b.zip")
        assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()
        course_command("release", "--out", "bundle")
        with zipfile.ZipFile("a.zip") as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {
                path.relative_to("bundle").as_posix(): path.read_bytes()
                for path in Path("bundle").rglob("*")
                if path.is_file()
            }
        assert not re.search(rb"4567|9134|secret|BEGIN|return 2 \* x", Path("a.zip").read_bytes())

    def test_each_student_gets_a_suspect_and_the_table_stays_outside(self, course):
        Path("class.txt").write_text("Ada\nBen Ng\nCy\n", encoding="utf-8")
        done = course_command("release", "--zip", "class.zip", "--students", "class.txt")
        assert "class.roster.csv" in done.output
        told = csv.DictReader(Path("class.roster.csv").read_text(encoding="utf-8-sig").splitlines())
        rows = ["", *(f"{row['student']},{row['suspect']}" for row in told)]
        with zipfile.ZipFile("class.zip") as archive:
            assert not [name for name in archive.namelist() if name.endswith(".csv")]
            for name, suspect in (row.split(",") for row in rows[1:]):
                assert f'SUSPECT = \\"{suspect}\\"' in archive.read(f"{name}/toy.ipynb").decode()
        assert len({row.split(",")[1] for row in rows[1:]}) == 3

    def test_a_suspect_in_a_folder_comes_along(self, course):
        Path("my-suspect").mkdir()
        Path("my-suspect", "adapter_config.json").write_text("{}", encoding="utf-8")
        assert course_command("release", "--out", "bundle", "--suspect", "my-suspect").exit_code == 0
        assert Path("bundle", "suspects", "my-suspect", "adapter_config.json").is_file()
        assert 'SUSPECT = \\"suspects/my-suspect\\"' in Path("bundle", "toy.ipynb").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--out", "a", "--zip", "b"], "got both"),
            (["--students", "class.txt"], "need a bundle of their own"),
            (["--out", "a", "--suspect", "model-a", "--suspect", "model-b"], "list of students for 2 suspects"),
            (["--out", "a", "--suspect", "model-d"], "got model-d, which is neither"),
            (["--out", "a", "--students", "nobody.txt"], "list of students in nobody.txt"),
            (["--out", "solutions/toy.ipynb"], "could not"),
        ],
    )
    def test_what_cannot_be_done_is_told(self, course, arguments, told):
        done = course_command("release", *arguments)
        assert done.exit_code == 2
        assert told in " ".join(done.output.split())

    def test_without_solutions_it_says_so(self, course):
        Path("solutions", "toy.ipynb").unlink()
        assert "found none" in course_command("release").output


class TestCheckCommand:
    def test_needs_nothing_of_the_instructors(self):
        code = "import course_utils.cli, course_utils.grading.check, sys; assert 'nbgrader' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_an_old_format_without_a_kernel_s_name_is_checked(self, course):
        cells = [{"cell_type": "code", "language": "python", "input": text, "outputs": [], "metadata": {}, "collapsed": False}
                 for text in ("def double(x): return x + x", "1 / 0", "def halve(x):\n    return x / 2")]  # fmt: skip
        old = {
            "nbformat": 3,
            "nbformat_minor": 0,
            "metadata": {"name": ""},
            "worksheets": [{"cells": cells, "metadata": {}}],
        }
        Path("toy.ipynb").write_text(json.dumps(old), encoding="utf-8")
        assert course_command("check", "toy.ipynb").exit_code == 0

    def test_a_solution_passes_without_a_note(self, course):
        done = course_command("check", "solutions/toy.ipynb")
        assert done.exit_code == 0
        assert "note" not in done.output

    def test_a_stub_is_not_answered_and_a_right_answer_passes(self, course, reference):
        course_command("release")
        done = course_command("check")
        assert done.exit_code == 1
        assert done.output.count("not answered") == 2
        assert done.output.count("nothing is written yet") == 1
        assert "multiply by two" in " ".join(done.output.split())
        assert "Traceback" not in done.output
        (course / "exercises" / "toy.ipynb").write_bytes(write(right(reference)))
        done = course_command("check", "toy")
        assert done.exit_code == 0
        assert "2 of 2 passed" in done.output

    def test_json_tells_everything(self, course, reference):
        Path("toy.ipynb").write_bytes(write(with_sources(right(reference), halve="def halve(x): return 7")))
        done = course_command("check", "toy.ipynb", "--json")
        assert done.exit_code == 1
        (told,) = json.loads(done.output)
        assert [mark["status"] for mark in told["marks"]] == ["passed", "failed", "to be read"]
        assert told["marks"][1]["expected"] == "1.5 -2.5"
        assert told["marks"][1]["received"] == "7 7"
        assert told["status"] == "done"

    def test_bad_files_get_a_sentence_each_and_the_rest_is_checked(self, course, reference):
        Path("sub").mkdir()
        Path("sub", "toy.ipynb").write_text("nothing", encoding="utf-8")
        Path("other.ipynb").write_bytes(write(reference))
        Path("toy.ipynb").write_bytes(write(right(reference)))
        done = course_command("check", "sub/toy.ipynb", "other.ipynb", "missing.ipynb", "toy.ipynb")
        assert done.exit_code == 2
        text = " ".join(done.output.split())
        assert "a file that is not JSON" in text
        assert "got other.ipynb; the exercises: toy." in text
        assert "missing.ipynb, which does not exist" in text
        assert "2 of 2 passed" in text

    def test_repairs_are_told(self, course, reference):
        Path("toy.ipynb").write_bytes(write(with_sources(right(reference), halve_check="print('1.5 -2.5')")))
        done = course_command("check", "toy.ipynb")
        assert done.exit_code == 0
        assert "note: Cell halve-check was edited" in done.output

    def test_each_student_is_checked_with_the_suspect_that_they_were_given(self, course, solution):
        check_cell = cell_of(solution, "halve-check")  # one that tells the suspects apart
        check_cell.source += "\nprint(SUSPECT)"
        check_cell.outputs[0].text += "model-c\n"
        Path("solutions", "toy.ipynb").write_bytes(write(solution))
        for suspect, passes in (("model-c", True), ("model-b", False), ("elsewhere", False)):
            mine = with_sources(right(student_view(solution)), setup=f'SUSPECT = "{suspect}"')
            Path("toy.ipynb").write_bytes(write(mine))
            done = course_command("check", "toy.ipynb")
            assert (done.exit_code == 0) == passes
            assert ("setup was edited" in done.output) == (suspect == "elsewhere")

    def test_a_bundle_checks_against_its_untouched_copy(self, course, reference):
        course_command("release", "--out", "bundle")
        Path("solutions", "toy.ipynb").unlink()
        mine = with_sources(right(reference), double_check="print('easy')")
        Path("bundle", "toy.ipynb").write_bytes(write(mine))
        assert course_command("check", "bundle/toy.ipynb").exit_code == 0

    def test_an_answer_to_compare_a_text_with_is_shown_once_all_is_done_and_never_of_a_bundle(self, course, reference):
        course_command("release", "--out", "bundle")
        wrong = "def halve(x): return 7"
        for place, answers, shown in (
            (".", {}, False),
            (".", {"why": "Because.", "halve": wrong}, False),  # it tells what the checked items find out
            (".", {"why": "Because."}, True),
            ("bundle", {"why": "Because."}, False),
        ):
            if place == "bundle":
                Path("solutions", "toy.ipynb").unlink()
            mine = with_sources(right(reference), **answers)
            Path(place, "toy.ipynb").write_bytes(write(mine))
            told = course_command("check", f"{place}/toy.ipynb").output
            assert ("A secret model answer." in told) == shown
            assert "rubric" not in told

    @pytest.mark.parametrize("name", ["toy (1)", "exercise_toy-Copy1", "toy_final_v2"])
    def test_a_copy_is_checked_as_grade_takes_it(self, course, reference, name):
        course_command("release", "--out", "bundle")
        for folder in (".", "bundle", "exercises"):
            mine = Path(folder, f"{name}.ipynb")
            mine.write_bytes(write(with_sources(right(reference), why="Because.")))
            done = course_command("check", str(mine))
            assert (done.exit_code, "A secret model answer." in done.output) == (0, True)
        Path("solutions", "toy.ipynb").unlink()
        assert course_command("check", f"bundle/{name}.ipynb").exit_code == 0

    def test_a_notebook_far_from_the_bundle_is_checked_by_a_terminal_in_it(self, course, reference, monkeypatch):
        course_command("release", "--out", "bundle")
        for folder in ("solutions", "exercises"):
            Path(folder, "toy.ipynb").unlink(missing_ok=True)
        Path("far").mkdir()
        Path("far", "toy.ipynb").write_bytes(write(right(reference)))
        assert "the folder that you were given" in " ".join(course_command("check", "far/toy.ipynb").output.split())
        monkeypatch.chdir("bundle")
        assert course_command("check", "../far/toy.ipynb").exit_code == 0

    def test_an_exercise_without_an_untouched_copy_is_refused(self, course):
        course_command("release")
        Path("solutions", "toy.ipynb").unlink()
        assert "no untouched copy" in " ".join(course_command("check", "toy").output.split())

    def test_the_learner_s_file_stays_as_it_is(self, course, reference):
        Path("toy.ipynb").write_bytes(before := json.dumps(right(reference)).encode())
        course_command("check", "toy.ipynb")
        assert Path("toy.ipynb").read_bytes() == before


@pytest.mark.slow
def test_nbgrader_takes_questions_for_a_person_too(solution, reference, tmp_path):
    for place, content in (("source/work", solution), ("submitted/ada/work", right(reference))):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "toy.ipynb").write_bytes(write(content))
    nbgrader(tmp_path, "generate_assignment", "work", "--create")
    assert not re.search("secret|4567", (tmp_path / "release" / "work" / "toy.ipynb").read_text(encoding="utf-8"))
    nbgrader(tmp_path, "autograde", "work", "--create")
    ours = {mark.check: mark.earned for mark in run_both(solution, right(reference)).marks if mark.earned is not None}
    assert nbgrader_marks(tmp_path, "toy") == {"ada": ours}


def test_what_lies_where_the_grader_was_started_is_no_module_of_its_own(tmp_path, monkeypatch):
    """It may be started among what students handed in."""
    for name in ("json", "psutil", "nbformat"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a student is at work, outside of any sandbox')")
    monkeypatch.chdir(tmp_path)
    for module in (limited, pytest_server):
        process = module._begun()
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.quick
def test_models_are_where_they_were_for_processes_that_begin_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_CACHE", "models")
    assert processes.with_package()["COURSE_CACHE"] == str(tmp_path / "models")
