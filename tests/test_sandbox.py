"""The sandbox against those who try: what a learner's code may do to a run, and what it can see, reach and leave."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import setuptools
from nbformat.v4 import new_code_cell, new_notebook

import course_utils
from course_utils import CourseError
from course_utils._output_digest import sealed
from course_utils.grading import processes, scratch
from course_utils.grading.notebook import METADATA, read, student_view, write
from course_utils.grading.result import DONE, SLOW, Limits
from course_utils.grading.runner.run import run
from course_utils.grading.sandbox import bubblewrap, control_groups, fork_client
from course_utils.loading.smollm2 import READY_NAME, cache_folder, smollm2_folder
from tests.shared import ANSWERED, ANSWERED_TOO, cell_of, marked, messages, outcomes, right, with_sources

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bwrap") is None,
    reason="bubblewrap is not here: apt install bubblewrap",
)
SECRET = "a74b1c55-this-is-nobodys-business"
SMALL = Limits(
    cell_seconds=2,
    total_seconds=30,
    output_bytes=200_000,
    memory_bytes=400_000_000,
    processes=80,
    disk_bytes=50_000_000,
)
HIDDEN = f"""### BEGIN HIDDEN TESTS
from course_utils._output_digest import sealed  # {SECRET}
print(double(4567), sealed(str(double(21))))
### END HIDDEN TESTS"""


@pytest.fixture(scope="module")
def solution():
    """Two items, of which the first is checked openly and in secret."""
    hidden = f"9134 {sealed('42')}\n"
    cells = [
        marked(new_code_cell, "double", ANSWERED, "", solution=True),
        marked(new_code_cell, "double-check", "print(double(1.5), double(-4))", "3.0 -8\n", grade=True, points=2),
        marked(new_code_cell, "double-hidden", HIDDEN, hidden, grade=True, points=1),
        marked(new_code_cell, "halve", ANSWERED_TOO, "", solution=True),
        marked(new_code_cell, "halve-check", "print(halve(3), halve(-5))", "1.5 -2.5\n", grade=True, points=2),
    ]
    return read(write(new_notebook(cells=cells, metadata=METADATA)))


@pytest.fixture(scope="module", params=[pytest.param("cold", marks=pytest.mark.slow), "warm"])
def is_warm(request):
    """Every promise is kept by kernels that start from nothing, and by those that are forked."""
    if request.param == "warm":
        smollm2_folder()  # else it may be there only after some of the tests, and the parent is started anew
        assert fork_client.trouble() == ""
        fork_client.parent()  # now, if an earlier test has ended it: what starts below is looked for when a test ends
    return request.param == "warm"


@pytest.fixture(scope="module")
def around(is_warm, tmp_path_factory):
    """What lies around a run that nobody inside may see, and a folder for temporary files that must end up empty."""
    folder = tmp_path_factory.mktemp("s")
    for name in ("solutions/toy.ipynb", "submitted/ben/toy.ipynb", "gradebook.db", "t/other-run/settings"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "t"))
        patch.setenv("COURSE_SECRET", SECRET)
        patch.setenv("LANGUAGE", str(uuid.uuid4()))  # passed on, and so found in all that a run starts
        patch.chdir(folder)
        yield folder


@pytest.fixture
def inside(around, solution, is_warm):
    """Run a submission in the sandbox; afterwards nothing runs and nothing lies about."""
    yield lambda mine, limits=SMALL, **options: run(
        write(solution), write(mine), limits, sandboxed=True, warm=is_warm, **options
    )
    wait_until(lambda: started() == [], 5)
    assert [path.name for path in (around / "t").iterdir()] == ["other-run"]


def started():
    """The processes, other than this one, that come from this module's runs."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get("LANGUAGE") == os.environ["LANGUAGE"]
            if ours and (not is_session(process) or process.children()):  # a session may wait for its next run
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found + forked()


def forked():
    """The processes that the parent of warm kernels has started, but for itself."""
    if fork_client._parent is None or not fork_client._parent.lives:
        return []
    below = psutil.Process(fork_client._parent.process.pid).children(recursive=True)
    nursery = next(process for process in below if process.cmdline()[1].endswith("fork_server.py"))
    return [each.cmdline() for each in nursery.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


def is_session(process):
    """Whether it is one of the grader's own that are kept for the next run: a pytest, or a reader within limits."""
    told = " ".join(process.cmdline()[1:3])
    return told == "-m course_utils.grading.runner.pytest_server" or "course_utils.grading.limited" in told


@pytest.fixture
def mine(solution):
    return right(student_view(solution))


def test_it_works_here():
    assert bubblewrap.trouble() == ""


def test_an_honest_submission_gets_the_same_inside_and_outside(around, solution, mine, inside):
    mine.cells.append(new_code_cell("import glob\nopen('own', 'w').close()\nprint(glob.glob('*'), 1 / 3)\n[][0]"))
    outside = run(write(solution), write(mine), SMALL)
    result = inside(mine)
    assert result.passed
    assert [(mark.check, mark.earned, mark.message) for mark in result.marks] == [
        (mark.check, mark.earned, mark.message) for mark in outside.marks
    ]
    assert result.notebook == outside.notebook
    assert "['own'] 0.333" in text_of(result, mine.cells[-1].id)


def text_of(result, name):
    cell = cell_of(read(result.notebook), name)
    return "".join(str(output.get("text") or output.get("evalue") or "") for output in cell.outputs)


class TestWhatEndsOrSurvives:
    @pytest.mark.parametrize(
        ("code", "statuses", "told"),
        [
            ("while True: pass", "failed,failed,passed", "your cell does not run: KeyboardInterrupt"),
            pytest.param(
                """
                import time
                kernel = get_ipython().kernel
                parent = kernel.get_parent("shell")  # answered at once, so that only its output is waited for
                kernel.session.send(kernel.shell_stream, "execute_reply", {"status": "ok"}, parent=parent,
                                    ident=parent["header"]["session"].encode())
                while True:
                    try:
                        print("still here", flush=True)
                        time.sleep(0.05)
                    except BaseException: pass
                """,
                "not run,not run,passed",
                "not run: double took more than 2 s and would not be interrupted",
                marks=pytest.mark.slow,
            ),
            ("import os; os._exit(3)", "not run,not run,passed", "not run: double ended the Python process"),
            (
                "import os, signal\ndef double(x): os.kill(os.getpid(), signal.SIGKILL)",
                "failed,not run,passed",
                "your code ended the Python process",
            ),
            (
                "import os\nwhile True: os.fork()",
                "not run,not run,passed",
                "not run: double (started more than 80 processes|took more than 2 s|used more than 0.4 GB)",
            ),
            (
                """
                import threading, time
                threading.stack_size(1 << 16)
                for i in range(120): threading.Thread(target=time.sleep, args=(100,)).start()
                time.sleep(5)
                """,
                "not run,not run,passed|failed,failed,passed",  # ended by us, or refused by the system before
                "double started more than 80 processes and threads|can't start new thread",
            ),
            (
                "import threading, time\nthreading.stack_size(1 << 16)\n"
                "for i in range(90): threading.Thread(target=time.sleep, args=(100,)).start()",
                "not run,not run,passed|failed,failed,passed",  # the cell ends before anybody has looked
                "double started more than 80 processes and threads|can't start new thread",
            ),
            (
                """
                import os, time, numpy
                for i in range(4):
                    if not os.fork():
                        whole = numpy.ones(15_000_000)
                        time.sleep(100)
                time.sleep(100)
                """,
                "not run,not run,passed",
                "not run: double used more than 0.4 GB of memory",
            ),
            (
                "import os\nfor i in range(10**7): os.close(os.open(f'f{i}', os.O_CREAT))",
                "not run,not run,passed",
                "not run: double made more than 50000 files",
            ),
            (
                "for i in range(10**6): print('flood' * 100)",
                "not run,not run,passed",
                "not run: double showed more than",
            ),
            ("print('x' * 10**7)", "not run,not run,passed", "not run: double showed more than"),
            (
                "import subprocess\nfor i in range(3): subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
                "def double(x): return 2 * x",
                "passed,passed,passed",
                "",
            ),
        ],
        ids=[
            "loop",
            "swallows",
            "exit",
            "kill",
            "forks",
            "threads",
            "sleepers",
            "memory",
            "files",
            "flood",
            "message",
            "children",
        ],
    )
    def test_blame_is_on_the_cell(self, mine, inside, code, statuses, told):
        began = time.monotonic()
        result = inside(with_sources(mine, double=textwrap.dedent(code)))
        assert time.monotonic() - began < 25
        assert result.status == DONE
        assert ",".join(outcomes(result).values()) in statuses.split("|"), messages(result)
        assert re.search(told, messages(result)["double-check"])

    @pytest.mark.slow
    def test_the_whole_has_a_limit_and_all_that_a_cell_started_ends_with_it(self, mine, inside):
        code = """
            import os, subprocess, time
            for i in range(3):
                subprocess.Popen(["sleep", "100"], start_new_session=True)
            while True:
                try: time.sleep(100)
                except BaseException: pass
        """
        result = inside(with_sources(mine, halve=textwrap.dedent(code)), Limits(60, 6))
        assert result.status == SLOW
        assert list(outcomes(result).values()) == ["passed", "passed", "not run"]
        assert messages(result)["halve-check"] == "not run: halve took too long"

    @pytest.mark.parametrize("who", ["nbval", "grader"])
    @pytest.mark.slow
    def test_who_is_killed_takes_the_kernel_along(self, around, solution, mine, is_warm, who):
        code = "import subprocess\nsubprocess.run(['sleep', '100'])"
        for name, notebook in (("a", solution), ("b", with_sources(mine, double=code))):
            (around / name).write_bytes(write(notebook))
        (around / "t2").mkdir()
        grade = (
            "import sys; from pathlib import Path; from course_utils.grading.runner.run import *\n"
            f"run(Path('a').read_bytes(), Path('b').read_bytes(), sandboxed=True, warm={is_warm})"
        )
        with subprocess.Popen(
            [sys.executable, "-c", grade], env={**os.environ, "TMPDIR": str(around / "t2")}
        ) as grader:
            wait_until(lambda: ["sleep", "100"] in started(), 90)
            if who == "grader":
                grader.kill()
            else:
                (session,) = (p for p in psutil.Process(grader.pid).children() if is_session(p))
                (nbval,) = session.children()
                nbval.kill()
        wait_until(lambda: not started())
        assert who == "grader" or not list((around / "t2").iterdir())
        shutil.rmtree(around / "t2")


HIDDEN_HOGS = {
    "socket buffers": """
        import socket
        kept = []
        for i in range(400):
            pair = socket.socketpair()
            for end in pair: end.setblocking(False); end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            kept.append(pair)
            try:
                while True: pair[0].send(bytes(1 << 16))
            except BlockingIOError: pass
        import time; time.sleep(20)
        """,
    "page tables": """
        import mmap, time
        large = 1 << 38
        space = mmap.mmap(-1, large, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
        space.madvise(15)  # no huge pages
        for place in range(0, large, 1 << 21): space[place]
        time.sleep(20)
        """,
}


@pytest.mark.skipif(control_groups.trouble() != "", reason=control_groups.trouble())
class TestTheSystemCounts:
    @pytest.mark.parametrize("name", HIDDEN_HOGS)
    def test_memory_that_no_process_shows(self, mine, inside, name):
        result = inside(with_sources(mine, double=textwrap.dedent(HIDDEN_HOGS[name])), replace(SMALL, cell_seconds=8))
        assert list(outcomes(result).values()) == ["not run", "not run", "passed"], messages(result)
        assert messages(result)["double-check"] == "not run: double used more than 0.4 GB of memory"
        assert groups() == []

    def test_a_kernel_cannot_leave_its_group_and_finds_no_way_to_another(self, mine, inside):
        code = """
            import os
            links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
            print([os.readlink(link) for link in links if os.path.lexists(link) and "cgroup" in os.readlink(link)])
            print(os.path.exists("/sys/fs/cgroup"), "course-" in open("/proc/self/cgroup").read())
        """
        mine.cells.append(new_code_cell(textwrap.dedent(code), id="looks"))
        assert text_of(inside(mine), "looks") == "[]\nFalse True\n"
        assert groups() == []

    def test_what_a_killed_grader_left_is_removed(self):
        code = "from course_utils.grading.sandbox import control_groups; import os; control_groups.make(1 << 30, 9); os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", code], check=False)
        assert groups()
        control_groups.make(1 << 30, 9).remove()
        assert groups() == []


def groups():
    """Those that this process and the dead have left, not those of another run at this moment."""
    found = [path.name for above in control_groups._above() for path in above.glob("course-*")]
    return [name for name in found if scratch.is_over(name) or name.startswith(scratch.name_of_ours())]


ENDINGS = {
    "exit": "exit()",
    "quit": "quit()",
    "exit in a function": "def leave(): quit()\nleave()\nprint('not yet')",
    "a thread that ends it between two cells": "import os, threading\nthreading.Timer(0, os._exit, [0]).start()",
    "displays": "for i in range(10**6): display(i)",
    "clears": "from IPython.display import clear_output\nfor i in range(10**6): clear_output()",
    "comms": """
        from comm import create_comm
        one = create_comm("flood")
        for i in range(10**6): one.send({"i": i})
        """,
    "flushes": "for i in range(10**6): print(i, flush=True)",
    "statuses by hand": """
        kernel = get_ipython().kernel
        parent = kernel.get_parent("shell")
        for i in range(10**5):
            kernel.session.send(kernel.iopub_socket, "status", {"execution_state": "busy"}, parent=parent)
        """,
    "a thread that floods when its cell is over": """
        import threading, time
        kernel = get_ipython().kernel
        parent = kernel.get_parent("shell")
        def flood():
            time.sleep(0.2)
            for i in range(10**6):
                kernel.session.send(kernel.iopub_socket, "stream", {"name": "stdout", "text": "x"}, parent=parent)
        threading.Thread(target=flood, daemon=True).start()
        """,
}


class TestACellThatEndsTheKernel:
    """A cell of the learner's own takes nothing from right answers: the same marks, and all of them, every time."""

    @pytest.mark.parametrize("name", ENDINGS)
    def test_in_the_sandbox(self, mine, inside, name):
        self.judged(inside, mine, name)

    @pytest.mark.parametrize("name", ["exit", "quit", "displays"])
    def test_without_it(self, solution, mine, name):
        self.judged(lambda mine: run(write(solution), write(mine), SMALL), mine, name)

    @staticmethod
    def judged(inside, mine, name):
        code = ENDINGS[name]
        slow = "\ndef double(x, first=[1]):\n    import time\n    time.sleep(first.pop() if first else 0)\n    return 2 * x"
        cell_of(mine, "double").source += slow if "thread" in name else ""  # time for what comes later to come
        place = next(i for i, cell in enumerate(mine.cells) if cell.id == cell_of(mine, "double").id)
        where = place + 1 if "thread" in name else 0 if "it" in name else len(mine.cells)  # exit, quit: others follow
        mine.cells.insert(where, new_code_cell(textwrap.dedent(code)))
        result = inside(mine)
        assert result.passed, (messages(result), result.messages)


def test_a_cell_that_exits_is_blamed_and_what_comes_after_it_is_not(mine, inside):
    result = inside(with_sources(mine, double="exit()"))
    assert list(outcomes(result).values()) == ["not run", "not run", "passed"]
    assert messages(result)["double-check"] == "not run: double ended the Python process it ran in"


class TestTimeIsTheKernelsOwn:
    def test_a_right_answer_on_a_busy_machine_is_not_too_slow(self, mine, inside):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
        try:
            code = """
                import time
                def double(x):
                    began = time.process_time()
                    while time.process_time() < began + 0.55: pass
                    return 2 * x
            """  # twice in the check: more than 2 s on the wall, and less of the processor
            began = time.monotonic()
            assert inside(with_sources(mine, double=textwrap.dedent(code))).passed
            assert time.monotonic() - began > 2 * 0.55 * 1.5
        finally:
            for process in busy:
                process.kill()
                process.wait()

    @pytest.mark.parametrize(
        "code",
        [
            pytest.param("import time\ntime.sleep(100)", marks=pytest.mark.slow),
            "import subprocess\nsubprocess.run(['sh', '-c', 'while true; do true; done'])",
        ],
        ids=["sleeps", "children"],
    )
    def test_what_sleeps_and_what_its_children_use_ends_too(self, mine, inside, code):
        result = inside(with_sources(mine, double=code))
        assert outcomes(result)["halve-check"] == "passed"
        assert "KeyboardInterrupt" in messages(result)["double-check"]


def wait_until(true, seconds=20):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


# What is tried, and what comes of it. Each is harmless where the sandbox fails: it opens, and does not write.
PROBES = {
    "exits": ("import sys; sys.exit(3)", "3"),
    "recursion": ("def again(): again()\nagain()", "maximum recursion depth exceeded"),
    "asks": ("input('What is the answer?')", "does not support input requests"),
    "allocates": ("import numpy; numpy.ones(10**9)", "Unable to allocate 7.45 GiB"),
    "fills": (
        """
        import errno, os
        for place in ("/tmp/big", "/dev/shm/big", "big"):
            file = os.open(place, os.O_WRONLY | os.O_CREAT)
            try:
                for i in range(1000): os.write(file, bytes(10**6))
            except OSError as error: print(error.errno in (errno.EFBIG, errno.ENOSPC))
            os.close(file)
            print(os.stat(place).st_size <= 50_003_968, os.unlink(place))
        """,
        "True\nTrue None\n" * 3,
    ),
    "fills_by_pieces": (
        """
        import os
        for i in range(20):
            try: open(f"/tmp/piece-{i}", "wb").write(bytes(5 * 10**6))
            except OSError as error: print(error.strerror, i >= 9); break
        for name in os.listdir("/tmp"):
            if name.startswith("piece"): os.unlink("/tmp/" + name)
        """,
        "No space left on device True",
    ),
    "network": (
        """
        import socket
        for where in (("1.1.1.1", 53), ("127.0.0.1", PORT), ("pypi.org", 443)):
            try: socket.create_connection(where, timeout=2); print("reached", where)
            except OSError as error: print("no")
        for family in (socket.AF_VSOCK, socket.AF_PACKET, socket.AF_ALG):
            try: socket.socket(family); print("opened", family)
            except OSError: print("no")
        try: socket.socket(socket.AF_UNIX).connect("\\0ABSTRACT"); print("reached the host")
        except OSError: print("no")
        print([name for _, name in socket.if_nameindex()])
        """,
        "no\n" * 7 + "['lo']\n",
    ),
    "searches": (
        """
        import os, sys
        skip = ("/proc", "/sys", "/usr", "/dev", sys.prefix, sys.base_prefix, "CACHE")
        seen = []
        for folder, inner, files in os.walk("/"):
            inner[:] = [name for name in inner if os.path.join(folder, name) not in skip]
            for path in (os.path.join(folder, name) for name in files):
                try: content = open(path, "rb").read(10**6)
                except OSError: continue
                if path.endswith(".ipynb") or b"SEC" b"RET" in content: seen.append(path)
        beside = ["COURSE/../" + name for name in ("solutions", "exercises", "tests", "pyproject.toml", ".git")]
        others = [path for path in os.scandir("COURSE/..") if not sys.prefix.startswith(os.path.realpath(path))]
        print(seen, [path for path in ["AROUND", *beside] if os.path.exists(path)], [path.name for path in others])
        """,
        "[] [] ['course_utils']",
    ),
    "processes": (
        """
        import glob, os
        print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) == [1, os.getpid()])
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try: text = open(path, "rb").read()
            except PermissionError: continue
            if b"SEC" b"RET" in text or b"COURSE_" b"GRADING" in text: print(path)
        print([path for path in ("/proc/1/root/AROUND", "/proc/1/cwd/gradebook.db") if os.path.exists(path)])
        """,
        "True\n[]\n",
    ),
    "signals": (
        """
        import os, signal
        try: os.kill(GRADER, 0); print("there is a grader")
        except ProcessLookupError: print("nobody")
        os.kill(os.getppid(), signal.SIGKILL)
        print("alive")
        """,
        "nobody\nalive\n",
    ),
    "writes": (
        """
        import os, sys
        for place in ("/", "/usr", "/etc", "/dev", "/root", "COURSE", "COURSE/..", "COURSE/grading", "CACHE", sys.prefix,
                      sys.base_prefix, os.path.dirname(os.__file__), "/usr/local/bin", "/var/tmp", "/home", "/run"):
            if os.path.realpath(place).startswith("/tmp/"): continue  # inside, that is in memory
            try: open(place + "/MARK", "w").close(); print("wrote to", place)
            except OSError: pass
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj",
                     "COURSE/_output_digest.py", sys.executable):
            try: os.close(os.open(path, os.O_WRONLY)); print("could write", path)
            except OSError: pass
            try: os.chmod(path, os.stat(path).st_mode); print("could change", path)
            except OSError: pass
        print("done")
        """,
        "done\n",
    ),
    "climbs": (
        """
        import ctypes, subprocess
        libc = ctypes.CDLL(None)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print([int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")], status["NoNewPrivs"].strip())
        __import__("os").mkdir("own-mount")
        print(libc.mount(b"none", b"own-mount", b"tmpfs", 0, None), libc.setuid(0))
        print(subprocess.call("unshare -U true 2>/dev/null || unshare -m true 2>/dev/null", shell=True) != 0)
        """,
        "[0, 0, 0, 0] 1\n-1 -1\nTrue\n",
    ),
    "hides": (
        """
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.memfd_create(b"x", 0), libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600))
        """,
        "-1 -1 -1\n",
    ),
    "environment": (
        """
        import os
        print([name for name in os.environ if "SECRET" in name or "GRADING" in name or "PYTEST" in name])
        print(os.getcwd(), os.path.expanduser("~"), os.getuid())
        """,
        "[]\n/tmp/home/work /tmp/home 1000\n",
    ),
    "lives": ("print(6 * 7)", "42\n"),
}


@pytest.fixture(scope="module")
def tried(around, solution, is_warm):
    """The outcome of all of them, one after another, in one submission with right answers."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract = uuid.uuid4().hex
        unix.bind("\0" + abstract)
        unix.listen()
        words = {
            "PORT": str(tcp.getsockname()[1]),
            "ABSTRACT": abstract,
            'b"SEC" b"RET"': f"b{SECRET[:9]!r} b{SECRET[9:]!r}",  # the probe itself is not what it looks for
            "AROUND": str(around),
            "COURSE/": f"{Path(course_utils.__file__).parent}/",
            "COURSE": str(Path(course_utils.__file__).parent),
            "CACHE": str(cache_folder()),
            "GRADER": str(os.getpid()),
            "MARK": "course-sandbox-probe",
        }
        cells = []
        for name, (code, _) in PROBES.items():
            cells.append(new_code_cell(_with(textwrap.dedent(code), words), id=name))
        mine = right(student_view(solution))
        mine.cells[:0] = cells
        limits = Limits(**{**vars(SMALL), "cell_seconds": 20})
        yield run(write(solution), write(mine), limits, sandboxed=True, warm=is_warm)


class TestWhatIsTriedInside:
    @pytest.mark.parametrize("name", PROBES)
    def test_comes_to_nothing(self, tried, name):
        assert PROBES[name][1] in text_of(tried, name)
        if PROBES[name][1].endswith("\n"):
            assert PROBES[name][1] == text_of(tried, name)

    def test_and_the_kernel_lives_through_it_all(self, tried, around):
        assert tried.passed, messages(tried)
        assert not started()
        assert [path.name for path in (around / "t").iterdir()] == ["other-run"]
        for place in (
            "/",
            "/usr",
            "/dev",
            sys.prefix,
            sys.base_prefix,
            *Path(course_utils.__file__).parents,
            cache_folder(),
        ):
            assert not Path(place, "course-sandbox-probe").exists()


def _with(code, words):
    for word, value in words.items():
        code = code.replace(word, value)
    return code


CHEATS = {
    "errors are not shown": """
        from IPython.core.interactiveshell import InteractiveShell
        InteractiveShell.showtraceback = lambda *a, **k: None
        """,
    "print says what it has heard": """
        import builtins, sys
        heard = print
        builtins.print = lambda *a, **k: heard("3.0 -8" if len(a) == 2 and not isinstance(a[1], str) else "9134")
        double = lambda x: 1
        """,
    "the package is another": """
        import sys, types
        fake = types.ModuleType("course_utils._output_digest")
        class Same(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        fake.sealed = lambda text: Same("anything")
        sys.modules["course_utils._output_digest"] = fake
        double = lambda x: 4567 + 4567 if x == 4567 else 0
        """,
    "outputs are sent by hand": """
        shell = get_ipython()
        kernel = shell.kernel
        def send(info):
            kernel.session.send(kernel.iopub_socket, "stream", {"name": "stdout", "text": "9134\\n"},
                                parent=kernel.get_parent("shell"))
            kernel.session.send(kernel.iopub_socket, "status", {"execution_state": "idle"}, parent=kernel.get_parent("shell"))
        shell.events.register("pre_run_cell", send)
        shell.display_pub.publish = shell.displayhook.__class__.__call__ = lambda *a, **k: None
        """,
    "checks are rewritten before they run": """
        import ast
        class Rewritten(ast.NodeTransformer):
            def visit_Call(self, node): return ast.Constant(value=None)
        get_ipython().ast_transformers.append(Rewritten())
        """,
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_no_cheat_gains_a_mark_that_is_checked_in_secret(mine, inside, code):
    result = inside(with_sources(mine, double=textwrap.dedent(code)))
    assert result.status == DONE
    assert outcomes(result)["double-hidden"] in ("failed", "too slow")
    assert {mark.check: mark.earned for mark in result.marks}["double-hidden"] == 0


@pytest.mark.parametrize("told", [True, False])
def test_what_descends_from_a_process_is_what_psutil_finds(monkeypatch, told):
    monkeypatch.setattr(processes, "_TOLD", told and processes._TOLD)
    tree = """if True:
        import subprocess, sys, threading, time
        def begin():
            depth, source = int(sys.argv[1]), sys.argv[2]
            subprocess.run([sys.executable, "-c", source, str(depth - 1), source]) if depth else time.sleep(60)
        for _ in range(2):
            threading.Thread(target=begin).start()
    """
    with subprocess.Popen([sys.executable, "-c", tree, "2", tree]) as first:
        try:
            mine = psutil.Process(first.pid)
            wait_until(lambda: len(mine.children(recursive=True)) == 6)
            assert {each.pid for each in processes.below(mine)} == {each.pid for each in mine.children(recursive=True)}
        finally:
            for each in [*processes.below(psutil.Process(first.pid)), first]:
                each.kill()
    with pytest.raises(psutil.NoSuchProcess):
        processes.below(mine)


class TestWithoutASandbox:
    @pytest.fixture(autouse=True)
    def afresh(self):
        bubblewrap.trouble.cache_clear()
        yield
        bubblewrap.trouble.cache_clear()

    def test_it_says_so_and_runs_nothing(self, solution, mine, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(CourseError, match="bubblewrap is not installed"):
            run(write(solution), write(mine), sandboxed=True)

    def test_one_that_does_not_work_is_told_in_its_own_words(self, solution, mine, monkeypatch, tmp_path):
        (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2\nexit 1\n")
        (tmp_path / "bwrap").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(CourseError, match=r"does not work here \(bwrap: No permissions"):
            run(write(solution), write(mine), sandboxed=True)

    def test_what_ubuntu_forbids_is_told_with_a_remedy(self, monkeypatch, tmp_path):
        (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
        (tmp_path / "bwrap").chmod(0o755)
        (tmp_path / "restricted").write_text("1\n")
        monkeypatch.setattr(bubblewrap, "_RESTRICTED", tmp_path / "restricted")
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert "(bwrap: setting up uid map: Permission denied); AppArmor" in bubblewrap.trouble()
        assert "docs/sandbox.md" in bubblewrap.trouble()

    def test_a_folder_too_long_for_a_socket_is_told(self, around, solution, mine, monkeypatch):
        (around / ("long" * 25)).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(around / ("long" * 25)))
        with pytest.raises(CourseError, match="set TMPDIR"):
            run(write(solution), write(mine), sandboxed=True)


@pytest.mark.quick
def test_an_environment_or_a_cache_that_is_a_checkout_or_a_home_shows_nothing_else_of_it(tmp_path, monkeypatch):
    for name in ("checkout/bin", "checkout/lib", "checkout/solutions", "home/bin", f"home/{READY_NAME}"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "bin" / "python3").symlink_to(sys.executable)
    (tmp_path / "checkout" / "bin" / "python").symlink_to(tmp_path / "home" / "bin" / "python3")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "checkout"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "checkout" / "bin" / "python"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "home"))
    mine = {place.removeprefix(f"{tmp_path}/") for place, _ in bubblewrap.readable() if str(tmp_path) in place}
    assert mine == {"checkout/bin", "checkout/lib", "home/bin", f"home/{READY_NAME}"}


@pytest.mark.quick
def test_packages_that_lie_where_pythonpath_says_are_found_inside_and_no_checkout(tmp_path, monkeypatch):
    for name in ("module/torch-2.dist-info", "checkout/course.egg-info"):
        (tmp_path / name).mkdir(parents=True)
    vendor = Path(setuptools.__file__).parent / "_vendor"  # in sys.path once setuptools is imported
    assert any(vendor.glob("*.dist-info"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "checkout"), str(vendor), *sys.path, str(tmp_path / "module")])
    assert [place for place, _ in bubblewrap.readable() if str(tmp_path) in place] == [str(tmp_path / "module")]
    assert bubblewrap.environment()["PYTHONPATH"].split(os.pathsep)[1:] == [str(tmp_path / "module")]


def test_what_is_named_can_be_read_and_what_lies_beside_the_notebook_too(around, mine, inside):
    (around / "suspect").mkdir()
    (around / "suspect" / "config.json").write_text("17")
    (around / "models").mkdir()
    (around / "models" / "m").write_text("18")
    code = (
        f"print(open('suspect/config.json').read(), open('{around}/models/m').read())\nopen('suspect/config.json', 'a')"
    )
    mine.cells.insert(0, new_code_cell(code, id="reads"))
    result = inside(mine, beside=around / "suspect", readable=[around / "models"])
    assert text_of(result, "reads").startswith("17 18\n[Errno 30] Read-only file system")
    assert result.passed


class TestOneWarmKernelAfterAnother:
    """What only kernels that come from one process could do to each other, and to it."""

    @pytest.fixture
    def inside(self, solution):
        assert fork_client.trouble() == ""
        return lambda mine: run(write(solution), write(mine), SMALL, sandboxed=True, warm=True)

    def test_takes_nothing_over(self, mine, inside):
        leaves = """
            import builtins, math, numpy, socket, sys
            math.pi, builtins.left, sys.modules["course_utils._output_digest"] = 3, True, None
            open("/tmp/left", "w").close(), open("/dev/shm/left", "w").close(), open("left", "w").close()
            waits = socket.socket(socket.AF_UNIX); waits.bind("\\0left"); waits.listen()
            numpy.random.seed(3)
            def double(x): return 2 * x
        """
        looks = """
            import math, numpy, os, random, sys
            print(math.pi == 3, "left" in vars(__builtins__), sys.modules.get("course_utils._output_digest", 1) is None)
            print([path for path in ("/tmp/left", "/dev/shm/left", "left") if os.path.exists(path)])
            print(numpy.random.rand(), random.random(), os.urandom(8).hex())
        """
        mine.cells.append(new_code_cell(textwrap.dedent(looks), id="looks"))
        first = text_of(inside(mine), "looks").splitlines()
        assert outcomes(inside(with_sources(mine, double=textwrap.dedent(leaves))))["halve-check"] == "passed"
        second = text_of(inside(mine), "looks").splitlines()
        assert first[:2] == second[:2] == ["False False False", "[]"]
        assert not set(first[2].split()) & set(second[2].split())  # nor is chance the same

    def test_neither_sees_nor_reaches_another_or_its_parent(self, mine, inside):
        looks = """
            import ctypes, os, socket
            paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            links = [os.readlink(path) for path in paths if os.path.lexists(path)]
            print([link for link in links if "/course-" in link], open("/proc/net/unix").read().count("/course-"))
            libc = ctypes.CDLL(None)
            print([libc.umount2(place, 2) for place in (b"/tmp", b"/proc", b"/dev/shm")], libc.ptrace(16, 1, 0, 0))
            try: socket.socket(socket.AF_UNIX).connect("\\0there")
            except OSError as error: print(error.strerror)
            print(sorted(name for name in os.listdir("/proc") if name.isdigit()) == sorted(["1", str(os.getpid())]))
        """
        waits = """
            import socket, time
            there = socket.socket(socket.AF_UNIX); there.bind("\\0there"); there.listen()
            time.sleep(1.5)
        """
        cells = {"looks": looks, "waits": waits}
        made = []
        for name, code in cells.items():
            notebook = right(student_view(read(write(mine))))
            notebook.cells.insert(0, new_code_cell(textwrap.dedent(code), id=name))
            made.append(notebook)
        with ThreadPoolExecutor(2) as pool:
            other, result = pool.map(inside, made[::-1])
        assert other.passed
        assert result.passed
        assert text_of(result, "looks") == "[] 0\n[-1, -1, -1] -1\nConnection refused\nTrue\n"

    @pytest.mark.slow
    def test_a_parent_that_was_killed_is_replaced_and_nobody_is_blamed(self, mine, inside):
        assert inside(mine).passed
        address = fork_client.parent().address
        killer = threading.Timer(0.5, lambda: psutil.Process(fork_client._parent.process.pid).kill())
        slow = with_sources(mine, double="import time\ntime.sleep(1.5)\ndef double(x): return 2 * x")
        killer.start()
        assert inside(slow).passed  # once more, on a kernel of its own
        assert inside(mine).passed
        assert fork_client.parent().address != address

    def test_a_kernel_knows_where_the_models_are_now(self, mine, inside, tmp_path, monkeypatch):
        mine.cells.append(new_code_cell("import os\nprint(os.environ['COURSE_CACHE'])", id="looks"))
        before = text_of(inside(mine), "looks").strip()
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
        assert text_of(inside(mine), "looks").strip() == str(tmp_path) != before

    def test_a_kernel_sees_a_model_that_came_after_its_parent(self, mine, inside, tmp_path, monkeypatch):
        monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "new"))
        mine.cells.append(new_code_cell("import os\nprint(os.path.exists(os.environ['COURSE_CACHE']))", id="looks"))
        assert text_of(inside(mine), "looks") == "False\n"
        (tmp_path / "new" / READY_NAME).mkdir(parents=True)
        assert text_of(inside(mine), "looks") == "True\n"

    @pytest.mark.slow
    def test_many_leave_nothing(self, mine, inside):
        assert inside(mine).passed
        before = len(os.listdir("/proc/self/fd"))
        with ThreadPoolExecutor(2) as pool:
            assert all(result.passed for result in pool.map(lambda _: inside(mine), range(30)))
        wait_until(lambda: forked() == [])
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # at most one more session, which waits
        nursery = psutil.Process(fork_client._parent.process.pid).children(recursive=True)[-1]
        assert nursery.num_fds() < 20

    def test_a_folder_whose_name_is_too_long_for_a_socket_is_told_in_a_sentence(self, tmp_path, monkeypatch):
        (tmp_path / ("x" * 120)).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 120)))
        raised = []
        monkeypatch.setattr(threading, "excepthook", raised.append)
        with pytest.raises(CourseError, match=r"does not start here \(AF_UNIX path too long\)"):
            fork_client.Parent()
        assert not raised
        assert not list((tmp_path / ("x" * 120)).iterdir())

    def test_where_they_cannot_be_had_a_kernel_starts_from_nothing(self, mine, inside, monkeypatch):
        monkeypatch.setattr(fork_client, "trouble", lambda: "there is no way.")
        monkeypatch.setattr(fork_client, "parent", lambda: pytest.fail("asked for one"))
        run_here = run(write(mine), write(mine), SMALL, sandboxed=True, warm=True)
        assert run_here.status == DONE
