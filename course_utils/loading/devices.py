"""Which device a model goes to, how much memory is free there, and which precision fits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from timeit import repeat
from typing import Any

import psutil
import torch

from ..errors import CourseError, first_line

_MOST_LAYERS = 1_000
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells the limits of the container that this runs in


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
    """Free bytes where a model on a device would live: the graphics card's, the machine's, or ("auto") all together.

    >>> free_memory("cpu") > 0
    True
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    machine = int(psutil.virtual_memory().available)
    if device == "auto" and torch.cuda.is_available():
        return machine + sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    return min(machine, _left_in_container())


def _left_in_container() -> int:
    """Bytes that the container this runs in may still take; without a limit, more than any machine has."""
    try:
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        return limit - used + int(told["inactive_file"])  # files kept in memory give way
    except (OSError, ValueError, KeyError):  # no container, or no limit
        return 1 << 62


def fitting_dtype(config: Any, device: str, wanted: str | None, place: str) -> torch.dtype:
    """The precision of a model's weights: the wanted one, or float32 where it takes at most 60 % of the free memory.

    Float32 is exact. Where it does not fit, a half precision is taken: the checkpoint's own ("auto" asks for it), or
    else bfloat16. Weights that are stored quantised take what their files take in `place`.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > _MOST_LAYERS:  # a digit too many: even an empty model of so many would take hours to make
        raise CourseError(
            f"Expected at most {_MOST_LAYERS:,} layers in the config of {place}, got {layers:,}; mend it."
        )
    own = config.get_text_config().dtype or config.dtype or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    free = free_memory(device)
    if getattr(config, "quantization_config", None):
        stored = [path for end in ("*.safetensors", "*.bin") for path in Path(place).glob(end)]
        _check_fits(sum(path.stat().st_size for path in stored), "as it is stored", free, device)
        return own if wanted in (None, "auto") else getattr(torch, wanted)
    parameters = _parameters(config)
    if wanted is None and 4 * parameters <= 0.6 * free:
        return torch.float32
    half = own if own.itemsize == 2 else torch.bfloat16
    dtype = half if wanted is None else own if wanted == "auto" else getattr(torch, wanted)
    name = str(dtype).removeprefix("torch.")
    how = f"in {name} with its {parameters / 1e9:.1f} billion parameters"
    _check_fits(dtype.itemsize * parameters, how, free, device)
    return dtype


def _parameters(config: Any) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _check_fits(size: float, how: str, free: int, device: str) -> None:
    if size > 0.9 * free:
        spread = "" if device == "auto" else ', or device="auto" to spread it'
        raise CourseError(
            f"Expected a model that fits in 90 % of the {free / 1e9:.1f} GB that are free on {device}, got one that "
            f"takes {size / 1e9:.1f} GB {how}; choose a smaller model or a shorter dtype{spread}."
        )


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices faster in bfloat16 than in float32; for processors it is tried, in 0.1 s.

    Torch's own answer for a processor is whether it can: by converting, as most do, it takes four times as long.

    >>> multiplies_bfloat16(torch.device("meta"))
    False
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _seconds_to_multiply(torch.bfloat16) < _seconds_to_multiply(torch.float32)


def _seconds_to_multiply(dtype: torch.dtype) -> float:
    """The least of several tries, since other programs may be running."""
    one, other = torch.ones(256, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    return min(repeat(lambda: one @ other, number=1, repeat=8))
