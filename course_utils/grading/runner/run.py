"""Run a submission against a reference: answers merged into its checks, nbval in a clean kernel, a mark for each check.

Nothing here knows where notebooks come from or where marks go: bytes in, a result out.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ...loading.smollm2 import smollm2_folder
from .. import scratch
from ..marks import UNREACHED, Mark, best, judge, together
from ..merge import merge
from ..notebook import ANSWER, CHECK, FREE, grade_id, is_hidden, item_of, kind, read, write
from ..processes import with_package
from ..result import BROKEN, DONE, SETTINGS, SLOW, Limits, Result
from ..sandbox import bubblewrap, fork_client
from .pytest_server import run_pytest
from .schedule import KEEP, Schedule, schedule, without_token


@dataclass(frozen=True)
class _Place:
    """Where a kernel runs: which, with what beside it; if sandboxed, what else can be read, and who forks it."""

    kernel: str | None
    beside: Path | None
    readable: Sequence[Path] | None
    parent: fork_client.Parent | None


def run(
    reference: bytes,  # the notebook with the checks and the outputs that are expected of them
    submission: bytes,
    limits: Limits = Limits(),  # noqa: B008
    *,
    kernel: str | None = None,  # the name of a Jupyter kernel; by default one of the Python that runs this
    beside: Path | None = None,  # a folder that is to be there, under its name, where the kernel runs
    sandboxed: bool = False,  # run the learner's code in a sandbox, without network, answers or anything to write to
    readable: Sequence[Path] = (),  # what else can be read in the sandbox: files and folders, at their own places
    warm: bool = False,  # fork the kernel from one that has done the imports, if that can be done and none are readable
) -> Result:
    """Run a submission against a reference.

    A CourseError where one of the two is no notebook, or there is no sandbox here and one was asked for.
    """
    if b"load_model" in reference:  # what a sandbox cannot fetch, and a cell has no time for
        smollm2_folder()
    began = time.perf_counter()
    merged = merge(read(reference, "the reference"), read(submission, "your notebook"))
    plan = schedule(merged, f"\x1e{secrets.token_hex(8)}\n")
    forks = sandboxed and warm and not readable and not fork_client.trouble()
    parent = fork_client.parent() if forks else None
    place = _Place(kernel, beside, readable if sandboxed else None, parent)
    status, lines, messages = _nbval(plan, set(), limits, place)
    if parent is not None and not parent.lives:  # it was ended from outside, which is nobody's fault inside
        status, lines, messages = _nbval(plan, set(), limits, replace(place, parent=None))
    outcome = seen = _by_place(plan, lines)
    judged, cut = dict(judge(plan.cells, outcome)), set[int]()
    deadline = began + limits.total_seconds * (2 if status == SLOW else 1)
    while status in (DONE, SLOW) and (culprits := _culprits(plan.cells, outcome, cut)):
        cut |= set().union(*(_all_of(plan.cells, culprit) for culprit in culprits))
        missing = [index for index, mark in judged.items() if mark.status == UNREACHED and index not in cut]
        left = deadline - time.perf_counter()
        if not missing or left < 1:
            break
        _, lines, _ = _nbval(plan, cut, replace(limits, total_seconds=left), place)  # for what they kept back
        outcome = _by_place(plan, lines)
        again = dict(judge(plan.cells, outcome))
        judged |= {index: again[index] for index in missing}
        seen = {i: o for i, o in outcome.items() if i not in seen or i in missing} | {
            i: o for i, o in seen.items() if i not in missing
        }
    if below := _in_the_way(plan, merged.added - set(merged.belongs), judged):
        _, lines, _ = _nbval(plan, cut | below, limits, place)
        again = dict(judge(plan.cells, _by_place(plan, lines)))
        judged |= {index: mark for index, mark in again.items() if mark.passed and is_hidden(plan.cells[index])}
    in_order = sorted(judged, key=lambda index: plan.places[index])
    marks = together(best([judged[index] for index in in_order]), plan.cells)
    if forged := [index for index, found in seen.items() if found.get("forged")]:
        name = grade_id(plan.cells[forged[0]])
        messages.append(f"{name} did not run as it stands: something in this notebook ran in its place.")
    shown = {plan.places[index]: found for index, found in seen.items() if plan.places[index] != KEEP}
    executed = write(_executed(merged.notebook, shown))
    seconds = round(time.perf_counter() - began, 1)
    return Result(status, tuple(marks), tuple(merged.repairs), tuple(messages), executed, seconds)


def _in_the_way(plan: Schedule, added: set[int], judged: dict[int, Mark]) -> set[int]:
    """The learner's own cells below an item of which all passed but what is hidden, and so runs after these cells."""
    hidden = {index for index in judged if is_hidden(plan.cells[index])}
    shown = {mark.item for index, mark in judged.items() if mark.passed and index not in hidden}
    failed = [plan.places[i] for i in hidden if not judged[i].passed and judged[i].item in shown]
    return {i for i, place in enumerate(plan.places) if failed and place in added and place > min(failed)}


def _by_place(plan: Schedule, lines: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What came of each code cell that was run, by its number among all that were to run."""
    codes = [index for index, cell in enumerate(plan.cells) if cell.cell_type == "code"]
    outcomes: dict[int, dict[str, Any]] = {}
    for number, found in _outcomes(lines).items():
        if 0 <= number < len(codes):
            cell = plan.cells[codes[number]]
            outputs, ran = without_token([_plain(output) for output in found["outputs"]], plan.token)
            failed = any(output["output_type"] == "error" for output in outputs)
            forged = kind(cell) == CHECK and not (ran or failed or found["agrees"]) and bool(outputs)
            outcomes[codes[number]] = {**found, "outputs": outputs, "forged": forged}
    return outcomes


def _plain(output: Any) -> NotebookNode:
    """An output of the form that a notebook holds, whatever the kernel sent."""
    what = output.get("output_type")
    if what == "stream":
        return nbformat.v4.new_output("stream", name=str(output.get("name")), text=str(output.get("text")))
    if what == "error":
        return nbformat.v4.new_output("error", ename=str(output.get("ename")), evalue=str(output.get("evalue")))
    data = output.get("data")
    shown = {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}
    return nbformat.v4.new_output("display_data", shown)


def _culprits(cells: Sequence[NotebookNode], outcome: dict[int, dict[str, Any]], cut: set[int]) -> set[int]:
    """The cells that kept others from running: the one that ended the kernel, those that took too long."""
    ends = [index for index, told in outcome.items() if told.get("ended")]
    last = min(ends, default=len(cells))  # those after it found no kernel
    found = {i for i, told in outcome.items() if i <= last and (i == last or told["hangs"] or told.get("interrupted"))}
    return {index for index in found - cut if _all_of(cells, index)}


def _all_of(cells: Sequence[NotebookNode], culprit: int) -> set[int]:
    """What is left out with a cell that ended the kernel: its whole item, or a hidden check or a learner's own cell."""
    if is_hidden(cells[culprit]) or kind(cells[culprit]) == FREE:
        return {culprit}
    if kind(cells[culprit]) not in (ANSWER, CHECK):
        return set()
    return {index for index, cell in enumerate(cells) if item_of(cell) == item_of(cells[culprit])}


def _nbval(plan: Schedule, cut: set[int], limits: Limits, place: _Place) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The status of nbval, run in a process of its own without some cells, what our plugin wrote, why it failed."""
    with scratch.folder() as folder:
        outside, inside = Path(folder, "outside"), Path(folder, "inside")
        outside.mkdir(mode=0o700)
        inside.mkdir()
        if place.beside is not None:
            shutil.copytree(place.beside, inside / place.beside.name)
        target, report, settings = outside / "merged.ipynb", outside / "report", outside / "settings"
        target.write_bytes(write(plan.without(cut)))
        report.touch()
        told = {
            "notebook": str(target),
            "report": str(report),
            "folder": str(inside),
            "parent": os.getpid(),
            "token": plan.token,
            **vars(limits),
        }
        settings.write_text(json.dumps(told), encoding="utf-8")
        environment = _environment(settings)
        kernel = place.kernel
        if place.readable is not None:
            kernel = bubblewrap.NAME
            address = place.parent.address if place.parent else ""
            environment |= bubblewrap.kernel(outside, inside, limits, more=place.readable, parent=address)
        which = ["--nbval-current-env"] if kernel is None else [f"--nbval-kernel-name={kernel}"]
        (outside / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        arguments = ["-c", str(outside / "pytest.ini"), f"--rootdir={outside}", "--noconftest", "-q"]
        unused = ("cacheprovider", "unraisableexception", "threadexception")  # these collect garbage again and again
        arguments += [f"-pno:{name}" for name in unused]
        log = outside / "log"
        code = run_pytest([*arguments, "--nbval", *which, str(target)], outside, environment, log, limits.total_seconds)
        said = log.read_bytes()[:20_000].decode("utf-8", "replace") if log.is_file() else ""
        lines = _lines(report.read_text(encoding="utf-8"))
    if code is None:
        return SLOW, lines, [f"The whole notebook took more than {limits.total_seconds:.0f} s and was stopped."]
    if code not in (0, 1) or not lines:
        return BROKEN, lines, [f"nbval could not run it: {said.strip()[-500:]}"]
    if unstarted := [line["trouble"] for line in lines if line.get("kernel") is False]:
        return BROKEN, [], [f"No kernel could be started: {unstarted[0]}."]
    return DONE, lines, []


def _lines(report: str) -> list[dict[str, Any]]:
    """What the plugin wrote, without a last line that was cut off."""
    lines: list[dict[str, Any]] = []
    for line in report.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _environment(settings: Path) -> dict[str, str]:
    ours = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "IPYTHONDIR": str(settings.parent.parent / "inside" / ".ipython"),  # nobody's start-up files
        "TQDM_DISABLE": "1",
        SETTINGS: str(settings),
    }
    return {key: value for key, value in with_package().items() if key != "PYTEST_ADDOPTS"} | ours


def _outcomes(lines: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What the plugin wrote of each code cell, by its number; a cell that began and did not end is said to hang."""
    outcomes: dict[int, dict[str, Any]] = {}
    for line in lines:
        if "began" in line:
            outcomes[line["began"]] = {"agrees": False, "outputs": [], "seconds": 0.0, "hangs": True}
        else:
            outcomes[line["cell"]] = {**line, "hangs": False}
    return outcomes


def _executed(merged: NotebookNode, outcome: dict[int, dict[str, Any]]) -> NotebookNode:
    """The merged notebook with the outputs that came."""
    notebook: NotebookNode = nbformat.from_dict(merged)
    count = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            found = outcome.get(index)
            count += found is not None
            cell.outputs = found["outputs"] if found else []
            cell.execution_count = count if found else None
    return notebook
