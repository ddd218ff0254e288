"""Models that Ollama has pulled or made: its manifest leads to the weights, an adapter, and the system text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from ..errors import CourseError, first_line

_KIND = "application/vnd.ollama.image."


class Pulled(NamedTuple):
    """What a model of Ollama's is made of."""

    weights: Path
    adapters: tuple[Path, ...]
    system: str | None
    unused: tuple[str, ...]  # what Ollama would add to a chat and we cannot


def pulled(name: str) -> Pulled:
    """Follow Ollama's own manifest, manifests/HOST/NAMESPACE/NAME/TAG, to the blobs that a model is made of."""
    model, _, tag = name.partition(":")
    stored = {_name(path): path for path in _manifests()}
    asked = f"{model}:{tag or 'latest'}".removeprefix("registry.ollama.ai/").removeprefix("library/")
    alike = (path for known, path in stored.items() if known.casefold() == asked.casefold())  # as Ollama sees it
    manifest = stored.get(asked) or next(alike, None)
    if manifest is None:
        raise CourseError(
            f"Expected the name of a model that Ollama has pulled ({', '.join(sorted(stored)) or 'it has none here'}), "
            f"got {name!r}; run `ollama pull {name}`, or set OLLAMA_MODELS if its models are kept elsewhere."
        )
    try:
        return _layers(name, manifest)
    except CourseError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CourseError(
            f"Expected Ollama's manifest {manifest} to name the weights of {name} ({first_line(error)}); "
            f"run `ollama pull {name}` again."
        ) from error


def _layers(name: str, manifest: Path) -> Pulled:
    layers = [
        (layer["mediaType"].removeprefix(_KIND), manifest.parents[4] / "blobs" / layer["digest"].replace(":", "-"))
        for layer in json.loads(manifest.read_text(encoding="utf-8"))["layers"]
    ]
    blobs = {kind: [path for other, path in layers if other == kind] for kind, _ in layers}
    if "tensor" in blobs:
        raise CourseError(
            f"Expected one GGUF file of weights for {name}, and Ollama keeps {len(blobs['tensor'])} single tensors; "
            "give the folder or the hub id that it was made from."
        )
    if not (weights := blobs.get("model", [])):
        raise ValueError("it names none")
    if len(weights) > 1:
        raise CourseError(
            f"Expected one file of weights for {name}, and Ollama keeps {len(weights)}; "
            "give the .gguf file that it was made from."
        )
    system = "\n".join(path.read_text(encoding="utf-8") for path in blobs.get("system", []))
    for path in (*weights, *blobs.get("adapter", [])):
        if not path.is_file():
            raise ValueError(f"{path} is not there")
    unused = tuple(kind for kind in ("template", "messages") if kind in blobs)
    return Pulled(weights[0], tuple(blobs.get("adapter", [])), system or None, unused)


def _manifests() -> list[Path]:
    """Every HOST/NAMESPACE/NAME/TAG under the Ollama folders, those of the folder that counts most last."""
    roots = [os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    found = []
    for root in (Path(root).expanduser() for root in reversed(roots) if root):
        try:
            found += [path for path in sorted(root.glob("manifests/*/*/*/*")) if path.is_file()]
        except PermissionError:  # another user's
            continue
    return found


def _name(manifest: Path) -> str:
    """What `ollama list` calls the model: without Ollama's own registry and its library."""
    host, namespace, name, tag = manifest.parts[-4:]
    parts = [*([] if host.startswith("registry.") else [host]), namespace, name]
    return "/".join(parts[1:] if parts[0] == "library" else parts) + f":{tag}"
