"""The quick tests with the newest and with the lowest versions that pyproject.toml allows: `pip install nox uv`, `nox`.

On Linux each environment holds PyTorch with its CUDA libraries, several GB. `nox -s "quick-3.13(newest)"` makes one
alone. What follows -- goes to pytest.
"""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"  # interpreters that are not here are skipped, and it says so
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.13"]  # the oldest and the newest that requires-python allows
RESOLUTIONS = {"newest": "highest", "lowest": "lowest-direct"}
STYLE = "tests/test_repository.py::test_style_and_types"  # of ruff and mypy the newest count


@nox.session(python=PYTHONS)
@nox.parametrize("versions", [nox.param(name, id=name) for name in RESOLUTIONS])
def quick(session: nox.Session, versions: str) -> None:
    """Install by one end of the ranges, and run the quick tests; a warning from this package is an error."""
    session.install("--resolution", RESOLUTIONS[versions], "-e", ".[test]")
    chosen = ["-m", "quick", *session.posargs]
    chosen += ["--deselect", STYLE] if versions == "lowest" else []
    session.run("python", "-m", "pytest", *chosen)
