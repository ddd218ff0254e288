"""A class graded: marks that stay, runs that are stopped, what goes back to students and out to other programs."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell

from course_utils import CourseError
from course_utils.cli import main
from course_utils.grading.classroom import grade as grading
from course_utils.grading.classroom.export import FORMATS, statistics
from course_utils.grading.classroom.feedback import page, write_feedback
from course_utils.grading.classroom.grade import grade, grade_one, refused
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.submissions import take
from course_utils.grading.marks import Mark
from course_utils.grading.notebook import student_view, write
from course_utils.grading.result import BROKEN, DONE, REFUSED, Limits, Result
from course_utils.grading.runner.pytest_server import nothing_begins
from course_utils.grading.runner.run import run
from tests.shared import EVIL, HIDDEN, SAFE, a_result, cell_of, needs_sandbox, right, taken, with_sources

LIMITS = Limits(cell_seconds=5, total_seconds=40, memory_bytes=1_000_000_000)
MARKS = {
    "ada": [2, 1, 2, None],
    "ben": [2, 1, 0, None],
    "cy": [0, 0, 2, None],
    "dan": [0, 0, 0, None],
    "eve": [0, 0, 0, None],
}


@pytest.fixture
def submitted(solution, tmp_path):
    """A class of five: right, wrong, one that ends its kernel, no notebook, untouched."""
    stub = student_view(solution)
    mine = {
        "ada": right(stub),
        "ben": with_sources(right(stub), halve="def halve(x): return x // 2"),
        "cy": with_sources(right(stub), double="def double(x): raise SystemExit('bye')"),
        "eve": stub,
    }
    for student, notebook in mine.items():
        (tmp_path / "in" / student).mkdir(parents=True)
        (tmp_path / "in" / student / "toy.ipynb").write_bytes(write(notebook))
    (tmp_path / "in" / "dan").mkdir()
    (tmp_path / "in" / "dan" / "toy.ipynb").write_text("{ not a notebook")
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    return tmp_path / "in"


def marks_in(book):
    return {graded.student: [entry.mark.earned for entry in graded.entries] for graded in book.current()}


@needs_sandbox
class TestGrade:
    def test_a_class_is_graded_once_and_again_only_where_something_changed(self, submitted, book, solution):
        toy = {"toy": write(solution)}
        seen = []
        report = grade(take(submitted, ["toy"]), book, toy, limits=LIMITS, progress=lambda: seen.append(1))
        assert (report.graded, report.known, report.broken, report.left) == (5, 0, [], ())
        assert len(seen) == 5
        assert marks_in(book) == MARKS
        assert {g.student: g.status for g in book.current()}["dan"] == REFUSED

        again = grade(take(submitted, ["toy"]), book, toy, limits=LIMITS)
        assert (again.graded, again.known) == (0, 5)

        (submitted / "eve" / "toy.ipynb").write_bytes((submitted / "ada" / "toy.ipynb").read_bytes())
        later = grade(take(submitted, ["toy"]), book, toy, limits=LIMITS)
        assert (later.graded, later.known, later.changes) == (1, 4, [])
        assert marks_in(book)["eve"] == MARKS["ada"]

        whole = cell_of(solution, "halve").source.replace("x / 2", "x // 2")  # as ben divides, and nobody else
        mended = with_sources(solution, halve=whole, halve_check="print(halve(4), halve(-6))")
        cell_of(mended, "halve-check").outputs[0].text = "2 -3\n"
        report = grade(take(submitted, ["toy"]), book, {"toy": write(mended)}, limits=LIMITS)
        assert (report.graded, report.known) == (5, 0)
        told = {(change.student, change.check): (change.before, change.after) for change in report.changes}
        assert told == {
            ("ada", "halve-check"): (2, 0),
            ("ben", "halve-check"): (0, 2),
            ("cy", "halve-check"): (2, 0),
            ("eve", "halve-check"): (2, 0),
        }
        assert [row["points"] for row in book.history("ben", "toy") if row["check"] == "halve-check"] == [0, 2]

    def test_where_the_solution_fails_too_nobody_loses_a_mark_and_the_next_run_tries_again(
        self, submitted, book, solution
    ):
        lacks = with_sources(solution, setup="from nowhere import model", double_check="model\n" + SAFE)
        report = grade(take(submitted, ["toy"]), book, {"toy": write(lacks)}, limits=LIMITS)
        assert {told.partition(",")[0] for told in report.broken} == {"ada", "ben", "cy", "eve"}  # dan's is no notebook
        for told in report.broken:
            assert "The solution itself does not pass here" in told
            assert "name 'model' is not defined; setup, above, stopped: ModuleNotFoundError: No module named" in told
            assert told.endswith("; mend that, and run this again.")
        assert [one.student for one in book.current() if one.status != BROKEN] == ["dan"]

        report = grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=LIMITS)
        assert (report.graded, report.broken, marks_in(book)) == (5, [], MARKS)

    def test_the_reason_that_a_solution_fails_is_told_once_to_those_who_teach_and_no_mark_goes_out(
        self, submitted, solution, tmp_path
    ):
        lacks = with_sources(solution, double_hidden=HIDDEN.replace("print", "raise ValueError('a secret'); print"))
        lacks.cells = [cell for cell in lacks.cells if cell.id != "why"]  # nothing waits for a person
        (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(lacks))
        out = tmp_path / "out"
        command = ["grade", str(submitted), "--reference", str(tmp_path / "solutions"), "--out", str(out)]
        done = CliRunner().invoke(main, [*command, "--export", "canvas"])
        assert done.exit_code == 1
        (told,) = [line for line in done.output.splitlines() if "does not pass here" in line]
        assert "and 3 more: " in told
        assert "(double-hidden: the check stopped: ValueError: a secret); mend that" in told
        assert "1 graded, 0 had their marks, 0 files left, 4 could not be run" in done.output  # dan's is no notebook
        rows = dict(row[::5] for row in csv.reader(io.StringIO((out / "canvas.csv").read_text("utf-8-sig"))))
        assert {who: rows[who] for who in ("ada", "ben", "dan")} == {"ada": "", "ben": "", "dan": "0"}
        page = (out / "feedback" / "ada.html").read_text("utf-8")
        assert "toy: no marks yet" in page
        assert "secret" not in page
        assert "solution" not in page.lower()

    def test_where_the_model_cannot_be_had_that_is_said_once(self, submitted, solution, tmp_path):
        loads = with_sources(solution, setup="from course_utils import load_model")
        (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(loads))
        (tmp_path / "file").touch()
        command = ["grade", str(submitted), "--reference", str(tmp_path / "solutions"), "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(main, command, env={"COURSE_CACHE": str(tmp_path / "file")})
        assert (done.exit_code, done.output.count("set the environment variable COURSE_CACHE")) == (2, 1)
        assert "could not be run" not in done.output

    def test_where_no_notebook_can_be_read_nobody_is_refused(self, submitted, book, solution, monkeypatch):
        def none(*_):
            raise CourseError("Expected something that can be read, and it takes too much memory.")

        monkeypatch.setattr(grading.limited, "within", none)
        report = grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=LIMITS)
        assert (report.graded, len(report.broken)) == (0, 5)

    def test_whose_notebook_cannot_be_opened_keeps_their_mark(self, submitted, book, solution, monkeypatch):
        assert grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=LIMITS).broken == []
        closed, opened = str(submitted / "ada" / "toy.ipynb"), os.open

        def refused_to_all(path, *arguments, **options):  # a mode keeps nobody out who is root
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return opened(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refused_to_all)
        report = grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=LIMITS, force=True)
        assert [told for told in report.broken if told.startswith("ada, toy: ") and "Permission denied" in told]
        assert (report.graded, len(report.broken), marks_in(book)) == (4, 1, MARKS)

    @pytest.mark.slow
    def test_a_run_that_is_killed_goes_on_where_it_was(self, submitted, tmp_path, solution):
        for number in range(4):
            shutil.copytree(submitted / "ada", submitted / f"zoe{number}")
        path = tmp_path / "out" / "course-gradebook.sqlite"
        command = [sys.executable, "-c", "from course_utils.cli import main; main()", "grade", str(submitted)]
        command += ["--out", str(path.parent), "--reference", str(tmp_path / "solutions"), "--jobs", "1"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while _results(path) < 2:
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        done = _results(path)
        assert 2 <= done < 9
        with Gradebook(path) as book:
            report = grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=LIMITS)
            assert (report.graded, report.known) == (9 - done, done)
            assert marks_in(book) == MARKS | {f"zoe{number}": MARKS["ada"] for number in range(4)}

    def test_ctrl_c_keeps_what_is_done_and_leaves_nothing_running(self, submitted, book, solution):
        (submitted / "ada" / "toy.ipynb").write_bytes(
            write(with_sources(student_view(solution), double="import time\ntime.sleep(100)"))
        )

        def stop():
            raise KeyboardInterrupt

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            grade(
                take(submitted, ["toy"]), book, {"toy": write(solution)}, limits=Limits(60, 90), progress=stop, jobs=2
            )
        assert time.monotonic() - began < 30
        assert len(marks_in(book)) == 1

    def test_while_all_is_ended_nothing_begins(self, solution):
        mine = write(student_view(solution))
        with nothing_begins(), pytest.raises(RuntimeError, match="nothing begins"):
            run(write(solution), mine)
        assert run(write(solution), mine).status == DONE


def _results(path):
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM result").fetchone()[0]
    except sqlite3.Error:
        return 0


@needs_sandbox
@pytest.mark.slow
def test_on_a_cluster_that_loses_a_worker_the_marks_are_the_same(submitted, book, solution):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp"
    ) as cluster:
        killed = []

        def kill():
            if not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        report = grade(
            take(submitted, ["toy"]),
            book,
            {"toy": write(solution)},
            limits=LIMITS,
            scheduler=cluster.scheduler_address,
            progress=kill,
        )
    assert killed
    assert (report.graded, report.broken) == (5, [])
    assert marks_in(book) == MARKS


def test_without_a_cluster_it_says_so(submitted, book, solution):
    with pytest.raises(CourseError, match="Expected a Dask scheduler at nowhere"):
        grade(take(submitted, ["toy"]), book, {"toy": write(solution)}, scheduler="nowhere")


@pytest.mark.quick
class TestGradebook:
    def test_what_is_recorded_is_there_for_the_next_who_opens_it(self, book):
        number = taken(book, number="17", late=True)
        assert not book.is_graded(number, "r", "v")
        book.record(number, "r", "v", a_result(2.0, 0.0), {"a1"})
        with Gradebook(book.path) as other:
            assert other.is_graded(number, "r", "v")
            assert not other.is_graded(number, "r2", "v")
            assert not other.is_graded(number, "r", "v2")
            (graded,) = other.current()
        assert (graded.student, graded.number, graded.late, graded.earned, graded.points) == ("ada", "17", True, 2, 4)
        assert [entry.hidden for entry in graded.entries] == [False, True]
        assert graded.repairs == ("mended",)

    def test_the_last_submission_counts_also_one_that_was_there_before(self, book):
        for content, earned in ((b"1", 2.0), (b"2", 0.0)):
            book.record(taken(book, content=content), "r", "v", a_result(earned))
            assert next(book.current()).earned == earned
        assert book.is_graded(taken(book, content=b"1"), "r", "v")
        assert next(book.current()).earned == 2

    def test_what_could_not_be_run_is_tried_again_and_replaces_nothing(self, book):
        number = taken(book)
        book.record(number, "r", "v", a_result(0.0, status=BROKEN))
        assert not book.is_graded(number, "r", "v")
        assert book.record(number, "r", "v", a_result(2.0)) == []
        book.record(number, "r", "v2", a_result(0.0, status=BROKEN))
        assert next(book.current()).earned == 2

    def test_two_who_write_at_once_lose_nothing(self, book):
        def write_many(name):
            with Gradebook(book.path) as own:
                for k in range(40):
                    own.record(taken(own, f"{name}{k}"), "r", "v", a_result(2.0))

        threads = [threading.Thread(target=write_many, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(book.current())) == 120

    def test_what_a_person_gives_holds_for_the_text_that_was_read(self, book, solution):
        def record(text, content):
            notebook = write(with_sources(solution, why=text))
            marks = (Mark("why", "why", 3.0, None, "to be read"),)
            book.record(taken(book, content=content), "r", "v", Result("done", marks, (), (), notebook, 1.0))
            return next(book.current())

        graded = record("because", b"1")
        assert (graded.unread, graded.earned) == (1, 0)
        book.give(graded, "why", 2.5, "say more", "Prof. X")
        entry = record("because", b"2").entries[0]
        assert (entry.mark.earned, entry.comment, entry.who) == (2.5, "say more", "Prof. X")
        assert record("for another reason", b"3").unread == 1
        book.give(next(book.current()), "why", 3.0, "", "Prof. X")
        assert [row["points"] for row in book.history("ada", "toy")] == [2.5, 3.0]
        for points, name, told in ((4, "why", "0 to 3"), (-1, "why", "0 to 3"), (1, "what", "an item of toy")):
            with pytest.raises(CourseError, match=told):
                book.give(graded, name, points, "", "Prof. X")

    @pytest.mark.parametrize(("content", "told"), [(b"not a database" * 100, "cannot be opened"), (None, "format 2")])
    def test_another_file_is_refused(self, tmp_path, content, told):
        path = tmp_path / "g.db"
        if content is None:
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 7")
        else:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(CourseError, match=told):
            Gradebook(path)
        assert path.read_bytes() == before

    def test_a_change_that_fails_leaves_nothing_half_written(self, book):
        number = taken(book)
        broken = a_result(2.0, 2.0)
        with pytest.raises(sqlite3.Error):
            book.record(number, "r", "v", Result("done", (*broken.marks, Mark("a", None, 1, 1, "")), (), (), b"", 1.0))
        assert list(book.current()) == []


@pytest.mark.quick
class TestExport:
    @pytest.fixture
    def filled(self, book):
        book.record(taken(book, "=cmd|' /C calc'!A0", number="5"), "r", "v", a_result(2.0, None))
        book.record(taken(book, "Ben", number="6"), "r", "v", a_result(0.0, 2.0))
        book.record(taken(book, "Cy", number="7"), "r", "v", a_result(2.0, 0.0))
        return book

    @pytest.mark.parametrize("form", [form for form in FORMATS if not form.endswith("feedback")])
    @pytest.mark.parametrize("mark", [",", ";", "\t"])  # at which a spreadsheet ends a cell: it depends on the country
    def test_no_cell_is_a_formula(self, filled, form, mark):
        filled.give(next(filled.current(student="Ben")), "a1", None, "so;=1+1\n+1\t@x", "me")
        for content in FORMATS[form](filled).values():
            for row in csv.reader(io.StringIO(content.decode("utf-8-sig")), delimiter=mark):
                assert not any(cell.startswith(("=", "+", "@")) for cell in row)

    def test_canvas_and_moodle_get_totals_and_nothing_where_a_person_has_not_read(self, filled):
        canvas = list(csv.reader(io.StringIO(FORMATS["canvas"](filled)["canvas.csv"].decode("utf-8-sig"))))
        assert canvas[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "toy"]
        assert [(row[1], row[-1]) for row in canvas[1:]] == [("", "4"), ("5", ""), ("6", "2"), ("7", "2")]
        moodle = list(csv.DictReader(io.StringIO(FORMATS["moodle"](filled)["moodle-toy.csv"].decode("utf-8-sig"))))
        assert [(row["Identifier"], row["Grade"]) for row in moodle] == [
            ("Participant 5", ""), ("Participant 6", "2"), ("Participant 7", "2"),
        ]  # fmt: skip

    def test_the_history_has_every_mark_and_whose_it_is(self, filled):
        ben = next(filled.current(student="Ben"))
        filled.give(ben, ben.entries[0].mark.check, None, "=a comment", "Prof. X")
        rows = list(csv.DictReader(io.StringIO(FORMATS["history"](filled)["history.csv"].decode("utf-8-sig"))))
        assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
        assert [(row["earned"], row["by"], row["comment"]) for row in rows if row["student"] == "Ben"] == [
            ("0", "v", "done"), ("2", "v", "done"), ("", "Prof. X", "'=a comment"),
        ]  # fmt: skip

    def test_statistics_tell_attempts_pass_rate_and_mistake(self, filled):
        first, second = statistics(filled.current())
        assert (first.check, first.students, first.attempts, round(first.passed, 2), first.mistake) == (
            "a0",
            3,
            3,
            0.67,
            "no",
        )
        assert (second.check, second.attempts, second.passed) == ("a1", 2, 0.5)


@pytest.mark.quick
class TestFeedback:
    @pytest.fixture
    def graded(self, book, solution):
        notebook = with_sources(
            solution, why=f"My **reason**\n\n{EVIL}\n\n[x](javascript:alert(1)) ![y](http://e/y.png)"
        )
        notebook.cells.append(new_code_cell("1", outputs=[
            nbformat.v4.new_output("display_data", {"text/html": EVIL, "image/svg+xml": f"<svg>{EVIL}</svg>"}),
            nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)", "text/plain": EVIL}),
            nbformat.v4.new_output("display_data", {"image/png": 'iVBORw0KGgo="><script>alert(1)</script>'}),
            nbformat.v4.new_output("stream", text=EVIL), nbformat.v4.new_output("error", ename=EVIL, evalue=EVIL),
        ]))  # fmt: skip
        notebook.cells.append(new_markdown_cell(EVIL))
        marks = (
            Mark("double", "double-check", 2, 0, "failed", "3.0 -8", EVIL, EVIL),
            Mark("double", "double-hidden", 1, 0, "failed", "9134", "secret-input-4567", "secret-input-4567"),
            Mark("why", "why", 3, None, "to be read"),
        )
        book.record(
            taken(book, EVIL),
            "r",
            "v",
            Result("done", marks, (EVIL,), (EVIL,), write(notebook), 1.0),
            {"double-hidden"},
        )
        return next(book.current())

    def test_nothing_in_it_runs_or_loads(self, book, graded):
        html = page(graded.student, [(graded, write(book.notebook(graded.result)))]).decode()
        for tag in ("<script", "<iframe", "<a ", "<svg", "<img src=x", "onerror=alert(1)>", "http://e"):
            assert tag not in html.replace("&lt;", "?")
        assert html.count("<img") == html.count('src="data:image/png;base64,') == 1
        assert html.index("Content-Security-Policy") < html.index("<title>")
        assert "<strong>reason</strong>" in html
        assert "default-src 'none'" in html

    def test_nothing_of_a_hidden_check_is_in_it(self, book, graded):
        html = page(graded.student, [(graded, write(book.notebook(graded.result)))]).decode()
        for secret in ("4567", "9134", HIDDEN.splitlines()[2], "secret rubric"):
            assert secret not in html
        assert "further checks" in html
        assert SAFE.splitlines()[1] in html.replace("&#x27;", "'")

    def test_comments_and_names_of_any_kind(self, book, graded, tmp_path):
        book.give(graded, "why", 2.0, "well <put>", "Prof. X")
        for student in ("../../etc/passwd", "a/b", "a\\b", "Zoë", "ZOË"):
            book.record(taken(book, student), "r", "v", a_result(2.0))
        assert write_feedback(book, tmp_path / "f") == 6
        names = sorted(path.name for path in (tmp_path / "f").iterdir())
        assert len({name.casefold() for name in names}) == 6
        assert [path.name for path in tmp_path.iterdir() if path.name not in ("f", "grades")] == []
        html = next(p.read_text() for p in (tmp_path / "f").iterdir() if "reason" in p.read_text())
        assert "well &lt;put&gt;" in html
        assert "of 6 points<" in html


@pytest.mark.quick
class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "Expected a folder or zip file of submissions, or --export"),
            (["nowhere"], "Expected a folder or a zip file of submissions, got nowhere"),
            (["--export", "csv"], "Expected a gradebook"),
            (["in", "--exercise", "tea"], "Expected one of toy, got 'tea'"),
            (["in", "--reference", "in"], "Expected the solutions in in"),
            (["in", "--memory", "much"], "Expected a size such as 4GB"),
            (["in", "--suspects", "nothing.csv"], "Expected a roster in nothing.csv"),
        ],
    )
    def test_what_cannot_be_done_is_told(self, submitted, monkeypatch, arguments, told):
        monkeypatch.chdir(submitted.parent)
        reference = [] if "--reference" in arguments else ["--reference", "solutions"]
        done = CliRunner().invoke(main, ["grade", *arguments, *reference])
        assert done.exit_code == 2
        assert told in " ".join(done.output.split())
        assert not (submitted.parent / "grades").exists()

    def test_without_a_sandbox_nothing_runs_unless_asked_for(self, submitted, monkeypatch, tmp_path):
        monkeypatch.chdir(submitted.parent)
        monkeypatch.setattr("course_utils.grading.sandbox.bubblewrap.trouble", lambda: "bubblewrap is not installed.")
        done = CliRunner().invoke(main, ["grade", "in", "--reference", "solutions"])
        assert done.exit_code == 2
        assert "say --no-sandbox" in " ".join(done.output.split())
        assert _results(tmp_path / "grades" / "course-gradebook.sqlite") == 0


def test_from_the_terminal_to_the_files(submitted, monkeypatch, tmp_path, solution):
    monkeypatch.chdir(tmp_path)
    (submitted / "ben" / "toy (1).ipynb").write_bytes(write(student_view(solution)))
    os.utime(submitted / "ben" / "toy (1).ipynb", (4e9, 4e9))
    command = ["grade", "in", "--reference", "solutions", "--no-sandbox", "--export", "csv", "--timeout", "40"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "5 graded, 0 had their marks" in done.output
    assert "No sandbox: the students' code can" in done.stderr
    assert "ben/toy (1).ipynb has nothing written in it" in done.stderr
    assert sorted(path.name for path in (tmp_path / "grades").iterdir()) == [
        "course-gradebook.sqlite", "duplicates.csv", "feedback", "grades.csv", "overview.html", "statistics.csv",
        "totals.csv",
    ]  # fmt: skip
    ben = (tmp_path / "grades" / "feedback" / "ben.html").read_text()
    assert "expected <code>1.5 -2.5</code><br>received <code>1 -3</code>" in ben
    assert "not JSON" in (tmp_path / "grades" / "feedback" / "dan.html").read_text()

    for student in ("ada", "ben", "cy", "dan"):  # a later download, of the last files alone
        shutil.rmtree(submitted / student)
        (submitted / student).mkdir()
        (submitted / student / "toy.ipynb").write_bytes(write(student_view(solution)))
    again = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "0 graded, 1 had their marks, 4 files left" in again.output
    assert re.search(r"cy/toy.ipynb has nothing written in it: .*cy/toy.ipynb, handed in before, counts", again.stderr)
    with Gradebook(tmp_path / "grades" / "course-gradebook.sqlite") as book:
        assert marks_in(book) == MARKS


@pytest.mark.quick
def test_what_is_no_notebook_gets_a_sentence_for_each_check(solution):
    result = grade_one(grading.Work(write(solution), b"[]"))
    assert result.status == REFUSED
    assert [mark.earned for mark in result.marks] == [0, 0, 0, None]
    assert "JSON without cells" in result.marks[0].message
    assert refused(write(solution), "why").marks[-1].status == "to be read"


def test_half_a_surrogate_pair_does_not_stop_the_grader(solution):
    mine = json.loads(write(right(student_view(solution))))
    mine["cells"].append({"cell_type": "code", "id": "x", "metadata": {}, "outputs": [], "execution_count": None,
                          "source": "print('\ud800')"})  # fmt: skip
    result = grade_one(grading.Work(write(solution), json.dumps(mine).encode(), LIMITS, sandboxed=False))
    assert result.passed
