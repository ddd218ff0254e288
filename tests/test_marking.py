"""What only a person can judge: read in a terminal or at the desk, saved at once, and nothing that a student wrote runs."""

import csv
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_output

from course_utils import CourseError
from course_utils.cli import main
from course_utils.grading.classroom.commands import check_names, no_longer_asked
from course_utils.grading.classroom.export import as_csv
from course_utils.grading.classroom.feedback import write_feedback
from course_utils.grading.classroom.grade import refused
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.marking import Marking, shown
from course_utils.grading.classroom.marking_widget import class_page, desk
from course_utils.grading.classroom.submissions import Submission, Taken
from course_utils.grading.handout.assignment import faults
from course_utils.grading.marks import Mark
from course_utils.grading.merge import NOT_ASKED, merge
from course_utils.grading.notebook import read, region, student_view, write
from course_utils.grading.result import BROKEN, DONE, Result
from course_utils.grading.rubric import criteria
from tests.shared import a_result, cell_of, hand_in, marked, right, taken, with_sources

pytestmark = pytest.mark.quick
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script> $x$ [a](javascript:alert(3)) **mine**"


@pytest.fixture
def book(tmp_path, solution):
    with Gradebook(tmp_path / "grades" / "course-gradebook.sqlite") as book:
        for number, student in enumerate(["ada", "ben", "cy"]):
            hand_in(book, solution, student, f"Reason {number}")
        yield book


@pytest.fixture
def references(solution, tmp_path):
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    return {"toy": write(solution)}


def given(book):
    return {
        graded.student: [(e.mark.earned, e.comment, e.who) for e in graded.entries if e.mark.check == "why"]
        for graded in book.current()
    }


def test_each_answer_comes_once_and_is_saved_at_once(book, references):
    marking = Marking(book, references, who="kim")
    seen = []
    for _ in range(3):
        answer = marking.answer()
        seen.append(answer.graded.student)
        assert marking.enter("1,5 fine") == f"saved: 1.5 of {answer.points:g}"
        assert given(book)[answer.graded.student] == [(1.5, "fine", "kim")]
    assert sorted(seen) == ["ada", "ben", "cy"]
    assert marking.answer() is None
    with pytest.raises(CourseError, match="Everything has been read"):
        marking.enter("1")
    assert len(Marking(book, references)) == 0
    assert len(Marking(book, references, everything=True)) == 3


def test_back_and_skip(book, references):
    marking = Marking(book, references, who="kim")
    first = marking.answer().graded.student
    marking.enter("s")
    second = marking.answer().graded.student
    marking.enter("0 no reason")
    marking.enter("b")
    assert (marking.answer().graded.student, marking.answer().given) == (second, 0)
    marking.enter("2 on second thoughts")
    marking.enter("b")
    marking.enter("b")
    assert marking.answer().graded.student == first
    assert given(book)[second] == [(2, "on second thoughts", "kim")]
    assert [row["points"] for row in book.history(second, "toy") if row["check"] == "why"] == [0, 2]


@pytest.mark.parametrize("line", ["", "x", "-1", "99", "good 2", "1..2", "nan", "1e9"])
def test_what_says_nothing_saves_nothing(book, references, line):
    marking = Marking(book, references)
    with pytest.raises(CourseError, match="Expected"):
        marking.enter(line)
    assert marking.place == 0
    assert all(points is None for ((points, _, _),) in given(book).values())


def test_two_who_read_at_once_do_not_read_the_same(book, references, tmp_path):
    with Gradebook(book.path) as other:
        kim, lee = Marking(book, references, who="kim"), Marking(other, references, who="lee")
        kim.enter("1")
        lee.enter("2")
        kim.enter("1")
        assert kim.answer() is None
        assert lee.answer() is None
    assert sorted(who for ((_, _, who),) in given(book).values()) == ["kim", "kim", "lee"]


def test_a_text_that_was_changed_meanwhile_waits_again(book, references, solution):
    marking = Marking(book, references)
    student = marking.answer().graded.student
    marking.enter("2")
    hand_in(book, solution, student, "Another reason")
    assert given(book)[student] == [(None, "", "")]
    assert [answer[1] for answer in Marking(book, references)._list].count(student) == 1


def test_question_and_rubric_are_shown_and_the_stub_is_no_answer(book, references, solution):
    hand_in(book, solution, "ada", cell_of(student_view(solution), "why").source)
    answers = []
    marking = Marking(book, references)
    while (answer := marking.answer()) is not None:
        answers.append(answer)
        marking.enter("s")
    assert {answer.graded.student: answer.text for answer in answers}["ada"] == ""
    assert "MARK SCHEME" not in answers[0].rubric
    assert answers[0].rubric


def test_nothing_that_a_student_wrote_does_anything(book, references, solution, tmp_path):
    for student in ("ada", "ben", "cy"):
        hand_in(book, solution, student, SCRIPT + " \x1b[2J\x1b]0;title\x07 \u202e end")
    page = desk(tmp_path / "grades", reference=tmp_path / "solutions").answer.value
    assert "<strong>mine</strong>" in page
    assert not any(bad in page for bad in ("<script", "<img", "javascript:", "href"))
    done = CliRunner().invoke(
        main, ["mark", "--out", str(tmp_path / "grades"), "--reference", str(tmp_path / "solutions")]
    )
    assert "[2J" in done.output
    assert not any(bad in done.output for bad in ("\x1b[2J", "\x1b]", "\x07", "\u202e"))
    assert shown("a\tb\nc\x9b1m") == "a\tb\nc�1m"


def press_enter(desk, line):
    """What JupyterLab does, from a thread of its own: it says that Enter was pressed, then sends what is new."""

    def press():
        desk._message(desk.line, {"event": "submit"}, [])
        desk.line.value = line
        time.sleep(1)

    thread = Thread(target=press)
    thread.start()
    thread.join()


def test_the_desk_saves_with_enter_and_with_its_buttons(book, references, tmp_path):
    shown_ = desk(tmp_path / "grades", reference=tmp_path / "solutions", who="kim", names=True)
    press_enter(shown_, "1 good")
    assert "saved: 1" in shown_.status.value
    assert shown_.line.value == ""
    shown_.line.value = "0 typed, and then the line was left"
    assert len([entry for entry in given(book).values() if entry[0][0] is not None]) == 1
    press_enter(shown_, "nothing")
    assert "Not saved" in shown_.status.value
    assert shown_.line.value == "nothing"
    shown_.line.value = "a comment"
    next(button for button in shown_.buttons.children if button.description == "2").click()
    press_enter(shown_, "3 and once more, unchanged")
    assert "Everything has been read" in shown_.answer.value
    marks = sorted(entry[0][:2] for entry in given(book).values())
    assert marks == [(1, "good"), (2, "a comment"), (3, "and once more, unchanged")]


def test_without_a_gradebook_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "found none; make one: course grade" in desk("grades").children[0].value
    assert "found none; make one: course grade" in class_page("grades").value
    done = CliRunner().invoke(main, ["mark"])
    assert done.exit_code == 2
    assert "Expected a gradebook in grades, found none" in " ".join(done.output.split())
    assert not (tmp_path / "grades").exists()


def test_the_terminal_reads_until_q_and_writes_the_feedback(book, references, tmp_path):
    command = ["mark", "--out", str(tmp_path / "grades"), "--reference", str(tmp_path / "solutions"), "--who", "kim"]
    done = CliRunner().invoke(main, command, input="99\n2 well said\nq\n", catch_exceptions=False)
    assert "Expected 0 to 3 points" in done.output
    assert "2 left to read" in done.output
    assert sum("well said" in page.read_text() for page in (tmp_path / "grades" / "feedback").iterdir()) == 1
    again = CliRunner().invoke(main, [*command, "--exercise", "tea"])
    assert "Expected one of toy, got 'tea'" in " ".join(again.output.split())


def test_how_the_class_did(book, references, tmp_path):
    page = class_page(tmp_path / "grades", tmp_path / "solutions").value
    assert "double-check" in page


RUBRIC = """### BEGIN SOLUTION
A secret model answer.
### BEGIN MARK SCHEME
3 points in all:
- **Names it** (1): the secret word.
- [ ] 1.5 points: says why
  on two lines.
* 0,5 point for style
- nothing to be had here
### END MARK SCHEME
### END SOLUTION"""
TICKS = [("Names it", 1.0), ("says why", 1.5), ("for style", 0.5)]


@pytest.fixture
def with_rubric(book, solution, tmp_path):
    """The same class, whose question has a rubric of three criteria."""
    cell_of(solution, "why").source = RUBRIC
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    return {"toy": write(solution)}


def ticks_in(book, student):
    (graded,) = book.current(student=student)
    (entry,) = [entry for entry in graded.entries if entry.mark.check == "why"]
    return entry.mark.earned, [(tick.criterion, tick.given) for tick in entry.ticks], entry.comment


@pytest.mark.parametrize(
    ("line", "saved"),
    [
        ("+1 +3 well said", (1.5, [1, 0, 0.5], "well said")),
        ("+1  +2=0.75", (1.75, [1, 0.75, 0], "")),
        ("+2=0,5 +2 twice", (1.5, [0, 1.5, 0], "twice")),
        ("+0 nothing of it", (0, [0, 0, 0], "nothing of it")),
        ("2 by no criterion", (2, [], "by no criterion")),
    ],
)
def test_criteria_are_ticked_and_the_points_follow(book, with_rubric, line, saved):
    marking = Marking(book, with_rubric, who="kim")
    answer = marking.answer()
    assert [(one.name, one.points) for one in answer.criteria] == TICKS
    assert (answer.model, answer.suspect) == ("A secret model answer.", "model-a")
    points, given, comment = saved
    assert marking.enter(line) == f"saved: {points:g} of 3"
    ticks = [(name, had) for (name, _), had in zip(TICKS, given, strict=False)]
    assert ticks_in(book, answer.graded.student) == (points, ticks, comment)


@pytest.mark.parametrize("line", ["+4", "+1=2", "+", "+x", "+1 +2=", "+1 -1=", "+1=", "++1"])
def test_ticks_that_say_nothing_save_nothing(book, with_rubric, line):
    marking = Marking(book, with_rubric)
    student = marking.answer().graded.student
    if line == "+1 -1=":  # a comment may begin with anything
        assert marking.enter(line) == "saved: 1 of 3"
        return
    with pytest.raises(CourseError, match="Expected"):
        marking.enter(line)
    assert ticks_in(book, student)[0] is None


def test_ticks_are_shown_again_and_to_the_student_without_the_rubric(book, with_rubric, tmp_path):
    options = ["--out", str(tmp_path / "grades"), "--reference", str(tmp_path / "solutions"), "--names"]
    done = CliRunner().invoke(main, ["mark", *options], input="+1 +2=0.5 fine\nb\nq\n", catch_exceptions=False)
    assert "A secret model answer." in done.output
    assert ", about model-a" in done.output
    assert "+2  says why (1.5)" in done.output
    assert "+2  says why (1.5; it has 0.5)" in done.output
    (page,) = [p.read_text() for p in (tmp_path / "grades" / "feedback").iterdir() if "fine" in p.read_text()]
    assert "<li>Names it: given, 1 of 1</li><li>says why: in part, 0.5 of 1.5</li>" in page
    assert "<li>for style: not given, 0 of 0.5</li>" in page
    assert "secret" not in page


def test_the_rubrics_of_the_course_add_up():
    folder = Path(__file__).resolve().parent.parent / "solutions"
    found = 0
    for path in folder.glob("*.ipynb"):
        for cell in read(path.read_bytes()).cells:
            if rubric := region(cell.source, "MARK SCHEME"):
                assert sum(one.points for one in criteria(rubric)) == cell.metadata.nbgrader.points, rubric
                found += 1
    assert found >= 2


@pytest.mark.parametrize(
    "line", ["- (1)", "- ****(2): x", "-", "- 3", "- points", "text (1)", "-" * 9000, "- " + "(" * 9000]
)
def test_a_line_that_is_no_criterion_is_none(line):
    assert criteria(line) == ()


def test_the_desk_has_a_box_for_each_criterion(book, with_rubric, tmp_path):
    shown_ = desk(tmp_path / "grades", reference=tmp_path / "solutions", who="kim", names=True)
    assert "A secret model answer" in shown_.answer.value
    assert "about model-a" in shown_.answer.value
    assert [box.description for box in shown_.boxes.children] == [
        "1 Names it (1)",
        "2 says why (1.5)",
        "3 for style (0.5)",
    ]
    shown_.boxes.children[0].value = shown_.boxes.children[2].value = True
    assert "1.5 of 3, not saved yet" in shown_.status.value
    first = shown_._marking.answer().graded.student
    press_enter(shown_, "a comment alone")
    assert ticks_in(book, first) == (1.5, [("Names it", 1), ("says why", 0), ("for style", 0.5)], "a comment alone")
    assert not any(box.value for box in shown_.boxes.children)
    shown_.boxes.children[1].value = True
    second = shown_._marking.answer().graded.student
    next(button for button in shown_.buttons.children if button.description == "save what is ticked").click()
    assert ticks_in(book, second)[0] == 1.5
    shown_.enter("b")
    assert [box.value for box in shown_.boxes.children] == [False, True, False]
    shown_.enter("s")
    shown_.boxes.children[1].value = True
    press_enter(shown_, "0 points typed count")
    assert sorted(entry[0][0] for entry in given(book).values()) == [0, 1.5, 1.5]


DRAWN = """### BEGIN SOLUTION
# NEXT: draw a bar for each
bars(model)
### BEGIN MARK SCHEME
# - **Axis** (1): named
# - [ ] 2 points: a bar for each
### END MARK SCHEME
### END SOLUTION"""


def test_a_figure_that_a_person_reads_is_shown_with_its_code_and_its_rubric_in_comments_is_ticked(
    book, solution, tmp_path
):
    solution.cells.append(marked(new_code_cell, "bars", DRAWN, grade=True, solution=True, points=3))
    assert faults(solution) == []
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    notebook = with_sources(student_view(solution), bars="# mine\nbars(1)")
    cell_of(notebook, "bars").outputs = [new_output("display_data", {"image/png": "AAAA"})]
    for student, handed_in in (("dan", notebook), ("eve", student_view(solution))):
        number = taken(book, student, student.encode())
        mark = Mark("bars", "bars", 3.0, None, "to be read")
        book.record(number, "r", "v", Result(DONE, (mark,), (), (), write(handed_in), 0.0))
    marking = Marking(book, {"toy": write(solution)})
    answers = {}
    while (answer := marking.answer()) is not None:
        answers |= {answer.graded.student: answer} if answer.check == "bars" else {}
        marking.enter("s")
    assert [(one.name, one.points) for one in answers["dan"].criteria] == [("Axis", 1), ("a bar for each", 2)]
    assert (answers["dan"].text, answers["eve"].text) == ("# mine\nbars(1)", "")
    shown_ = desk(tmp_path / "grades", reference=tmp_path / "solutions", names=True)
    pages = []
    for _ in range(len(shown_._marking)):
        pages.append(shown_.answer.value)
        shown_.enter("s")
    (above,) = [page.partition("The whole notebook")[0] for page in pages if "toy, bars" in page and ", dan" in page]
    assert "<pre># mine\nbars(1)</pre><img" in above
    assert "<pre># NEXT: draw a bar for each\nbars(model)</pre>" in above
    done = CliRunner().invoke(
        main, ["mark", "--out", str(tmp_path / "grades"), "--reference", str(tmp_path / "solutions")], input="s\n" * 9
    )
    assert "(1 figures drawn: see the feedback page, or the grading desk)" in done.output


def test_what_could_not_be_run_is_no_answer_to_read_and_tells_nothing_of_checks(book, references, solution, tmp_path):
    number = taken(book, "dan", b"dan")
    hidden = {"double-hidden"}
    book.record(number, "r", "v", refused(references["toy"], "no model here", BROKEN), hidden)
    assert "dan" not in [one[1] for one in Marking(book, references)._list]
    write_feedback(book, tmp_path / "pages")
    page = (tmp_path / "pages" / "dan.html").read_text()
    assert "no marks yet" in page
    for untrue in ("fails on inputs", "as it was run", "no model here"):
        assert untrue not in page
    rows = list(csv.DictReader(as_csv(book)["grades.csv"].decode("utf-8-sig").splitlines()))
    assert [row["earned"] for row in rows if row["student"] == "dan"] == [""] * 4
    (dan,) = book.current(student="dan")
    assert dan.unread == 0


def test_a_hidden_check_of_what_is_not_answered_or_too_slow_says_no_more_than_that(book, tmp_path):
    number = taken(book, "dan", b"dan")
    told = enumerate(("not answered", "too slow"))
    marks = [Mark("a", f"a-{k}", 1.0, 0.0, status, message="4567") for k, status in told]
    book.record(number, "r", "v", replace(a_result(), marks=tuple(marks)), {"a-0", "a-1"})
    write_feedback(book, tmp_path / "pages")
    page = (tmp_path / "pages" / "dan.html").read_text()
    assert "fails on inputs" not in page
    assert "4567" not in page
    assert "takes too long on inputs that you do not see" in page


def test_an_item_that_was_renamed_since_is_told_with_what_to_write_and_keeps_what_was_given(book, references, solution):
    marking = Marking(book, references, who="kim")
    marking.enter("2 fine")
    given_to = next(iter(student for student, told in given(book).items() if told == [(2, "fine", "kim")]))
    mine = right(student_view(solution))
    cell_of(mine, "why").metadata.nbgrader.checksum = "of the stub"
    cell_of(solution, "why").metadata.nbgrader.grade_id = cell_of(solution, "why").id = "reason"
    merged = merge(solution, mine)
    assert f"Cell why {NOT_ASKED}." in merged.repairs
    assert merge(solution, student_view(solution)).repairs == []
    for student in ("ada", "dan"):
        result = replace(a_result(1.0), repairs=tuple(merged.repairs))
        book.record(taken(book, student, student.encode()), "r2", "v", result)
    (told,) = no_longer_asked(book, {"toy": write(solution)})
    assert told.startswith(f"toy: the solution has no why, which {len({given_to, 'ada', 'dan'})} answered or got marks")
    assert "give its cell that grade_id back" in told
    assert no_longer_asked(book, references) == []


def test_what_was_read_is_called_so_in_the_table(book, references):
    Marking(book, references).enter("2")
    rows = csv.DictReader(as_csv(book)["grades.csv"].decode("utf-8-sig").splitlines())
    assert sorted(row["status"] for row in rows if row["check"] == "why") == ["read", "to be read", "to be read"]


def test_an_exercise_that_was_renamed_is_told_before_its_marks_count_twice(book, references, solution):
    again = Taken((Submission("ada", "tea", Path("x")),), (), ())
    with pytest.raises(
        CourseError, match=r"tea has the checks of toy, .*: call its file toy.ipynb again, or name .*--out"
    ):
        check_names(book, again, {"tea": references["toy"]})
    other = with_sources(solution, halve_check="print(halve(5))")
    for allowed in ({"tea": references["toy"], "toy": references["toy"]}, {"tea": write(other)}):
        check_names(book, again, allowed)
    hand_in_as = replace(a_result(1.0), notebook=references["toy"])
    book.record(book.take(Submission("ada", "tea", Path("x")), b""), "r", "v", hand_in_as)
    check_names(book, again, {"tea": references["toy"]})  # it has marks under its new name already
