"""What is handed out: one version, every import declared, and archives that hold what they should."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import course_utils

ROOT = Path(__file__).resolve().parent.parent
IMPORTED_BY_OTHERS = {
    "accelerate",  # by transformers, for GGUF files and for device_map="auto"
}
OURS = frozenset({"course_utils"})
TOOLS = {"mypy", "pytest-xdist", "ruff"}  # run, never imported
FOLDERS = (".ci", ".github", "course_utils", "docs", "exercises", "notebooks", "solutions", "tests")
IN_AN_ENVIRONMENT_OF_ITS_OWN = {"interpreto"}  # a benchmark makes one: what it requires clashes with Inseq's
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*_cache", ".hypothesis", "*.egg-info")
FOR_THE_BOOK = ("docutils", "furo", "latex2mathml", "myst-nb", "sphinx", "sphinx-copybutton")
BEHIND_AN_EXTRA = {"nbgrader": "grading", "distributed": "cluster", **dict.fromkeys(FOR_THE_BOOK, "book")}


def project():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {canonical(re.match(r"[\w.-]+", line).group()) for line in requirements}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


class Imports(ast.NodeVisitor):
    """The packages of others that a module imports: at once, or only when a function is called or types are checked."""

    def __init__(self, source):
        self.at_once, self.later, self._depth = set(), set(), 0
        self.visit(ast.parse(source))

    def _inside(self, node):
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _inside

    def visit_If(self, node):
        self._inside(node) if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    def visit_Import(self, node):
        self._add(alias.name for alias in node.names)

    def visit_ImportFrom(self, node):
        self._add([node.module] if node.level == 0 else [])

    def _add(self, modules):
        (self.later if self._depth else self.at_once).update(module.partition(".")[0] for module in modules)


@cache
def imported(folder, own):
    """The distributions that the modules below a folder import: those at once, and all."""
    found = [Imports(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))]
    at_once = set().union(*(one.at_once for one in found))
    return tuple(
        {distribution(module) for module in modules - sys.stdlib_module_names - own}
        for modules in (at_once, at_once.union(*(one.later for one in found)))
    )


distributions = cache(packages_distributions)  # reads the metadata of all that is installed


def distribution(module):
    alias = {"_pytest": "pytest"}.get(module, module)
    return canonical(distributions().get(alias, [alias])[0])


@pytest.mark.quick
class TestDependencies:
    def test_every_import_of_the_package_is_declared(self):
        at_once, everything = imported("course_utils", own=OURS)
        declared = names(project()["dependencies"])
        assert at_once <= declared
        assert everything - declared == set(BEHIND_AN_EXTRA)
        for name, extra in BEHIND_AN_EXTRA.items():
            assert name in names(project()["optional-dependencies"][extra])

    def test_nothing_is_declared_that_nobody_imports(self):
        _, everything = imported("course_utils", own=OURS)
        assert names(project()["dependencies"]) - everything == IMPORTED_BY_OTHERS

    def test_every_import_of_the_tests_is_declared(self):
        own = OURS | {"tests"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
        _, everything = imported("tests", own)
        extra = names(project()["optional-dependencies"]["test"])
        assert everything - IN_AN_ENVIRONMENT_OF_ITS_OWN <= names(project()["dependencies"]) | extra
        assert extra - everything == TOOLS | set(FOR_THE_BOOK)

    def test_the_extra_for_tests_holds_the_others(self):
        extras = project()["optional-dependencies"]
        assert set(extras["grading"]) | set(extras["cluster"]) | set(extras["book"]) <= set(extras["test"])

    def test_the_finder_of_imports_tells_at_once_from_later(self):
        found = Imports("import a.b\nif TYPE_CHECKING:\n    import c\ndef f():\n    from d.e import g\nfrom . import h")
        assert (found.at_once, found.later) == ({"a"}, {"c", "d"})


@pytest.mark.quick
class TestVersion:
    def test_stands_in_one_place(self):
        assert project()["dynamic"] == ["version"]
        assert "version" not in project()

    def test_is_the_newest_in_the_changelog_and_the_one_to_cite(self):
        changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        versions = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", changes, re.MULTILINE)
        assert versions[0] == ("Unreleased", "")
        newest, day = versions[1]
        assert newest == course_utils.__version__
        cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
        assert f"version: {newest}" in cited
        assert f"date-released: {day}" in cited

    def test_ruff_before_a_commit_is_the_tested_one(self):
        pinned = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        assert pinned
        assert set(pinned) <= set(tested)


@pytest.mark.quick
@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_pages_link_to_files_that_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.quick
def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout without what Git ignores, as nothing may be built into the checkout itself."""
    copy = tmp_path_factory.mktemp("packaging") / "course"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a worktree's is a file
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def files(checkout):
    return {path.relative_to(checkout).as_posix() for path in checkout.rglob("*") if path.is_file()}


def built(kind, checkout, out):
    """The archive that the build backend makes of a checkout."""
    make = f"import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", make, str(out)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.split()[-1]


@pytest.mark.slow
class TestArchives:
    def test_the_source_distribution_holds_what_the_tests_need(self, files, checkout, tmp_path):
        with tarfile.open(built("sdist", checkout, tmp_path)) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()}
        assert files - held == set()
        assert not [name for name in held if "__pycache__" in name]

    def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(self, files, checkout, tmp_path):
        package = {name for name in files if name.startswith("course_utils/")}
        with zipfile.ZipFile(built("wheel", checkout, tmp_path)) as archive:
            held = set(archive.namelist())
        assert {name for name in held if ".dist-info/" not in name} == package
        assert {Path(name).suffix for name in package} >= {".json", ".mplstyle", ".safetensors", ".tsv"}
