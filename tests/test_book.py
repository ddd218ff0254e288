"""`course book`: what goes in, what is refused, and the whole site as a browser sees it."""

import base64
import functools
import http.server
import importlib
import json
import re
import shutil
import socket
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from click.testing import CliRunner

import course_utils
from course_utils.book import build as building
from course_utils.book.sources import CONTENTS, MODULES, gather, label, linked, moved, with_descriptions
from course_utils.cli import main
from course_utils.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent
SEALED = base64.b64decode(b"b3V0ZG9vcnM=").decode()
CASE = "notebooks/08_6_case_file"
HEAVIEST = 3_000_000  # bytes of a page with all that it loads
CHROMIUM = shutil.which("chromium")


def book(*arguments):
    return CliRunner().invoke(main, ["book", *map(str, arguments)])


def assert_refused(result, *parts):
    """Exit code 2 and one sentence, which says each of the parts."""
    assert result.exit_code == 2, repr(result.exception)
    assert re.fullmatch(r"Error: [^\n]+[^.\n]\.\n", result.stderr), result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "sources"
    gather(ROOT, folder)
    return folder


@pytest.mark.quick
class TestSources:
    def test_every_page_has_its_place_in_the_contents(self):
        named = [page for chapter in CONTENTS for page in chapter.pages(ROOT)]
        assert len(named) == len(set(named))
        for pattern in ("docs/*.md", "notebooks/*.ipynb", "exercises/*.ipynb"):
            found = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
            assert found - {"docs/index.md"} <= set(named)
        assert all(not chapter.title.startswith("Solutions") and chapter.pages(ROOT) for chapter in CONTENTS)

    def test_no_solution_is_among_them(self, sources):
        assert not list(sources.rglob("solutions"))
        assert (sources / "exercises" / "08_1_token_attribution.ipynb").exists()
        for path in sources.rglob("*.ipynb"):
            assert "BEGIN SOLUTION" not in path.read_text(encoding="utf-8"), path.name

    def test_every_link_of_a_page_leads_to_a_file_that_goes_along(self, sources):
        for path in [*sources.rglob("*.md"), *sources.rglob("*.ipynb")]:
            missing = [link for link in linked(path) if not (path.parent / link).is_file()]
            assert not missing, (path.name, missing)

    def test_what_a_page_links_to_and_is_no_page_goes_along(self, tmp_path):
        root = tmp_path / "clone"
        for name in ("docs", "notebooks/images", "course_utils"):
            (root / name).mkdir(parents=True)
        (root / "docs" / "index.md").write_text("# Start\n[code](../course_utils/a.py)")
        (root / "course_utils" / "a.py").write_text("")
        (root / "course_utils" / "b.py").write_text("")
        lesson = {"cells": [{"cell_type": "markdown", "source": ["# Why?"]}]}
        (root / "notebooks" / "08_0_a.ipynb").write_text(json.dumps(lesson))
        gather(root, tmp_path / "sources")
        assert "[code](course_utils/a.py)" in (tmp_path / "sources" / "index.md").read_text()
        assert [path.name for path in (tmp_path / "sources" / "course_utils").iterdir()] == ["a.py"]

    @pytest.mark.parametrize(
        ("text", "old", "new", "expected"),
        [
            ("[a](../b/c.ipynb)", "docs", "", "[a](b/c.ipynb)"),
            ("![a](x.svg)", "docs", "docs/deep", "![a](../x.svg)"),
            ("[a](x.md#there)", "docs", "", "[a](docs/x.md#there)"),
            ("[a](https://x.org/y), [b](mailto:a@b.c), [c](#here)", "docs", "", None),
        ],
    )
    def test_links_hold_where_a_page_moves(self, text, old, new, expected):
        assert moved(text, old, new) == (expected or text)

    def test_code_is_no_link(self, tmp_path):
        (tmp_path / "a.md").write_text("`x[0](y)` [a](b.md)\n```python\nx[1](z)\n```\n")
        assert linked(tmp_path / "a.md") == ["b.md"]

    def test_lessons_are_called_by_number_and_question(self):
        assert label(ROOT / f"{CASE}.ipynb").startswith("8.6 ")
        assert label(ROOT / "exercises" / "08_1_token_attribution.ipynb").startswith("Exercise 8.1: ")
        assert label(ROOT / "docs" / "audit.md").endswith("?")

    def test_figures_say_in_words_what_they_show(self, sources):
        told = json.loads(with_descriptions((sources / f"{CASE}.ipynb").read_text(encoding="utf-8")))
        drawn = [c for c in told["cells"] if any("image/png" in o.get("data", {}) for o in c.get("outputs", ()))]
        assert drawn
        assert all(len(cell["metadata"]["mystnb"]["image"]["alt"]) > 20 for cell in drawn)

    def test_the_reference_holds_every_public_name(self):
        modules = [f"course_utils.{name}" for names in MODULES.values() for name in names]
        assert all(importlib.import_module(name).__doc__ for name in modules)
        assert {getattr(course_utils, name).__module__ for name in course_utils.__all__} <= set(modules)

    def test_the_workflow_runs_the_command(self):
        workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
        assert "pip install -c constraints.txt -e '.[book]'" in workflow
        assert "run: course book\n" in workflow
        assert "path: book\n" in workflow


def half_a_site(sources, site, doctrees):
    site.mkdir()
    (site / "index.html").write_text("half")
    raise CourseError("Expected a site, got half of one.")


def small_site(sources, site, doctrees):
    site.mkdir()
    (site / "index.html").write_text(f"made of {len(list(sources.rglob('*.ipynb')))} notebooks")


@pytest.mark.quick
class TestRefusals:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch):
        monkeypatch.setattr(building, "check_installed", lambda: None)
        monkeypatch.setattr(building, "render", small_site)

    def test_without_the_extra(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "furo", None)
        assert_refused(book("--out", tmp_path / "book"), "built with", "pip install -c constraints.txt -e '.[book]'")
        assert not list(tmp_path.iterdir())

    def test_without_notebooks(self, monkeypatch, tmp_path):
        monkeypatch.setattr("course_utils.cli.book.ROOT", tmp_path / "site-packages")
        assert_refused(book("--out", tmp_path / "book"), "the lessons", "clone")
        assert not list(tmp_path.iterdir())

    def test_a_folder_with_other_things(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        assert_refused(book("--out", tmp_path), "new, empty or an earlier book", str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert_refused(book("--out", tmp_path / "file"), "a folder", "the file")

    def test_a_place_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        assert_refused(book("--out", tmp_path / "file" / "book"), "could not")

    def test_a_notebook_that_is_none(self, tmp_path, monkeypatch):
        for name in ("docs", "notebooks/images"):
            (tmp_path / "clone" / name).mkdir(parents=True)
        (tmp_path / "clone" / "docs" / "index.md").write_text("# Start")
        (tmp_path / "clone" / "notebooks" / "08_0_a.ipynb").write_text("{")
        monkeypatch.setattr("course_utils.cli.book.ROOT", tmp_path / "clone")
        assert_refused(book("--out", tmp_path / "book"), "a notebook", "08_0_a.ipynb")

    def test_half_a_site_never_takes_the_place_of_a_good_one(self, monkeypatch, tmp_path):
        assert book("--out", tmp_path / "book").exit_code == 0
        good = (tmp_path / "book" / "index.html").read_text()
        monkeypatch.setattr(building, "render", half_a_site)
        assert_refused(book("--out", tmp_path / "book"), "half")
        assert (tmp_path / "book" / "index.html").read_text() == good
        assert [path.name for path in tmp_path.iterdir()] == ["book"]

    def test_an_earlier_book_is_replaced_whole(self, tmp_path):
        assert book("--out", tmp_path / "book").exit_code == 0
        (tmp_path / "book" / "gone.html").write_text("")
        done = book("--out", tmp_path / "book")
        assert done.stdout == f"1 pages; open {tmp_path / 'book' / 'index.html'}\n"
        assert not (tmp_path / "book" / "gone.html").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["book"]

    def test_an_empty_folder_is_taken(self, tmp_path):
        assert book("--out", tmp_path).exit_code == 0
        assert (tmp_path / "index.html").exists()


# ------------------------------------------------------------------------------------------------------ the whole site


def refuse_network(self, address, *_):
    raise AssertionError(f"asked the network for {address}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole book, built where every connection is an error."""
    for package in ("sphinx", "furo", "myst_nb", "sphinx_copybutton", "latex2mathml"):
        pytest.importorskip(package, reason="the extra book is not installed")
    place = tmp_path_factory.mktemp("whole") / "book"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse_network)
        done = book("--out", place)
    assert done.exit_code == 0, done.stderr
    return place


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.update(value for name, value in attributes if name in ("id", "name") and value)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])
        self.loads += [given[name] for name in ("src", "data", "poster") if given.get(name) and tag != "a"]


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def target(page, link):
    """The file and the place in it that a link of a page leads to."""
    whole, place = urldefrag(urljoin(f"book:///{page}".replace("book:", "http://book", 1), link))
    return unquote(urlsplit(whole).path).lstrip("/"), unquote(place)


@pytest.mark.slow
class TestSite:
    def test_holds_every_lesson_exercise_and_page_with_a_reference(self, pages):
        for chapter in CONTENTS:
            for name in chapter.pages(ROOT):
                assert f"{name.rpartition('.')[0]}.html" in pages
        assert {"index.html", "search.html", "genindex.html", "api/methods.html"} <= set(pages)
        reference = [name for page in pages if page.startswith("api/") for name in pages[page].ids]
        for name in course_utils.__all__:
            assert f"{getattr(course_utils, name).__module__}.{name}" in reference

    def test_has_no_dead_link(self, site, pages):
        dead = []
        for page, found in pages.items():
            for link in [*found.links, *found.loads]:
                if urlsplit(link).scheme in ("http", "https", "mailto", "data"):
                    continue
                name, place = target(page, link)
                if not (site / name).is_file() or (place and name in pages and place not in pages[name].ids):
                    dead.append((page, link))
        assert not dead

    def test_loads_nothing_from_outside(self, site, pages):
        assert not [(page, src) for page, found in pages.items() for src in found.loads if re.match(r"(\w+:)?//", src)]
        for path in site.rglob("*.css"):
            style = path.read_text(encoding="utf-8")
            assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style), path.name

    def test_weighs_little(self, site, pages):
        heavy = {}
        for page, found in pages.items():
            files = {target(page, src)[0] for src in found.loads if not src.startswith("data:")}
            size = sum((site / name).stat().st_size for name in {page, *files})
            if size > HEAVIEST:
                heavy[page] = size
        assert not heavy

    def test_the_sealed_word_stands_in_the_output_of_its_lesson_alone(self, site):
        texts = [path for path in site.rglob("*") if path.is_file() and path.suffix not in (".png", ".woff2")]
        holding = [path for path in texts if SEALED.encode() in path.read_bytes().lower()]
        assert [path.relative_to(site).as_posix() for path in holding] == [f"{CASE}.html"]

    def test_exercises_are_stubs(self, site):
        for path in (site / "exercises").glob("*.html"):
            assert "NotImplementedError" in path.read_text(encoding="utf-8")

    def test_mathematics_needs_no_script(self, site):
        text = (site / "notebooks" / "08_3_probing.html").read_text(encoding="utf-8")
        assert text.count("<math") > 5
        assert not re.search(r"<script[^>]*(mathjax|katex)", text, re.IGNORECASE)

    def test_a_dead_link_is_told_and_the_earlier_book_stays(self, site, monkeypatch):
        def with_a_fault(root, to):
            (to / "notebooks").mkdir(parents=True)
            (to / "index.md").write_text("# Start\n\n[nowhere](nowhere.md)\n")

        monkeypatch.setattr(building, "gather", with_a_fault)
        assert_refused(book("--out", site), "dead link", "nowhere.md", "index.md")
        assert (site / "notebooks").exists()
        assert [path.name for path in site.parent.iterdir()] == ["book"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that says nothing."""

    def log_message(self, *arguments):
        """Keep still."""


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("chromium is not here")
    quiet = ["background-networking", "component-update", "dev-shm-usage", "sync"]
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


LAPTOP, PHONE = {"width": 1366, "height": 900}, {"width": 390, "height": 844}
SOME = ("index", "search", CASE, "exercises/08_2_attention_analysis", "docs/measured", "api/suspects_and_lessons")
ALIKE = ("_modules/", "api/audit", "api/load", "api/methods")  # long, and axe takes its time
SCREENS = [
    (LAPTOP, "light", None),  # every page but those that are made like another
    (PHONE, "dark", [*(f"{name}.html" for name in SOME), "_modules/course_utils/prompts.html"]),
]


@pytest.mark.slow
class TestInABrowser:
    @pytest.mark.parametrize("view", SCREENS, ids=["laptop, light", "phone, dark"])
    def test_pages_are_within_reach_of_all_and_ask_for_nothing_outside(self, browser, address, pages, view):
        screen, scheme, some = view
        pytest.importorskip("axe_playwright_python", reason="axe is not installed")
        from axe_playwright_python.sync_playwright import Axe

        axe = Axe()
        context = browser.new_context(viewport=screen, color_scheme=scheme)
        tab, outside, broken, serious, wide = context.new_page(), [], [], [], []
        tab.on("request", lambda asked: outside.append(asked.url) if not asked.url.startswith(address) else None)
        tab.on("response", lambda answer: broken.append(answer.url) if answer.status >= 400 else None)
        tab.on("pageerror", lambda error: broken.append(str(error)))
        for name in some or [name for name in pages if not name.startswith(ALIKE)]:
            tab.goto(address + name, wait_until="load")
            if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(name)
            found = axe.run(tab).response["violations"]
            serious += [(name, one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]  # fmt: skip
        context.close()
        assert [url for url in outside if not url.startswith("data:")] == []
        assert broken == []
        assert wide == []
        assert serious == []

    def test_search_finds_a_lesson(self, browser, address):
        tab = browser.new_page()
        tab.goto(address)
        tab.fill("input[name=q]", "occlusion")
        tab.press("input[name=q]", "Enter")
        tab.wait_for_selector("#search-results li a")
        tab.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('found')")
        links = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
        assert any("08_1_token_attribution" in link for link in links)
        tab.close()

    def test_lessons_lead_to_each_other(self, browser, address):
        tab = browser.new_page(viewport=LAPTOP)
        tab.goto(f"{address}notebooks/08_1_token_attribution.html")
        assert "08_0" in tab.get_attribute("a.prev-page", "href")
        tab.click("a.next-page")
        assert "08_2_attention_analysis" in tab.url
        tab.close()

    def test_light_and_dark_can_be_chosen(self, browser, address):
        tab = browser.new_page(viewport=LAPTOP, color_scheme="light")
        tab.goto(f"{address}{CASE}.html")
        seen = set()
        for _ in range(3):
            tab.click(".content button.theme-toggle")
            seen.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(seen) == 2
        tab.close()

    def test_code_can_be_copied(self, browser, address):
        context = browser.new_context(viewport=LAPTOP)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = context.new_page()
        tab.goto(f"{address}docs/learner.html")
        tab.hover("div.highlight-sh")
        tab.click("div.highlight-sh button.copybtn")
        tab.wait_for_selector("button.copybtn.success")
        assert tab.evaluate("navigator.clipboard.readText()").strip().endswith("course lab")
        context.close()
