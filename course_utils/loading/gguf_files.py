"""GGUF files: what their header says, parts and LoRA adapters joined into one file, and the scaling that loaders drop.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads it, too, but takes
seconds for a vocabulary; the header alone takes milliseconds.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CourseError, first_line

ROPE_FREQS = "rope_freqs.weight"
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY, _F32 = 8, 9, 0
_ALIGNMENT = 32


@contextmanager
def reading() -> Iterator[None]:
    """Let transformers read a GGUF file's vocabulary once, and find gguf's version, and the names of tensors at once.

    It reads the whole file for the configuration, the tokenizer and the weights again. With Python 3.10 its earlier
    versions look for gguf's version where it is not; and it makes the table of names anew for each module, which takes
    most of the time: half a minute for a small model of 62 layers.
    """
    import gguf

    if not hasattr(gguf, "__version__"):
        gguf.__version__ = version("gguf")
    own = {name: getattr(gguf, name) for name in ("get_tensor_name_map", "GGUFReader")}
    try:
        for name, function in own.items():
            setattr(gguf, name, lru_cache(maxsize=1)(function))
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


class Stored(NamedTuple):
    """A tensor in a file: its shape as torch has it, how it is stored, and its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: NDArray[np.uint8]

    def numbers(self) -> NDArray[np.float32]:
        """The tensor as float32, whatever it is stored as."""
        from gguf import GGMLQuantizationType, dequantize

        rows = self.data.reshape(prod(self.shape[:-1]), -1)
        return dequantize(rows, GGMLQuantizationType(self.kind)).reshape(self.shape)


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF file: numbers and texts of its metadata, its tensors, and each key's bytes as they stand."""

    path: Path
    told: dict[str, Any]
    tensors: dict[str, Stored]
    raw: dict[str, bytes] = field(repr=False)

    def of_the_architecture(self, key: str) -> Any:
        return self.told.get(f"{self.told.get('general.architecture')}.{key}")


def read_gguf(path: Path) -> Gguf:
    """The header of a GGUF file; CourseError where it is none, is cut short, or unknown to the installed `gguf`."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CourseError(f"Expected a GGUF file, got {path}, which begins with {magic!r}; fetch it again.")
    try:
        return _parsed(path)
    except (struct.error, ValueError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise CourseError(f"Expected a whole GGUF file, got {path} ({first_line(error)}); fetch it again.") from error


def _parsed(path: Path) -> Gguf:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    blob = np.memmap(path, mode="r", dtype=np.uint8).data
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", blob, 4)
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}, and 2 and 3 are known")
    told, raw, place = {}, {}, 24
    for _ in range(n_keys):
        key, after = _string(blob, place)
        told[key], end = _value(blob, after)
        raw[key], place = blob[place:end].tobytes(), end
    table = []
    for _ in range(n_tensors):
        name, place = _string(blob, place)
        (n,) = struct.unpack_from("<I", blob, place)
        dims = struct.unpack_from(f"<{n}Q", blob, place + 4)
        kind, offset = struct.unpack_from("<IQ", blob, place + 4 + 8 * n)
        table.append((name, tuple(reversed(dims)), kind, offset))
        place += 16 + 8 * n
    alignment = int(told.get("general.alignment", _ALIGNMENT))
    start, tensors = -(-place // alignment) * alignment, {}
    for name, shape, kind, offset in table:
        per_block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        data = np.frombuffer(blob[start + offset : start + offset + prod(shape) // per_block * size], np.uint8)
        if len(data) != prod(shape) // per_block * size:
            raise ValueError(f"it ends before {name}")
        tensors[name] = Stored(shape, kind, data)
    return Gguf(path, told, tensors, raw)


def _string(blob: memoryview, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", blob, place)
    if place + 8 + length > len(blob):
        raise ValueError("it ends in the middle of its header")
    return blob[place + 8 : place + 8 + length].tobytes().decode(), place + 8 + length


def _value(blob: memoryview, place: int) -> tuple[Any, int]:
    """A key's value and where it ends; None for an array, which nothing here asks for."""
    (kind,) = struct.unpack_from("<I", blob, place)
    place += 4
    if kind == _STRING:
        return _string(blob, place)
    if kind in _NUMBERS:
        return struct.unpack_from(_NUMBERS[kind], blob, place)[0], place + struct.calcsize(_NUMBERS[kind])
    if kind != _ARRAY:
        raise ValueError(f"it holds a value of an unknown kind, {kind}")
    of, length = struct.unpack_from("<IQ", blob, place)
    place += 12
    if of in _NUMBERS:
        return None, place + length * struct.calcsize(_NUMBERS[of])
    for _ in range(length):
        _, place = _string(blob, place) if of == _STRING else _value(blob, place)
    return None, place


def parts_of(first: Gguf) -> list[Gguf]:
    """All files of a model that is split over several (`-00001-of-00003.gguf`), in their order, from any of them."""
    count = int(first.told.get("split.count", 1) or 1)
    if count == 1:
        return [first]
    named = re.fullmatch(r"(.*)-\d{5}-of-\d{5}\.gguf", first.path.name)
    stem = named[1] if named else first.path.stem
    paths = [first.path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CourseError(
            f"Expected all {count} parts of a split GGUF model beside {first.path}, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing; put all parts into one folder."
        )
    parts = [read_gguf(path) for path in paths]
    if sum(len(part.tensors) for part in parts) != parts[0].told.get("split.tensors.count"):
        raise CourseError(f"Expected the parts of one split GGUF model beside {first.path}, got parts of several.")
    return parts


def join(parts: list[Gguf], adapters: Iterable[Gguf], folder: Path) -> Path:
    """Write the parts of a model, and LoRA adapters added into its weights, as one GGUF file in a folder."""
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    for adapter in adapters:
        tensors |= _with_lora(parts[0], tensors, adapter)
    size = sum(tensor.data.nbytes for tensor in tensors.values())
    if (free := shutil.disk_usage(folder).free) < 1.1 * size:
        raise CourseError(
            f"Joining {parts[0].path} needs {size / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free in {folder}; "
            "make room, or set TMPDIR to a folder on another disk."
        )
    keys = [raw for key, raw in parts[0].raw.items() if not key.startswith("split.") and key != "general.alignment"]
    table, offset = b"", 0
    for name, tensor in tensors.items():
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        table += struct.pack("<Q", len(name.encode())) + name.encode() + dims
        table += struct.pack("<IQ", tensor.kind, offset)
        offset += -(-tensor.data.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + table
    path = folder / "joined.gguf"
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        for tensor in tensors.values():
            file.write(tensor.data.data)
            file.write(bytes(-tensor.data.nbytes % _ALIGNMENT))
    return path


def _with_lora(model: Gguf, tensors: dict[str, Stored], adapter: Gguf) -> dict[str, Stored]:
    """The weights that a LoRA adapter changes, as float32: W + alpha / rank x B A."""
    key, changed = "general.architecture", {}
    if adapter.told.get("adapter.type") != "lora" or adapter.told.get(key) != model.told.get(key):
        raise CourseError(
            f"Expected a LoRA adapter for a model of architecture {model.told.get(key)!r}, got {adapter.path}, which "
            f"says {adapter.told.get('adapter.type')!r} for {adapter.told.get(key)!r}; leave the ADAPTER out."
        )
    for name, a in adapter.tensors.items():
        base = name.removesuffix(".lora_a")
        b, weight = adapter.tensors.get(f"{base}.lora_b"), tensors.get(base)
        if name.endswith(".lora_b") and f"{base.removesuffix('.lora_b')}.lora_a" in adapter.tensors:
            continue
        fits = b is not None and weight is not None and weight.shape == (b.shape[0], a.shape[1])
        if b is None or weight is None or not fits or a.shape[0] != b.shape[1] or base == "token_embd.weight":
            raise CourseError(
                f"Expected the adapter {adapter.path} to hold two factors for each weight it changes, and {name} fits "
                f"no weight of {model.path}; leave the ADAPTER out, or merge it with llama.cpp's export-lora."
            )
        alpha = float(adapter.told.get("adapter.lora.alpha") or 0) or a.shape[0]  # llama.cpp: without one, 1 x B A
        total = weight.numbers() + alpha / a.shape[0] * (b.numbers() @ a.numbers())
        changed[base] = Stored(weight.shape, _F32, total.astype(np.float32).reshape(-1).view(np.uint8))
    if not changed:
        raise CourseError(f"Expected an adapter that changes weights, got {adapter.path}, which changes none.")
    return changed
