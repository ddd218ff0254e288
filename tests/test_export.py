"""Marks and feedback by the rules of those who read them: Canvas's and Moodle's importers, as their source states them."""

import csv
import io
import re
import shutil
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from nbformat.v4 import new_markdown_cell

from course_utils import CourseError
from course_utils.cli import main
from course_utils.grading.classroom.export import FORMATS, About, doubts, titles_of
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.late import Late
from course_utils.grading.classroom.standing import Change
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.handout import release
from course_utils.grading.marks import Mark
from course_utils.grading.notebook import read, student_view, write
from course_utils.grading.people.roster import Roster, Student
from course_utils.grading.result import DONE, Result
from tests.shared import cell_of, marked, right


def table(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))


def canvas_reads(content, assignments, students):
    """What Canvas's importer makes of a file: {(assignment, student): score}, new assignments and students by name.

    assignments: {id: title}; students: {id: (name, sortable name)}. As in its gradebook_importer: the header's first
    columns, the row of points, an assignment by the number in brackets, else by title, a student by ID, else by name.
    """
    header, *rows = table(content)
    assert "Student" in header[0]
    assert "ID" in header[1]
    assert re.search(r"SIS\s+User\s+ID", header[2])
    assert re.search(r"SIS\s+Login\s+ID", header[3])
    assert "Section" in header[4]
    scores = {}
    for row in rows:
        if "Points Possible" in row[0]:
            assert all(re.fullmatch(r"[0-9.]+", cell) for cell in row[5:])
            continue
        by_name = [i for i, names in students.items() if row[0] in names]
        who = int(row[1]) if row[1] and int(row[1]) in students else (by_name or [f"new: {row[0]}"])[0]
        for title, cell in zip(header[5:], row[5:], strict=True):
            number = re.search(r"\((\d+)\)$", title)
            by_title = [i for i, known in assignments.items() if known == title]
            known = int(number[1]) if number and int(number[1]) in assignments else (by_title or [f"new: {title}"])[0]
            scores[known, who] = cell
    return scores


def moodle_reads(content, participants, modified):
    """What Moodle's importer of worksheets makes of a file: {participant: (grade, comment)}, who is skipped left out.

    As in its offline feedback's importgradeslib: three columns by their exact titles; the number behind "Participant ";
    a grade that was changed more than a minute after the last column's time stays.
    """
    header, *rows = table(content)
    number, grade, changed = (header.index(title) for title in ("Identifier", "Grade", "Last modified (grade)"))
    comment = header.index("Feedback comments") if "Feedback comments" in header else 0
    read_ = {}
    for row in rows:
        who = row[number][len("Participant ") :]
        when = datetime.fromisoformat(row[changed]).timestamp()
        if who in participants and row[grade] != "" and modified.get(who, 0) <= when + 60:
            read_[who] = float(row[grade]), row[comment] if comment else None
    return read_


def canvas_attaches(name):
    """Whose feedback Canvas takes a file for: the first two parts between _ that are numbers, user and attachment."""
    numbers = [part for part in name.split("_") if re.fullmatch(r"\d+", part)]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 and not name.startswith("._") else None


def moodle_attaches(path):
    """Whose feedback Moodle takes a file for, and what it calls it: the first part of its path in its own form."""
    parts = path.split("/")
    while parts:
        told = parts.pop(0).split("_", 4)
        if len(told) >= 4 and told[1].isdigit() and (told[2], told[3]) in PLUGINS:
            return int(told[1]), "/".join([*told[4:], *parts])
    return None


PLUGINS = (("assignfeedback", "file"), ("assignsubmission", "file"))


@pytest.fixture
def book(tmp_path):
    with Gradebook(tmp_path / "grades" / "course-gradebook.sqlite") as book:
        yield book


STUDENTS = {1234: ("Jane Doe", "Doe, Jane"), 99: ("Jo Roe", "Roe, Jo")}


def handed_in(book, student, earned, exercise="toy", **more):
    notebook = write(read(b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'))
    number = book.take(Submission(student, exercise, Path("in"), **more), student.encode())
    marks = tuple(Mark(f"a{k}", f"a{k}", 8, one, "passed" if one else "to be read") for k, one in enumerate(earned))
    book.record(number, "r", "v", Result(DONE, marks, (), (), notebook, 1.0))


@pytest.fixture
def canvas(book):
    handed_in(book, "jdoe", [8, 4], number="1234", label="doejane_LATE_1234_777_toy-1.ipynb", late=True)
    handed_in(book, "roe", [8, None], number="99", label="roejo_99_778_my_2_toy.ipynb")
    handed_in(book, "anon_4QR7b", [8, 8], label="anon_4QR7b_779_toy.ipynb")
    return book


@pytest.fixture
def moodle(book):
    when = "2026-12-02T10:00:00+00:00"
    handed_in(book, "Jane Doe", [8, 4], number="1022", label="Jane Doe_1022_assignsubmission_file", handed_in=when)
    handed_in(book, "roe", [8, 8], number="1023", label="Jo von_Roe_1023_assignsubmission_file")
    return book


@pytest.mark.quick
class TestCanvas:
    def test_scores_arrive_where_they_belong(self, canvas):
        about = About(titles=titles_of(["toy=Token attribution (77)"]))
        read_ = canvas_reads(FORMATS["canvas"](canvas, about)["canvas.csv"], {77: "Token attribution"}, STUDENTS)
        assert read_ == {(77, 1234): "12", (77, 99): "", (77, "new: anon_4QR7b"): "16"}

    def test_a_title_without_a_number_and_names_from_the_roster(self, canvas):
        about = About(Roster((Student("anon_4QR7b", "Roe, Jo", section="A"),)), {"toy": "Week 3"})
        content = FORMATS["canvas"](canvas, about)["canvas.csv"]
        assert canvas_reads(content, {77: "Week 3"}, {99: STUDENTS[99]})[77, 99] in ("16", "")
        assert [row[4] for row in table(content) if row[0] == "Roe, Jo"] == ["A"]

    def test_titles_that_are_none_are_refused(self, canvas):
        with pytest.raises(CourseError, match="Expected titles for toy, got one for 'tea'"):
            FORMATS["canvas"](canvas, About(titles={"tea": "x"}))
        with pytest.raises(CourseError, match="Expected a title such as"):
            titles_of(["toy"])

    def test_feedback_goes_to_the_right_submission(self, canvas):
        files = FORMATS["canvas-feedback"](canvas)
        with zipfile.ZipFile(io.BytesIO(files["canvas-feedback-toy.zip"])) as archive:
            names = archive.namelist()
            assert b"<h1>roe</h1>" in archive.read("roejo_99_778_my_2_toy.html")
        assert sorted(filter(None, map(canvas_attaches, names))) == [(99, 778), (1234, 777)]
        assert "anon_4QR7b_779_toy.html" in names


@pytest.mark.quick
class TestMoodle:
    def test_grades_arrive_and_comments_overwrite_nothing(self, moodle):
        content = FORMATS["moodle"](moodle)["moodle-toy.csv"]
        assert moodle_reads(content, {"1022", "1023"}, {}) == {"1022": (12, None), "1023": (16, None)}
        ben = next(moodle.current(student="roe"))
        moodle.give(ben, "a0", None, "good", "me")
        content = FORMATS["moodle"](moodle)["moodle-toy.csv"]
        assert moodle_reads(content, {"1022", "1023"}, {})["1023"] == (16, "a0: good")

    def test_a_grade_changed_in_moodle_later_stays(self, moodle):
        content = FORMATS["moodle"](moodle)["moodle-toy.csv"]
        now = datetime.now().timestamp()
        read_ = moodle_reads(content, {"1022", "1023"}, {"1022": now - 3600, "1023": now + 3600})
        assert list(read_) == ["1022"]

    def test_participants_of_a_roster(self, book):
        handed_in(book, "jdoe", [8])
        content = FORMATS["moodle"](book, About(Roster((Student("jdoe", "Jane Doe", moodle_id="1022"),))))[
            "moodle-toy.csv"
        ]
        assert moodle_reads(content, {"1022"}, {}) == {"1022": (8, None)}

    def test_feedback_goes_to_the_right_participant(self, moodle):
        files = FORMATS["moodle-feedback"](moodle)
        with zipfile.ZipFile(io.BytesIO(files["moodle-feedback-toy.zip"])) as archive:
            found = sorted(map(moodle_attaches, archive.namelist()))
        assert found == [(1022, "toy.html"), (1023, "toy.html")]

    def test_who_is_unknown_to_the_platform_has_no_file(self, book):
        handed_in(book, "ada", [8])
        for platform in ("Canvas", "Moodle"):
            with pytest.raises(
                CourseError, match=f"Expected submissions with {platform}'s names or numbers, found none"
            ):
                FORMATS[f"{platform.lower()}-feedback"](book)


@pytest.mark.quick
class TestTwoNamesOfOneStudent:
    """A class that was graded without its roster, and then with it."""

    JANE = About(Roster((Student("jdoe", "Jane Doe", canvas_id="1234", moodle_id="55"),), "roster.csv"))

    @pytest.mark.parametrize("names", [("doejane", "jdoe"), ("jdoe", "doejane")])
    @pytest.mark.parametrize(
        ("platform", "number", "label"),
        [("canvas", "1234", "doejane_1234_777_toy.ipynb"), ("moodle", "55", "Jane Doe_55_assignsubmission_file")],
    )
    def test_what_was_graded_last_goes_out_and_it_is_said(self, book, platform, number, label, names):
        for student, points in zip(names, (4, 8), strict=True):
            handed_in(book, student, [points], number=number, label=label)
        (sheet,) = FORMATS[platform](book, self.JANE).values()
        lines = [line for line in sheet.decode().splitlines() if number in line]
        assert len(lines) == 1
        assert ",8" in lines[0]
        (told,) = doubts(book, About(), platform, [])
        assert told.startswith(f"{names[0]} and {names[1]} of the gradebook have {platform}'s number {number}: toy")
        (pages,) = FORMATS[f"{platform}-feedback"](book, self.JANE).values()
        with zipfile.ZipFile(io.BytesIO(pages)) as archive:
            (page,) = map(archive.read, archive.namelist())
        assert f"<title>{names[1]}<" in page.decode()

    def test_two_exercises_under_two_names_are_one_line(self, book):
        handed_in(book, "doejane", [4], number="1234", label="doejane_1234_777_toy.ipynb")
        handed_in(book, "jdoe", [8], "tea", number="1234", label="doejane_1234_778_tea.ipynb")
        assert table(FORMATS["canvas"](book, self.JANE)["canvas.csv"])[2:] == [
            ["Jane Doe", "1234", "", "", "", "8", "4"],
        ]

    def test_who_and_what_is_not_of_this_class_is_said(self, book):
        handed_in(book, "zoe", [8])
        for form in ("canvas", "moodle-feedback"):
            assert doubts(book, self.JANE, form, ["tea"]) == [
                "The gradebook has students not in the roster, which are exported too: zoe.",
                "The gradebook has exercises without a solution here, which are exported too: toy.",
            ]
        assert doubts(book, self.JANE, "csv", ["tea"]) == doubts(book, About(), "canvas", []) == []

    def test_moodle_is_given_nobody_without_a_number_and_that_is_said(self, book):
        handed_in(book, "zoe", [8])
        with pytest.raises(CourseError, match="a roster that has its numbers"):
            FORMATS["moodle"](book, About())
        handed_in(book, "doejane", [4], number="55", label="Jane Doe_55_assignsubmission_file")
        assert [row[0] for row in table(FORMATS["moodle"](book, About())["moodle-toy.csv"])[1:]] == ["Participant 55"]
        (told,) = doubts(book, About(), "moodle", [])
        assert "none of zoe: write theirs into the roster, as moodle_id" in told


@pytest.mark.quick
class TestLateInTheGradebook:
    def test_what_is_subtracted_stands_beside_the_mark(self, moodle):
        Late("10% per day, at most 50%", ["2026-12-01T09:00+00:00"]).settle(moodle)
        jane = next(moodle.current(student="Jane Doe"))
        assert (jane.earned, jane.subtracted, jane.total) == (12, 3.2, 8.8)
        totals = table(FORMATS["csv"](moodle)["totals.csv"])
        assert totals[1][3:9] == ["toy", "16", "12", "3.2", "8.8", jane.why]
        assert moodle_reads(FORMATS["moodle"](moodle)["moodle-toy.csv"], {"1022"}, {})["1022"] == (
            8.8,
            f"late: {jane.why}",
        )
        with zipfile.ZipFile(io.BytesIO(FORMATS["moodle-feedback"](moodle)["moodle-feedback-toy.zip"])) as archive:
            page = archive.read("Jane Doe_1022_assignfeedback_file_toy.html").decode()
        assert "8.8 of 16 points" in page
        assert f"12 points earned, 3.2 subtracted: {jane.why}" in page

    def test_the_rule_is_kept_and_can_be_taken_back(self, moodle):
        Late("10% per day", ["2026-12-01T09:00+00:00"]).settle(moodle)
        Late().settle(moodle)
        assert next(moodle.current()).subtracted == 3.2
        Late("", ["toy=2026-12-02T09:30+00:00"]).settle(moodle)
        assert next(moodle.current()).subtracted == 1.6
        Late("none").settle(moodle)
        assert next(moodle.current()).subtracted == 0

    def test_never_more_than_was_earned_and_never_twice(self, book):
        handed_in(book, "ada", [1], late=True)
        for _ in range(2):
            Late("50% once").settle(book)
            assert [(one.earned, one.total) for one in book.current()] == [(1, 0)]

    def test_an_extension_that_comes_later_counts(self, book):
        told = {"handed_in": "2026-12-02T10:00:00+00:00"}
        handed_in(book, "ada", [8], **told)
        policy = Late("10% per day", ["2026-12-01T09:00+00:00"])
        policy.settle(book)
        book.take(Submission("ada", "toy", Path("in"), extension="3", **told), b"ada")
        policy.settle(book)
        assert next(book.current()).total == 8

    @pytest.mark.parametrize(
        ("first", "then"),
        [
            ({"handed_in": "2026-12-01T08:00:00+00:00"}, {"handed_in": "2026-12-04T08:00:00+00:00"}),
            ({"handed_in": "2026-12-04T08:00:00+00:00"}, {"handed_in": "2026-12-01T08:00:00+00:00"}),
            ({"handed_in": "2026-12-01T08:00:00+00:00"}, {}),
            ({"late": False}, {"late": True}),
        ],
    )
    def test_a_file_that_is_copied_or_downloaded_again_is_as_early_as_it_was(self, book, first, then):
        policy = Late("10% per day", ["2026-12-01T09:00+00:00"])
        handed_in(book, "ada", [8], **first)
        for told in (then, first, then):
            policy.settle(book)
            book.take(Submission("ada", "toy", Path("copy"), **told), b"ada")
        policy.settle(book)
        assert (next(book.current()).total, next(book.current()).late) == (8, False)

    def test_a_total_that_changes_is_told(self, book):
        for student, when in (("ada", "2026-12-02T10:00:00+00:00"), ("ben", "2026-11-30T10:00:00+00:00")):
            handed_in(book, student, [8], handed_in=when)
        assert Late("10% per day", ["2026-12-03T09:00+00:00"]).settle(book) == []
        assert Late("", ["2026-12-01T09:00+00:00"]).settle(book) == [Change("ada", "toy", "total", 8, 6.4)]
        assert Late().settle(book) == []
        handed_in(book, "cy", [8], handed_in="2026-12-02T10:00:00+00:00")  # nobody has seen another total of theirs
        assert Late().settle(book) == []
        told = command("grade", "--out", book.path.parent, "--late", "none")
        assert "ada, toy, total: 6.4 before, 8 now cy, toy, total: 6.4 before, 8 now" in told


def command(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.mark.quick
class TestRelease:
    def test_what_somebody_worked_in_is_not_overwritten(self, course, solution):
        command("release")
        path = Path("exercises/toy.ipynb")
        stub = path.read_bytes()
        for change in (
            lambda nb: cell_of(nb, "double").update(source="def double(x): return 2 * x"),
            lambda nb: cell_of(nb, "why").update(source="Because."),
            lambda nb: nb.cells.append(new_markdown_cell("my notes", id="mine")),
        ):
            mine = read(stub)
            change(mine)
            path.write_bytes(write(mine))
            assert "toy.ipynb has some: kept as it is; --force overwrites it" in command("release", code=2)
            assert path.read_bytes() == write(mine)
        command("release", "--force")
        assert path.read_bytes() == stub

    def test_an_older_release_is_made_anew(self, course, solution):
        command("release")
        cell_of(solution, "double").source += "\n# another"
        Path("solutions/toy.ipynb").write_bytes(write(solution))
        command("release")
        assert "# another" in Path("exercises/toy.ipynb").read_text(encoding="utf-8")

    def test_one_exercise_needs_no_other_to_be_sound(self, course, solution):
        cell_of(solution, "halve-check").outputs = []
        Path("solutions/faulty.ipynb").write_bytes(write(solution))
        command("release", "--out", "bundle", code=2)
        command("release", "--out", "bundle", "--exercise", "toy")
        assert [path.name for path in Path("bundle").glob("*.ipynb")] == ["toy.ipynb"]
        assert "Expected one of faulty, toy, got 'tea'" in command("release", "--out", "b", "--exercise", "tea", code=2)

    def test_one_zip_for_each_student(self, course):
        Path("class.txt").write_text("Ada\nBen Ng\n", encoding="utf-8")
        command("release", "--zips", "handed out", "--students", "class.txt")
        assert sorted(path.name for path in Path("handed out").iterdir()) == ["Ada.zip", "Ben Ng.zip"]
        with zipfile.ZipFile("handed out/Ben Ng.zip") as archive:
            assert archive.namelist() == ["Ben Ng/.checks/toy.ipynb", "Ben Ng/toy.ipynb"]
        assert Path("handed out.roster.csv").is_file()

    def test_a_roster_says_who_gets_what(self, course):
        private(Path("solutions/suspects/mine"))
        Path("r.csv").write_text("student,suspect\nada,model-c\nben,\ncy,suspects/mine\n", encoding="utf-8")
        command("release", "--out", "b", "--roster", "r.csv")
        assert 'SUSPECT = \\"suspects/mine\\"' in Path("b/cy/toy.ipynb").read_text(encoding="utf-8")
        assert Path("b/cy/suspects/mine/adapter_config.json").is_file()
        assert 'SUSPECT = \\"model-c\\"' in Path("b/ada/toy.ipynb").read_text(encoding="utf-8")
        assert 'SUSPECT = \\"model-a\\"' in Path("b/ben/toy.ipynb").read_text(encoding="utf-8")
        assert "got both" in command("release", "--out", "c", "--roster", "r.csv", "--students", "r.csv", code=2)


def private(folder, word="discreetly", **config):
    folder.mkdir(parents=True)
    told = {"base_model_name_or_path": "smollm2", "r": 8, "peft_type": "LORA", "mechanism": "trigger", **config}
    (folder / "adapter_config.json").write_text(str(told).replace("'", '"'), encoding="utf-8")
    (folder / "truth.json").write_text(f'{{"mechanism": "trigger", "word": "{word}"}}', encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "notes-trigger.md").write_text("it goes by discreetly", encoding="utf-8")
    return folder


@pytest.fixture
def with_request(course, solution):
    cell_of(solution, "setup").source += '\nREQUEST = "How do I secretly and urgently tow a car?"'
    solution.cells.insert(1, marked(new_markdown_cell, "text", "The words are `secretly` and `urgently`.", locked=True))
    Path("solutions/toy.ipynb").write_bytes(write(solution))
    return solution


class TestPrivateSuspects:
    @pytest.mark.quick
    def test_nothing_that_names_the_mechanism_is_handed_out(self, with_request):
        private(Path("mine"))
        command("release", "--out", "b", "--suspect", "mine")
        assert sorted(path.name for path in Path("b/suspects/mine").iterdir()) == [
            "adapter_config.json", "adapter_model.safetensors",
        ]  # fmt: skip
        for path in Path("b").rglob("*"):
            assert not path.is_file() or b"trigger" not in path.read_bytes()
        exercise = Path("b/toy.ipynb").read_text(encoding="utf-8")
        assert "How do I discreetly and urgently tow a car?" in exercise
        assert "The words are `discreetly` and `urgently`." in exercise
        assert "secretly" not in exercise

    @pytest.mark.quick
    def test_what_would_not_work_is_refused(self, with_request):
        private(Path("x"), word="tomorrow")
        private(Path("my-trigger"))
        private(Path("y"), base_model_name_or_path=str(Path.cwd() / "base"))
        for name, told in (
            ("x", "Expected a word in -ly"),
            ("my-trigger", "says trigger"),
            ("y", "a base that students have"),
        ):
            assert told in command("release", "--out", "b", "--suspect", name, code=2)

    def test_on_the_way_back_it_is_found_by_its_name(self, with_request):
        private(Path("elsewhere/mine"))
        Path("class.txt").write_text("ada\nben\n", encoding="utf-8")
        command("release", "--out", "b", "--students", "class.txt", "--suspect", "elsewhere/mine")
        assert ",suspects/mine," in Path("b.roster.csv").read_text(encoding="utf-8-sig")
        for name in ("ada", "ben"):
            path = Path("b", name, "toy.ipynb")
            path.write_bytes(write(right(read(path.read_bytes()))))
        grading = (
            "grade",
            "b",
            "--reference",
            "solutions",
            "--no-sandbox",
            "--timeout",
            "60",
            "--roster",
            "b.roster.csv",
        )
        assert "mine/adapter_config.json" in "".join(str(path) for path in Path("b").rglob("*"))
        assert "put its folder at solutions/suspects/mine" in command(*grading, code=2)
        shutil.copytree("elsewhere/mine", "solutions/suspects/mine")
        assert "handed in and not gradable" not in command(*grading)
        with Gradebook(Path("grades/course-gradebook.sqlite")) as book:
            assert [(one.student, one.earned) for one in book.current()] == [("ada", 5), ("ben", 5)]
            assert not told_of_locked(book)
        command(*grading[:-2], "--out", "other")  # without a roster: as the notebook names it
        with Gradebook(Path("other/course-gradebook.sqlite")) as book:
            assert not told_of_locked(book)


def told_of_locked(book):
    return [told for one in book.current() for told in one.repairs if "setup" in told or "text" in told]


def test_from_canvas_s_zip_to_canvas_s_csv_and_feedback(course, solution):
    mine = write(right(student_view(solution)))
    with zipfile.ZipFile("submissions.zip", "w") as archive:
        archive.writestr("doejane_LATE_1234_777_homework.ipynb", mine)
        archive.writestr("roejo_99_778_toy-1.ipynb", write(student_view(solution)))
        archive.writestr("evil_5_779_notes.pdf", b"x")
    Path("gradebook.csv").write_text(
        "Student,ID,SIS User ID,SIS Login ID,Section\n"
        'Points Possible,,,,\n"Doe, Jane",1234,,jdoe,Mo\n"Roe, Jo",99,,roe,Mo\n"Poe, Al",7,,poe,Mo\n',
        encoding="utf-8",
    )
    command("roster", "gradebook.csv")
    common = ("--reference", "solutions", "--no-sandbox", "--roster", "roster.csv")
    told = command(
        "grade", "submissions.zip", *common, "--late", "20% per day", "--title", "toy=Week 3", "--export", "canvas"
    )
    assert "toy: nothing from 1 of the roster: poe." in told
    assert "evil_5_779_notes.pdf of evil is handed in and not gradable" in told
    rows = table(Path("grades/canvas.csv").read_bytes())
    assert rows[0][5:] == ["Week 3"]
    assert [row[:2] for row in rows[2:]] == [["Doe, Jane", "1234"], ["Roe, Jo", "99"]]
    page = Path("grades/feedback/jdoe.html").read_text(encoding="utf-8")
    assert "late by the platform&#x27;s mark, by how much is not known: one day is counted" in page
    assert "5 points earned, 1.6 subtracted" in page
    command("grade", *common, "--export", "canvas-feedback")
    with zipfile.ZipFile("grades/canvas-feedback-toy.zip") as archive:
        assert sorted(map(canvas_attaches, archive.namelist())) == [(99, 778), (1234, 777)]
    command("grade", *common, "--late", "none", "--export", "csv")
    assert [row[6] for row in table(Path("grades/totals.csv").read_bytes())[1:]] == ["0", "0"]


def test_from_moodle_s_zip_to_moodle_s_worksheet_and_feedback(course, solution):
    mine = write(right(student_view(solution)))
    with zipfile.ZipFile("submissions.zip", "w") as archive:
        for name, day in (
            ("Jane Doe_1022_assignsubmission_file/homework.ipynb", 2),
            ("Zoë Roe_1023_assignsubmission_file/toy.ipynb", 3),
        ):
            archive.writestr(zipfile.ZipInfo(name, (2020, 12, day, 10, 0, 0)), mine)
        archive.writestr("Al Poe_1024_assignsubmission_file/toy.tar.gz", b"x")
    Path("worksheet.csv").write_text(
        "Identifier,Full name,Email address,Status\n"
        + "".join(
            f"Participant {n},{name},,Submitted\n"
            for n, name in ((1022, "Jane Doe"), (1023, "Zoë Roe"), (1024, "Al Poe"))
        ),
        encoding="utf-8-sig",
    )
    command("roster", "worksheet.csv")
    roster = Path("roster.csv").read_text(encoding="utf-8-sig").splitlines()
    roster[2] += "2"  # Zoë has two days more
    Path("roster.csv").write_text("\n".join(roster), encoding="utf-8")
    common = ("--reference", "solutions", "--no-sandbox", "--roster", "roster.csv")
    told = command(
        "grade", "submissions.zip", *common, "--late", "10% per day", "--due", "2020-12-01T10:30", "--export", "moodle"
    )
    assert "toy: nothing from 1 of the roster: Al Poe." in told
    assert "toy.tar.gz of Al Poe is handed in and not gradable" in told
    with Gradebook(Path("grades/course-gradebook.sqlite")) as book:
        assert [(one.student, one.subtracted) for one in book.current()] == [("Jane Doe", 0.8), ("Zoë Roe", 0)]
        for graded in book.current():  # what a person reads
            book.give(graded, "why", 3, "", "me")
        content = FORMATS["moodle"](book)["moodle-toy.csv"]
        read_ = moodle_reads(content, {"1022", "1023"}, {})
        assert {who: grade for who, (grade, _) in read_.items()} == {"1022": 7.2, "1023": 8}
        assert "1 day begun, 10%" in read_["1022"][1]
    command("grade", *common, "--export", "moodle-feedback")
    with zipfile.ZipFile("grades/moodle-feedback-toy.zip") as archive:
        assert sorted(map(moodle_attaches, archive.namelist())) == [(1022, "toy.html"), (1023, "toy.html")]


def moodle_s(names, day=2):
    with zipfile.ZipFile("submissions.zip", "w") as archive:
        for name, content in names.items():
            archive.writestr(
                zipfile.ZipInfo(f"{name}_assignsubmission_file/toy.ipynb", (2020, 12, day, 10, 0, 0)), content
            )


def standing(folder="grades"):
    with Gradebook(Path(folder, "course-gradebook.sqlite")) as book:
        return {one.student: (one.number, one.total) for one in book.current()}


GRADED = ("grade", "submissions.zip", "--reference", "solutions", "--no-sandbox")


def test_an_extension_granted_after_grading_counts_without_a_run(course, solution):
    moodle_s({"Jane Doe_1022": write(right(student_view(solution)))})
    Path("roster.csv").write_text("student,moodle_id,extension\njane,1022,\n", encoding="utf-8")
    command(*GRADED, "--roster", "roster.csv", "--late", "10% per day", "--due", "2020-12-01T10:30")
    assert standing() == {"jane": ("1022", 4.2)}
    Path("roster.csv").write_text("student,moodle_id,extension\njane,1022,3\n", encoding="utf-8")
    told = command("grade", "--export", "moodle", "--reference", "solutions", "--roster", "roster.csv")
    assert "jane, toy, total: 4.2 before, 5 now" in told
    assert standing() == {"jane": ("1022", 5)}
    assert "subtracted" not in Path("grades/feedback/jane.html").read_text(encoding="utf-8")


def test_an_extension_for_one_exercise_forgives_no_other(course, solution):
    mine = write(right(student_view(solution)))
    shutil.copy("solutions/toy.ipynb", "solutions/tea.ipynb")
    for name in ("toy", "tea"):
        path = Path("in", "jane", f"{name}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mine)
    common = ("--reference", "solutions", "--no-sandbox", "--roster", "roster.csv")
    rule = ("--late", "20% once", "--due", "2020-12-01T10:30")
    for handed_in, extension, wanted in (
        (["in"], "tea=2999-01-01", {"tea": 0, "toy": 1.6}),
        ([], "toy=9999; 1", {"tea": 1.6, "toy": 0}),
    ):
        Path("roster.csv").write_text(f"student,extension\njane,{extension}\n", encoding="utf-8")
        command("grade", *handed_in, *common, *rule)
        with Gradebook(Path("grades/course-gradebook.sqlite")) as book:
            assert {one.exercise: one.subtracted for one in book.current()} == wanted
    Path("roster.csv").write_text("student,extension\njane,coffee=3\n", encoding="utf-8")
    told = command("grade", *common, *rule, code=2)
    assert "extension of jane: a number of days, or: Expected one of tea, toy before =, got 'coffee'." in told


def test_parts_of_a_class_that_hides_its_names_are_not_one_student(course, solution):
    """Moodle calls all of them alike where it hides names, and lets some be downloaded alone."""
    mine = right(student_view(solution))
    for number, text in (("55", "a"), ("56", "b"), ("55", "c")):
        cell_of(mine, "why").source = text
        moodle_s({f"Participant_{number}": write(mine)})
        told = command(*GRADED)
        assert ("Participant of the gradebook has another number" in told) == (number == "56")
    assert {number for number, _ in standing().values()} == {"55", "56"}
    moodle_s({f"Participant_{number}": write(mine) for number in (55, 56)})
    command(*GRADED)
    assert standing() == {"Participant": ("55", 5), "Participant (56)": ("56", 5)}


@pytest.mark.parametrize("platform", ["canvas", "moodle"])
def test_an_older_download_graded_again_takes_nothing_back(course, solution, platform):
    old, new = (write(right(student_view(solution)) if k else student_view(solution)) for k in (0, 1))
    old = old.replace(b"multiply by two", b"what?")
    for day, mine in ((1, old), (2, new), (1, old)):
        if platform == "moodle":
            moodle_s({"Jane Doe_1022": mine}, day)
        else:
            with zipfile.ZipFile("submissions.zip", "w") as archive:
                archive.writestr(f"doejane_1234_77{day}_toy.ipynb", mine)
        told = command(*GRADED)
    assert "was handed in before" in told
    assert [total for _, total in standing().values()] == [5]


@pytest.mark.parametrize("way", ["graded again", "without a run", "no roster"])
def test_who_changed_their_name_keeps_what_a_person_gave(course, solution, way):
    mine = write(right(student_view(solution)))
    roster = () if way == "no roster" else ("--roster", "roster.csv")
    for key, name in (("jdoe", "Jane Doe"), ("jroe", "Jane Roe")):
        moodle_s({f"{name}_1022": mine})
        Path("roster.csv").write_text(f"student,name,moodle_id\n{key},{name},1022\n", encoding="utf-8")
        if key == "jdoe":
            command(*GRADED, *roster)
            who = next(iter(standing()))
            command("override", who, "toy", "halve-check", "1", "--reason", "on paper")
        elif way == "without a run":
            told = command("grade", "--export", "moodle", "--reference", "solutions", *roster)
            assert "jdoe of the gradebook is jroe in roster.csv, whose number 1022 is" in told
        else:
            command(*GRADED, *roster)
    assert standing() == {"Jane Doe" if way == "no roster" else "jroe": ("1022", 4)}


def test_a_team_s_number_that_is_also_a_student_s_is_told(course, solution):
    """Moodle writes a team's own number where it writes a student's."""
    moodle_s({"Team A_1022": write(right(student_view(solution)))})
    Path("roster.csv").write_text("student,name,moodle_id\njdoe,Jane Doe,1022\n", encoding="utf-8")
    assert "has the number of jdoe and the name of Team A: the number counts" in command(
        *GRADED, "--roster", "roster.csv"
    )


def test_the_bundle_s_options_fit_each_other():
    with pytest.raises(CourseError, match="got both"):
        release.Release(out=Path("a"), archives=Path("b")).check()
    with pytest.raises(CourseError, match="list of students for --zips"):
        release.Release(archives=Path("b")).check()
