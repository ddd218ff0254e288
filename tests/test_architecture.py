"""The plan of the package: who may import whom. Type hints and imports inside functions count as any other."""

import ast
import json
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "course_utils"
LAYERS = (  # from the bottom up: a module imports from lower rows, and from its own folder
    ("errors", "_arrays", "_output_digest", "plots"),
    ("_files", "_progress"),
    ("loading", "prompts"),
    ("models",),
    ("hooks",),
    ("engine",),
    ("ablation", "attention", "attribution", "directions", "faithfulness", "lens", "patching", "probing"),
    ("audit", "lesson", "organisms"),
    ("checks",),
    ("grading", "grading.late_penalty", "grading.notebook", "grading.processes", "grading.rubric", "grading.scratch"),
    ("grading.people", "grading.limited"),
    ("grading.marks", "grading.merge", "grading.handout"),
    ("grading.result",),
    ("grading.sandbox",),
    ("grading.runner",),
    ("grading.check", "grading.classroom", "book"),
    ("cli",),
    ("__init__",),  # what the package itself offers
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
WITH_FLOORS = "grading"  # a folder whose own folders are rows


def name_of(path, package):
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(source, name, is_package, known, package="course_utils"):
    """The modules of a package that one of them imports, wherever in its source."""
    own = [] if name == "__init__" else name.split(".")
    folder = own if is_package else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            stem = [*above, *(node.module or "").split(".")] if node.module else above
            if not node.level:
                if stem[0] != package:
                    continue
                stem = stem[1:]
            deeper = (".".join([*stem, alias.name]) for alias in node.names)
            found |= {one if one in known else ".".join(stem) or "__init__" for one in deeper}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix(f"{package}.") for a in node.names if a.name.split(".")[0] == package}
    return found - {name}


def graph_of(package):
    """For each module those that it imports."""
    files = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    return {
        name: imports_of(path.read_text(encoding="utf-8"), name, path.stem == "__init__", files)
        for name, path in files.items()
    }


def folder_of(name):
    return ".".join(name.split(".")[: 2 if name.startswith(f"{WITH_FLOORS}.") else 1])


def upwards(graph, row):
    """The imports that do not lead to a lower row or stay in their folder."""
    return [
        (name, other)
        for name, others in graph.items()
        for other in sorted(others)
        if folder_of(name) != folder_of(other) and row[folder_of(other)] >= row[folder_of(name)]
    ]


def circle(graph):
    """Modules that import each other in a round, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


GRAPH = graph_of(PACKAGE)


def test_every_module_has_its_place():
    assert {folder_of(name) for name in GRAPH} == set(ROW)


def test_arrows_lead_down():
    assert upwards(GRAPH, ROW) == []


def test_nothing_goes_round():
    assert circle(GRAPH) == []


def test_pictures_know_nothing_of_the_course():
    assert GRAPH["plots"] == GRAPH["_arrays"] == set()


def test_nobody_imports_the_command():
    others = {name: found for name, found in GRAPH.items() if folder_of(name) != "cli"}
    assert not [name for name, found in others.items() if "cli" in map(folder_of, found)]


def test_what_makes_the_suspects_is_for_their_author_alone():
    makers = "organisms.authoring"
    assert not [name for name, others in GRAPH.items() if makers not in name and any(makers in o for o in others)]
    for folder in ("notebooks", "exercises", "solutions"):
        for path in (ROOT / folder).glob("*.ipynb"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            assert not [source for source in code if makers in source], path.name


def test_a_private_name_stays_in_its_file():
    for path in PACKAGE.rglob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        ours = [alias.name for node in nodes if node.level for alias in node.names]
        assert not [name for name in ours if name.startswith("_")], path


def test_the_top_folder_can_be_taken_in_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 20


class TestTheCheckerItself:
    def test_sees_lazy_imports_type_hints_and_modules_imported_by_name(self):
        source = dedent("""
            if TYPE_CHECKING:
                from ..models import LocalModel
            def f():
                from . import packing
                from .. import hooks, CourseError
                import course_utils.plots
                from course_utils.engine.metrics import Metric
                import numpy
                from torch import nn
        """)
        known = {"models", "engine.packing", "hooks", "plots", "engine.metrics", "engine.sweeps", "__init__"}
        found = imports_of(source, "engine.sweeps", False, known)
        assert found == {"models", "engine.packing", "hooks", "__init__", "plots", "engine.metrics"}

    def test_finds_its_way_from_a_package(self):
        assert imports_of("from .a import x\nfrom ..errors import y", "engine", True, {"engine.a"}) == {
            "engine.a",
            "errors",
        }
        assert imports_of("from .a import x", "__init__", True, {"a"}) == {"a"}

    def test_names_an_arrow_upwards_and_one_to_a_neighbour(self):
        row = {"hooks": 0, "engine": 1, "audit": 2, "lesson": 2}
        graph = {"hooks": {"engine.a"}, "engine.a": {"engine.b", "hooks"}, "audit.x": {"lesson.y", "hooks"}}
        assert upwards(graph, row) == [("hooks", "engine.a"), ("audit.x", "lesson.y")]

    def test_finds_a_circle(self):
        assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
        assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}

    def test_reads_files(self, tmp_path):
        (tmp_path / "engine").mkdir()
        (tmp_path / "__init__.py").write_text("")
        (tmp_path / "hooks.py").write_text("def f():\n    from .engine import sweeps\n")
        (tmp_path / "engine" / "__init__.py").write_text("")
        (tmp_path / "engine" / "sweeps.py").write_text("from ..hooks import f\n")
        graph = graph_of(tmp_path)
        assert graph["hooks"] == {"engine.sweeps"}
        assert set(circle(graph)) == {"hooks", "engine.sweeps"}
        assert upwards(graph, ROW) == [("hooks", "engine.sweeps")]
