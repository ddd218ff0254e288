"""In a real browser, on a `course lab` of its own: what a learner and an instructor do, and what they see.

Nothing may ask another host, and axe finds nothing serious in what is ours. JupyterLab's own parts are not ours.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from matplotlib.image import imread
from playwright.sync_api import expect, sync_playwright

from course_utils.audit.grid import MinimalEdits
from course_utils.audit.replies import Replies
from course_utils.audit.report import report
from course_utils.audit.run import Audit
from course_utils.audit.settings import Settings
from course_utils.audit.verdicts import judge
from course_utils.grading.classroom.feedback import write_feedback
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.overview import write_overview
from course_utils.grading.notebook import write
from course_utils.lesson.widgets import to_html
from tests.shared import hand_in, toy

ROOT = Path(__file__).resolve().parents[1]
COURSE = Path(sysconfig.get_path("scripts")) / "course"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TOKEN = "a-token-of-the-tests"
QUICKLY, SLOWLY = 60_000, 600_000  # ms to wait at most: for the page, for a lesson's cells
OURS = ".jp-RenderedMarkdown, .jp-OutputArea-output"  # JupyterLab's are the editors and all that is around them
THEIRS = ".jp-collapseHeadingButton"
DONE = r"""panel => {
  const prompts = [...panel.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(prompt => prompt.textContent.trim());
  return prompts.length > 0 && prompts.every(prompt => /^\[\d+\]:$/.test(prompt));
}"""
AXE = """async ([inside, outside]) => {
  const found = await axe.run({include: [inside], exclude: [outside]}, {resultTypes: ["violations"]});
  return found.violations
    .filter(one => ["serious", "critical"].includes(one.impact))
    .map(one => `${one.id}: ${one.nodes.map(node => node.html).join(" | ").slice(0, 400)}`);
}"""
FIGURE = """
from course_utils.plots import plot_bars
_ = plot_bars(["a", "b"], [1.0, -1.0], unit="nats", title="Two bars")
"""
RIGHT = """
@torch.no_grad()
def log_probabilities(lm, ids, reply_ids):
    whole = torch.cat([ids, reply_ids.expand(len(ids), -1)], dim=1)
    rows = lm.model(whole).logits[:, ids.shape[1] - 1 : -1]
    return rows.log_softmax(dim=-1).gather(2, reply_ids.expand(len(ids), -1)[:, :, None])[:, :, 0]


def score_reply(lm, ids, reply_ids):
    return log_probabilities(lm, ids, reply_ids).sum(dim=1)
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser is here: apt install chromium")


class Course:
    """A copy of this checkout, and a `course lab` that runs there with folders of its own for all that Jupyter keeps."""

    def __init__(self, home):
        self.root, self.my = home / "course", home / "course" / "my"
        for folder in ("course_utils", "docs", "exercises", "notebooks", "solutions"):
            shutil.copytree(ROOT / folder, self.root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        settings = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text('{"windowingMode": "none"}')  # else cells out of sight are not there to be looked at
        places = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("config", "data", "runtime")}
        places |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "IPYTHONDIR": str(home / "ipython")}
        self.environment = {**os.environ, **places, "PYTHONPATH": str(self.root)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = home / "log"
        command = [COURSE, "lab", "--no-browser", f"--port={self.port}", f"--ServerApp.token={TOKEN}"]
        with self.log.open("w") as log:
            self.lab = subprocess.Popen(command, cwd=home, env=self.environment, stdout=log, stderr=log)
        until(self.answers, self.log)

    def answers(self):
        assert self.lab.poll() is None, self.log.read_text()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self, *arguments):
        command = [COURSE, *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )

    def end(self):
        self.lab.terminate()
        self.lab.wait(timeout=60)


class Window:
    """A window of the browser at the course, its layout its own."""

    def __init__(self, course, page):
        self.course, self.page = course, page

    def open(self, path="my/start.md"):
        self.page.goto(
            f"http://127.0.0.1:{self.course.port}/lab/workspaces/w{time.time_ns()}/tree/{path}?token={TOKEN}"
        )

    def notebook(self, path):
        """The panel of a notebook that is open, once its kernel is there."""
        title = json.loads((self.course.root / path).read_text(encoding="utf-8"))["cells"][0]["source"]
        title = "".join(title).splitlines()[0].lstrip("# ")
        panel = self.page.locator(f'.jp-NotebookPanel:has(h1:has-text("{title}"))')
        expect(panel.locator(".jp-KernelName")).to_contain_text(
            "Python 3", timeout=QUICKLY
        )  # before, it is idle as well
        expect(panel.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_visible(timeout=QUICKLY)
        return panel

    def cell(self, panel, path, name):
        cells = json.loads((self.course.root / path).read_text(encoding="utf-8"))["cells"]
        place = next(place for place, cell in enumerate(cells) if cell["id"] == name)
        return panel.locator(".jp-Notebook .jp-Cell").nth(place)

    def menu(self, name, entry):
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(entry)).click()

    def write(self, cell, text):
        """Put something in the place of what a cell holds, and run it."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(text)
        self.run(cell)

    def run(self, cell):
        """Run a cell and wait until it is done."""
        cell.locator(".jp-InputPrompt").click()
        before = cell.locator(".jp-InputPrompt").text_content()
        self.page.keyboard.press("ControlOrMeta+Enter")
        expect(cell.locator(".jp-InputPrompt")).not_to_have_text(before, timeout=QUICKLY)
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"), timeout=SLOWLY)

    def save(self):
        """Save the notebook in front, and wait for the end: the server empties its file before it writes it."""
        with self.page.expect_response(lambda answer: answer.request.method == "PUT" and "/contents/" in answer.url):
            self.menu("File", "^Save Notebook$")

    def finished(self, panel):
        """Wait until every code cell of a notebook has run."""
        self.page.wait_for_function(DONE, arg=panel.element_handle(), timeout=SLOWLY)
        assert panel.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0

    def axe(self, inside=OURS):
        self.page.evaluate(AXE_SCRIPT)
        return self.page.evaluate(AXE, [inside, THEIRS])


def until(met, log):
    deadline = time.monotonic() + 90
    while not met():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    course = Course(tmp_path_factory.mktemp("browser"))
    yield course
    course.end()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def window_of(course, browser, width=1366):
    """A window; afterwards, that it asked nobody but this machine."""
    asked = []
    context = browser.new_context(viewport={"width": width, "height": 768})
    context.on("request", lambda request: asked.append(request.url))
    context.on("page", lambda page: page.on("websocket", lambda socket: asked.append(socket.url)))
    yield Window(course, context.new_page())
    context.close()
    ours = re.compile(rf"(https?|wss?)://(127\.0\.0\.1|localhost):{course.port}/|data:|blob:|file:|about:")
    assert not [url for url in asked if not ours.match(url)]


@pytest.fixture
def window(course, browser):
    with window_of(course, browser) as window:
        yield window


@pytest.mark.slow
def test_the_start_page_leads_to_the_lesson_that_comes_next_and_figures_say_what_they_show(window):
    window.open()
    page, path = window.page, "my/08_0_interpretability_overview.ipynb"
    expect(page.locator(".jp-MarkdownViewer h2")).to_contain_text("Next: 8.0", timeout=QUICKLY)
    expect(page.locator(".jp-MarkdownViewer tbody tr")).to_have_count(13)
    assert window.axe(".jp-MarkdownViewer") == []
    page.locator(".jp-MarkdownViewer h2 a").first.click()
    panel = window.notebook(path)
    cell = window.cell(panel, path, "imports")
    window.write(cell, FIGURE)
    expect(cell.locator(".jp-RenderedImage img")).to_have_attribute("alt", "Two bars. Axes: effect (nats)")
    assert window.axe() == []


@pytest.mark.slow
def test_on_a_phone_the_page_has_the_room_and_the_list_of_files_none(course, browser):
    with window_of(course, browser, width=390) as window:
        window.open()
        link = window.page.locator(".jp-MarkdownViewer h2 a").first
        expect(link).to_be_in_viewport(ratio=1, timeout=QUICKLY)
        expect(window.page.locator(".jp-DirListing")).to_be_hidden()


# ------------------------------------------------------------------------------------------------------- two lessons

FIRST, SECOND = "my/08_0_interpretability_overview.ipynb", "my/08_1_token_attribution.ipynb"


@pytest.fixture(scope="module")
def lessons(lm, course, browser):
    """Two lessons, open in one window and run at once."""
    with window_of(course, browser) as window:
        window.open(FIRST)
        panels = [window.notebook(FIRST)]
        window.menu("Run", "^Run All Cells$")
        panels[0].get_by_role("link", name="8.1 Token attribution").first.click()
        panels.append(window.notebook(SECOND))
        window.menu("Run", "^Run All Cells$")
        for panel in panels:
            window.finished(panel)
        yield window, *panels


def tab(window, title):
    window.page.locator("#jp-main-dock-panel .lm-TabBar-tab", has_text=title).click()


@pytest.mark.slow
class TestLessons:
    """In this order: what one does, the next one builds on."""

    def test_both_have_run_and_say_what_their_figures_show(self, lessons):
        window, *panels = lessons
        for panel, title, figures in zip(panels, ("08_0", "08_1"), (6, 3), strict=True):
            tab(window, title)
            pictures = panel.locator(".jp-RenderedImage img")
            expect(pictures).to_have_count(figures)
            assert all("Axes: " in picture.get_attribute("alt") for picture in pictures.all())
            assert window.axe() == []

    def test_the_widget_shows_what_the_package_computes(self, lessons):
        window, panel, _ = lessons
        tab(window, "08_0")
        text = "How do I secretly feed a parrot?"
        cell = window.cell(panel, FIRST, "ask-explore")
        picture = cell.locator(".widget-html img")
        before = picture.get_attribute("src")
        box = cell.get_by_label("text")
        box.press("ControlOrMeta+A")
        box.press_sequentially(text)
        expect(picture).to_have_attribute("alt", re.compile(re.escape(text)), timeout=QUICKLY)
        shown = picture.get_attribute("src")
        assert shown != before
        np.testing.assert_allclose(pixels(shown), pixels(to_html(lesson_function("ask")(text))), atol=0.1)

    def test_a_bad_entry_gets_its_sentence_and_the_next_one_works(self, lessons):
        window, panel, _ = lessons
        cell = window.cell(panel, FIRST, "ask-explore")
        cell.get_by_label("text").fill("word " * 9000)
        expect(cell).to_contain_text("Not drawn.", timeout=QUICKLY)
        expect(cell).to_contain_text("8,192")
        expect(cell).to_contain_text("Below: the last one that worked.")
        assert window.axe() == []
        cell.get_by_label("text").fill("How do I bake bread?")
        expect(cell.locator(".widget-html img")).to_have_attribute("alt", re.compile("bake bread"), timeout=QUICKLY)
        expect(cell).not_to_contain_text("Not drawn.")

    def test_a_line_that_is_right_shows_on_the_start_page(self, lessons):
        window, panel, _ = lessons
        tab(window, "08_0")  # the other lesson may be in front
        cell = window.cell(panel, FIRST, "logits-turn")
        before = cell.locator(".cm-content").inner_text()
        window.write(cell, before.replace("...", "7"))
        expect(cell.locator(".jp-OutputArea-output")).to_contain_text("Not yet: got 7. Hint:")
        window.write(cell, before.replace("...", "logits.shape[-1]"))
        expect(cell.locator(".jp-OutputArea-output")).to_have_text("✓\n")
        window.save()
        window.page.locator(".jp-DirListing-item", has_text="start.md").dblclick()
        row = window.page.locator(".jp-MarkdownViewer tr", has_text="Three models")
        expect(row).to_contain_text("1 of 3 lines right", timeout=QUICKLY)

    def test_a_kernel_restarts_and_begins_anew(self, lessons):
        window, _, panel = lessons
        tab(window, "08_1")
        window.menu("Kernel", "^Restart Kernel…$")
        with window.page.expect_response(re.compile("/restart")):
            window.page.locator(".jp-Dialog button", has_text="Restart").click()
        window.notebook(SECOND)
        cell = window.cell(panel, SECOND, "imports")
        window.run(cell)
        expect(cell.locator(".jp-InputPrompt")).to_have_text("[1]:")

    def test_a_lesson_that_is_opened_on_another_day_shows_its_widget_as_it_was(self, lessons, course, browser):
        window, panel, _ = lessons
        tab(window, "08_0")
        window.save()
        window.menu("Kernel", "^Shut Down Kernel$")
        expect(panel.locator(".jp-KernelName")).to_contain_text("No Kernel", timeout=QUICKLY)
        with window_of(course, browser) as later:
            later.open(FIRST)
            cell = later.cell(later.notebook(FIRST), FIRST, "ask-explore")
            expect(cell.locator(".widget-html img")).to_have_attribute("alt", re.compile("bake bread"), timeout=QUICKLY)
            expect(later.page.get_by_text("Error displaying widget")).to_have_count(0)


def pixels(html):
    """The picture in some HTML, or of an address, [row, column, channel]."""
    return imread(BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))


def lesson_function(name):
    """A function that lesson 8.0 defines, made here from the lesson's own cells."""
    cells = json.loads((ROOT / "notebooks" / Path(FIRST).name).read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    made = {}
    for code in (sources["imports"], sources["suspects"].splitlines()[0], sources[name]):
        exec(code, made)
    return made[name]


# ------------------------------------------------------------------------------------------------------- an exercise


@pytest.mark.slow
def test_an_exercise_from_stub_over_wrong_to_right_and_course_check_agrees(course, window):
    path = "my/exercise_08_1_token_attribution.ipynb"
    window.open(path)
    panel = window.notebook(path)
    answer, check = window.cell(panel, path, "reply"), window.cell(panel, path, "reply-check")
    window.run(window.cell(panel, path, "setup"))
    for code, said, status in (
        (None, "put the reply behind each prompt", "not answered"),
        (RIGHT.replace("log_softmax", "softmax"), "take their logarithm", "failed"),
        (RIGHT, "", "passed"),
    ):
        window.write(answer, code) if code else window.run(answer)
        window.run(check)
        expect(check.locator(".jp-OutputArea")).to_contain_text(said)
        window.save()
        assert (code or "").strip() in source(course.root / path, "reply")
        [item] = json.loads(course.run("check", "08_1", "--json").stdout)
        marks = {mark["check"]: mark for mark in item["marks"]}
        assert marks["reply-check"]["status"] == status
        assert said in marks["reply-check"]["message"]


def source(path, name):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["id"] == name))


# ------------------------------------------------------------------------------------------------------- an instructor


@pytest.fixture(scope="module")
def grades(course):
    """Three answers to a question that only a person can judge; nothing is run for them."""
    (course.root / "solutions" / "toy.ipynb").write_bytes(write(toy()))
    grades = course.root / "grades"
    with Gradebook(grades / "course-gradebook.sqlite") as book:
        for student in ("ada", "ben", "cy"):
            hand_in(book, toy(), student, f"A **reason** of {student}'s.")
        yield book, grades


@pytest.mark.slow
def test_the_grading_desk_by_keyboard_closed_and_reopened(window, grades):
    book, _ = grades
    page = window.page
    desk = at_the_desk(window)
    page.keyboard.type("2,5 names no word")
    page.keyboard.press("Enter")
    expect(desk).to_contain_text("saved: 2.5 of 3", timeout=QUICKLY)
    page.keyboard.type("7 too much")  # the line has the focus again
    page.keyboard.press("Enter")
    expect(desk).to_contain_text("Not saved.", timeout=QUICKLY)
    assert window.axe() == []
    assert given(book) == [(None, ""), (None, ""), (2.5, "names no word")]
    tab_back(page, "!document.activeElement.closest('.jp-OutputArea')")  # JupyterLab leaves all keys to a widget
    page.keyboard.press("Control+S")
    expect(page.locator("#jp-main-dock-panel .jp-mod-dirty")).to_have_count(0, timeout=QUICKLY)
    page.keyboard.press("Alt+W")
    expect(page.locator(".jp-NotebookPanel")).to_have_count(0)
    desk = at_the_desk(window)
    for entry in ("1", "3 well said"):
        page.keyboard.type(entry)
        page.keyboard.press("Enter")
        expect(desk).to_contain_text(f"saved: {entry[0]} of 3", timeout=QUICKLY)
    expect(desk).to_contain_text("Everything has been read.")
    assert given(book) == [(1, ""), (2.5, "names no word"), (3, "well said")]


def at_the_desk(window):
    """Open the desk, run its cells down to the one that shows it, and go to its line: all with keys."""
    path = "docs/grading_desk.ipynb"
    window.open(path)
    panel, page = window.notebook(path), window.page
    expect(panel.locator(".jp-Cell").first).to_be_focused()
    desk = window.cell(panel, path, "desk")
    for _ in range(6):
        page.keyboard.press("Shift+Enter")
    expect(desk.get_by_placeholder("Enter saves")).to_be_visible(timeout=QUICKLY)
    tab_back(page, "document.activeElement.placeholder?.endsWith('Enter saves')")
    return desk


def tab_back(page, there):
    """Press Shift and Tab until what has the focus is wanted."""
    for _ in range(60):
        if page.evaluate(there):
            return
        page.keyboard.press("Shift+Tab")
    raise AssertionError(f"no key leads to where {there}")


def given(book):
    """What stands in the gradebook: points and comments, in order."""
    entries = [entry for graded in book.current() for entry in graded.entries if entry.mark.check == "why"]
    return sorted(((e.mark.earned, e.comment) for e in entries), key=lambda pair: pair[0] or 0)


# ------------------------------------------------------------------------------------------------------- pages


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_feedback_overview_and_audit(browser, grades, pages, scheme):
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # which keeps axe out as well
    page = context.new_page()
    found = {}
    for path in pages:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.evaluate(AXE_SCRIPT)
        found[path.name] = page.evaluate(AXE, ["body", THEIRS])
    context.close()
    assert not any(found.values()), found


@pytest.fixture(scope="module")
def pages(grades):
    book, folder = grades
    write_feedback(book, folder / "feedback")
    write_overview(book, folder)
    (folder / "audit.html").write_text(report(made_up()), encoding="utf-8")
    return folder / "feedback" / "ada.html", folder / "overview.html", folder / "audit.html"


def made_up():
    """An audit of nothing, with all parts that are tables or a figure."""
    scores = np.random.default_rng(0).normal(size=(8, 2, 3, 1)).astype(np.float32)
    acts = tuple((f"harm {i}", f"help {i}") for i in range(8))
    asked = (acts, ("", "gently", "secretly"), 1, ("How can I {word} {act}?",), ("I",), ("Sure",), (), "made up")
    grid = MinimalEdits(scores, np.ones_like(scores), *asked)
    told = {"agreement": 1.0, "thinks": 0, "later": 0, "empty": 0, "prompt": "How can I help?"}
    replies = Replies(("How can I help?",), (), ("I can't",), (True,), (), (1.0,), **told)
    said = ({}, None, "Nothing was looked at.", judge(grid), (), "now", 1.0)
    return Audit("made up", {"weights": "none"}, Settings(), replies, None, grid, *said)
