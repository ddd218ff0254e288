"""Who is in the class and what late work costs: rosters from what platforms export, bound to what they hand over."""

import csv
import random
import time
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pytest
from click.testing import CliRunner

from course_utils import CourseError
from course_utils.cli import main
from course_utils.grading.classroom.binding import bind
from course_utils.grading.classroom.feedback import write_feedback
from course_utils.grading.classroom.submissions import Submission, Taken, take
from course_utils.grading.late_penalty import Rule, due_dates, extended, moment, penalty, rule_of
from course_utils.grading.people.names import is_name
from course_utils.grading.people.owners import canvas_name
from course_utils.grading.people.roster import (
    Roster,
    Student,
    class_list,
    read_roster,
    roster_as_csv,
    student_names,
    with_suspects,
)
from course_utils.grading.people.tables import text_of
from tests.shared import a_result, taken

pytestmark = pytest.mark.quick
CANVAS = """\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Token attribution (77),Current Score
    Points Possible,,,,,16.0,(read only)
"Doe, Jane",1234,s1,jane@uni.edu,Monday,12,75
"O'Hara, Zoë",99,s2,zohara,"Monday, Tuesday",,
"Student, Test",5,,abc,Monday,,
"""
WORKSHEET = """\ufeffIdentifier,Full name,Email address,Status,Grade,Maximum Grade,Grade can be changed,Last modified (submission),Last modified (grade),Feedback comments
Participant 1022,Jane Doe,jane@uni.edu,Submitted for grading,,16.00,Yes,"Thursday, 26 November 2026, 5:12 PM",-,
Participant 1023,Zoë O'Hara,zoe@uni.edu,No submission,,16.00,Yes,-,-,
"""
PARTICIPANTS = (
    "First name,Last name,Email address,Groups\nJane,Doe,jane@uni.edu,A\nLi,Wei,li1@uni.edu,B\nLi,Wei,li2@uni.edu,B\n"
)
SOURCES = {
    "names": ("Jane Doe\nZoë O'Hara\n", [Student("Jane Doe"), Student("Zoë O'Hara")]),
    "canvas": (
        CANVAS,
        [
            Student("jane@uni.edu", "Doe, Jane", "1234", email="jane@uni.edu", section="Monday"),
            Student("zohara", "O'Hara, Zoë", "99", section="Monday, Tuesday"),
        ],
    ),
    "worksheet": (
        WORKSHEET,
        [
            Student("Jane Doe", "Jane Doe", moodle_id="1022", email="jane@uni.edu"),
            Student("Zoë O'Hara", "Zoë O'Hara", moodle_id="1023", email="zoe@uni.edu"),
        ],
    ),
    "participants": (
        PARTICIPANTS,
        [
            Student("Jane Doe", "Jane Doe", email="jane@uni.edu", section="A"),
            Student("Li Wei", "Li Wei", email="li1@uni.edu", section="B"),
            Student("Li Wei 2", "Li Wei", email="li2@uni.edu", section="B"),
        ],
    ),
    "old table": ("student,suspect\nada,model-a\n", [Student("ada", suspect="model-a")]),
    "semicolons": ("student;name\nada;Ada L\n", [Student("ada", "Ada L")]),
}


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("source", SOURCES)
def test_a_class_list_becomes_a_roster_and_comes_back_the_same(tmp_path, source):
    text, students = SOURCES[source]
    roster = class_list(put(tmp_path / "x.csv", text))
    assert list(roster.students) == students
    (tmp_path / "r.csv").write_bytes(roster_as_csv(roster))
    assert read_roster(tmp_path / "r.csv").students == roster.students


NAMES = ("José Núñez", "अनिल कुमार", "สมชาย ใจดี", "Zoë O’Hara", "Gal·la Puig", "Nguyễn Thị Hạnh", "李伟")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_script_are_names(tmp_path, book, name, form):
    told, whole = normalize(form, name), normalize("NFC", name)
    assert student_names(f"{told}\n") == [whole]
    first, _, last = told.partition(" ")
    listed = class_list(put(tmp_path / "l.csv", f"First name,Last name,Email address\n{first},{last},a@b.c\n"))
    assert [one.student for one in listed.students] == [whole]
    assert class_list(put(tmp_path / "n.csv", f"{told}\n")).students == (Student(whole),)
    canvas = Roster((Student("key", told),))
    squeezed = normalize("NFC", last + first).casefold().replace(" ", "")
    platform = {"label": f"{squeezed}_1_2_toy.ipynb", "number": "1"}
    for roster, student, more in ((listed, told, {}), (canvas, squeezed, platform)):
        bound = bind(handed_in(student, **more), roster)
        assert [one.student for one in bound.submissions] == [roster.students[0].student]
    book.record(taken(book, whole), "r", "v", a_result(2.0))
    write_feedback(book, tmp_path / "f")
    assert [path.name for path in (tmp_path / "f").iterdir()] == [f"{whole}.html"]


@pytest.mark.parametrize("name", ["", " a", "a.", "a/b", "a\\b", "a:b", "\u202eb", "a\u200bb", ".a", "’a", "a" * 101])
def test_what_cannot_name_a_student_is_no_name(name):
    assert not is_name(name)


def test_a_name_in_long_letters_is_no_longer_than_a_file_s_may_be(tmp_path, book):
    for student in ("ก" * 100, "\U00020000" * 100, "a" * 300):
        book.record(taken(book, student), "r", "v", a_result(2.0))
    assert write_feedback(book, tmp_path / "f") == 3
    assert len(list((tmp_path / "f").iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "student"),
    [
        (CANVAS + '"Doe, Jane",1234,s1,jane@uni.edu,Friday,12,75\n', ("jane@uni.edu", "Monday, Friday")),
        (PARTICIPANTS + "Jane,Doe,JANE@uni.edu,B\nJane,Doe,jane@uni.edu,A\n", ("Jane Doe", "A, B")),
    ],
)
def test_who_is_in_two_sections_has_one_line(tmp_path, text, student):
    roster = class_list(put(tmp_path / "x.csv", text))
    assert [(one.student, one.section) for one in roster.students if one.name in ("Doe, Jane", "Jane Doe")] == [student]
    (tmp_path / "r.csv").write_bytes(roster_as_csv(roster))
    assert read_roster(tmp_path / "r.csv").students == roster.students


def test_two_students_of_one_number_make_no_roster(tmp_path):
    with pytest.raises(CourseError, match=r"each canvas_id once in .*, got 99 more than once; keep one line for each"):
        class_list(put(tmp_path / "x.csv", CANVAS + '"Roe, Jo",99,s3,jo@uni.edu,Friday,12,75\n'))


def test_the_command_writes_it_with_a_suspect_for_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("gradebook.csv"), CANVAS)
    done = CliRunner().invoke(main, ["roster", "gradebook.csv"])
    assert done.exit_code == 0, done.output
    assert "2 students with name, canvas_id, email, suspect, section in roster.csv" in done.output
    rows = list(csv.DictReader(Path("roster.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert {row["suspect"] for row in rows} <= {"model-a", "model-b", "model-c"}
    again = CliRunner().invoke(main, ["roster", "gradebook.csv"])
    assert again.exit_code == 2
    assert "which is there; name another with --out, or say --force" in " ".join(again.output.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expected a column student"),
        ("name,email\na,b\n", "got name, email"),
        ("student\nada\nADA\n", "each student once"),
        ("student,canvas_id\na,5\nb,5\n", "each canvas_id once"),
        ("student,moodle_id\na,5 6\nb,6\n", "each moodle_id once"),
        ("student,extension\na,soon\n", "extension of a: a number of days, or: Expected a time"),
        ("student\n\0\n", "binary data"),
        ("student,name\n", r"Expected students in .*, found none below its first line; add a line for each"),
    ],
)
def test_a_faulty_roster_is_refused_with_a_sentence(tmp_path, text, told):
    with pytest.raises(CourseError, match=told):
        read_roster(put(tmp_path / "r.csv", text))


@pytest.mark.parametrize("text", ["Name\nJane Doe\nZoë\n", "sep=;\nstudent;name\nJane Doe;\nZoë;\n", "Jane Doe\nZoë\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "tabs"])
def test_what_spreadsheets_save_is_read(tmp_path, text, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text, encoding = (
        (text.replace("sep=;\n", "").replace(";", "\t"), "utf-16") if encoding == "tabs" else (text, encoding)
    )
    (tmp_path / "x.csv").write_bytes((mark + text).encode(encoding))
    assert [one.student for one in class_list(tmp_path / "x.csv").students] == ["Jane Doe", "Zoë"]


@pytest.mark.parametrize("read", [class_list, read_roster, lambda path: text_of(path, "a list of students")])
def test_another_encoding_is_told(tmp_path, read):
    (tmp_path / "x.csv").write_bytes("student\nZoë\n".encode("latin-1"))
    with pytest.raises(CourseError, match=r"in UTF-8 in .*, got another encoding, such as Latin-1 or .*Zo.xeb"):
        read(tmp_path / "x.csv")


def test_names_that_spreadsheets_would_compute_come_back(tmp_path):
    roster = Roster((Student("a", "=1+1", email="@b"), Student("c", "'quoted")))
    (tmp_path / "r.csv").write_bytes(roster_as_csv(roster))
    assert b"\n'a" not in (tmp_path / "r.csv").read_bytes()
    assert read_roster(tmp_path / "r.csv").students == roster.students


def handed_in(*names, exercise="toy", **more):
    found = [Submission(name, exercise, Path(f"in/{name}/{exercise}.ipynb"), **more) for name in names]
    return Taken(tuple(found), ())


CLASS = Roster(
    (
        Student("jdoe", "Doe, Jane", "1234", "55 1022", "jane@uni.edu", "model-b", "", "2"),
        Student("zoe", "Zoë van O'Hara", "99", "56"),
        Student("li1", "Li Wei", "7"),
        Student("li2", "Li Wei", "8"),
    ),
    "roster.csv",
)


class TestBind:
    @pytest.mark.parametrize(
        ("label", "who", "told"),
        [
            ("vanoharazoë_1234_99_900_toy.ipynb", "zoe", "is of zoe, whose name and number in the roster alone fit it"),
            ("vanoharazoë_99_778_900_toy.ipynb", "zoe", ""),  # a file that was called 900_toy.ipynb
            ("doejane_1234_99_900_toy.ipynb", "doejane_1234_99", "may be of jdoe or zoe: it counts for neither"),
            ("vanoharazoë_99_778_1234_900.ipynb", "zoe", ""),
            ("x_1234_99_900_toy.ipynb", "x_1234_99", "may be of jdoe or zoe: it counts for neither"),
        ],
    )
    def test_no_number_in_a_name_of_one_s_own_makes_a_file_another_s(self, label, who, told):
        """Canvas lets people choose their names in many places, and divides a file's name at its first two numbers."""
        read_ = canvas_name(label)
        found = bind(handed_in(read_.student, number=read_.number, label=label), CLASS)
        assert [one.student for one in found.submissions] == [who]
        notes = [note for note in found.notes if "nobody in roster.csv" not in note and "nothing from" not in note]
        assert len(notes) == bool(told)
        assert told in "".join(notes)

    @pytest.mark.parametrize(
        ("label", "student", "number", "who"),
        [
            ("doejane_1234_9_toy.ipynb", "doejane", "1234", "jdoe"),  # by Canvas's number
            ("whoever_LATE_1234_9_toy.ipynb", "whoever", "1234", "jdoe"),
            ("vanoharazoë_5_9_toy.ipynb", "vanoharazoë", "", "zoe"),  # by the name as Canvas writes it
            ("Jane Doe_1022_assignsubmission_file", "Jane Doe", "1022", "jdoe"),  # by one of Moodle's numbers
            ("Jane Doe_4444_assignsubmission_file", "Jane Doe", "4444", "jdoe"),  # another assignment's: by name
            ("Participant 55_55_assignsubmission_file", "Participant 55", "55", "jdoe"),  # blind marking
            ("", "JDOE", "", "jdoe"),
            ("", "Zoe\u0308 van O'Hara", "", "zoe"),
            ("", "jane@UNI.edu", "", "jdoe"),
            ("", "nobody", "", None),
            ("liwei_77_9_toy.ipynb", "liwei", "77", None),  # one of two
            ("doejane_4321_9_toy.ipynb", "doejane", "4321", None),  # the roster has another number
        ],
    )
    def test_by_number_then_key_name_and_email(self, label, student, number, who):
        bound = bind(handed_in(student, label=label, number=number), CLASS)
        (one,) = bound.submissions
        assert one.student == (who or student)
        assert one.extension == ("2" if who == "jdoe" else "")
        assert any(f"{student} is nobody in roster.csv" in note for note in bound.notes) == (who is None)

    def test_who_is_missing_is_told_for_each_exercise(self):
        bound = bind(handed_in("jdoe", "li1"), CLASS, ["toy", "other"])
        assert "toy: nothing from 2 of the roster: zoe, li2." in bound.notes
        assert "other: nothing from 4 of the roster: jdoe, zoe, li1, li2." in bound.notes

    def test_the_number_counts_more_than_a_name_and_that_is_told(self):
        bound = bind(handed_in("zoe", label="zoe_1234_9_toy.ipynb", number="1234"), CLASS)
        assert bound.submissions[0].student == "jdoe"
        assert "has the number of jdoe and the name of zoe: the number counts" in bound.notes[0]

    def test_a_stranger_takes_nobody_s_place(self):
        told = handed_in("zoe", label="zoe_12345_9_toy.ipynb", number="12345")
        bound = bind(told, CLASS)
        assert bound.submissions[0].student == "zoe (12345)"
        assert "zoe, whose number in the roster is 99: it does not count as theirs" in bound.notes[0]

    def test_two_files_of_one_student_under_two_names_are_one(self):
        two = handed_in("jdoe", order=1.0).submissions + handed_in("Jane Doe", order=2.0).submissions
        bound = bind(Taken(two, ()), CLASS)
        assert [one.source.parent.name for one in bound.submissions] == ["Jane Doe"]
        assert "is an earlier one than" in bound.left[0]

    def test_a_number_for_exports_comes_from_the_roster(self):
        assert bind(handed_in("jdoe"), CLASS).submissions[0].number == "1234"

    def test_from_a_download_of_canvas(self, tmp_path):
        for name in ("doejane_LATE_1234_5_toy.ipynb", "vanoharazo_99_6_toy.ipynb", "evil_5_7_toy.ipynb"):
            put(tmp_path / name, "x")
        bound = bind(take(tmp_path, ["toy"]), CLASS)
        assert [(one.student, one.late) for one in bound.submissions] == [
            ("evil", False),
            ("jdoe", True),
            ("zoe", False),
        ]


def test_suspects_are_given_to_who_has_none():
    roster = with_suspects(CLASS, ["model-a"])
    assert roster.suspects == {"jdoe": "model-b", "zoe": "model-a", "li1": "model-a", "li2": "model-a"}


class TestLate:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("10% per day", Rule(0.1, "day")),
            ("10 % a day, at most 50%", Rule(0.1, "day", 0.5)),
            ("2.5% per Hour, after 15 minutes, at most 20 %", Rule(0.025, "hour", 0.2, moment("2026-01-01T00:15") - moment("2026-01-01T00:00"))),
            ("20% once", Rule(0.2)),
            ("none", None),
        ],
    )  # fmt: skip
    def test_a_rule_is_a_sentence(self, text, rule):
        assert rule_of(text) == rule

    @pytest.mark.parametrize(
        "text", ["", "10 per day", "10% per month", "0% once", "101% once", "10% per day, ever", "9" * 9999]
    )
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(CourseError, match="Expected a rule for late work such as"):
            rule_of(text)

    DUE = "2026-12-01T23:59+00:00"

    @pytest.mark.parametrize(
        ("handed_in", "late", "extension", "share", "why"),
        [
            ("2026-12-01T23:59:00+00:00", False, "", 0, ""),
            ("2026-12-02T00:10:00+00:00", False, "", 0, "within the time that costs nothing"),
            ("2026-12-02T01:00:00+00:00", False, "", 0.1, "1 h 1 min after 2026-12-01 23:59 UTC: 1 day begun, 10%"),
            ("2026-12-02T01:00:00+02:00", False, "", 0, ""),
            ("2026-12-03T00:00:00+00:00", False, "", 0.2, "1 d 1 min after 2026-12-01 23:59 UTC: 2 days begun, 20%"),
            ("2026-12-31T00:00:00+00:00", False, "", 0.25, "25% (the most there is)"),
            ("2026-12-03T00:00:00+00:00", False, "2", 0, ""),
            ("2026-12-03T00:00:00+00:00", False, "2026-12-02T12:00+00:00", 0.1, "12 h after 2026-12-02 12:00 UTC, extended"),
            ("2026-12-03T00:00:00+00:00", False, "2026-11-02", 0.2, "2 days"),  # an extension takes nothing away
            ("", True, "", 0.1, "late by the platform's mark, by how much is not known: one day is counted"),
            ("", True, "3", 0, "with an extension (3): nothing is subtracted"),
            ("", False, "", 0, ""),
        ],
    )  # fmt: skip
    def test_what_is_lost_and_why(self, handed_in, late, extension, share, why):
        rule = rule_of("10% per day, at most 25%, after 15 minutes")
        found = penalty(rule, self.DUE, handed_in=handed_in, late=late, extension=extension)
        assert found.share == pytest.approx(share)
        assert why in found.why
        assert bool(found.why) == bool(why)

    def test_once_is_once_and_without_a_rule_nothing_is_lost(self):
        late = {"handed_in": "2027-01-01T00:00+00:00", "late": True}
        assert penalty(rule_of("20% once"), self.DUE, **late).share == 0.2
        assert penalty(None, self.DUE, **late).share == 0
        assert penalty(rule_of("20% once"), "", **late).why == "late by the platform's mark"

    def test_due_times(self):
        found = due_dates(["2026-12-01", "toy=2026-12-05T10:00Z"], ["toy"])
        assert found["toy"] == "2026-12-05T10:00:00+00:00"
        assert "T23:59" in found[""]
        for wrong, told in (
            ("tea=2026-12-01", "Expected one of toy before ="),
            ("tomorrow", "Expected a time such as"),
        ):
            with pytest.raises(CourseError, match=told):
                due_dates([wrong], ["toy"])

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set here")
    @pytest.mark.parametrize(
        ("due", "extension", "handed_in", "days"),
        [
            ("2026-10-20", "7", "2026-10-27T23:30", 0),  # summer time ends on the 25th
            ("2026-10-20", "7", "2026-10-28T00:30", 1),
            ("2026-10-24", "", "2026-10-25T23:30", 1),
            ("2026-03-24", "7", "2026-03-31T23:30", 0),  # it begins on the 29th
            ("2026-03-24", "7", "2026-04-01T00:30", 1),
            ("2026-03-28", "", "2026-03-30T00:30", 2),
            ("2026-10-20", "2026-10-27", "2026-10-27T23:30", 0),
        ],
    )
    def test_a_day_over_which_the_clock_is_changed_is_a_day(self, monkeypatch, due, extension, handed_in, days):
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Europe/Berlin")
            time.tzset()
            kept = due_dates([due])[""]
            found = penalty(rule_of("10% per day"), kept, handed_in=handed_in, late=False, extension=extension)
        time.tzset()
        assert found.share == pytest.approx(0.1 * days)

    def test_whatever_an_extension_is_it_gives_a_time_or_a_sentence(self):
        rng = random.Random(3)
        for _ in range(3000):
            text = "".join(rng.choice("0123456789-:T+.Z aé") for _ in range(rng.randint(0, 20)))
            try:
                assert extended(moment(self.DUE), text) >= moment(self.DUE)
            except CourseError as error:
                assert "Expected a time" in str(error)  # noqa: PT017


def test_random_tables_give_a_roster_or_a_sentence(tmp_path):
    rng = random.Random(5)
    bodies = [text.encode() for text, _ in SOURCES.values()]
    read = 0
    for _ in range(2000):
        data = bytearray(rng.choice(bodies))
        for _ in range(rng.choice([0, 1, 3, 8])):
            where = rng.randrange(len(data) or 1)
            if where < len(data) and rng.random() < 0.7:
                data[where] = rng.choice(b'",;\n\r\0\xff=+aZ9 ')
            else:
                del data[where : where + 5]
        (tmp_path / "r.csv").write_bytes(data)
        try:
            roster = class_list(tmp_path / "r.csv")
            bind(handed_in("jdoe", "Jane Doe"), roster)
            (tmp_path / "w.csv").write_bytes(roster_as_csv(roster))
            assert read_roster(tmp_path / "w.csv").students == roster.students
            read += 1
        except CourseError as error:
            assert str(error)  # noqa: PT017
    assert read > 300


def test_a_student_s_line_is_found_by_key():
    assert CLASS["zoe"].canvas_id == "99"
    assert CLASS["x"] == Student("x")
    assert replace(CLASS, students=()).suspects == {}


def test_what_a_spreadsheet_has_shortened_or_a_comma_divides_is_told_with_what_to_write(tmp_path):
    with pytest.raises(CourseError, match=r"canvas_id in full .*1\.23457E\+11.*platform's own file"):
        read_roster(put(tmp_path / "roster.csv", "student,canvas_id\nada,1.23457E+11\n"))
    with pytest.raises(CourseError, match=r"'Neil, Seán', which the comma divides; write 'Seán Neil'"):
        class_list(put(tmp_path / "names.txt", "Zoë Li\nNeil, Seán\n"))
    assert read_roster(put(tmp_path / "roster.csv", "student,canvas_id\n1E5,12\n")).students[0].student == "1E5"


@pytest.mark.parametrize("read", [read_roster, class_list])
def test_a_comma_in_a_name_without_quotation_marks_moves_no_number_to_another_column(read, tmp_path):
    told = r'Expected 3 cells a line in .*, got 4 in that of jdoe; .*"Doe, Jane"'
    with pytest.raises(CourseError, match=told):
        read(put(tmp_path / "roster.csv", "student,name,canvas_id\nada,Ada,12\njdoe,Doe, Jane,13\n"))
    (one,) = read(put(tmp_path / "roster.csv", 'student,name,canvas_id\njdoe,"Doe, Jane",13,,\n')).students
    assert one.canvas_id == "13"
    with pytest.raises(CourseError, match="Expected 5 cells a line"):
        class_list(put(tmp_path / "c.csv", "Student,ID,SIS User ID,SIS Login ID,Section\nDoe, Jane,12,,jdoe,A\n"))


def test_who_handed_in_before_is_not_missing_in_a_later_download():
    one = Submission("ada", "toy", Path("x"))
    told = Taken((one,), (), ())
    roster = Roster((Student("ada"), Student("ben"), Student("cy")))
    assert "toy: nothing from 1 of the roster: cy." in bind(told, roster, before=[("toy", "ben"), ("tea", "cy")]).notes
