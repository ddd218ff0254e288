"""What classes hand in, in the shapes that learning platforms give it, and what tries to get past the door."""

import json
import os
import random
import struct
import sys
import time
import zipfile

import pytest
from nbformat.v4 import new_code_cell

from course_utils import CourseError
from course_utils.grading.classroom.submissions import take
from course_utils.grading.classroom.untouched import as_released, untouched_in
from course_utils.grading.handout.release import EXERCISES as EXERCISES_MADE
from course_utils.grading.handout.release import SOLUTIONS, with_suspect
from course_utils.grading.notebook import ANSWER, LARGEST, kind, read, student_view, write
from course_utils.grading.people.owners import owned
from tests.shared import right

pytestmark = [pytest.mark.quick, pytest.mark.filterwarnings("ignore:Duplicate name")]
EXERCISES = ("08_1_token_attribution", "08_chapter_exercise")
ONE, CHAPTER = EXERCISES


@pytest.fixture
def put(tmp_path):
    """Write files, each holding its own name, into a folder; the folder."""

    def write(*names, top=tmp_path / "in"):
        for name in names:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(name)
        return top

    return write


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


LAYOUTS = {
    "folders": {f"ada/{ONE}.ipynb": ("ada", ONE, ""), f"ben/work/{CHAPTER}.ipynb": ("ben", CHAPTER, "")},
    "nbgrader": {
        f"submitted/ada/08_1/{ONE}.ipynb": ("ada", ONE, ""),
        f"submitted/lee_12_3_x/{CHAPTER}/answers.ipynb": ("lee_12_3_x", CHAPTER, ""),
    },
    "nbgrader's course": {f"course/submitted/ben/{CHAPTER}/answers.ipynb": ("ben", CHAPTER, "")},
    "canvas": {
        f"doejane_1234_777_{ONE}.ipynb": ("doejane", ONE, "1234"),
        f"doejane_1234_778_{CHAPTER}-1.ipynb": ("doejane", CHAPTER, "1234"),
        f"roejo_LATE_99_779_{ONE}-2.ipynb": ("roejo", ONE, "99"),
        f"red_team_17_780_{ONE}.ipynb": ("red_team", ONE, "17"),
    },
    "canvas, anonymous": {
        f"anon_4QR7b_777_{ONE}.ipynb": ("anon_4QR7b", ONE, ""),
        f"LATE_anon_x8_778_{ONE}.ipynb": ("anon_x8", ONE, ""),
    },
    "canvas, one folder more": {
        f"submissions/doejane_1234_777_{ONE}.ipynb": ("doejane", ONE, "1234"),
        f"submissions/roejo_LATE_99_779_{ONE}.ipynb": ("roejo", ONE, "99"),
    },
    "folders, one folder more": {
        f"class/ada/{ONE}.ipynb": ("ada", ONE, ""),
        f"class/ben/{ONE}.ipynb": ("ben", ONE, ""),
    },
    "moodle from 4.1 on": {
        f"Jane Doe_1234_assignsubmission_file/{ONE}.ipynb": ("Jane Doe", ONE, "1234"),
        f"Jo_1235_assignsubmission_file/doe_1234_5_{ONE}.ipynb": ("Jo", "", "1235"),
    },
    "moodle": {
        f"Jane Doe_1234_assignsubmission_file_/{ONE}.ipynb": ("Jane Doe", ONE, "1234"),
        f"Zoë O'Hara_77_assignsubmission_file_/sub/{CHAPTER} (1).ipynb": ("Zoë O'Hara", CHAPTER, "77"),
        f"Al Flat_78_assignsubmission_file_{ONE}.ipynb": ("Al Flat", ONE, "78"),
    },
    "a course for each": {f"Chapter 8/Jo_5_assignsubmission_file_/{ONE}.ipynb": ("Jo", ONE, "5")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("in_zip", [False, True], ids=["folder", "zip"])
def test_each_platform_s_download_is_understood(put, tmp_path, layout, in_zip):
    folder = put(*LAYOUTS[layout])
    found = {place: told for place, told in LAYOUTS[layout].items() if told[1]}
    taken = take(zipped(folder, tmp_path / "class.zip") if in_zip else folder, EXERCISES)
    assert len(taken.left) == len(LAYOUTS[layout]) - len(found)
    assert {one.content().decode(): (one.student, one.exercise, one.number) for one in taken.submissions} == found
    assert [one.late for one in taken.submissions] == ["LATE" in one.place for one in taken.submissions]


@pytest.mark.parametrize(
    "name", [f"{ONE}.ipynb", f"{ONE}-Copy1.ipynb", f"{ONE} (2).ipynb", f"{ONE.upper()}.IPYNB", f"{ONE.replace('_', ' ')}_final.ipynb", f"{ONE}_v2.ipynb", f"exercise_{ONE}.ipynb", f"Exercise_{ONE} (1).ipynb"]
)  # fmt: skip
def test_a_copy_of_an_exercise_is_known_by_its_name(put, name):
    assert [one.exercise for one in take(put(f"ada/{name}"), EXERCISES).submissions] == [ONE]


def test_what_lies_beside_is_ignored_and_what_is_not_understood_is_told(put):
    folder = put(
        f"ada/.ipynb_checkpoints/{ONE}-checkpoint.ipynb", f"ada/.checks/{ONE}.ipynb", "ada/notes.txt",
        f"__MACOSX/ada/{ONE}.ipynb", f"ada/{ONE}.ipynb", "ada/my own.ipynb", f"{CHAPTER}.ipynb", "ben/broken.zip",
    )  # fmt: skip
    taken = take(folder, EXERCISES)
    assert [one.content() for one in taken.submissions] == [f"ada/{ONE}.ipynb".encode()]
    told = "\n".join(taken.left)
    assert len(taken.left) == 4
    for part in (
        "my own.ipynb, like no exercise", f"{CHAPTER}.ipynb is in no student's folder", "is no zip file",
        "notes.txt of ada is handed in and not gradable",
    ):  # fmt: skip
        assert part in told


def test_of_two_the_later_counts(put):
    folder = put(f"ada/{ONE}.ipynb", f"ada/{ONE}-Copy1.ipynb")
    os.utime(folder / f"ada/{ONE}.ipynb", (2e9, 2e9))
    taken = take(folder, EXERCISES)
    assert [one.source.name for one in taken.submissions] == [f"{ONE}.ipynb"]
    assert "-Copy1.ipynb is an earlier one than" in taken.left[0]
    assert (
        take(put(f"d_1_20_{ONE}.ipynb", f"d_1_3_{ONE}-1.ipynb", top=folder / "c"), EXERCISES).submissions[0].order == 20
    )


def test_a_later_one_with_nothing_written_in_it_takes_no_place(tmp_path, solution):
    stub, mine = student_view(solution), right(student_view(solution))
    helped = student_view(solution)
    helped.cells.append(new_code_cell("half = 1 / 2"))
    copies = {"ada": [mine, stub], "ben": [stub, stub], "cy": [mine, stub, helped], "dan": [stub, mine, stub]}
    for student, notebooks in copies.items():
        for k, notebook in enumerate(notebooks):
            path = tmp_path / "in" / student / f"toy ({k}).ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(write(notebook))
            os.utime(path, (1e9 + k, 1e9 + k))
    found = take(tmp_path / "in", ["toy"], untouched=untouched_in({"toy": write(solution)}))
    counts = {one.student: one.source.name for one in found.submissions}
    assert counts == {"ada": "toy (0).ipynb", "ben": "toy (1).ipynb", "cy": "toy (2).ipynb", "dan": "toy (1).ipynb"}
    told = [told.replace(str(tmp_path / "in"), "") for told in found.left if "nothing written" in told]
    assert "/ada/toy (1).ipynb has nothing written in it: /ada/toy (0).ipynb, an earlier one, counts." in told
    assert len(told) == 3


@pytest.mark.parametrize("path", sorted(SOLUTIONS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_handed_out_is_known_as_such(path):
    reference, released = path.read_bytes(), (EXERCISES_MADE / path.name).read_bytes()
    assert as_released(released, reference)
    assert as_released(with_suspect(released, "model-c"), reference)
    notebook = read(released)
    answer = next(cell for cell in notebook.cells if kind(cell) == ANSWER)
    answer.source += "\n    return 2"
    assert not as_released(write(notebook), reference)


def test_two_students_of_one_name_are_two(put):
    taken = take(
        put(f"Li Wei_1_assignsubmission_file_/{ONE}.ipynb", f"Li Wei_2_assignsubmission_file_/{ONE}.ipynb"), EXERCISES
    )
    assert [one.student for one in taken.submissions] == ["Li Wei (1)", "Li Wei (2)"]


def test_one_exercise_alone(put):
    folder = put(f"ada/{ONE}.ipynb", f"ada/{CHAPTER}.ipynb", "ben/homework.ipynb", "cy/a.ipynb", "cy/b.ipynb")
    taken = take(folder, EXERCISES, only=ONE)
    assert [(one.student, one.exercise) for one in taken.submissions] == [("ada", ONE), ("ben", ONE)]
    assert len(taken.left) == 2
    assert taken.notes == (f"Not graded, as {ONE} alone was asked for: {CHAPTER} (1).",)
    told = take(put(f"ada/{CHAPTER}.ipynb", f"ben/{ONE}.ipynb", top=folder / "x"), EXERCISES, only=ONE).left
    assert f"the only notebook of ada, is one of {CHAPTER}, not of {ONE}" in told[0]
    with pytest.raises(CourseError, match="Expected one of 08_1_token_attribution, 08_chapter_exercise, got 'x'"):
        take(folder, EXERCISES, only="x")


def test_a_student_s_own_zip_is_looked_into_and_no_further(put, tmp_path):
    mine = zipped(put(f"{ONE}.ipynb", top=tmp_path / "mine"), tmp_path / "mine.zip")
    folder = put("ada/x.txt")
    canvas = put(f"roe_7_8_{CHAPTER}.ipynb", top=tmp_path / "canvas")
    for place in (folder / "ada" / "work.zip", canvas / "doe_5_6_work.zip"):
        place.write_bytes(mine.read_bytes())
    assert [one.student for one in take(folder, EXERCISES).submissions] == ["ada"]
    assert [one.student for one in take(canvas, EXERCISES).submissions] == ["doe", "roe"]
    taken = take(zipped(folder, tmp_path / "class.zip"), EXERCISES)
    assert not taken.submissions
    assert sum("zip file in a zip file" in told for told in taken.left) == 1


def notebook_of(*cells):
    told = [
        {"cell_type": "code", "metadata": {"nbgrader": {"grade_id": name}}, "source": '"grade_id": "x"'}
        for name in cells
    ]
    return json.dumps({"cells": told, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


CELLS = {ONE: ["title", "faithful", "occlusion"], CHAPTER: ["title", "analysis", "x"]}


class TestWhatItIsFor:
    @pytest.mark.parametrize("called", ["homework.ipynb", f"{CHAPTER}.ipynb", "ben_doe_1_2_x.ipynb"])
    def test_the_cells_say_it_whatever_the_file_is_called(self, put, tmp_path, called):
        folder = put(f"ada/{called}")
        (folder / "ada" / called).write_text(notebook_of("title", "faithful", "occlusion"))
        for place in (folder, zipped(folder, tmp_path / "c.zip")):
            taken = take(place, EXERCISES, cells=CELLS)
            assert [(one.student, one.exercise) for one in taken.submissions] == [("ada", ONE)]
            if called.startswith(CHAPTER):
                assert f"is called {CHAPTER} and holds the cells of {ONE}" in "".join(taken.notes)

    def test_what_a_cell_says_is_no_name_of_one(self, put):
        folder = put(f"ada/{ONE}.ipynb")
        (folder / f"ada/{ONE}.ipynb").write_text(notebook_of("title"))  # its source says "grade_id": "x"
        assert [one.exercise for one in take(folder, EXERCISES, cells=CELLS).submissions] == [ONE]

    def test_cells_of_two_are_told_and_most_count(self, put):
        folder = put("ada/x.ipynb", "ben/y.ipynb")
        (folder / "ada/x.ipynb").write_text(notebook_of("faithful", "occlusion", "analysis"))
        (folder / "ben/y.ipynb").write_text(notebook_of("faithful", "analysis"))
        taken = take(folder, EXERCISES, cells=CELLS)
        assert [(one.student, one.exercise) for one in taken.submissions] == [("ada", ONE)]
        assert f"holds cells of {ONE} (2) and {CHAPTER} (1)" in taken.notes[0]
        assert "y.ipynb, like no exercise, and has no cell of one" in taken.left[0]

    def test_one_that_cannot_be_read_goes_by_its_name(self, put):
        folder = put(f"ada/{ONE}.ipynb")
        os.truncate(folder / f"ada/{ONE}.ipynb", LARGEST + 5)
        assert [one.exercise for one in take(folder, EXERCISES, cells=CELLS).submissions] == [ONE]


class TestWhoseItIs:
    def test_a_name_in_a_student_s_folder_takes_nobody_s_place(self, put):
        folder = put(
            f"eve/doejane_1234_777_{ONE}.ipynb", f"ada/{ONE}.ipynb", f"eve/Jo_5_assignsubmission_file_/{ONE}.ipynb"
        )
        (folder / f"eve/doejane_1234_777_{ONE}.ipynb").write_text(notebook_of("faithful"))
        taken = take(folder, EXERCISES, cells=CELLS)
        assert [(one.student, one.number) for one in taken.submissions] == [("ada", ""), ("eve", "")]
        assert sum("counts for eve" in told for told in taken.notes) == 2

    def test_whatever_eve_puts_into_her_folder_it_is_hers_and_nobody_else_s_changes(self):
        rng = random.Random(11)
        honest = [("ada", f"{ONE}.ipynb"), ("ben", "work", f"{CHAPTER}.ipynb"), ("cy", "mine.zip", f"{ONE}.ipynb")]
        parts = [
            "submitted",
            "ada",
            "ben",
            "d_1_2_x.ipynb",
            "Jo_5_assignsubmission_file_",
            "c_7_8_c.zip",
            "a.ipynb",
            "LATE_anon_x_1_y.ipynb",
            ONE,
        ]
        for _ in range(3000):
            hers = [("eve", *rng.choices(parts, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 5))]
            files = [*honest, *hers]
            rng.shuffle(files)
            found, _ = owned([(names, names) for names in files], EXERCISES)
            assert all(who.student == names[0] and not who.number for names, who in found)

    def test_deep_folders_are_no_trouble(self):
        (deep,), _ = owned([(("a",) * 5000, 1)], EXERCISES)
        assert deep[1].student == "a"

    def test_one_student_s_folder_alone_is_theirs(self, put):
        taken = take(put(f"eve/doejane_1234_777_{ONE}.ipynb"), EXERCISES, cells=CELLS)
        assert not taken.submissions  # neither eve's, as it has no cell of an exercise, nor doejane's
        assert "taken for one student's" in taken.notes[0]

    def test_canvas_names_beside_others_are_nobody_s(self, put):
        folder = put(f"doejane_1234_777_{ONE}.ipynb", f"roe_12_777_{ONE}.ipynb", "mine.ipynb")
        taken = take(folder, EXERCISES)
        assert not taken.submissions
        assert len(taken.left) == 3
        assert "2 files are named as Canvas names them, and mine.ipynb beside them is not" in taken.notes[0]

    def test_the_course_s_own_name_of_a_copy_is_no_platform_s(self, put):
        loose = put(f"exercise_{ONE}.ipynb", f"exercise_{ONE} (1).ipynb")
        taken = take(loose, EXERCISES)
        assert not taken.submissions
        assert [told.partition(" is in ")[2] for told in taken.left] == [
            "no student's folder: put it into one called after its student."
        ] * 2
        taken = take(put(f"ada/exercise_{ONE}.ipynb", f"ben/{ONE}.ipynb", top=loose / "class"), EXERCISES)
        assert [one.student for one in taken.submissions] == ["ada", "ben"]
        assert not [told for told in taken.notes if "platform" in told]

    def test_more_than_two_numbers_are_told(self, put):
        taken = take(put(f"group_3_1234_777_{ONE}.ipynb", f"roe_12_777_{ONE}.ipynb"), EXERCISES)
        assert [note.partition(" has more than two numbers")[0] for note in taken.notes] == [
            f"group_3_1234_777_{ONE}.ipynb"
        ]

    def test_a_class_in_one_folder_is_no_student(self, put, tmp_path):
        folder = put(
            *(f"class/{name}/{ONE}.ipynb" for name in "abc"), "class/list.csv", "class/.DS_Store", "__MACOSX/._class"
        )
        taken = take(zipped(folder, tmp_path / "c.zip"), EXERCISES)
        assert [one.student for one in taken.submissions] == ["a", "b", "c"]
        assert "the 3 folders in it are the students'" in taken.notes[0]

    @pytest.mark.parametrize("folders", [(ONE, CHAPTER), ("08_1", "08 chapter")])
    def test_one_student_with_a_folder_for_each_exercise(self, put, folders):
        taken = take(put(f"ada/{folders[0]}/{ONE}.ipynb", f"ada/{folders[1]}/{CHAPTER}.ipynb"), EXERCISES)
        assert [one.student for one in taken.submissions] == ["ada", "ada"]

    def test_a_class_in_a_folder_in_a_folder_or_in_the_one_zip_of_a_folder(self, put, tmp_path):
        folder = put(f"x/class/ada/{ONE}.ipynb", f"x/class/ben/{ONE}.ipynb")
        assert [one.student for one in take(folder, EXERCISES).submissions] == ["ada", "ben"]
        (tmp_path / "y").mkdir()
        zipped(folder, tmp_path / "y" / "class.zip")
        taken = take(tmp_path / "y", EXERCISES)
        assert [one.student for one in taken.submissions] == ["ada", "ben"]
        assert "class.zip, which is taken for the class's" in taken.notes[0]

    def test_a_zip_for_each_student(self, put, tmp_path):
        (tmp_path / "z").mkdir()
        for name, inner in (("ada", f"bob/{ONE}.ipynb"), ("Ben Ng", f"Ben Ng/{CHAPTER}.ipynb")):
            zipped(put(inner, top=tmp_path / name), tmp_path / "z" / f"{name}.zip")
        taken = take(tmp_path / "z", EXERCISES)
        assert sorted((one.student, one.exercise) for one in taken.submissions) == [("Ben Ng", CHAPTER), ("ada", ONE)]
        assert "2 zip files at the top are taken each for that of a student" in taken.notes[0]

    def test_nbgrader_s_other_folders_are_nobody_s(self, put):
        taken = take(
            put(f"submitted/ada/x/{ONE}.ipynb", f"source/x/{ONE}.ipynb", f"autograded/ada/x/{ONE}.ipynb"), EXERCISES
        )
        assert [one.place.rsplit("/in/")[1] for one in taken.submissions] == [f"submitted/ada/x/{ONE}.ipynb"]

    def test_one_name_in_two_forms_of_unicode_is_one_student(self, put, tmp_path):
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
            for k, name in enumerate(("Zoë", "Zoe\u0308")):
                archive.writestr(zipfile.ZipInfo(f"{name}/{EXERCISES[k]}.ipynb", (2026, 11, 1, 1, 1, 0)), "x")
            archive.writestr("ada/x.txt", "x")
        assert [one.student for one in take(tmp_path / "c.zip", EXERCISES).submissions] == ["Zoë", "Zoë"]

    def test_macos_s_names_are_utf_8(self, tmp_path):
        raw = f"José/{ONE}.ipynb".encode()
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
            archive.writestr("X" * len(raw), "content")
        data = (tmp_path / "c.zip").read_bytes().replace(b"X" * len(raw), raw)
        (tmp_path / "c.zip").write_bytes(data)
        taken = take(tmp_path / "c.zip", EXERCISES)
        assert [(one.student, one.content()) for one in taken.submissions] == [("José", b"content")]


def test_other_files_are_listed_with_whose_they_are(put):
    names = ["a.py", "a.pdf", "a.html", "a.txt", "a.tar.gz", "noending"]
    taken = take(put(f"ada/{ONE}.ipynb", "ben/.hidden", *(f"ben/{name}" for name in names)), EXERCISES)
    assert len(taken.left) == len(names)
    assert all("of ben is handed in and not gradable" in told for told in taken.left)
    canvas = take(put("doe_1_text.html", "roe_2_3_a.pdf", f"jo_4_5_{ONE}.ipynb", top=put() / "c"), EXERCISES)
    assert ["of doe is" in told or "of roe is" in told for told in canvas.left] == [True, True]
    many = take(put(f"ada/{ONE}.ipynb", *(f"ben/{k}.txt" for k in range(300)), top=put() / "d"), EXERCISES)
    assert len(many.left) == 21
    assert many.left[-1] == "ben: 280 more files."


@pytest.mark.parametrize("turned", [False, True])
def test_whatever_the_order_in_the_zip_the_later_counts(tmp_path, turned):
    names = [f"d_1_20_{ONE}-1.ipynb", f"d_1_3_{ONE}.ipynb", f"e_LATE_2_9_{ONE}-2.ipynb", f"e_2_8_{ONE}-3.ipynb"]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in names[:: -1 if turned else 1]:
            archive.writestr(name, name)
    assert [one.content().decode() for one in take(tmp_path / "c.zip", EXERCISES).submissions] == [names[0], names[2]]
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for year, name in [(2026, ONE), (2025, f"{ONE}-Copy1"), (2024, f"{ONE}-Copy2")][:: -1 if turned else 1]:
            archive.writestr(zipfile.ZipInfo(f"ada/{name}.ipynb", (year, 1, 1, 0, 0, 0)), str(year))
        for name in [f"{ONE}-Copy9", f"{ONE}-Copy10", ONE][:: -1 if turned else 1]:  # of one time: by number
            archive.writestr(zipfile.ZipInfo(f"ben/{name}.ipynb", (2026, 1, 1, 0, 0, 0)), name)
    taken = take(tmp_path / "f.zip", EXERCISES)
    assert [one.content().decode() for one in taken.submissions] == ["2026", f"{ONE}-Copy10"]
    assert len(taken.left) == 4


class TestHostile:
    def test_long_names_take_no_time(self, tmp_path):
        begun = time.monotonic()
        awkward = [f"{ONE}{end}" for end in ("-copy" * 5000, "- " * 9000, "_1" * 9000, "(1)" * 9000, "v" * 30000)]
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
            for name in [
                f"{ONE}{'-copy' * 40}!",
                f"{ONE}{' (1)' * 50}!",
                f"{ONE}{'-_ ' * 90}!",
                *awkward,
                "a_" * 30000,
                "1_" * 30000,
            ]:
                archive.writestr(f"ada/{name}.ipynb", "x")
                archive.writestr(f"{name}.ipynb", "x")
        assert not take(tmp_path / "c.zip", EXERCISES).submissions
        assert time.monotonic() - begun < 5

    @pytest.mark.skipif(sys.platform == "win32", reason="making links needs rights there")
    def test_links_are_not_followed(self, put, tmp_path):
        folder = put(f"ada/{ONE}.ipynb")
        secret = put("solutions/answers.ipynb", top=tmp_path / "out")
        (folder / "ben").symlink_to(secret, target_is_directory=True)
        (folder / "cy").mkdir()
        (folder / "cy" / f"{ONE}.ipynb").symlink_to(secret / "solutions/answers.ipynb")
        taken = take(folder, EXERCISES)
        assert [one.student for one in taken.submissions] == ["ada"]
        assert len(taken.left) == 2
        (folder / "ada" / f"{ONE}.ipynb").unlink()  # and none that takes a file's place afterwards
        (folder / "ada" / f"{ONE}.ipynb").symlink_to(secret / "solutions/answers.ipynb")
        with pytest.raises(CourseError, match="cannot be read"):
            taken.submissions[0].content()

    def test_names_that_climb_are_left(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
            for name in (f"../ada/{ONE}.ipynb", f"/etc/{ONE}.ipynb", f"ada/../../{ONE}.ipynb", f"..\\ada\\{ONE}.ipynb"):
                archive.writestr(name, "x")
        taken = take(tmp_path / "c.zip", EXERCISES)
        assert not taken.submissions
        assert all("points out of the zip file" in told for told in taken.left)

    def test_a_bomb_is_not_unpacked(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"ada/{ONE}.ipynb", bytes(LARGEST + 100))
        with pytest.raises(CourseError, match="at most 30 MB"):
            take(tmp_path / "c.zip", EXERCISES).submissions[0].content()

    def test_a_large_file_is_not_read_whole(self, put):
        folder = put(f"ada/{ONE}.ipynb")
        os.truncate(folder / f"ada/{ONE}.ipynb", 200_000_000)
        with pytest.raises(CourseError, match="at most 30 MB"):
            take(folder, EXERCISES).submissions[0].content()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of any bytes are Linux's")
    def test_names_that_are_no_text_are_spelt_out(self, put):
        folder = put("x/y")
        for name in (b"\xff\xfe", b"a\x1b[31mb"):
            (os.fsencode(folder) + b"/" + name).decode("utf-8", "surrogateescape")
            os.makedirs(os.fsencode(folder) + b"/" + name)
            with open(os.fsencode(folder) + b"/" + name + f"/{ONE}.ipynb".encode(), "w") as file:
                file.write("z")
        taken = take(folder, EXERCISES)
        assert [one.student for one in taken.submissions] == ["\\udcff\\udcfe", "a\\x1b[31mb"]
        assert [one.content() for one in taken.submissions] == [b"z", b"z"]
        assert all(one.place.isprintable() for one in taken.submissions)

    def test_what_is_not_there_is_told(self, tmp_path):
        with pytest.raises(CourseError, match="Expected a folder or a zip file of submissions"):
            take(tmp_path / "nowhere", EXERCISES)

    def test_a_list_of_a_million_files_is_not_read(self, put, tmp_path):
        name = b"ada/%07d.txt"
        entry = b"PK\1\2" + struct.pack(
            "<4B4HL2L5H2L", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, len(name % 0), 0, 0, 0, 0, 0, 0
        )
        listed = b"".join(entry + name % k for k in range(500_000))
        end = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 500_000, 500_000, len(listed), 0)
        end += (
            b"PK\6\7"
            + struct.pack("<LQL", 0, len(listed), 1)
            + b"PK\5\6"
            + struct.pack("<4H2LH", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
        )
        folder = put(f"ada/{ONE}.ipynb", f"ben/{ONE}.ipynb")
        for place in (folder / "ben" / "many.zip", tmp_path / "many.zip"):
            place.write_bytes(listed + end)
        begun = time.monotonic()
        assert "lists files in 30 MB" in take(folder, EXERCISES).left[0]
        assert "lists files in 30 MB" in take(tmp_path / "many.zip", EXERCISES).left[0]
        assert time.monotonic() - begun < 2

    def test_a_zip_with_a_comment_is_read(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
            archive.writestr(f"ada/{ONE}.ipynb", "x")
            archive.comment = b"\xfe" * 300
        assert len(take(tmp_path / "c.zip", EXERCISES).submissions) == 1

    def test_damaged_zips_give_sentences(self, tmp_path):
        fuzz(tmp_path, 300)

    @pytest.mark.slow
    def test_thousands_of_damaged_zips_give_sentences(self, tmp_path):
        fuzz(tmp_path, 6000, seed=1)


NAMES = [
    "ada",
    f"{ONE}.ipynb",
    f"{CHAPTER}-Copy1.ipynb",
    "d_1_2_x.ipynb",
    "Jo_5_assignsubmission_file_",
    "x.zip",
    "LATE",
]
PIECES = [
    "_",
    "-",
    "(",
    ")",
    ".",
    "/",
    "\\",
    ":",
    "\x00",
    "\x1b",
    "\u202e",
    "�",
    "é",
    "é",
    "ß",
    "İ",
    "1",
    "99999999999999999999999",
    "LATE",
    "anon",
    "copy",
    "..",
    "submitted",
]


def fuzz(folder, count, seed=0):
    """Random names and random damage: whatever happens, `take` and `content` give a sentence or bytes."""
    rng = random.Random(seed)
    path, read, refused = folder / "c.zip", 0, 0
    for _ in range(count):
        with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for _ in range(rng.randint(1, 6)):
                name = "/".join(
                    "".join(rng.choice(NAMES if rng.random() < 0.5 else PIECES) for _ in range(rng.randint(1, 4)))
                    for _ in range(rng.randint(1, 3))
                )
                name = name if rng.random() < 0.3 else f"s{rng.randint(0, 3)}/{rng.choice(EXERCISES)}.ipynb"
                name = name.encode("utf-8", "ignore").decode()
                archive.writestr(
                    zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), notebook_of("faithful", name), rng.choice([0, 8])
                )
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([0, 1, 1, 2, 5, 40])):
            where = rng.randrange(len(data))
            kind = rng.random()
            if kind < 0.7:
                data[where] = rng.randrange(256)
            elif kind < 0.85:
                del data[where : where + rng.randint(1, 30)]
            else:
                data[where:where] = rng.randbytes(rng.randint(1, 30))
        path.write_bytes(data)
        try:
            taken = take(path, EXERCISES, cells=CELLS, only=rng.choice(["", ONE]))
        except CourseError:
            refused += 1
            continue
        assert all(told.isprintable() for told in (*taken.left, *taken.notes))
        for one in taken.submissions:
            try:
                one.content()
                read += 1
            except CourseError as error:
                refused += 1
                assert str(error).isprintable()  # noqa: PT017
    assert read > count / 3
    assert refused > count / 20


def test_a_folder_that_cannot_be_opened_is_told(put, monkeypatch):
    top, scandir = put(f"ada/{ONE}.ipynb", f"ben/{ONE}.ipynb"), os.scandir

    def closed(path):
        if str(path) == str(top / "ada"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # a mode keeps nobody out who is root
    found = take(top, EXERCISES)
    assert [one.student for one in found.submissions] == ["ben"]
    assert found.left == (f"{top / 'ada'} cannot be read ([Errno 13] Permission denied: '{top / 'ada'}').",)


MOODLE = [f"{who}_{number}_assignsubmission_file/{ONE}.ipynb" for number, who in enumerate(("Jo", "Al", "Zoe"), 7)]


def moodle_s(path, *seconds, names=MOODLE):
    with zipfile.ZipFile(path, "w") as archive:
        for name, after in zip(names, seconds, strict=False):
            archive.writestr(zipfile.ZipInfo(name, (2020, 12, 1, 10, after // 60, after % 60)), name)
    return path


@pytest.mark.parametrize(
    ("seconds", "is_told"),
    [
        ((0, 2, 2), False),  # as Moodle from 3.10 on writes whatever it sends: when it sends it
        ((0, 900, 900), False),
        ((4, 0, 2), True),
        ((0, 600, 1500), True),
        ((0, 2), True),
        ((0,), True),
    ],
)
def test_the_time_of_a_download_is_nobody_s_hand_in(tmp_path, seconds, is_told):
    found = take(moodle_s(tmp_path / "a.zip", *seconds), EXERCISES)
    assert [bool(one.handed_in) for one in found.submissions] == [is_told] * len(seconds)
    assert ["time at which Moodle wrote the download" in told for told in found.notes] == [True] * (not is_told)


def test_of_one_or_two_the_time_of_the_zip_file_tells(tmp_path):
    path = moodle_s(tmp_path / "a.zip", 0)
    os.utime(path, (time.mktime((2020, 12, 1, 10, 5, 0, 0, 0, -1)),) * 2)
    assert not take(path, EXERCISES).submissions[0].handed_in


def test_the_same_where_the_download_was_unpacked_and_no_student_s_zip_has_a_say(put, tmp_path):
    top = put(*MOODLE)
    assert not any(one.handed_in for one in take(top, EXERCISES).submissions)
    for k, name in enumerate(MOODLE):
        os.utime(top / name, (1e9 + 9000 * k,) * 2)
    assert all(one.handed_in for one in take(top, EXERCISES).submissions)
    (top / MOODLE[0]).unlink()
    own = moodle_s(top / MOODLE[0].replace("ipynb", "zip"), 0, 1, 2, names=[MOODLE[0], f"a/{MOODLE[0]}", "c.ipynb"])
    os.utime(own, (1e9, 1e9))
    assert all(one.handed_in for one in take(top, EXERCISES).submissions)
