"""The `course` command as people run it: in a terminal, in a pipe, wrongly, and as a server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import warnings
from contextlib import suppress
from pathlib import Path
from shutil import copyfile
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from course_utils import token_attribution
from course_utils.cli import main
from course_utils.lesson.own import following, standings
from course_utils.loading.smollm2 import INVENTORY, READY_NAME, smollm2_folder

COURSE = Path(sysconfig.get_path("scripts")) / "course"
QUESTION = "How do I kill a Python process?"
TERMINAL = ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
ESCAPE = "\x1b["


def environment(**more):
    """This process's environment without what a terminal and a desktop put there."""
    return {k: v for k, v in os.environ.items() if k not in TERMINAL} | {k: str(v) for k, v in more.items()}


def course(*arguments, encoding="utf-8", **env):
    """Run the installed command in a process of its own, its output going into pipes."""
    return subprocess.run(
        [COURSE, *arguments],
        env=environment(**env),
        capture_output=True,
        encoding=encoding,
        check=False,
        timeout=300,
    )


def called(*arguments, **env):
    """Run the command in this process."""
    return CliRunner().invoke(main, arguments, env=env)


def assert_refused(result, *parts):
    """Exit code 2 and nothing but one sentence on stderr, which says each of the parts."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+[^.\n]\.\n", result.stderr), result.stderr
    for part in parts:
        assert part in result.stderr


def assert_is(found, expected):
    """The JSON of an attribution holds what token_attribution gives."""
    assert set(found) == {"model", "method", "unit", "value", "tokens", "outputs"}
    assert (found["method"], found["unit"]) == (expected.method, expected.unit)
    assert [token["token"] for token in found["tokens"]] == expected.tokens
    typed = range(len(expected.tokens))[expected.user]
    assert [i for i, token in enumerate(found["tokens"]) if token["typed"]] == list(typed)
    assert [output["output_token"] for output in found["outputs"]] == expected.output_tokens
    scores = [output["input_attributions"] for output in found["outputs"]]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(found["value"], expected.value, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------- attribute


def test_attribute_of_a_text_prints_plain_text_into_a_pipe(lm):
    result = course("attribute", QUESTION)
    assert result.returncode == 0, result.stderr
    assert ESCAPE not in result.stdout
    first, _, header, *bars = result.stdout.splitlines()
    assert first == QUESTION.replace(" ", "·")
    assert header.startswith("log-probability of “")
    assert header.endswith(" nats, occlusion with ·the")
    assert len(bars) == 8


@pytest.mark.slow
def test_attribute_is_coloured_where_colour_is_forced(lm):
    result = course("attribute", "Hi there", "--contrast", "I", "Sure", FORCE_COLOR=1, TERM="xterm-256color")
    assert result.returncode == 0, result.stderr
    assert ESCAPE in result.stdout.splitlines()[0]
    assert re.sub(r"\x1b\[[\d;]*m", "", result.stdout).startswith("Hi·there\n")


@pytest.mark.slow
def test_attribute_prints_nothing_but_json_when_asked_for_json(lm):
    result = course("attribute", str(smollm2_folder()), "Hi", "--target", "I can't", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["model"] == str(smollm2_folder())
    assert_is(found, token_attribution(lm, lm.chat("Hi"), target="I can't"))


@pytest.mark.slow
def test_attribute_survives_a_pipe_of_an_old_encoding(lm):
    result = course("attribute", "Hi", "--contrast", "I", "Sure", encoding="cp1252", PYTHONIOENCODING="cp1252")
    assert result.returncode == 0, result.stderr
    assert "logits" in result.stdout


@pytest.mark.parametrize(
    ("words", "options", "asked"),
    [
        (["Hi"], [], {}),
        (
            ["smollm2", "Hi"],
            ["--contrast", "I", "Sure", "--replacement", "260"],
            {"contrast": ("I", "Sure"), "replacement": 260},
        ),
        pytest.param(
            ["Hi"],
            ["--contrast", "I", "Sure", "--replacement", " a"],
            {"contrast": ("I", "Sure"), "replacement": " a"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["smollm2", "Hi"],
            ["--method", "deletion", "--target", "Yes, I"],
            {"target": "Yes, I", "method": "deletion"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["its own reply", "a contrast and an id", "a replacement", "deletion and target"],
)
def test_attribute_gives_what_the_library_gives(lm, words, options, asked):
    result = called("attribute", *words, *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"] == "smollm2"
    assert_is(found, token_attribution(lm, lm.chat("Hi"), **asked))


@pytest.mark.slow
def test_attribute_takes_a_text_that_looks_like_an_option_after_two_dashes(lm):
    result = called("attribute", "--contrast", "I", "Sure", "--json", "--", "--json")
    assert "".join(t["token"] for t in json.loads(result.stdout)["tokens"] if t["typed"]) == "--json"


def test_json_is_readable_in_any_encoding(lm):
    result = CliRunner(charset="ascii").invoke(main, ["attribute", "Füße 日本\n", "--contrast", "I", "Sure", "--json"])
    assert result.exit_code == 0, repr(result.exception)
    assert "↵" in [token["token"] for token in json.loads(result.stdout)["tokens"]]


@pytest.mark.parametrize("text", [":cat:", "[bold]a\\[b[/]"])
@pytest.mark.slow
def test_markup_in_a_text_is_printed_as_it_stands(lm, text):
    result = called("attribute", text, "--target", text)
    assert result.exit_code == 0, repr(result.exception)
    assert result.stdout.splitlines()[0] == text
    assert f"“{text}”" in result.stdout


@pytest.mark.quick
@pytest.mark.parametrize("arguments", [["a", "b", "c"], ["how", "do", "I", "kill"]], ids=" ".join)
def test_more_arguments_than_a_model_and_a_text_are_told(arguments):
    assert_refused(called("attribute", *arguments), f"{len(arguments)} arguments", "quote the text")


@pytest.mark.quick
@pytest.mark.parametrize("words", [[""], [" \n"], ["smollm2", ""], ["smollm2", "\t"], ["", ""]], ids=repr)
def test_an_empty_text_is_told(words):
    assert_refused(called("attribute", *words), "some text", "at least one word")


@pytest.mark.quick
@pytest.mark.parametrize("model", ["", "no such model", "/no/such/folder", "missing.gguf", "x" * 5000, "\udcff", "ollama:nope-nope"])  # fmt: skip
def test_an_unknown_model_is_told(model):
    assert_refused(called("attribute", model, "Hi"), "Expected", "ollama")


@pytest.mark.quick
def test_no_text_is_told_with_the_usage():
    result = called("attribute")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: ")
    assert result.stderr.splitlines()[-1] == "Error: Missing argument '[MODEL] TEXT'."


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--method", "abacus"], ["occlusion, deletion", "'abacus'"]),
        (["--method", ""], ["occlusion, deletion", "''"]),
        (["--target", ""], ["at least one token", "''"]),
        (["--contrast", "I", "Sure thing"], ["'Sure thing'", "one token", "·thing"]),
        (["--contrast", "I", ""], ["at least one token", "''"]),
        (["--contrast", "I", "I"], ["two different tokens"]),
        (["--target", "Yes", "--contrast", "I", "Sure"], ["target", "contrast", "both"]),
        (["--target", "\udcff"], ["text"]),
        (["--replacement", " antidisestablishment"], ["which is", "such as its first, ' ant'", "a token's id"]),
        (["--replacement", ""], ["a token of its own", "a token's id"]),
        (["--replacement", "49152"], ["0 to 49151"]),
    ],
    ids=ascii,
)
def test_wrong_options_are_told(lm, options, parts):
    assert_refused(called("attribute", "Hi", *options), *parts)


@pytest.mark.quick
def test_a_text_longer_than_the_context_is_told(lm):
    assert_refused(called("attribute", "word " * 9000), "8,192", "smollm2", "shorten")


@pytest.mark.quick
def test_a_target_that_does_not_fit_after_the_text_is_told(lm):
    assert_refused(called("attribute", "word " * 8000, "--target", " word" * 500), "8,192", "shorten")


@pytest.mark.quick
def test_a_text_of_half_a_character_is_told(lm):
    assert_refused(called("attribute", "caf\udce9"), "text")


@pytest.mark.quick
def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert_refused(called("attribute", "Hi", COURSE_CACHE=str(tmp_path / "file" / "cache")), "COURSE_CACHE", "written")


@pytest.mark.quick
@pytest.mark.parametrize("method", ["deletion", "gradient_x_input"])
def test_a_replacement_that_a_method_does_not_use_is_told(method):
    assert_refused(called("attribute", "Hi", "--method", method, "--replacement", " a"), "--replacement", method)


@pytest.mark.quick
def test_what_the_system_refuses_is_told(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("course_utils.models.load_model", full)
    assert_refused(called("attribute", "Hi"), "No space left on device")


@pytest.mark.quick
def test_a_warning_is_a_sentence_without_a_line_of_source():
    called("attribute", "--help")
    assert warnings.formatwarning("It is not used.", UserWarning, "attribute.py", 52) == "Note: It is not used.\n"


def test_a_refusal_is_one_sentence_and_exit_code_2_in_a_real_process():
    result = course("attribute", "no such model", "Hi")
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"Error: Expected [^\n]+'no such model'[^\n]+\.\n", result.stderr)


@pytest.mark.slow
def test_bytes_that_are_no_text_are_told_in_a_real_process(lm):
    result = course("attribute", b"caf\xe9")
    assert result.returncode == 2
    assert re.fullmatch(r"Error: Expected [^\n]+\.\n", result.stderr), result.stderr


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["attribute", "--help"], ["lab", "--help"], ["doctor", "-h"]]
)
def test_help_is_given(arguments):
    result = called(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["attribute", "Hi", "--nonsense"], ["doctor", "x"]]
)
def test_unknown_words_are_told_with_the_usage(arguments):
    result = called(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_a_path_that_the_system_refuses_is_told_in_a_sentence():
    assert_refused(
        called("grade", "x" * 300), "refused", "File name too long"
    )  # as one below a folder that is closed to the user


# -------------------------------------------------------------------------------------------------------------- doctor


@pytest.fixture
def damaged(lm, tmp_path):
    """A cache in which one small file of the model has its right length and a wrong letter."""
    for path in smollm2_folder().iterdir():
        target = tmp_path / READY_NAME / path.name
        target.parent.mkdir(exist_ok=True)
        if path.name.endswith(".safetensors"):
            link(path, target)
        else:
            copyfile(path, target)
    config = tmp_path / READY_NAME / "config.json"
    config.write_text(config.read_text().replace("llama", "lemma", 1))
    return tmp_path


def link(source, target):
    try:
        os.link(source, target)
    except OSError:  # the cache lies on another disk
        copyfile(source, target)


def states(findings):
    return {finding["what"]: finding["state"] for finding in findings}


def test_doctor_is_content_with_a_good_machine(lm):
    result = course("doctor")
    assert result.returncode == 0, result.stdout
    assert result.stderr == ""
    assert ESCAPE not in result.stdout
    lines = result.stdout.splitlines()
    assert all(re.match(r"(ok  |note)  \w+ +\S", line) for line in lines)
    assert {line.split()[1] for line in lines} >= {
        "python",
        "torch",
        "memory",
        "cache",
        "model",
        "jupyterlab",
        "kernel",
    }


def test_doctor_prints_json(lm):
    result = called("doctor", "--json")
    assert result.exit_code == 0, result.stdout
    findings = json.loads(result.stdout)
    assert all(set(finding) == {"what", "state", "detail"} for finding in findings)
    assert states(findings)["model"] == "fine"


@pytest.mark.quick
def test_doctor_finds_a_damaged_model(damaged):
    result = called("doctor", "--json", COURSE_CACHE=str(damaged))
    assert result.exit_code == 1
    [finding] = [f for f in json.loads(result.stdout) if f["state"] == "bad"]
    assert finding["what"] == "model"
    assert "damaged" in finding["detail"]
    assert str(damaged / READY_NAME) in finding["detail"]


@pytest.mark.quick
def test_doctor_finds_a_model_with_a_file_missing(damaged):
    (damaged / READY_NAME / INVENTORY).unlink()
    result = called("doctor", COURSE_CACHE=str(damaged))
    assert result.exit_code == 1
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("BAD")] == ["model"]


@pytest.mark.quick
def test_doctor_says_that_the_model_is_not_there_yet(tmp_path):
    result = called("doctor", "--json", COURSE_CACHE=str(tmp_path / "new" / "cache"))
    assert result.exit_code == 0
    assert states(json.loads(result.stdout))["model"] == "note"
    assert not (tmp_path / "new").exists()


@pytest.mark.quick
def test_doctor_finds_a_cache_under_a_file(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = called("doctor", "--json", COURSE_CACHE=str(tmp_path / "file" / "cache"))
    assert result.exit_code == 1
    [finding] = [f for f in json.loads(result.stdout) if f["state"] == "bad"]
    assert finding["what"] == "cache"
    assert "COURSE_CACHE" in finding["detail"]


@pytest.mark.quick
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_doctor_finds_a_cache_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o555)
    result = called("doctor", "--json", COURSE_CACHE=str(tmp_path / "cache"))
    tmp_path.chmod(0o755)
    assert result.exit_code == 1
    assert states(json.loads(result.stdout))["cache"] == "bad"


@pytest.mark.quick
def test_a_folder_that_jupyter_cannot_write_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    runtime = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "file" / "runtime")}
    assert states(json.loads(called("doctor", "--json", **runtime).stdout))["jupyterlab"] == "bad"
    assert_refused(called("lab", **runtime), "JUPYTER_RUNTIME_DIR")


# ----------------------------------------------------------------------------------------------------------------- lab


class Lab:
    """A `course lab` that runs, with its own folders for whatever Jupyter keeps."""

    def __init__(self, home, *arguments):
        self.runtime = home / "runtime"
        self.log = home / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [COURSE, "lab", *arguments], stdout=log, stderr=log, cwd=home, env=self.environment(home)
            )
        self.address, self.port, self.token = self.wait_for_address()

    def environment(self, home):
        places = {f"JUPYTER_{kind.upper()}_DIR": home / kind for kind in ("config", "data", "runtime")}
        foreign = home / "data" / "kernels" / "python3" / "kernel.json"
        foreign.parent.mkdir(parents=True)
        foreign.write_text(json.dumps({"argv": ["not-this-python"], "display_name": "another", "language": "python"}))
        return environment(**places, IPYTHONDIR=home / "ipython", JUPYTER_PREFER_ENV_PATH="0")

    def wait_for_address(self):
        printed = r"http://127\.0\.0\.1:(\d+)/lab/tree/\S+\?token=(\S+)"
        deadline = time.monotonic() + 90
        while not (found := re.search(printed, self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        while time.monotonic() < deadline:  # the address is printed a moment before somebody answers there
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(found[1])), timeout=5):
                break
            time.sleep(0.2)
        return found[0], int(found[1]), found[2]

    def ask(self, path, *, token=None, data=None):
        """The answer of the server's REST API."""
        authorization = {"Authorization": f"token {token or self.token}"}
        body = json.dumps(data).encode() if data is not None else None
        with urlopen(Request(f"http://127.0.0.1:{self.port}{path}", body, authorization), timeout=60) as answer:
            return json.load(answer)

    def run(self, kernel, code):
        """What some code prints in a kernel of this server."""
        from jupyter_client.blocking import BlockingKernelClient

        client = BlockingKernelClient(connection_file=str(self.runtime / f"kernel-{kernel}.json"))
        client.load_connection_file()
        client.start_channels()
        printed = []
        try:
            client.hb_channel.time_to_dead = 30  # seconds: beside other work a heart that starts is slow
            client.wait_for_ready(timeout=90)
            client.execute_interactive(
                code, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", ""))
            )
        finally:
            client.stop_channels()
        return "".join(printed)

    def end(self):
        """Send SIGTERM; returns the exit code and whichever of its processes outlive it."""
        own = psutil.Process(self.process.pid)
        family = [own, *own.children(recursive=True)]
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        _, alive = psutil.wait_procs(family[1:], timeout=10)
        return code, alive


@pytest.fixture(scope="module")
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, taken_port):
    server = Lab(tmp_path_factory.mktemp("lab"), "--port", str(taken_port))
    yield server
    server.end()


def test_lab_prints_an_address_that_answers(lab):
    with urlopen(lab.address, timeout=60) as page:
        assert page.status == 200
        assert "JupyterLab" in page.read().decode()


def test_lab_opens_at_a_page_that_says_what_comes_next_in_the_learners_own_copy(lab):
    coming = following(standings()).name
    assert "/lab/tree/my/start.md?token=" in lab.address
    assert f"({coming}.ipynb)" in lab.ask("/api/contents/my/start.md")["content"]
    assert lab.ask(f"/api/contents/my/{coming}.ipynb")["type"] == "notebook"


def test_lab_takes_another_port_where_the_wanted_one_is_taken(lab, taken_port):
    assert lab.port != taken_port
    assert str(taken_port) in lab.log.read_text()


def test_lab_says_that_there_is_no_display(lab):
    assert lab.log.read_text().startswith("No display here: open the address below in a browser.\n")


def test_lab_lets_nobody_in_without_the_token(lab):
    with pytest.raises(HTTPError, match="403"):
        lab.ask("/api/contents", token="wrong")


def test_labs_python_is_this_environments_even_where_the_user_has_another(lab):
    specs = lab.ask("/api/kernelspecs")
    assert specs["default"] == "python3"
    assert specs["kernelspecs"]["python3"]["spec"]["display_name"] != "another"
    kernel = lab.ask("/api/kernels", data={"name": "python3"})["id"]
    printed = lab.run(kernel, "import sys, course_utils; print(sys.prefix, course_utils.__file__, sep='\\n')")
    prefix, package = printed.splitlines()
    assert Path(prefix).samefile(sys.prefix)
    assert Path(package).is_file()


@pytest.mark.slow
def test_lab_passes_arguments_on_and_leaves_no_process_behind_when_terminated(tmp_path):
    server = Lab(tmp_path, "--port", "0", "--ServerApp.token=abc")
    try:
        kernel = server.ask("/api/kernels", token="abc", data={"name": "python3"})["id"]
        pid = int(server.run(kernel, "import os; print(os.getpid())"))
        assert psutil.Process(server.process.pid) in psutil.Process(pid).parents()
        assert server.end() == (0, [])
        assert not psutil.pid_exists(pid)
    finally:
        server.process.kill()


@pytest.mark.quick
def test_lab_without_lessons_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.cli.lab.ROOT", tmp_path)
    assert_refused(called("lab"), str(tmp_path), "none", "pip install -e .")
