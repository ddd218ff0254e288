"""Which device a model goes to, how much memory is free there, and which precision fits."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from ..errors import CourseError, first_line


def best_device() -> str:
    """The fastest device that torch can use here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        usable = torch.empty(1, device=device).device.type != "meta"
        reason = "holds no numbers"
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
        usable, reason = False, first_line(error)
    if not usable:
        here = f'a device that torch can use here, such as "{best_device()}", or "auto"'
        raise CourseError(f"Expected {here}, got {device!r} ({reason}).")


def free_memory(device: str) -> int:
    """Free bytes where a model on a device would live: the graphics card's, or the machine's.

    >>> free_memory("cpu") > 0
    True
    """
    return int(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available)


def fitting_dtype(config: Any, device: str) -> torch.dtype:
    """float32 where the weights take at most 60 % of the free memory (exact arithmetic is worth it), else bfloat16.

    Raises:
        CourseError: not even bfloat16 fits.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    free = free_memory(device)
    if 4 * parameters <= 0.6 * free:
        return torch.float32
    if 2 * parameters <= 0.9 * free:
        return torch.bfloat16
    raise CourseError(
        f"The model has {parameters / 1e9:.1f} billion parameters and needs {2 * parameters / 1e9:.0f} GB in bfloat16; "
        f'{free / 1e9:.0f} GB are free on {device}. Choose a smaller model, or device="auto" to spread it.'
    )
