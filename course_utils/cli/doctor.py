"""`course doctor`: is this machine ready? Each check says what it found and, where something is wrong, what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from ..errors import CourseError, first_line
from ..loading.threads import ASLEEP, POLICY

SIGNS = {"fine": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}  # and their colours
MEMORY_GIB = 3.5  # what a lesson's kernel takes at most


class Finding(NamedTuple):
    """What was looked at, its state ("fine", "note" or "bad"), and what to know or do."""

    what: str
    state: str
    detail: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Look whether this machine is ready: what is fine, what is not, what to do."""
    findings = examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark, colour = SIGNS[finding.state]
            click.echo(f"{click.style(mark, fg=colour)}  {finding.what:<{width}}  {finding.detail}")
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)


def examine() -> list[Finding]:
    """Run every check; one that breaks is itself a finding.

    >>> {finding.state for finding in examine()} <= {"fine", "note", "bad"}
    True
    """
    checks = (python, torch, threads, device, memory, transformers, cache, model, jupyterlab, kernel, grading)
    return [_safely(check) for check in checks]


def _safely(check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        state, detail = check()
    except CourseError as error:
        state, detail = "bad", str(error)
    except (ImportError, PackageNotFoundError, OSError, RuntimeError) as error:
        state, detail = "bad", f"{first_line(error)}; install again: pip install -c constraints.txt -e ."
    return Finding(check.__name__, state, detail)


def python() -> tuple[str, str]:
    found = ".".join(map(str, sys.version_info[:3]))
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        return "bad", f"{found}; the course runs on 3.10 to 3.13: make the environment with one of those"
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    return "fine", f"{found}, {where}, {sys.executable}"


def torch() -> tuple[str, str]:
    import torch

    product = torch.ones(2, 2) @ torch.ones(2, 2)
    if product.sum() != 8:
        return "bad", "2 x 2 product is wrong; reinstall torch"
    return "fine", f"{torch.__version__}"


def threads() -> tuple[str, str]:
    if (policy := os.environ.get(POLICY, ASLEEP)).upper() != ASLEEP:
        return "note", f"{POLICY} is {policy}: beside another program torch takes many times as long; unset it"
    return "fine", f"torch's wait asleep in all that course starts; for a Jupyter of your own set {POLICY}={ASLEEP}"


def device() -> tuple[str, str]:
    from ..loading.devices import best_device

    name = best_device()
    return "fine", f"{name}, {os.cpu_count()} cores" + ("" if name != "cpu" else "; enough for every lesson")


def memory() -> tuple[str, str]:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < MEMORY_GIB:
        return "note", f"{free:.1f} GiB free where a lesson takes up to {MEMORY_GIB}; close other programs first"
    return "fine", f"{free:.1f} GiB free"


def transformers() -> tuple[str, str]:
    from transformers import AutoModelForCausalLM  # noqa: F401  (the import that breaks if anything does)

    return "fine", version("transformers")


def cache() -> tuple[str, str]:
    from ..loading.smollm2 import DISK_BYTES, READY_NAME, cache_folder, is_whole

    folder = cache_folder()
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    if is_whole(folder / READY_NAME):
        return "fine", f"{folder}"
    if not _can_be_written(existing):
        return "bad", f"{folder} cannot be written; set COURSE_CACHE to a folder that can"
    if free < DISK_BYTES:
        told = f"{free / 1e6:.0f} MB free at {existing}, {DISK_BYTES / 1e6:.0f} needed"
        return "bad", f"{told}; make room or set COURSE_CACHE"
    return "fine", f"{folder}, {free / 1e9:.0f} GB free"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))


def _can_be_written(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def model() -> tuple[str, str]:
    from ..loading.smollm2 import GGUF_NAME, READY_NAME, cache_folder, is_whole

    folder = cache_folder() / READY_NAME
    if is_whole(folder, thorough=True):
        return "fine", "SmolLM2 is in the cache and every file has its right hash"
    if not os.path.exists(folder):
        is_fetched = os.path.exists(cache_folder() / GGUF_NAME)
        source = "from the GGUF file in the cache" if is_fetched else "93 MB, fetched once"
        return "note", f"SmolLM2 is not there yet; the first lesson makes it ({source}, about half a minute)"
    return "bad", f"SmolLM2 in the cache is damaged; delete {folder} and it is made again"


def jupyterlab() -> tuple[str, str]:
    from jupyter_core.paths import jupyter_runtime_dir

    if not _can_be_written(_existing(folder := Path(jupyter_runtime_dir()))):
        return "bad", f"{folder} cannot be written; set JUPYTER_RUNTIME_DIR to a folder that can"
    return "fine", version("jupyterlab")


def kernel() -> tuple[str, str]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # as `course lab` does
    try:
        folder = Path(KernelSpecManager().get_kernel_spec("python3").resource_dir)
    except NoSuchKernel:
        return "bad", "no Python kernel is installed here; run: python -m ipykernel install --sys-prefix"
    if Path(sys.prefix).resolve() in folder.resolve().parents or "ipykernel" in folder.parts:
        return "fine", f"ipykernel {version('ipykernel')} of this environment"
    return "bad", f"the kernel python3 is another one's ({folder}); run: python -m ipykernel install --sys-prefix"


def grading() -> tuple[str, str]:
    from ..grading.sandbox import bubblewrap, control_groups

    if why := bubblewrap.trouble():
        return "fine", f"of your own work; that of others has no sandbox here: {why}"
    if why := control_groups.trouble():
        return "note", f"in a sandbox; memory in socket buffers and page tables is not counted: {why}"
    return "fine", "in a sandbox, whose memory and processes the system itself counts"
