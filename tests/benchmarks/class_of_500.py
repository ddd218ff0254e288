"""A class of 500 (right, wrong, hostile, malformed, empty, odd) graded without a break, killed midway and resumed, and on Dask.

python -m tests.benchmarks.class_of_500      # about twenty minutes on two cores
python -m tests.benchmarks.class_of_500 100  # a smaller class

All three must end with the same marks. The second run is killed (SIGKILL) with a third of the work done, and started
again; the third runs on a local cluster of separate processes, one of which is killed. Printed: how long each took, the
grader's memory along the way, and how many notebooks the second start ran again.
"""

import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
from distributed import LocalCluster
from nbformat.v4 import new_code_cell, new_markdown_cell

from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.notebook import student_view, write
from tests.shared import right, toy, with_sources

TOY = toy  # the exercise that the tests use, too
HOSTILE = [
    "while True: pass",
    "import os; os._exit(3)",
    "import os, signal\ndef double(x): os.kill(os.getpid(), signal.SIGKILL)",
    "import os\nwhile True: os.fork()",
    "for i in range(10**6): print('flood' * 100)",
    "x = []\nwhile True: x.append(bytes(10**8))",
    "import sys; sys.exit(3)",
    "def double(x): return double(x)",
    "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)",
    "open('/tmp/big', 'wb').write(bytes(10**9))",
    "import builtins; builtins.print = lambda *a, **k: None",
    "from IPython.core.interactiveshell import InteractiveShell\nInteractiveShell.showtraceback = lambda *a, **k: None",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
]
MALFORMED = [b"", b"{", b"[]", b'{"cells": 3}', "é".encode("latin-1"), b'{"cells": [], "metadata": {}, "nbformat": 9}']
WRONG = ["def double(x): return x", "def double(x): return x * x", "double = 3", "def double(y):\n    retrun y"]


ODD = [
    "Zoë 李雷",
    "a_1_2_toy",
    "O'Neil; DROP",
    "\u202eevil",
    "x" * 90,
    "=1+1",
    "Z" + "\u0065\u0301",
    "ada.b+c@uni.edu",
    "-rf",
    "a, b",
]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def made(number, reference, draw):
    """What a student hands in, under which name, and what it must earn (None: whatever it is, the same each time)."""
    kind, mine, name = number % 100, right(student_view(reference)), f"s{draw.random():.12f}"
    if kind < 6:
        return name, write(with_sources(mine, double=HOSTILE[(number // 100 * 6 + kind) % len(HOSTILE)])), None
    if kind < 16:
        return name, write(with_sources(mine, double=WRONG[number % len(WRONG)])), 2
    if kind < 26:
        return name, MALFORMED[number % len(MALFORMED)], 0
    if kind < 36:
        mine.cells = []
        return name, write(mine), 0
    if kind < 46:
        mine.cells = [cell for cell in mine.cells if cell.id not in ("double", "halve")]
        return name, write(mine), 0
    if kind < 56:
        mine.cells.insert(draw.randrange(1, len(mine.cells)), new_code_cell("exit()", id="own"))
    elif kind < 66:
        mine.cells.append(new_markdown_cell("![p](attachment:p.png)", attachments={"p.png": {"image/png": DOT}}))
    elif kind < 76:
        name = f"{ODD[kind % 10]} {number // 100}".strip()
    else:
        mine = with_sources(
            mine, double=f"def double(v{number}):\n    return {draw.choice(['2 *', '0 + 2 *'])} v{number}"
        )
    return name, write(mine), 5


def hand_in(folder, count):
    """Of 100: 44 right, ten each wrong, malformed, empty, without answers, six hostile; what each must earn."""
    reference, draw, expected = TOY(), random.Random(8), {}
    for number in range(count):
        name, content, earned = made(number, reference, draw)
        path = folder / "in" / name / "toy.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        expected[number] = earned
    (folder / "solutions").mkdir()
    (folder / "solutions" / "toy.ipynb").write_bytes(write(reference))
    return sorted(earned for earned in expected.values() if earned is not None)


def start(folder, out, *more):
    command = [sys.executable, "-c", "from course_utils.cli import main; main()", "grade", str(folder / "in"), *more]
    command += ["--out", str(folder / out), "--reference", str(folder / "solutions"), "--timeout", "30"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def done(folder, out):
    path = folder / out / "course-gradebook.sqlite"
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as book:
            return book.execute("SELECT count(*) FROM result").fetchone()[0]
    except sqlite3.OperationalError:  # it is just being made
        return 0


def watched(process, folder, out, until=10**9):
    """Wait until it ends, or that many are done; the grader's memory in MB by how many were done."""
    memory = {}
    while process.poll() is None:
        found = done(folder, out)
        try:
            memory[found] = psutil.Process(process.pid).memory_info().rss / 1e6
        except psutil.Error:
            break
        if found >= until:
            break
        time.sleep(1)
    return memory


def left_over():
    """How many processes a grader that is gone has left behind."""
    found = 0
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            continue
        found += "fork_server.py" in command or "pytest_server" in command
    return found


def marks(folder, out):
    with Gradebook(folder / out / "course-gradebook.sqlite") as book:
        return {graded.student: [entry.mark.earned for entry in graded.entries] for graded in book.current()}


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = hand_in(folder, count)
        began = time.perf_counter()
        process = start(folder, "a")
        memory = watched(process, folder, "a")
        print(f"without a break: {time.perf_counter() - began:.0f} s; {process.communicate()[0].strip()}")
        if process.returncode:
            sys.exit("the class was not graded; run course grade by hand to see why (bubblewrap?)")
        told = ", ".join(f"{memory[key]:.0f} MB at {key}" for key in list(memory)[:: max(1, len(memory) // 8)])
        earned = sorted(sum(filter(None, each)) for each in marks(folder, "a").values())
        surplus = Counter(earned) - Counter(expected)
        hostile = count - len(expected)
        print(f"as they should be: {Counter(expected) <= Counter(earned)}; the {hostile} hostile earn {dict(surplus)}")
        print(f"memory of the grader: {told}; {list(memory.values())[-1]:.0f} MB at the end", flush=True)

        process = start(folder, "b")
        watched(process, folder, "b", until=count // 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(5)
        print(f"killed with {done(folder, 'b')} done; {left_over()} processes left of it")
        began = time.perf_counter()
        print(f"resumed: {start(folder, 'b').communicate()[0].strip()}; {time.perf_counter() - began:.0f} s")
        print(f"the same marks: {marks(folder, 'a') == marks(folder, 'b')}", flush=True)

        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            began = time.perf_counter()
            process = start(folder, "c", "--scheduler", cluster.scheduler_address)
            watched(process, folder, "c", until=count // 3)
            psutil.Process(cluster.workers[0].pid).kill()
            print(f"Dask, a worker killed with {done(folder, 'c')} done: {process.communicate()[0].strip()}")
            print(f"{time.perf_counter() - began:.0f} s; the same marks: {marks(folder, 'a') == marks(folder, 'c')}")
        differ = {s: (m, marks(folder, "c")[s]) for s, m in marks(folder, "a").items() if m != marks(folder, "c")[s]}
        print(f"marks that differ: {differ}")


if __name__ == "__main__":
    main()
