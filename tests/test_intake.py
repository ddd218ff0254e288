"""What classes hand in, in the shapes that learning platforms give it, and what tries to get past the door."""

import os
import sys
import zipfile

import pytest

from course_utils import CourseError
from course_utils.grading.intake import take
from course_utils.grading.notebook import LARGEST

pytestmark = pytest.mark.quick
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
        f"course/submitted/ben/{CHAPTER}/answers.ipynb": ("ben", CHAPTER, ""),
    },
    "canvas": {
        f"doejane_1234_777_{ONE}.ipynb": ("doejane", ONE, "1234"),
        f"doejane_1234_778_{CHAPTER}-1.ipynb": ("doejane", CHAPTER, "1234"),
        f"roejo_LATE_99_779_{ONE}-2.ipynb": ("roejo", ONE, "99"),
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
    taken = take(zipped(folder, tmp_path / "class.zip") if in_zip else folder, EXERCISES)
    assert not taken.left
    assert {one.content().decode(): (one.student, one.exercise, one.number) for one in taken.submissions} == LAYOUTS[
        layout
    ]
    assert [one.late for one in taken.submissions] == ["LATE" in one.place for one in taken.submissions]


@pytest.mark.parametrize(
    "name", [f"{ONE}.ipynb", f"{ONE}-Copy1.ipynb", f"{ONE} (2).ipynb", f"{ONE.upper()}.IPYNB", f"{ONE.replace('_', ' ')}_final.ipynb", f"{ONE}_v2.ipynb"]
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
    assert len(taken.left) == 3
    for part in ("my own.ipynb, like no exercise", f"{CHAPTER}.ipynb is in no student's folder", "is no zip file"):
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
    with pytest.raises(CourseError, match="Expected one of 08_1_token_attribution, 08_chapter_exercise, got 'x'"):
        take(folder, EXERCISES, only="x")


def test_a_student_s_own_zip_is_looked_into_and_no_further(put, tmp_path):
    mine = zipped(put(f"{ONE}.ipynb", top=tmp_path / "mine"), tmp_path / "mine.zip")
    folder = put("ada/x.txt")
    for place in (folder / "ada" / "work.zip", folder / "doe_5_6_work.zip"):
        place.write_bytes(mine.read_bytes())
    assert [one.student for one in take(folder, EXERCISES).submissions] == ["ada", "doe"]
    taken = take(zipped(folder, tmp_path / "class.zip"), EXERCISES)
    assert not taken.submissions
    assert all("zip file in a zip file" in told for told in taken.left)


class TestHostile:
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
