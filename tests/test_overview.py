"""The page of a class: who has what, which items tell apart and what went wrong; nothing in it runs or loads."""

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.overview import items, overview, write_overview
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.marks import Mark
from course_utils.grading.result import BROKEN, Result
from tests.shared import EVIL

pytestmark = pytest.mark.quick
EMPTY = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
SAYS = ["Expected 3 rows, got 4: the template's tokens are in.", "Nothing depends on the prompt.", EVIL]


def a_class(book, students=24, exercises=("08_1_token_attribution", "08_3_probing")):
    """A class whose abilities decide about two checks, chance about a third; the fourth goes against it."""
    draw = random.Random(3)
    for number in range(students):
        able = draw.random()
        for exercise in exercises[: 1 + (number % 7 != 3)]:
            passes = [able > 0.3, able > 0.6, draw.random() > 0.5, able < 0.5, able > 0.5, able > 0.4]
            marks = [
                Mark(f"item{k}", f"item{k}-check", 2.0, 2.0 * won, "passed" if won else "failed", message="" if won else SAYS[(k + number) % 3])
                for k, won in enumerate(passes)
            ]  # fmt: skip
            marks.append(Mark("why", "why", 4.0, None, "to be read"))
            where = Submission(f"student {number:02d}", exercise, Path("x"), late=number % 9 == 4)
            index = book.take(where, f"{number}".encode())
            book.record(index, "r", "v", Result("done", tuple(marks), (), (), EMPTY, 1.0), {"item2-check"})
    graded = next(book.current())
    book.override(graded, "item0-check", 1.0, "why", "X")


@pytest.fixture
def book(tmp_path):
    with Gradebook(tmp_path / "g") as book:
        yield book


def test_discrimination_is_the_correlation_with_the_rest(book):
    a_class(book)
    found = list(book.current("08_1_token_attribution"))
    earned = np.array([
        [e.override.machine if e.override else e.mark.earned or 0 for e in graded.entries] for graded in found
    ])  # fmt: skip
    for k, item in enumerate(items(found)[:6]):
        rest = earned.sum(axis=1) - earned[:, k]
        assert item.discrimination == pytest.approx(np.corrcoef(earned[:, k], rest)[0, 1])
        assert item.passed == pytest.approx((earned[:, k] == 2).mean())
        assert (item.marks, item.points, item.is_hidden) == (24, 2, k == 2)
        assert sum(count for _, count in item.mistakes) == (earned[:, k] == 0).sum()
    assert items(found)[3].discrimination < 0 < items(found)[0].discrimination
    assert (items(found)[6].marks, items(found)[6].discrimination) == (0, None)


def test_what_a_person_reads_counts_when_it_is_read_and_who_could_not_be_run_does_not(book):
    a_class(book)
    for number, graded in enumerate(book.current("08_1_token_attribution")):
        if number < 12:
            book.give(graded, "why", number % 5, "", "X")
    book.record(book.take(Submission("zoe", "08_1_token_attribution", Path("x")), b"z"), "r", "v",
                Result(BROKEN, (Mark("item0", "item0-check", 2, 0, "not run"),), (), (), EMPTY, 0.0))  # fmt: skip
    found = items(book.current("08_1_token_attribution"))
    assert found[0].marks == 24
    why = found[6]
    assert (why.is_read, why.marks) == (True, 12)
    assert why.share == pytest.approx(np.mean([k % 5 for k in range(12)]) / 4)
    assert why.discrimination is not None


@pytest.mark.parametrize("students", [0, 1, 2, 9])
def test_of_few_students_it_says_no_correlation(book, students):
    if students:
        a_class(book, students)
    assert [item.discrimination for item in items(book.current())] == [None] * len(items(book.current()))
    page = overview(list(book.current())).decode()
    assert f"{students} student" in page


class Seen(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_being_late_costs_is_taken_off(book):
    a_class(book, 5)
    book.settle_late(lambda *told: (0.125, "a day late") if told[2] else (0.0, ""))
    late = next(graded for graded in book.current() if graded.late)
    assert late.subtracted == 2
    page = overview(list(book.current())).decode()
    assert f">{late.earned - 2:g} of 16<br><small>2 subtracted, late, 1 to read</small>" in page


def test_who_handed_in_nothing_has_a_row_too_as_long_as_the_roster_knows_them(book, tmp_path):
    a_class(book, 5)
    book.keep("students", json.dumps(["Ada Zzz", "student 00"]))
    write_overview(book, tmp_path)
    page = (tmp_path / "overview.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>', page.partition("<tfoot>")[0])
    assert rows == sorted({*rows, "Ada Zzz"})
    assert page.count("not handed in") >= 2


def test_the_page_is_well_formed_whole_and_harmless(book):
    a_class(book)
    for exercise in ("toy", EVIL):
        number = book.take(Submission(EVIL, exercise, Path("x")), b"evil")
        mark = Mark(EVIL, EVIL, 2.0, 0.0, "failed", message=EVIL)
        book.record(number, "r", "v", Result("done", (mark,), (), (), EMPTY, 1.0))
    page = overview(list(book.current())).decode()
    seen = Seen(page)
    assert not seen.open
    names = {tag for tag, _ in seen.tags}
    assert not names & {"script", "img", "a", "iframe", "link", "svg", "object"}
    assert not any(re.match("on|href|src", name) for _, attributes in seen.tags for name in attributes)
    assert not re.search(r"url\(|@import|http://|https://", page.replace("http-equiv", ""))
    assert all("scope" in attributes for tag, attributes in seen.tags if tag == "th")
    assert sum(tag == "main" for tag, _ in seen.tags) == 1
    assert "not handed in" in page
    assert "by hand" in page
    assert "late" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not here")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out_of_a_narrow_screen(book, tmp_path, width):
    """A script of ours (not of the page's) asks the browser how wide the page is."""
    a_class(book)
    page = overview(list(book.current())).decode()
    asks = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script></body>"
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", asks)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    frame = f'<iframe src="page.html" width="{width}" height="800"></iframe>'
    frame += "<script>onload = () => document.title = document.querySelector('iframe').contentDocument.title</script>"
    (tmp_path / "frame.html").write_text(frame)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=120, check=True
    )
    whole, inner = map(int, re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups())
    assert whole <= inner <= width


def test_what_was_not_answered_is_no_mistake_of_the_class(book):
    for number, message in enumerate(
        ("multiply by two", "nothing is written yet", "the check stopped: AssertionError")
    ):
        status = ("not answered", "to be read", "failed")[number]
        mark = Mark("a", "a", 2.0, 0.0, status, message=message)
        index = book.take(Submission(f"s{number}", "toy", Path("x")), b"")
        book.record(index, "r", "v", Result("done", (mark,), (), (), EMPTY, 0.0))
    (item,) = items(book.current())
    assert (item.marks, item.answered, item.mistakes) == (3, 1, (("the check stopped: AssertionError", 1),))
