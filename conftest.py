"""What every test run needs, the lessons' cells included."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, and for every kernel: loading/threads.py
os.environ["TQDM_DISABLE"] = "1"  # a progress bar in a cell's output would differ from run to run
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processor: a thread each, also for the kernels they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# what takes longest, so that no worker is left alone with it
FIRST = ("test_sandbox", "test_exercises", "test_architectures", "08_3", "08_4", "test_write_an_exercise")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Begin with what takes longest and with the lessons: what waits for limits runs beside what computes.

    What is slow in a file of quick tests is not quick.
    """
    if config.option.markexpr == "quick":
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)

    def place(item):
        known = [place for place, name in enumerate(FIRST) if item.path.name.startswith(name)]
        return known[0] if known else len(FIRST) + (item.path.suffix != ".ipynb")

    items.sort(key=place)


def pytest_runtest_setup(item):
    """Have the model ready before a lesson runs."""
    if type(item).__name__ == "IPyNbCell":  # fetching it in a cell would show in the cell's output
        from course_utils.loading.smollm2 import smollm2_folder

        smollm2_folder()


def pytest_terminal_summary(terminalreporter, config):
    """Say what was left out."""
    if config.option.markexpr == "not slow":
        terminalreporter.write_line("left out: what is marked slow; run it with: pytest -m slow")
