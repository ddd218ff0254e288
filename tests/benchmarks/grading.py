"""How many submissions are graded in a minute, beside nbgrader: its autograde and feedback, ours cold and warm. One run.

python -m tests.benchmarks.grading      # about seven minutes on two cores, with 30 submissions
python -m tests.benchmarks.grading 100  # more of them

Each submission imports torch and transformers and runs a small model; each grader gets them in a folder and has done
when marks and feedback are written. Ours runs in its sandbox, as many at once as there are processors; nbgrader has
neither. The start of what warm kernels are forked from is part of the time.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.grading.classroom.feedback import write_feedback
from course_utils.grading.classroom.grade import grade
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.submissions import take
from course_utils.grading.notebook import METADATA, NAMESPACE, student_view, write
from course_utils.grading.runner import run as running
from course_utils.grading.sandbox import fork_client
from tests.shared import cell_of, nbgrader, nbgrader_marks

MODEL = """import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
model = LlamaForCausalLM(LlamaConfig(**shape)).eval()"""
LOGITS = """### BEGIN SOLUTION
def last_logits(ids):
    with torch.no_grad():
        return model(ids).logits[:, -1]
### END SOLUTION"""
LOGITS_CHECK = """ids = torch.arange(12).reshape(2, 6)
assert last_logits(ids).shape == (2, 50), "the last row of each text"
assert torch.allclose(last_logits(ids), model(ids).logits[:, -1]), "other logits"
print(last_logits(ids).shape)"""
EFFECT = """### BEGIN SOLUTION
def effect(ids, place, stand_in):
    changed = ids.clone()
    changed[:, place] = stand_in
    return last_logits(ids) - last_logits(changed)
### END SOLUTION"""
EFFECT_CHECK = """assert effect(ids, 2, 7).abs().sum() > 0, "nothing was replaced"
assert torch.equal(ids, torch.arange(12).reshape(2, 6)), "the ids were changed"
same = bool((effect(ids, 2, int(ids[0, 2]))[0] == 0).all())
assert same, "a token replaced by itself changes nothing"
print(same)"""


def _cell(make, name, source, printed="", **marks):
    known = {"schema_version": 3, "grade": False, "locked": False, "solution": False, "task": False, "grade_id": name}
    cell = make(source, metadata={NAMESPACE: {**known, **marks}}, id=name)
    if printed:
        cell.outputs = [{"output_type": "stream", "name": "stdout", "text": printed}]
    if cell.cell_type == "code":
        cell.execution_count = 1
    return cell


def solution():
    """Two items on a small model."""
    check = {"grade": True, "locked": True, "points": 1}
    cells = [
        _cell(new_markdown_cell, "title", "# A small model", locked=True),
        _cell(new_code_cell, "setup", MODEL, locked=True),
        _cell(new_code_cell, "logits", LOGITS, solution=True),
        _cell(new_code_cell, "logits-check", LOGITS_CHECK, "torch.Size([2, 50])\n", **check),
        _cell(new_code_cell, "effect", EFFECT, solution=True),
        _cell(new_code_cell, "effect-check", EFFECT_CHECK, "True\n", **check),
    ]
    return new_notebook(cells=cells, metadata=METADATA)


def submissions(count):
    """Right, wrong and half-finished ones in turn, each with a comment of its own."""
    for number in range(count):
        mine = student_view(solution())
        if number % 3 < 2:
            for name, source in (("logits", LOGITS), ("effect", EFFECT)):
                cell_of(mine, name).source = source.replace("### BEGIN SOLUTION", f"# student {number}")
        if number % 3 == 1:
            cell_of(mine, "effect").source = "def effect(ids, place, stand_in):\n    return last_logits(ids)"
        yield f"s{number:04d}", write(mine)


def theirs(folder, handed_in):
    source = folder / "source" / "work" / "small.ipynb"
    source.parent.mkdir(parents=True)
    source.write_bytes(write(solution()))
    nbgrader(folder, "generate_assignment", "work", "--create")
    for student, content in handed_in:
        path = folder / "submitted" / student / "work" / "small.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    began = time.perf_counter()
    nbgrader(folder, "autograde", "work", "--create")
    nbgrader(folder, "generate_feedback", "work")
    seconds = time.perf_counter() - began
    return seconds, {student: sum(marks.values()) for student, marks in nbgrader_marks(folder, "small").items()}


def ours(folder, handed_in, is_warm):
    for student, content in handed_in:
        path = folder / "in" / student / "small.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    began = time.perf_counter()
    with Gradebook(folder / f"warm-{is_warm}" / "course-gradebook.sqlite") as book:
        grade(take(folder / "in", ["small"]), book, {"small": write(solution())}, warm=is_warm)
        write_feedback(book, folder / f"warm-{is_warm}" / "feedback")
        seconds = time.perf_counter() - began
        return seconds, {graded.student: graded.earned for graded in book.current()}


def parts(content):
    """Where the time of one submission goes, alone on a warm kernel: the median of five, in seconds."""
    seen, lines = [], running._lines
    running._lines = lambda report: seen.append(lines(report)) or seen[-1]
    found = []
    for _ in range(5):
        began = time.time()
        running.run(write(solution()), content, sandboxed=True, warm=True)
        ended, report = time.time(), seen[-1]
        cells = sum(line["seconds"] for line in report if "cell" in line)
        begins, ends = report[0]["at"], report[-1]["at"]
        found.append((begins - began, cells, ends - begins - cells, ended - ends))
    running._lines = lines
    names = (
        "merge, fork of pytest, collection",
        "cells",
        "kernel's start and nbval between cells",
        "end, judging, writing",
    )
    return {name: sorted(column)[2] for name, column in zip(names, zip(*found, strict=True), strict=True)}


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    handed_in = list(submissions(count))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        peer, their_marks = theirs(Path(folder, "nbgrader"), handed_in)
        cold, cold_marks = ours(Path(folder), handed_in, is_warm=False)
        warmed, warm_marks = ours(Path(folder), handed_in, is_warm=True)
        assert their_marks == cold_marks == warm_marks, (their_marks, cold_marks, warm_marks)
        print(f"{count} submissions, {os.cpu_count()} processors, the same marks from all three")
        for name, seconds in (("nbgrader", peer), ("ours, cold", cold), ("ours, warm", warmed)):
            print(
                f"{name:12} {seconds:7.1f} s   {60 * count / seconds:6.1f} a minute   {peer / seconds:5.1f} x nbgrader"
            )
        fork_client.end()
        began = time.perf_counter()
        fork_client.parent()
        print(f"of which the start of what warm kernels are forked from: {time.perf_counter() - began:.1f} s")
        for name, seconds in parts(handed_in[0][1]).items():
            print(f"  {seconds:6.2f} s  {name}")


if __name__ == "__main__":
    main()
