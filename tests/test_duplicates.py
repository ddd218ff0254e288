"""Answers of a class that resemble each other: copies are found whatever was done to them, honest ones are not."""

import ast
import copy
import csv
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from course_utils import CourseError
from course_utils.grading.classroom.earlier import earlier_in
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.similarity import ALIKE, NOT_COMPARED, RENAMED, SAME, SOLUTION, alike, table_of
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.notebook import ANSWER, MANUAL, grade_id, kind, student_view, without_regions, write
from course_utils.grading.result import Result
from tests.mutants import EXERCISES, mutants, solution
from tests.shared import cell_of

ITEM = "occlusion"
OWN = """
def occlusion(lm, prompt, stand_in, contrast):
    full = measure(lm, prompt.ids, contrast)  # once for all
    scores = []
    for place in range(len(prompt.ids)):
        ids = list(prompt.ids)
        ids[place] = stand_in
        score = measure(lm, ids, contrast)
        if place not in prompt.typed:
            score = full
        scores.append(full - score)
    largest = max(map(abs, scores)) or 1.0
    return [round(score / largest, 9) * largest for score in scores]
"""


@pytest.fixture(scope="module")
def reference():
    return solution("08_1_token_attribution")


@pytest.fixture(scope="module")
def answer(reference):
    return cell_of(reference, ITEM).source


def handed_in(reference, sources, item=ITEM):
    for student, source in sources.items():
        notebook = nbformat.from_dict(copy.deepcopy(dict(student_view(reference))))
        cell_of(notebook, item).source = source
        yield student, notebook


def found_in(reference, sources, item=ITEM, **options):
    return alike(handed_in(reference, sources, item), reference, "08_1", **options)


def renamed(source):
    """The same with other names for what it assigns, no comments, another layout."""
    tree = ast.parse(source)
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in own:
            node.id += "_of_mine"
        if isinstance(node, ast.arg) and node.arg in own:
            node.arg += "_of_mine"
    return "# all my own work\n\n" + ast.unparse(tree).replace("    ", "\t")


def test_a_copy_is_the_same_and_one_with_other_names_and_layout_is_found(reference, answer):
    honest = [m.source for m in mutants("08_1_token_attribution") if m.item == ITEM and m.says is None]
    sources = {"ada": OWN, "ben": OWN, "cy": renamed(OWN), "dan": honest[0]}
    (one,) = found_in(reference, sources)
    assert (one.how, one.students, one.similarity, one.check) == (RENAMED, ("ada", "ben", "cy"), 1.0, ITEM)
    assert one.rare > 20
    sources.pop("cy")
    (one,) = found_in(reference, sources)
    assert (one.how, one.students, one.others) == (SAME, ("ada", "ben"), ())
    assert b"ada; ben" in table_of([one])


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_copy_of_the_solution_is_found_in_every_answer_however_short(exercise):
    reference = solution(exercise)
    for cell in reference.cells:
        if kind(cell) not in (ANSWER, MANUAL):
            continue
        item, text = grade_id(cell), copied(cell.source)
        (one,) = found_in(reference, {"ada": text}, item)
        assert (one.how, one.students, one.others) == (SAME, ("ada",), (SOLUTION,)), item
        assert 0 < one.tokens < 2000
        (one,) = found_in(
            reference, {"ada": without_regions(cell.source, ("MARK SCHEME",)).replace("\n", "\n\n")}, item
        )
        assert one.how == SAME
        if cell.cell_type == "code":
            found = found_in(reference, {"ada": renamed(text)}, item)
            assert found[0].others == (SOLUTION,)
            assert found[0].similarity > 0.9  # less than 1 where a keyword argument was renamed with the name
            both = found_in(reference, {"ada": text, "ben": renamed(text)}, item)
            assert (SAME, ("ada",)) in [(each.how, each.students) for each in both] or both[0].how == SAME


def copied(source):
    """A solution's answer as somebody hands it in who has it: without what marks it."""
    lines = without_regions(source, ("MARK SCHEME",)).splitlines()
    return "\n".join(line for line in lines if " SOLUTION" not in line and "# NEXT:" not in line)


def test_an_answer_of_last_year_is_found(reference, answer):
    honest = [m.source for m in mutants("08_1_token_attribution") if m.item == ITEM and m.says is None]
    old = list(handed_in(reference, {"2025/zoe": OWN, "2025/yan": OWN, "2025/xi": honest[0]}))
    (one,) = found_in(reference, {"ada": renamed(OWN), "ben": "def f(): pass"}, earlier=old)
    assert (one.how, one.students, one.others) == (RENAMED, ("ada",), ("2025/yan", "2025/zoe"))
    assert found_in(reference, {"ben": "def f(): pass"}, earlier=old) == []
    changed = OWN.replace("scores.append(full - score)", "scores.append(full - score)\n        print(scores)")
    (one,) = found_in(reference, {"ada": changed}, earlier=old)
    assert (one.how, one.students, one.others) == (ALIKE, ("ada",), ("2025/yan", "2025/zoe"))
    header, row = list(csv.reader(table_of([one]).decode("utf-8-sig").splitlines()))
    assert dict(zip(header, row, strict=True))["like"] == "2025/yan; 2025/zoe"


def test_a_folder_of_last_year_is_read_whatever_lies_in_it(reference, tmp_path):
    references = {"08_1": reference}
    notebook = next(handed_in(reference, {"zoe": OWN}))[1]
    place = tmp_path / "old" / "deep" / "zoe" / "whatever it was called.ipynb"
    place.parent.mkdir(parents=True)
    place.write_bytes(write(notebook))
    (place.parent / "broken.ipynb").write_text("{")
    (place.parent / "huge.ipynb").write_bytes(b" " * 31_000_000)
    (place.parent / "loop.ipynb").symlink_to(place.parent / "loop.ipynb")
    (tmp_path / "old" / "gradebook.db").write_bytes(b"of another program")
    with Gradebook(tmp_path / "old" / "grades" / "course-gradebook.sqlite") as book:
        number = book.take(Submission("yan", "08_1", place), b"1")
        book.record(number, "r", "v", Result("done", (), (), (), write(notebook), 1.0))
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    found = earlier_in(tmp_path / "old", references)
    assert [where for where, _ in found["08_1"]] == [
        "deep/zoe/whatever it was called.ipynb", "grades/course-gradebook.sqlite: yan",
    ]  # fmt: skip
    assert before == {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    with pytest.raises(CourseError, match="Expected a folder of earlier submissions in"):
        earlier_in(tmp_path / "nowhere", references)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="found none of these exercises"):
        earlier_in(tmp_path / "empty", references)


@pytest.mark.parametrize(
    "exercise", [EXERCISES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in EXERCISES[1:])]
)
def test_copies_with_a_change_are_found_and_answers_of_ones_own_are_not(exercise):
    """Over all wrong answers (a change each, then renamed) and all right ones in a style of their own."""
    reference = solution(exercise)
    caught, copies = 0, 0
    for item in sorted({mutant.item for mutant in mutants(exercise)}):
        answer = cell_of(reference, item).source
        own = [m.source for m in mutants(exercise) if m.item == item and m.says is None]
        own = [source for source in own if _overlap(source, answer) < 0.5]  # others change a line of the solution
        edited = [m.source for m in mutants(exercise) if m.item == item and m.says is not None]
        edited = [source for source in edited if _overlap(source, answer) > 0.7]
        others = {f"own{i}": source for i, source in enumerate(own)}
        honest = found_in(reference, others, item)
        assert not [each for each in honest if each.others], item
        for source in edited:
            found = found_in(reference, {"copy": renamed(source)} | others, item)
            caught += any("copy" in each.students and each.others for each in found)
            copies += 1
    assert copies > 20
    assert caught / copies > 0.8


def _overlap(source, other):
    lines = {line.strip() for line in other.splitlines()}
    mine = [line.strip() for line in source.splitlines()]
    return sum(line in lines for line in mine) / len(mine)


def test_what_nobody_answered_or_everybody_got_says_nothing(reference):
    stub = cell_of(student_view(reference), ITEM).source
    assert found_in(reference, {"ada": stub, "ben": stub, "cy": stub + "\n# later"}) == []
    assert found_in(reference, {"ada": "def f(x):\n    return x", "ben": "def f(y):\n    return y"}) == []
    assert found_in(reference, {}) == []


def test_prose_is_compared_by_words():
    reference = solution("08_chapter_exercise")
    text = (
        "I expect the adverb to come first, since without it nothing is left that the word matcher could have matched; "
    )
    text += "the verb may score a little, for the model never saw it with a bread knife in any of its many kitchens."
    sources = {"ada": text, "ben": text.upper().replace(",", " --"), "cy": "Something else altogether. " * 9}
    found = found_in(reference, sources, "expectation")
    assert [(each.how, each.students) for each in found] == [(RENAMED, ("ada", "ben"))]
    sources["ben"] = "Well. " + text.replace("bread knife", "spoon")
    found = found_in(reference, sources, "expectation")
    assert [(each.how, each.students) for each in found] == [(ALIKE, ("ada", "ben"))]


@pytest.mark.parametrize(
    "source",
    ["def f(:\n  x = = 3\n" * 9, "(" * 5000, "%%bash\nrm -rf /\n" * 9, "\0" * 99, "x = '\ud800'\n" * 30, "-" * 90_000],
)
def test_whatever_was_written_is_compared_within_its_time(reference, answer, source):
    began = time.monotonic()
    found = found_in(reference, {"ada": answer, "ben": source, "cy": source, "dan": answer})
    assert ("ada", "dan") in [each.students for each in found]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "hidden",
    [
        "# " + "-" * 60_000 + "\n" + OWN,
        "#\n" * 60_000 + OWN,
        OWN.replace("    full =", f"    '''{'why ' * 20_000}'''\n    full ="),
        "%%time\n" + "# why\n" * 10_000 + OWN,
    ],
    ids=["a line", "lines", "docstring", "magic"],
)
def test_comments_and_docstrings_hide_no_copy(reference, hidden):
    (one,) = found_in(reference, {"ada": OWN, "ben": hidden})
    assert one.students == ("ada", "ben")
    assert one.similarity > 0.9


def test_what_cannot_be_seen_is_listed_and_counts_as_no_copy(reference):
    sources = {
        "ada": OWN,
        "ben": "exec(bytes.fromhex('" + OWN.encode().hex() + "'))",
        "cy": "x = '" + "-" * 60_000 + "'\n" + OWN,
        "dan": OWN.replace("    full =", "    lm.model.eval()\n    full ="),
        "eve": "import builtins\nbuiltins.exec('import ' + 'torch')",
        "fay": "'nothing yet'",
        "gil": "",
    }
    copy, *unseen = found_in(reference, sources)
    assert (copy.students, copy.compared) == (("ada", "dan"), True)
    assert {each.how: each.students for each in unseen} == {
        f"{NOT_COMPARED}: it runs a text (exec or eval)": ("ben", "eve"),
        f"{NOT_COMPARED}: longer than 50,000 characters": ("cy",),
    }
    assert not any(each.compared for each in unseen)


def test_a_copy_in_cells_of_ones_own_that_the_answer_needs_is_found(reference):
    notebooks = dict(
        handed_in(reference, {"ada": OWN, "ben": "occlusion = best", "cy": "def occlusion(*a):\n    return 7"})
    )
    mine = OWN.replace("def occlusion", "def mine").replace("range(len(prompt.ids))", "every(prompt)")
    cells = {
        "ben": ["def every(prompt):\n    return range(len(prompt.ids))", mine, "best = mine", "print('hello')"],
        "cy": [mine, "def every(prompt):\n    return range(len(prompt.ids))"],  # an experiment: the answer needs none
    }
    for student, sources in cells.items():
        notebooks[student].cells[3:3] = [new_code_cell(source) for source in sources]
    found = alike(notebooks.items(), reference, "08_1")
    assert [(one.how, one.check, one.students, one.others) for one in found] == [(ALIKE, ITEM, ("ada", "ben"), ())]
    assert found[0].rare > 20


def test_who_has_an_answer_twice_resembles_nobody(reference):
    notebooks = dict(handed_in(reference, {"ada": OWN}))
    notebooks["ada"].cells.append(new_code_cell("scores = occlusion(lm, prompt, 0, contrast)\nprint(scores)"))
    assert alike(notebooks.items(), reference, "08_1") == []


@pytest.mark.slow
def test_a_large_class_takes_seconds(reference, answer):
    """1,000 answers, each with its own constants and names, two of them copies."""
    sources = {}
    for number in range(1000):
        body = "\n".join(f"    v{number}_{i} = scores[{(number * 7919 + i * i) % 9973}] * {i}" for i in range(30))
        sources[f"s{number}"] = f"def occlude(scores):\n{body}\n    return scores"
    sources["s7"] = renamed(sources["s3"])
    found = found_in(reference, sources)
    assert [(each.how, each.students) for each in found] == [(RENAMED, ("s3", "s7"))]
