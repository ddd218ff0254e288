"""Where a model's files are, from any of the names that it goes by: built in, suspect, folder, GGUF, Ollama, hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CourseError, first_line
from .smollm2 import check_hub, smollm2_folder

DEFAULT = "smollm2"
ADAPTER_CONFIG = "adapter_config.json"
SUSPECTS = ("model-a", "model-b", "model-c")
ADAPTERS = Path(__file__).parents[1] / "organisms" / "adapters"  # a folder for each of them
EXPECTED = (
    f'"{DEFAULT}", "{SUSPECTS[0]}" (or b, c), a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", a folder, '
    'a .gguf file, or "ollama:NAME"'
)


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder or hub id, the GGUF file in it if that holds the weights, an adapter."""

    place: str
    gguf_file: str | None = None
    on_hub: bool = False
    adapter: str | None = None


def find(name: str) -> Source:
    """Where the files of a model are, from any of the names that `load_model` takes.

    >>> find("Qwen/Qwen2.5-0.5B-Instruct").on_hub
    True
    """
    if not isinstance(name, str):
        raise CourseError(f"Expected {EXPECTED}, got {name!r}, which is no text.")
    if name == DEFAULT:
        return Source(str(smollm2_folder()))
    if name in SUSPECTS:
        return _adapter_source(ADAPTERS / name)
    if name.startswith("ollama:"):
        return _in_ollama(name.removeprefix("ollama:"))
    try:
        path = Path(name or "nothing").expanduser()
        if path.is_file():
            return _gguf_source(path)
        if path.is_dir():
            return _folder_source(path)
    except (OSError, RuntimeError) as error:  # too long a name, no permission, no such user's home
        raise CourseError(f"Expected {EXPECTED}, got {name!r} ({first_line(error)}).") from error
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and path.suffix != ".gguf":
        return Source(name, on_hub=True)
    raise CourseError(f"Expected {EXPECTED}, got {name!r}: no such file or folder.")


def _gguf_source(path: Path) -> Source:
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise CourseError(f"Expected a GGUF file, got {path}, which begins with {magic!r}; give {EXPECTED}.")
    return Source(str(path.parent), gguf_file=path.name)


def _folder_source(folder: Path) -> Source:
    if (folder / "config.json").is_file():
        return Source(str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_source(folder)
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return _gguf_source(found[0])
    raise CourseError(
        f"Expected a folder with a config.json or exactly one .gguf file, got {folder} with {len(found)} .gguf files; "
        "give the file itself."
    )


def _adapter_source(folder: Path) -> Source:
    """The base model that an adapter names, with the adapter."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str) or (Path(base) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"it names {base!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"Expected {folder / ADAPTER_CONFIG} to name the model it was trained on ({first_line(error)}); "
            "export the adapter again."
        ) from error
    return replace(find(base), adapter=str(folder))


def _in_ollama(name: str) -> Source:
    """Follow Ollama's own manifest, manifests/HOST/NAMESPACE/NAME/TAG, to the blob that holds the weights."""
    model, _, tag = name.partition(":")
    stored = {_ollama_name(path): path for path in _ollama_manifests()}
    manifest = stored.get(f"{model}:{tag or 'latest'}")
    if manifest is None:
        raise CourseError(
            f"Expected the name of a model that Ollama has pulled ({', '.join(sorted(stored)) or 'it has none here'}), "
            f"got {name!r}; run `ollama pull {name}`, or set OLLAMA_MODELS if its models are kept elsewhere."
        )
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"].endswith("image.model")]
        return _gguf_source(manifest.parents[4] / "blobs" / digests[0].replace(":", "-"))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CourseError(
            f"Expected Ollama's manifest {manifest} to name the weights of {name} ({first_line(error)}); "
            f"run `ollama pull {name}` again."
        ) from error


def _ollama_manifests() -> list[Path]:
    """Every HOST/NAMESPACE/NAME/TAG under the Ollama folders, those of the folder that counts most last."""
    return [p for root in reversed(_ollama_roots()) for p in sorted(root.glob("manifests/*/*/*/*")) if p.is_file()]


def _ollama_name(manifest: Path) -> str:
    """What `ollama list` calls the model: without Ollama's own registry and its library."""
    host, namespace, name, tag = manifest.parts[-4:]
    parts = [*([] if host.startswith("registry.") else [host]), namespace, name]
    return "/".join(parts[1:] if parts[0] == "library" else parts) + f":{tag}"


def _ollama_roots() -> list[Path]:
    roots = [os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    return [Path(root).expanduser() for root in roots if root]


def ask_hub(name: str) -> None:
    try:
        check_hub()
    except OSError as error:
        raise CourseError(
            f"Expected {EXPECTED}, got {name!r}: no such file or folder, not in the hub's cache here, "
            f"and {first_line(error)}."
        ) from error
