"""Every door to the course: what stands behind it knows how torch's threads are to wait, and where `course` is."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from tornado.websocket import websocket_connect

import course_utils
from course_utils.grading import scratch
from course_utils.grading.classroom.commands import _cell_seconds
from course_utils.grading.notebook import METADATA, read, student_view, write
from course_utils.grading.result import Limits
from course_utils.grading.runner.run import run
from course_utils.grading.sandbox import bubblewrap, fork_client
from course_utils.loading.threads import ASLEEP, POLICY
from tests.shared import cell_of

COURSE = Path(sysconfig.get_path("scripts")) / "course"
REPOSITORY = Path(__file__).resolve().parent.parent
needs_sandbox = pytest.mark.skipif(bubblewrap.trouble() != "", reason=bubblewrap.trouble())
TELLS = "import json, os, torch\nprint(json.dumps([dict(os.environ), torch.get_num_threads()]))"


def bare(**more):
    """This process's environment, as it is where nobody has heard of threads, and without this folder's programs."""
    programs = str(COURSE.parent)
    path = os.pathsep.join(place for place in os.environ["PATH"].split(os.pathsep) if place != programs)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTEST"))}
    return known | {"PATH": path} | more


def python(code, *arguments, **more):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=bare(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told_by_a_kernel(**options):
    """What a kernel of the grader's knows: its environment, and how many threads torch has."""
    notebook = new_notebook(cells=[new_code_cell(TELLS, id="tells")], metadata=METADATA)
    reference = read(write(notebook))
    result = run(write(reference), write(student_view(reference)), Limits(60, 120), **options)
    (output,) = cell_of(read(result.notebook), "tells").outputs
    return json.loads(output.text)


NASTY = [
    "LANGCHAIN_API_KEY", "LANGFUSE_SECRET_KEY", "LANG_TOKEN", "LC_API_KEY", "TZ_SECRET", "OMP_TOKEN", "MKL_LICENSE",
    "OPENBLAS_KEY", "NUMEXPR_SECRET", "TOKENIZERS_HUB_TOKEN", "TQDM_SLACK_TOKEN", "PYTHONHASHSEED_", "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY", "lang", "LANG ", "LANGUAGES", "PYTHONSTARTUP", "LD_PRELOAD", "GOMP_DEBUG", "KMP_SETTINGS",
]  # fmt: skip
EACH_KIND = [pytest.param(False, marks=pytest.mark.slow, id="cold"), pytest.param(True, id="warm")]


@pytest.fixture(scope="module", params=EACH_KIND)
def inside(request):
    """What a kernel in the sandbox knows, forked or not, whose grader has secrets and an environment of its own."""
    if why := bubblewrap.trouble():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        for name in NASTY:
            patch.setenv(name, "secret")
        patch.setenv("LC_ALL", "C.UTF-8")
        patch.setenv(POLICY, "active")
        patch.setenv("OMP_NUM_THREADS", "1")
        fork_client.end()
        told = told_by_a_kernel(sandboxed=True, warm=request.param)
        fork_client.end()
    return told


class TestThreadsWaitAsleep:
    def test_the_command_sets_it_before_torch_loads(self):
        code = """if True:
            import os, sys
            from course_utils.cli import main
            assert "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ
            main(["doctor", "--json"], standalone_mode=False) if len(sys.argv) < 2 else None
        """
        findings = json.loads(python(code.replace("standalone_mode=False", "")))
        assert next(f for f in findings if f["what"] == "threads")["state"] == "fine"

    @pytest.mark.slow
    def test_the_doctor_warns_of_threads_that_are_told_to_spin(self):
        done = subprocess.run(
            [COURSE, "doctor", "--json"], env=bare(OMP_WAIT_POLICY="active"), capture_output=True, check=False
        )
        assert next(f for f in json.loads(done.stdout) if f["what"] == "threads")["state"] == "note"

    def test_a_script_that_only_imports_the_package_has_it_too_and_keeps_its_environment(self):
        code = """if True:
            import os, course_utils, sys
            before = dict(os.environ)
            assert "torch" not in sys.modules
            course_utils.load_model
            assert dict(os.environ) == before
            print(open("/proc/self/environ").read().count("OMP_WAIT"))
        """
        assert python(code) == "0\n"
        shown = subprocess.run(
            [sys.executable, "-c", "import course_utils; course_utils.load_model"],
            env=bare(OMP_DISPLAY_ENV="true"),
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown, shown  # said by the library itself

    @pytest.mark.slow
    @pytest.mark.skipif(not sys.platform.startswith("linux") or os.cpu_count() == 1, reason="nothing spins here")
    def test_a_notebook_in_anybodys_jupyter_that_imports_torch_first(self):
        """Processor time of short work with pauses in between: threads that spin use theirs up in the pauses."""
        code = """if True:
            import sys, time, torch
            torch.set_num_threads(2)
            if sys.argv[1] == "with us":
                import course_utils.errors
            numbers = torch.zeros(1 << 17).exp_()
            began = time.process_time()
            for _ in range(60):
                numbers.fill_(1).exp_()
                time.sleep(0.005)
            print(time.process_time() - began)
        """
        alone, ours = (float(python(code, who)) for who in ("alone", "with us"))
        assert ours < alone / 4, (ours, alone)
        chosen = float(python(code, "with us", OMP_WAIT_POLICY="active"))
        assert chosen > 4 * ours, "a choice of one's own stays"

    @pytest.mark.parametrize("module", ["train", "evaluate", "compare"])
    @pytest.mark.slow
    def test_the_programs_of_the_suspects(self, module):
        done = subprocess.run(
            [sys.executable, "-m", f"course_utils.organisms.authoring.{module}", "--help"],
            env=bare(OMP_DISPLAY_ENV="true"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr, done.stderr

    def test_this_run_of_pytest(self):
        assert os.environ[POLICY] == ASLEEP

    def test_a_kernel_without_a_sandbox(self, monkeypatch):
        monkeypatch.delenv(POLICY)
        environment, _ = told_by_a_kernel()
        assert environment[POLICY] == ASLEEP

    def test_a_kernel_in_the_sandbox(self, inside):
        environment, threads = inside
        assert (environment[POLICY], threads) == (ASLEEP, 1)


class TestNoSecretOfTheGraders:
    @given(st.sampled_from(sorted(bubblewrap._PASSED)), st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", min_size=1))
    @settings(max_examples=300, deadline=None)
    def test_a_name_that_only_begins_or_ends_like_one_that_passes_stays_outside(self, passed, more):
        with pytest.MonkeyPatch.context() as patch:
            for name in {passed + more, more + passed} - bubblewrap._PASSED - {POLICY, "PATH", "HOME", "USER"}:
                patch.setenv(name, "secret")
            assert "secret" not in bubblewrap.environment().values()

    def test_a_kernel_gets_what_it_needs_and_nothing_else(self, inside):
        environment, _ = inside
        assert "secret" not in environment.values()
        own = {"PATH", "PWD", "PYTHONPATH", "HOME", "LOGNAME", "USER", "IPYTHONDIR", "COURSE_CACHE", "HF_HUB_OFFLINE"}
        ipykernel = {"MPLBACKEND", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "TERM", "PAGER", "GIT_PAGER"}
        nbval = {"PYDEVD_USE_FRAME_EVAL", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}
        assert set(environment) - bubblewrap._PASSED - own - ipykernel - nbval - {POLICY} == set()
        assert environment["LC_ALL"] == "C.UTF-8"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A real `course lab`, its address and its token, in an environment in which nobody has activated anything."""
    home = tmp_path_factory.mktemp("home")
    places = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "run",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [COURSE, "lab", "--port", str(port), "--IdentityProvider.token=abc", "--no-browser"],
        env=bare(**{name: str(place) for name, place in places.items()}, SHELL="/bin/sh"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def post(address, what, seconds=60):
    """Ask the server for something, as the page does, once it is up."""
    until = time.monotonic() + seconds
    request = Request(f"http://{address}/api/{what}?token=abc", data=b"{}", method="POST")
    while True:
        try:
            with urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except URLError:
            assert time.monotonic() < until
            time.sleep(0.3)


def talk(address, path, say, enough, seconds=60):
    """Say something on a websocket and read until it is enough."""

    async def conversation():
        connection = await websocket_connect(f"ws://{address}/{path}?token=abc")
        await connection.write_message(json.dumps(say))
        heard = ""
        while not enough(heard):
            heard += str(await asyncio.wait_for(connection.read_message(), seconds))
        return heard

    return asyncio.run(conversation())


class TestInsideJupyterLab:
    @pytest.mark.slow
    @pytest.mark.skipif(os.name == "nt", reason="its terminal speaks another language")
    def test_a_terminal_finds_the_command(self, lab):
        name = post(lab, "terminals")["name"]
        say = ["stdin", "echo begin; course --version; echo $OMP_WAIT_POLICY; echo e''nd\r"]
        heard = talk(lab, f"terminals/websocket/{name}", say, lambda heard: "end\\r" in heard)
        assert f"version {course_utils.__version__}" in heard
        assert "PASSIVE" in heard

    def test_a_cell_finds_the_command_and_waits_asleep(self, lab):
        kernel = post(lab, "kernels")["id"]
        header = {"msg_id": "m", "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
        content = {"code": "!course --version\n" + TELLS, "silent": False, "allow_stdin": False}
        say = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        heard = talk(lab, f"api/kernels/{kernel}/channels", say, lambda heard: "execute_reply" in heard)
        assert f"version {course_utils.__version__}" in heard
        assert 'OMP_WAIT_POLICY\\": \\"PASSIVE' in heard.replace("\\\\", "\\"), heard[-3000:]


class TestTemporaryFolders:
    def test_what_a_killed_grader_left_is_removed_by_the_next(self, tmp_path):
        code = """if True:
            import os, signal, sys
            from course_utils.grading import scratch
            folder = scratch.new_folder()
            (folder / "answers").write_text("kept")
            print(folder, flush=True)
            if len(sys.argv) > 1: os.kill(os.getpid(), signal.SIGKILL)
            print(sorted(os.listdir(folder.parent)) == sorted(["course-not-ours", "course-1-0", folder.name]))
        """
        for name in ("course-not-ours", "course-1-0"):
            (tmp_path / name).mkdir()
        killed = subprocess.run(
            [sys.executable, "-c", code, "die"], env=bare(TMPDIR=str(tmp_path)), capture_output=True, check=False
        )
        left = Path(killed.stdout.decode().strip())
        assert (left / "answers").is_file()
        assert python(code, TMPDIR=str(tmp_path)).endswith("True\n")

    def test_those_of_a_grader_that_lives_stay(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with scratch.folder() as ours:
            scratch.sweep()
            assert ours.is_dir()
            assert not scratch.is_over(ours.name)
        assert not ours.exists()

    @needs_sandbox
    @pytest.mark.parametrize("forked", EACH_KIND)
    @pytest.mark.slow
    def test_killed(self, tmp_path, forked):
        code = f"""if True:
            import sys
            from course_utils.grading.runner.run import run
            from nbformat.v4 import new_code_cell, new_notebook, writes
            note = writes(new_notebook(cells=[new_code_cell(sys.argv[1])])).encode()
            run(note, note, sandboxed=True, warm={forked})
        """
        environment = bare(TMPDIR=str(tmp_path))
        with subprocess.Popen([sys.executable, "-c", code, "import time\ntime.sleep(30)"], env=environment) as grader:
            until = time.monotonic() + 60
            while (
                not list(tmp_path.glob("course-*/outside/report"))
                and grader.poll() is None
                and time.monotonic() < until
            ):
                time.sleep(0.2)
            grader.kill()
        assert list(tmp_path.glob("course-*"))
        python(code, "1", TMPDIR=str(tmp_path))
        assert list(tmp_path.glob("course-*")) == []


@pytest.mark.parametrize(("whole", "cell"), [(300, 60), (30, 30), (1200, 240), (600, 120)])
def test_the_limit_of_a_cell_follows_that_of_the_notebook(whole, cell):
    assert _cell_seconds(whole) == cell
