"""A learner's own copy: made, renewed, never overwritten, begun anew; and how far they are."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from course_utils import CourseError
from course_utils.cli import main
from course_utils.lesson.own import bring_up_to_date, named, originals, passed_checks, reset, standings
from course_utils.lesson.start import after_save, write_start

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.quick


@pytest.fixture
def course(tmp_path):
    for folder in ("notebooks", "exercises"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("suspects"))
    return tmp_path


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def change(path, text="# mine"):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][1]["source"] = [text]
    path.write_text(json.dumps(notebook), encoding="utf-8")


def test_every_lesson_and_exercise_has_a_copy_without_outputs_whose_links_lead_somewhere(course):
    assert list(bring_up_to_date(course)) == []
    copies = sorted(path.stem for path in (course / "my").glob("*.ipynb"))
    assert copies == sorted(originals(course))
    assert list(originals(course))[:2] == ["08_0_interpretability_overview", "exercise_08_chapter_exercise"]
    for path in (course / "my").glob("08_*.ipynb"):
        assert not [cell for cell in cells(path) if cell.get("outputs")]
    for path in (course / "my").glob("*.ipynb"):
        text = "".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown")
        for target in [part.split(")")[0] for part in text.split("](")[1:]]:
            if "://" not in target and not target.startswith("#"):
                assert (path.parent / target).exists() or (ROOT / "my" / target).resolve().exists(), (path.name, target)


def test_what_a_learner_changed_is_never_overwritten_and_what_not_is_renewed(course):
    list(bring_up_to_date(course))
    mine, other = (course / "my" / f"{name}.ipynb" for name in ("08_1_token_attribution", "08_3_probing"))
    change(mine)
    kept = mine.read_bytes()
    for path in (course / "notebooks").glob("08_[13]*.ipynb"):
        change(path, "# a newer course")
    told = list(bring_up_to_date(course))
    assert len(told) == 1
    assert "course reset 08_1_token_attribution" in told[0]
    assert mine.read_bytes() == kept
    assert "".join(cells(other)[1]["source"]) == "# a newer course"
    assert reset("08_1", course).read_bytes() == kept
    assert "".join(cells(mine)[1]["source"]) == "# a newer course"
    assert list(bring_up_to_date(course)) == []


def test_a_copy_that_was_only_opened_is_not_begun_and_is_renewed(course):
    list(bring_up_to_date(course))
    for copy in (course / "my").glob("*.ipynb"):  # JupyterLab saves it after two minutes, as nbformat writes it
        notebook = nbformat.read(copy, as_version=4)
        notebook.metadata["language_info"] = {"name": "python", "version": "3.13.0"}
        nbformat.write(notebook, copy)
    assert not [one.name for one in standings(course) if one.begun]
    for path in (*(course / "notebooks").glob("08_1*.ipynb"), *(course / "exercises").glob("08_1*.ipynb")):
        change(path, "# a newer course")
    assert list(bring_up_to_date(course)) == []
    for copy in (course / "my").glob("*08_1*.ipynb"):
        assert "".join(cells(copy)[1]["source"]) == "# a newer course"


def test_copies_made_by_a_course_of_before_are_known_as_untouched(course):
    list(bring_up_to_date(course))
    record = course / "my" / ".course.json"
    kept = json.loads(record.read_text(encoding="utf-8"))
    for name, told in kept.items():  # it kept a digest of the file
        told["copy"] = hashlib.sha256((course / "my" / f"{name}.ipynb").read_bytes()).hexdigest()
    record.write_text(json.dumps(kept), encoding="utf-8")
    assert not [one.name for one in standings(course) if one.begun]
    change(course / "notebooks" / "08_1_token_attribution.ipynb", "# a newer course")
    assert list(bring_up_to_date(course)) == []


def test_a_copy_that_was_run_is_begun_and_never_overwritten(course):
    list(bring_up_to_date(course))
    mine = course / "my" / "08_1_token_attribution.ipynb"
    notebook = json.loads(mine.read_text(encoding="utf-8"))
    notebook["cells"][3]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["I can't help with that.\n"]}
    ]
    mine.write_text(json.dumps(notebook), encoding="utf-8")
    change(course / "notebooks" / "08_1_token_attribution.ipynb", "# a newer course")
    assert [one.name for one in standings(course) if one.begun] == ["08_1_token_attribution"]
    assert "course reset" in next(bring_up_to_date(course))


def test_a_copy_that_was_removed_comes_back_and_a_damaged_record_loses_nothing(course):
    list(bring_up_to_date(course))
    gone, mine = (course / "my" / f"{name}.ipynb" for name in ("08_2_attention_analysis", "08_1_token_attribution"))
    gone.unlink()
    change(mine)
    kept = mine.read_bytes()
    (course / "my" / ".course.json").write_text("[", encoding="utf-8")
    list(bring_up_to_date(course))
    assert gone.exists()
    assert mine.read_bytes() == kept


def test_progress_is_read_off_the_copies(course):
    list(bring_up_to_date(course))
    mine = course / "my" / "08_0_interpretability_overview.ipynb"
    notebook = json.loads(mine.read_text(encoding="utf-8"))
    turns = [cell for cell in notebook["cells"] if "your_turn(" in "".join(cell["source"])]
    for cell in turns:
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["✓\n"]}]
    mine.write_text(json.dumps(notebook), encoding="utf-8")
    passed_checks("exercise_08_chapter_exercise", 2, 4, course / "my")
    found = {one.name: one for one in standings(course)}
    assert found["08_0_interpretability_overview"].finished
    assert found["08_0_interpretability_overview"].minutes == 40
    assert (found["exercise_08_chapter_exercise"].done, found["exercise_08_chapter_exercise"].of) == (2, 4)
    assert not found["08_1_token_attribution"].begun


def test_the_start_page_says_what_comes_next_and_how_far_they_are(course, monkeypatch):
    monkeypatch.setattr("course_utils.lesson.start.ROOT", course)
    list(bring_up_to_date(course))
    write_start(course)
    page, mine = course / "my" / "start.md", course / "my" / "08_0_interpretability_overview.ipynb"
    assert "## Next: [8.0 Three models" in page.read_text(encoding="utf-8")
    notebook = json.loads(mine.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "your_turn(" in "".join(cell["source"]):
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["✓\n"]}]
    mine.write_text(json.dumps(notebook), encoding="utf-8")
    after_save(os_path=str(mine), model={}, contents_manager=None)
    told = page.read_text(encoding="utf-8")
    assert "## Next: [Chapter exercise" in told
    assert "1 of 13 done" in told
    assert "| ✓ | [8.0 Three models" in told
    for name in re.findall(r"\]\((\S+?)\)", told):
        assert (course / "my" / name).exists()


def test_what_is_wrong_with_a_notebook_does_not_keep_it_from_being_saved(course, monkeypatch):
    monkeypatch.setattr("course_utils.lesson.start.ROOT", course)
    list(bring_up_to_date(course))
    mine = course / "my" / "08_0_interpretability_overview.ipynb"
    mine.write_text('{"cells": [{"cell_type": "code"}]}', encoding="utf-8")
    after_save(os_path=str(mine))


@pytest.mark.parametrize("name", ["", "09", "exercise", "08_"])
def test_a_name_that_means_none_or_several_is_refused(name):
    with pytest.raises(CourseError, match="Expected a notebook among"):
        named(name, ["08_1_token_attribution", "08_2_attention_analysis", "exercise_08_1_a", "exercise_08_2_b"])


def test_what_the_exercises_say_to_check_can_be_reset_by_the_same_name():
    known = list(originals(ROOT))
    assert named("08_chapter_exercise", known) == "exercise_08_chapter_exercise"
    assert named("08_chapter", known) == "exercise_08_chapter_exercise"
    assert named("exercise_08_1", known) == "exercise_08_1_token_attribution"
    assert named("my/08_1_token_attribution.ipynb", known) == "08_1_token_attribution"


def test_the_commands_tell_what_is_next(course, monkeypatch):
    monkeypatch.setattr("course_utils.cli.status.bring_up_to_date", lambda: bring_up_to_date(course))
    monkeypatch.setattr("course_utils.cli.status.standings", lambda: standings(course))
    done = CliRunner().invoke(main, ["status"])
    assert done.exit_code == 0
    assert "Next: 08_0_interpretability_overview" in done.output
    refused = CliRunner().invoke(main, ["reset", "no-such-lesson"])
    assert refused.exit_code == 2
    assert "Expected a notebook among" in refused.output


def test_check_means_the_learners_own_copy_by_a_beginning_of_its_name(course, monkeypatch):
    list(bring_up_to_date(course))
    monkeypatch.setattr("course_utils.cli.check.MY", course / "my")
    from course_utils.cli.check import _own

    assert [Path(path).stem for path in _own(("08_1",))] == ["exercise_08_1_token_attribution"]
    assert len(_own(())) == 6
    assert _own(("toy", "08_1_token_attribution.ipynb")) == ("toy", "08_1_token_attribution.ipynb")
    with pytest.raises(CourseError, match="could be"):
        _own(("08",))
