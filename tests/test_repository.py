"""The repository itself: style, types, documentation that runs, lessons that keep their form, honest instructions."""

import base64
import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import click
import nbformat
import numpy as np
import pytest
import torch

import course_utils
from course_utils.cli import COMMANDS, main
from course_utils.cli.doctor import MEMORY_GIB

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("08_*.ipynb"))
MODULES = [module.name for module in pkgutil.walk_packages(course_utils.__path__, "course_utils.")]


def run(*command):
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check"), marks=pytest.mark.quick),
        pytest.param(("ruff", "format", "--check"), marks=pytest.mark.quick),
        pytest.param(("mypy",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_style_and_types(command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.quick
def test_no_test_file_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"(?m)^\s*(from|import) (tests)?\.?test_", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(lm, name):
    module = importlib.import_module(name)
    given = {
        "load_model": course_utils.load_model,
        "token_attribution": course_utils.token_attribution,
        "make_metric": importlib.import_module("course_utils.engine.metrics").make_metric,
        "lm": lm,
        "prompt": lm.chat("Hi there"),
        "ids": lm.chat("Hi there").input_ids[0],
        "torch": torch,
        "np": np,
    }
    assert doctest.testmod(module, extraglobs=given).failed == 0


@pytest.mark.quick
@pytest.mark.parametrize("name", course_utils.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(course_utils, name).__doc__
    assert name in dir(course_utils)


@pytest.mark.quick
def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nonsense'"):
        course_utils.nonsense  # noqa: B018


@pytest.mark.quick
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
class TestLesson:
    def test_is_valid_executed_and_small(self, path):
        lesson = nbformat.read(path, as_version=4)
        nbformat.validate(lesson)
        counts = [c.execution_count for c in lesson.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        assert path.stat().st_size < 500_000

    def test_holds_no_error_no_warning_and_no_path_of_a_machine(self, path):
        lesson = nbformat.read(path, as_version=4)
        outputs = [output for cell in lesson.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert not re.search(r"/(root|home|tmp|work|Users)/|widget-view", path.read_text(encoding="utf-8"))

    def test_keeps_the_form(self, path):
        cells = nbformat.read(path, as_version=4).cells
        assert 30 <= len(cells) <= 60
        assert cells[0].source.startswith("# ")
        assert cells[0].source.splitlines()[0].endswith("?")
        code = [[line for line in c.source.splitlines() if line.strip()] for c in cells if c.cell_type == "code"]
        assert max(map(len, code)) <= 15
        assert all(re.fullmatch(r"[a-z][a-z0-9-]+", cell.id) for cell in cells)
        assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.quick
def test_the_lessons_stay_within_their_size():
    """The whole chapter, five dives and a case in less than an afternoon: 13,000 words, 1,100 lines of code."""
    cells = [cell for path in LESSONS for cell in nbformat.read(path, as_version=4).cells]
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]
    assert words <= 13_000
    assert len(lines) <= 1_100
    assert max(map(len, lines)) <= 110  # JupyterLab scrolls beyond


def command(name):
    """A command of `course`, or what `python -m` runs of a module."""
    return main.get_command(click.Context(main), name) if name in COMMANDS else importlib.import_module(name).main


def spoken():
    """What pages, lessons, exercises and help say in code, line by line."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "course_utils" / "organisms" / "README.md"]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    for path in (*LESSONS, *(ROOT / "solutions").glob("*.ipynb"), ROOT / "docs" / "grading_desk.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    for text in texts:
        yield from re.findall(r"`([^`\n]+)`", text)
        yield from "\n".join(re.findall(r"(?s)```\w*\n(.*?)```", text)).splitlines()
    for name in set(COMMANDS) - {"lab"}:  # whose options are JupyterLab's
        yield from re.findall(r"For example: (course .*)", command(name).help)


@pytest.mark.quick
def test_commands_options_and_checks_that_are_named_are_there():
    """The help of one had a check in its example that no exercise has."""
    called = re.compile(r"(?<![\w-])(?:course|python -m(?= course_utils)) ([\w.]+)([^#&]*)")
    found = [each for line in spoken() for each in called.findall(line)]
    assert len(found) > 50
    for name, rest in found:
        assert {*re.findall(r"(?<!\S)--[a-z-]+", rest)} <= {one for each in command(name).params for one in each.opts}
        for exercise, check in re.findall(r"(08_\w+) ([\w-]+-check)", rest):
            cells = nbformat.read(ROOT / "solutions" / f"{exercise}.ipynb", as_version=4).cells
            assert check in [cell.id for cell in cells]


@pytest.mark.quick
def test_the_memory_asked_for_is_enough_for_every_lesson():
    """The README asked for 3 GB, where a lesson takes more."""
    heads = [nbformat.read(path, as_version=4).cells[0].source for path in LESSONS]
    most = max(float(re.search(r"\*\*Memory\*\* (?:about |up to )?([\d.]+) GB", head)[1]) for head in heads)
    for page in ("README.md", "docs/learner.md"):
        assert float(re.search(r"([\d.]+) GB of memory", (ROOT / page).read_text(encoding="utf-8"))[1]) >= most
    assert most * 1e9 <= MEMORY_GIB * 2**30


@pytest.mark.quick
def test_every_choice_of_the_lessons_is_compared_with_the_truth_at_the_end():
    code = ["\n".join(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "code") for p in LESSONS]
    asked = {question for source in code for question in re.findall(r'"(8\.\d [^"]+)"', source)}
    assert len(asked) >= 12
    assert not [question for question in asked if f'"{question}": ' not in code[-1]]


@pytest.mark.quick
def test_the_sealed_answers_stand_in_no_lesson_and_no_page():
    """Nor does any file of the package say them: see test_suspects."""
    word = base64.b64decode(b"b3V0ZG9vcnM=").decode()
    texts = {path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
    for path in ROOT.glob("*/*.ipynb"):  # what a lesson found stands in its outputs alone
        texts[path] = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert not [path.name for path, text in texts.items() if word in text.lower()]


@pytest.mark.quick
def test_the_constraints_name_every_dependency():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", line).group().replace("_", "-").lower() for line in wanted}
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0] for line in constraints.splitlines() if "==" in line}
    assert names <= pinned
    assert "torch==2.13.0" in constraints.splitlines()


@pytest.mark.quick
def test_the_readme_links_to_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for path in LESSONS:  # by its own title
        [title] = re.match(r"# (.+)", json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"][0]).groups()
        assert f"[{title}](notebooks/{path.name})" in text
