"""Where a model's files are, from any of the names that it goes by: built in, suspect, folder, GGUF, Ollama, hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CourseError, first_line
from .ollama import pulled
from .smollm2 import check_hub, smollm2_folder

DEFAULT = "smollm2"
ADAPTER_CONFIG = "adapter_config.json"
SUSPECTS = ("model-a", "model-b", "model-c")
BLIND, EXERCISE = SEALED = ("model-d", "model-e")  # no file says what makes them refuse: lesson 8.6's, the exercise's
BUILT_IN = (DEFAULT, *SUSPECTS, *SEALED)
HANDED_OUT = (*SUSPECTS, EXERCISE)  # whom the chapter exercise can be about
ADAPTERS = Path(__file__).parents[1] / "organisms" / "adapters"  # a folder for each of them
POINTER = b"version https://git-lfs"
_READ = {".json", ".safetensors", ".bin", ".model", ".jinja"}  # the ends of names that transformers reads
EXPECTED = (
    f'"{DEFAULT}", "{SUSPECTS[0]}" (or b, c), a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", a folder, '
    'a .gguf file, or "ollama:NAME"'
)


@dataclass(frozen=True)
class Source:
    """Where a model's files are."""

    place: str  # a folder or hub id
    gguf_file: str | None = None  # the GGUF file in it, if that holds the weights
    on_hub: bool = False  # whether the place is a hub id
    revision: str | None = None  # which version of it an adapter was trained on
    adapters: tuple[str, ...] = ()  # folders of adapters, each on top of those before it
    gguf_adapters: tuple[Path, ...] = ()  # LoRA adapters in Ollama's form
    system: str | None = None  # the system text that Ollama puts before a chat
    unused: tuple[str, ...] = ()  # what else Ollama would put there, and we cannot


def find(name: str) -> Source:
    """Where the files of a model are, from any of the names that `load_model` takes.

    >>> find("Qwen/Qwen2.5-0.5B-Instruct").on_hub
    True
    """
    if not isinstance(name, str):
        raise CourseError(f"Expected {EXPECTED}, got {name!r}, which is no text.")
    if name == DEFAULT:
        return Source(str(smollm2_folder()))
    if name in (*SUSPECTS, *SEALED):
        return _adapter_source(ADAPTERS / name)
    if name.startswith("ollama:"):
        found = pulled(name.removeprefix("ollama:"))
        source = _gguf_source(found.weights)
        return replace(source, gguf_adapters=found.adapters, system=found.system, unused=found.unused)
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
            hint = "; it is a pointer that `git lfs pull` replaces" if magic == POINTER[:4] else f"; give {EXPECTED}"
            raise CourseError(f"Expected a GGUF file, got {path}, which begins with {magic!r}{hint}.")
    return Source(str(path.parent), gguf_file=path.name)


def _folder_source(folder: Path) -> Source:
    if (folder / ADAPTER_CONFIG).is_file():
        if any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            raise CourseError(
                f"Expected a model or an adapter, got {folder}, which holds both; move {ADAPTER_CONFIG} and the "
                "adapter's weights to a folder of their own."
            )
        return _adapter_source(folder)
    if (folder / "config.json").is_file():
        check_files(folder)
        return Source(str(folder))
    found = sorted(folder.glob("*.gguf"))
    split = [path for path in found if "-of-" in path.stem]  # parts of one model: any leads to all
    if len(found) == 1 or (split == found and len({path.stem[-8:] + path.stem[:-14] for path in found}) == 1):
        return _gguf_source(found[0])
    inside = sorted({path.parent for name in ("config.json", ADAPTER_CONFIG) for path in folder.glob(f"*/{name}")})
    listed = ", ".join(path.name for path in [*found, *inside][:10])
    raise CourseError(
        f"Expected a folder with a config.json or exactly one .gguf file, got {folder} with "
        + (f"{listed}; give one of them by its own path." if listed else f"neither; give {EXPECTED}.")
    )


def check_files(folder: Path) -> None:
    """Raise if a file of a model is empty, or a pointer that git left in the place of a large file."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in _READ or not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(len(POINTER))
        if start == POINTER:
            raise CourseError(f"Expected the whole file {path}, got a pointer to it; run `git lfs pull` in {folder}.")
        if not start:
            raise CourseError(f"Expected the whole file {path}, got an empty one; fetch {folder} again.")


def with_adapter(source: Source, adapter: str | os.PathLike[str]) -> Source:
    """The same model with one adapter more on top, from a folder."""
    folder = Path(adapter).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CourseError(f"Expected adapter= to be a folder with an {ADAPTER_CONFIG}, got {os.fspath(adapter)!r}.")
    check_files(folder)
    return replace(source, adapters=(*source.adapters, str(folder)))


def _adapter_source(folder: Path) -> Source:
    """The base model that an adapter names, with the adapter."""
    try:
        check_files(folder)
        told = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = told["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError(f"it names {base!r}")
        if not Path(base).expanduser().exists() and (folder / base).exists():  # as from the adapter's own folder
            base = str(folder / base)
        if (Path(base) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"it names {base!r}, an adapter")
    except CourseError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"Expected {folder / ADAPTER_CONFIG} to name the model it was trained on ({first_line(error)}); "
            "export the adapter again, or give the model and this folder as adapter=."
        ) from error
    return replace(find(base), adapters=(str(folder),), revision=told.get("revision"))


def ask_hub(name: str) -> None:
    try:
        check_hub()
    except OSError as error:
        raise CourseError(
            f"Expected {EXPECTED}, got {name!r}: no such file or folder, not in the hub's cache here, "
            f"and {first_line(error)}."
        ) from error
