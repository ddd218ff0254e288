"""What a person says against the run stands; points change without a run; the gradebook's file is ours alone."""

import csv
import io
import os
import re
import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing

import nbformat
import pytest
from click.testing import CliRunner

from course_utils import CourseError
from course_utils.cli import main
from course_utils.grading.classroom import gradebook_file, standing
from course_utils.grading.classroom.commands import earlier_overrides
from course_utils.grading.classroom.export import FORMATS
from course_utils.grading.classroom.feedback import page_of
from course_utils.grading.classroom.grade import grade
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.gradebook_file import _BY_HAND, _TABLES, gradebook_path, is_ours, statements
from course_utils.grading.classroom.standing import Override
from course_utils.grading.classroom.submissions import take
from course_utils.grading.marks import Mark
from course_utils.grading.notebook import student_view, write
from course_utils.grading.result import Limits, Result
from course_utils.grading.rubric import Tick
from tests.shared import a_result, cell_of, needs_sandbox, right, taken, with_sources

LIMITS = Limits(cell_seconds=5, total_seconds=40, memory_bytes=1_000_000_000)
NBGRADERS = "CREATE TABLE alembic_version (v TEXT); CREATE TABLE assignment (id TEXT); CREATE TABLE grade (id TEXT)"


def record(book, *earned, content=b"1", version="v"):
    book.record(taken(book, content=content), "r", version, a_result(*earned))
    return next(book.current())


@pytest.mark.quick
class TestOverride:
    def test_who_has_no_account_is_known_by_a_number(self, monkeypatch):
        def nobody():
            raise KeyError("getpwuid(): uid not found: 54321")  # as in a container

        monkeypatch.setattr(standing, "getuser", nobody)
        assert standing.this_person() == f"user {os.getuid()}"

    def test_it_stands_is_shown_and_can_be_taken_back(self, book):
        book.override(record(book, 0.0, 2.0), "a0", 1.5, "right <but> odd", "Prof. X")
        graded = next(book.current())
        assert (graded.earned, graded.points) == (3.5, 4)
        override = graded.entries[0].override
        assert override == Override(1.5, 0.0, "right <but> odd", "Prof. X", override.at)
        assert graded.entries[1].override is None

        html = page_of(book, "ada", [graded]).decode()
        assert "1.5 instead of 0: <em>right &lt;but&gt; odd</em> (Prof. X, " in html
        row = next(csv.DictReader(io.StringIO(FORMATS["csv"](book)["grades.csv"].decode("utf-8-sig"))))
        assert [row[name] for name in ("earned", "machine", "reason", "by")] == [
            "1.5",
            "0",
            "right <but> odd",
            "Prof. X",
        ]

        book.override(graded, "a0", None, "", "Prof. Y")
        assert next(book.current()).earned == 2
        assert next(book.current()).entries[0].override is None
        rows = [(row["points"], row["who"], row["why"]) for row in book.history("ada") if row["check"] == "a0"]
        assert rows == [
            (0.0, "v", "done"), (1.5, "Prof. X", "override: right <but> odd"), (None, "Prof. Y", "override taken back"),
        ]  # fmt: skip

    def test_it_survives_a_regrade_which_then_tells_no_change(self, book):
        book.override(record(book, 0.0, 0.0), "a0", 1.0, "why", "X")
        changes = book.record(taken(book), "r", "v2", a_result(2.0, 2.0))
        assert [change.check for change in changes] == ["a1"]
        entry = next(book.current()).entries[0]
        assert (entry.mark.earned, entry.override.machine, entry.override.is_earlier) == (1, 2, False)

    def test_for_a_later_submission_it_is_kept_and_said_to_be_of_an_earlier_one(self, book):
        book.override(record(book, 0.0), "a0", 1.0, "why", "X")
        graded = record(book, 2.0, content=b"2")
        assert (graded.earned, graded.entries[0].override.is_earlier) == (1, True)
        assert "of an earlier hand-in" in page_of(book, "ada", [graded]).decode()
        (note,) = earlier_overrides(book)
        assert "ada, toy, a0: the override of X (1 points, the run now gives 2) was of an earlier hand-in" in note
        assert not record(book, 0.0, content=b"1").entries[0].override.is_earlier
        assert earlier_overrides(book) == []
        book.override(record(book, 2.0, content=b"2"), "a0", 1.0, "looked again", "X")
        assert not next(book.current()).entries[0].override.is_earlier

    @pytest.mark.parametrize(
        ("check", "points", "reason", "told"),
        [
            ("what", 1, "y", r"an item of toy \(a0, a1\)"),
            ("a0", 3, "y", "0 to 2 points"),
            ("a0", -1, "y", "0 to 2 points"),
            ("a0", float("nan"), "y", "0 to 2 points"),
            ("a0", 1, "  ", "Expected a reason"),
            ("a0", None, "", "to take back, found none"),
            ("a1", 1, "y", "course mark"),
        ],
    )
    def test_what_cannot_be_is_told_and_changes_nothing(self, book, check, points, reason, told):
        with pytest.raises(CourseError, match=told):
            book.override(record(book, 0.0, None), check, points, reason, "X")
        assert next(book.current()).earned == 0

    def test_from_the_terminal(self, book, tmp_path):
        record(book, 0.0)
        out = ["--out", str(tmp_path / "grades")]
        done = CliRunner().invoke(
            main, ["override", "ada", "toy", "a0", "2", "--reason", "well done", "--who", "X", *out]
        )
        assert "ada, toy, a0: 2 of 2, where the run gave 0" in done.output
        assert "well done" in (tmp_path / "grades" / "feedback" / "ada.html").read_text()
        assert "2" in next(iter((tmp_path / "grades").glob("overview.html"))).read_text()
        done = CliRunner().invoke(main, ["override", "ada", "toy", "a0", "--clear", *out])
        assert "ada, toy, a0: 0 of 2, as the run gave" in done.output
        for arguments, told in (
            (["ada", "toy", "a0"], "Expected points, or --clear"),
            (["ada", "toy", "a0", "1", "--clear"], "Expected points, or --clear"),
            (["ad", "toy", "a0", "1"], "got 'ad'; there: ada"),
            (["ada", "tea", "a0", "1"], "a mark in tea"),
            (["ada", "toy", "a0", "1"], "Expected a reason"),
            (["ada", "toy", "a0", "-1", "--reason", "x"], "Expected 0 to 2 points for a0, got -1."),
            (["ada", "toy", "a0", "-0.5", "--reason", "x"], "Expected 0 to 2 points for a0, got -0.5."),
            (["ada", "toy", "a0", "1", "--reson", "x"], "--reson"),
        ):
            done = CliRunner().invoke(main, ["override", *arguments, *out])
            assert done.exit_code == 2
            assert told in " ".join(done.output.split())


@pytest.mark.quick
class TestPoints:
    @pytest.fixture
    def graded(self, book, solution):
        """Ada has all but the check of the second item, against the solution as it is."""
        marks = (
            Mark("double", "double-check", 2, 2, "passed"),
            Mark("double", "double-hidden", 1, 1, "passed"),
            Mark("halve", "halve-check", 2, 0, "failed", message="no"),
            Mark("why", "why", 3, None, "to be read"),
        )
        number, reference = taken(book), write(solution)
        assert book.repoint(number, reference, "v") == []
        result = Result("done", marks, (), (), write(student_view(solution)), 1.0)
        book.record(number, self.digest(reference), "v", result, {"double-hidden"})
        return number

    @staticmethod
    def digest(content):
        import hashlib

        return hashlib.sha256(content).hexdigest()

    @staticmethod
    def worth(solution, **points):
        copy = nbformat.from_dict(solution)
        for name, value in points.items():
            cell_of(copy, name.replace("_", "-")).metadata.nbgrader.points = value
        return copy

    def test_only_points_changed(self, book, graded, solution):
        book.give(next(book.current()), "why", 3, "good", "X")
        other = write(self.worth(solution, double_check=5, halve_check=4, why=2, double_hidden=0))
        changes = book.repoint(graded, other, "v")
        assert [(c.check, c.before, c.after) for c in changes] == [("double-check", 2, 5), ("double-hidden", 1, 0)]
        assert book.is_graded(graded, self.digest(other), "v")
        (now,) = book.current()
        assert [(e.mark.earned, e.mark.points, e.hidden) for e in now.entries] == [
            (5, 5, False), (0, 0, True), (0, 4, False), (2, 2, False),
        ]  # fmt: skip
        assert now.entries[2].mark.message == "no"
        assert len(book.repoint(graded, write(solution), "v")) == 2
        assert next(book.current()).entries[1].mark.earned == 1

    def test_more_than_points_changed_or_another_grader(self, book, graded, solution):
        for other, version in (
            (with_sources(solution, halve_check="print(halve(4))"), "v"),
            (self.worth(solution, halve_check=9), "v2"),
        ):
            assert book.repoint(graded, write(other), version) == []
            assert not book.is_graded(graded, self.digest(write(other)), version)


@needs_sandbox
def test_where_points_alone_changed_grade_runs_nothing(book, solution, tmp_path, monkeypatch):
    (tmp_path / "in" / "ada").mkdir(parents=True)
    (tmp_path / "in" / "ada" / "toy.ipynb").write_bytes(write(right(student_view(solution))))
    assert grade(take(tmp_path / "in", ["toy"]), book, {"toy": write(solution)}, limits=LIMITS).graded == 1
    monkeypatch.setattr("course_utils.grading.classroom.grade.grade_one", lambda _: pytest.fail("it ran"))
    other = {"toy": write(TestPoints.worth(solution, double_check=7))}
    report = grade(take(tmp_path / "in", ["toy"]), book, other, limits=LIMITS)
    assert (report.graded, report.known) == (0, 1)
    assert [(c.check, c.before, c.after) for c in report.changes] == [("double-check", 2, 7)]
    assert next(book.current()).earned == 10


def old_gradebook(path, *more):
    """A gradebook of format 1, as the first version left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = re.sub(
        r" label TEXT.*?(?=\n    UNIQUE)|CREATE TABLE setting.*?;|(?<=s.late,).*?(?= r\.\*)", "", _TABLES, flags=re.S
    )
    with closing(sqlite3.connect(path)) as db:
        for statement in (*statements(first), "PRAGMA user_version = 1", *more):
            db.execute(statement)
        db.execute("INSERT INTO submission VALUES (1, 'ada', 'toy', 'd', '7', 0, 'x', '2026', 1)")
        db.execute("INSERT INTO manual VALUES (1, 'ada', 'toy', 'why', '', 1, 'kept', 'X', '2026')")
        db.commit()


@pytest.mark.quick
class TestFile:
    def test_one_of_format_1_is_brought_up_to_date(self, tmp_path):
        old_gradebook(tmp_path / "g")
        with Gradebook(tmp_path / "g") as book:
            assert [row["why"] for row in book.history()] == ["kept"]
            book.settle_late(lambda *_: (0.5, "late"))
            book.keep("due", "today")
            book.override(record(book, 0.0), "a0", 1.0, "why", "X")
        with Gradebook(tmp_path / "g") as book:
            assert (next(book.current()).earned, book.setting("due")) == (1, "today")

    def test_ours_under_its_old_name_is_renamed_and_nbgraders_is_left_alone(self, tmp_path):
        old_gradebook(tmp_path / "ours" / "gradebook.db")
        path = gradebook_path(tmp_path / "ours")
        assert [each.name for each in (tmp_path / "ours").iterdir()] == [path.name] == ["course-gradebook.sqlite"]
        with Gradebook(path) as book:
            assert len(book.history()) == 1
        (tmp_path / "theirs").mkdir()
        with closing(sqlite3.connect(tmp_path / "theirs" / "gradebook.db")) as db:
            db.executescript(NBGRADERS)
        before = (tmp_path / "theirs" / "gradebook.db").read_bytes()
        assert not gradebook_path(tmp_path / "theirs").exists()
        assert (tmp_path / "theirs" / "gradebook.db").read_bytes() == before

    def test_one_that_nbgrader_has_written_into_is_copied_without_its_tables(self, tmp_path):
        old = tmp_path / "gradebook.db"
        old_gradebook(old, *statements(NBGRADERS))
        before = old.read_bytes()
        with Gradebook(gradebook_path(tmp_path)) as book:
            assert [row["why"] for row in book.history()] == ["kept"]
        assert old.read_bytes() == before
        assert sorted(each.name for each in tmp_path.iterdir()) == ["course-gradebook.sqlite", "gradebook.db"]

    def test_a_file_with_tables_of_another_program_is_refused_untouched(self, tmp_path):
        path = tmp_path / "g"
        with closing(sqlite3.connect(path)) as db:
            db.executescript(NBGRADERS)
        before = path.read_bytes()
        with pytest.raises(CourseError, match=r"another program \(alembic_version, assignment, grade\); name another"):
            Gradebook(path)
        assert path.read_bytes() == before
        assert not is_ours(path)
        with Gradebook(tmp_path / "ours") as book:
            book._db.execute("CREATE TABLE assignment (id TEXT)")
        with pytest.raises(CourseError, match="tables of another program"):
            Gradebook(tmp_path / "ours")

    def test_the_schema_is_whole(self):
        assert len(statements(_TABLES, _BY_HAND)) == _TABLES.count(";") + _BY_HAND.count(";")


EVERY = {
    "take": lambda book, graded: taken(book, "b" * 9000),
    "record": lambda book, graded: book.record(1, "r", "v3", a_result(2.0, notebook=os.urandom(9000))),
    "give": lambda book, graded: book.give(graded, "a1", 1.0, "c" * 9000, "X", ticks=[Tick("t" * 9000, 1, 1)]),
    "override": lambda book, graded: book.override(graded, "a0", 1.0, "r" * 9000, "X"),
    "repoint": lambda book, graded: [book.repoint(1, solution_of(k), "v") for k in range(99)],
}
READS = {
    "current": lambda book: list(book.current()),
    "history": lambda book: book.history(),
    "is_graded": lambda book: book.is_graded(1, "r", "v"),
    "notebook": lambda book: book.notebook(1),
}


def solution_of(number):
    return b'{"cells": [], "metadata": {"n": %d}, "nbformat": 4, "nbformat_minor": 5}' % number


@pytest.mark.quick
class TestTrouble:
    @pytest.mark.parametrize("what", EVERY)
    def test_a_full_disk_is_a_sentence_and_what_was_there_stays(self, book, what):
        graded = record(book, 2.0, None)
        pages = book._db.execute("PRAGMA page_count").fetchone()[0]
        book._db.execute(f"PRAGMA max_page_count = {pages}").fetchone()
        with pytest.raises(CourseError, match=r"gradebook .* full\): free some space and run it again; what was saved"):
            EVERY[what](book, graded)
        assert next(book.current()).earned == 2
        book._db.execute("PRAGMA max_page_count = 100000").fetchone()
        EVERY[what](book, graded)

    @pytest.mark.parametrize("what", EVERY)
    def test_a_lock_that_stays_is_a_sentence(self, book, what, monkeypatch):
        graded = record(book, 2.0, None)
        monkeypatch.setattr(gradebook_file, "_PATIENCE", 0.1)
        with Gradebook(book.path) as other, closing(sqlite3.connect(book.path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(CourseError, match=r"locked\): let the other program end"):
                EVERY[what](other, graded)
            with pytest.raises(CourseError, match=r"locked\): let the other program end"):
                Gradebook(book.path)
            db.execute("ROLLBACK")
            EVERY[what](other, graded)

    @pytest.mark.parametrize("what", READS)
    def test_damage_is_a_sentence(self, book, what):
        for number in range(40):
            book.record(taken(book, f"s{number}"), "r", "v", a_result(2.0, notebook=os.urandom(20_000)))
        content = bytearray(book.path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        book.path.write_bytes(content)
        told = r"\(database disk image is malformed\): bring back a copy"
        with pytest.raises(CourseError, match=told), Gradebook(book.path) as other:
            READS[what](other)

    def test_two_threads_of_one_book_do_not_mix(self, book):
        graded = record(book, 2.0, None)
        threads = [
            threading.Thread(
                target=book.give, args=(graded, "a1", 1.0, f"c{k}", "X"), kwargs={"ticks": [Tick("t", 1, 1)]}
            )
            for k in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(book.history()) == 21

    @staticmethod
    def fill(book, done):
        for k in range(99):
            book.record(taken(book, f"s{k}"), "r", "v", a_result(2.0, notebook=os.urandom(5000)))
            done.append(k)

    def test_on_a_file_system_that_is_really_full(self, tmp_path):
        small = tmp_path / "small"
        small.mkdir()
        if os.geteuid() or shutil.which("mount") is None:
            pytest.skip("only root can mount a small file system")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", small], check=False).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            with Gradebook(small / "g") as book:
                done = []
                with pytest.raises(
                    CourseError, match=r"Expected to read and write .*: .*; what was saved before stays"
                ):
                    self.fill(book, done)
                earlier = len(done)
                assert len(list(book.current())) == earlier > 1
            with Gradebook(small / "g") as book:
                assert len(list(book.current())) == earlier
        finally:
            subprocess.run(["umount", small], check=True)
