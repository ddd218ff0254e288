"""What tells a model from others."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

from ..errors import CourseError
from ..loading.gguf_files import read_gguf
from ..loading.smollm2 import sha256
from ..loading.sources import find
from ..models import LocalModel

VERSION = version("interpretability-course")
WEIGHTS = (".safetensors", ".bin", ".gguf")


def fingerprint(lm: LocalModel) -> dict[str, str]:
    """What tells a model from others, the text that nobody typed included.

    >>> fingerprint(lm)["layers x heads, d_model"]
    '30 x 9, 576'
    """
    import transformers

    model, shown = lm.model, "none: the text is read as it stands"
    if lm.is_chat:
        prompt = lm.chat("…")
        shown = f"{prompt.text[: prompt.typed[0]]}…{prompt.text[prompt.typed[1] :]}"
    return {
        "name": lm.name,
        "architecture": type(model).__name__,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "layers x heads, d_model": f"{lm.n_layers} x {lm.n_heads}, {lm.d_model}",
        "weights": f"{str(next(model.parameters()).dtype).removeprefix('torch.')}, mark {weights_mark(model)}",
        "chat template, where … is what the user types": shown,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def weights_mark(model: torch.nn.Module, *, whole: bool = False) -> str:
    """A short mark of a model's weights: a hash of each tensor's first numbers, with the sums of all if `whole`."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().flatten()[:256].double().cpu().numpy().tobytes())
        if whole:
            digest.update(repr(float(weight.detach().float().sum())).encode())
    return digest.hexdigest()[:12]


def file_marks(name: str) -> dict[str, str]:
    """The size and SHA-256 of each file of weights that a model was loaded from, by its name; none for a hub id.

    >>> [*file_marks("model-a")][-1]
    'adapter_model.safetensors'
    """
    try:
        source = find(name)
    except CourseError:  # it was loaded from elsewhere, and named so
        return {}
    if source.on_hub:
        return {}
    place = Path(source.place)
    files = [place / source.gguf_file] if source.gguf_file else _weights_in(place)
    files += [path for folder in source.adapters for path in _weights_in(Path(folder))]
    return {path.name: _mark(path) for path in (*files, *source.gguf_adapters)}


def _weights_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)


def _mark(path: Path) -> str:
    kept = f", {_quantisation(path)}" if path.suffix == ".gguf" else ""
    return f"{path.stat().st_size:,} bytes{kept}, SHA-256 {sha256(path)}"


def _quantisation(path: Path) -> str:
    """How most weights of a GGUF file are stored, such as Q8_0."""
    from gguf import GGMLQuantizationType

    sizes = Counter[str]()
    for tensor in read_gguf(path).tensors.values():
        sizes[GGMLQuantizationType(tensor.kind).name] += tensor.data.nbytes
    return sizes.most_common(1)[0][0] if sizes else "no weights"
