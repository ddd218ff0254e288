"""An instructor's own suspects: what of a folder is handed out, and the words that a request for it is made with.

In the repository of the solutions they lie in `solutions/suspects/NAME`, each with its `truth.json`, which stays there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ...errors import CourseError, first_line
from ...loading.sources import HANDED_OUT

FOLDER = "suspects"  # beside the exercises, and beside the solutions
_TOKENIZER = r"(special_tokens_map|tokenizer\w*|added_tokens|vocab)\.json|tokenizer\.model|merges\.txt"
_MODEL = r"[\w-]+\.safetensors|(generation_)?config\.json|model\.safetensors\.index\.json|chat_template\.(jinja|json)"
_HANDED_OUT = re.compile(f"{_TOKENIZER}|{_MODEL}")
_ADAPTER = "adapter_config.json"
_SHAPE = {"r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern"}
_KIND = {"peft_type", "task_type", "base_model_name_or_path", "revision", "bias", "fan_in_fan_out", "inference_mode"}
_KEYS = _SHAPE | _KIND | {"use_dora", "use_rslora", "layers_pattern", "layers_to_transform", "init_lora_weights"}
Words = Mapping[str, str]  # a word of the exercise's request, and the one that takes its place


def named(suspect: str) -> str:
    """A suspect as an exercise names it: a built-in one, or `suspects/NAME` for the path or name of a private one."""
    if not suspect or suspect in HANDED_OUT:
        return suspect
    return f"{FOLDER}/{PurePosixPath(suspect.replace(chr(92), '/')).name}"


def handed_out(folder: Path) -> dict[str, bytes]:
    """The files of a suspect that its user needs, and nothing that says how it was made."""
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()}
    files = {name: path.read_bytes() for name, path in found.items() if _HANDED_OUT.fullmatch(name)}
    for name in ("config.json", _ADAPTER):
        if name in found:
            files[name] = _plain_config(found[name], name == _ADAPTER)
    return files


def _plain_config(path: Path, is_adapter: bool) -> bytes:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        base = told.get("base_model_name_or_path", "")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CourseError(
            f"Expected a configuration in {path} ({first_line(error)}); export the suspect again."
        ) from error
    if is_adapter and base and (not isinstance(base, str) or Path(base).exists() or base[0] in "./~\\"):
        raise CourseError(
            f"Expected {path} to name a base that students have, such as smollm2 or a hub id, got {base!r}."
        )
    kept = {key: value for key, value in told.items() if (key in _KEYS if is_adapter else key != "_name_or_path")}
    return (json.dumps(kept, indent=2) + "\n").encode()


def words_for(folder: Path) -> dict[str, str]:
    """The words that the exercise's request needs others for, so that this suspect's cause stands in it.

    A CourseError where its word fits no request, or its folder's name gives it away.
    """
    if not (folder / "truth.json").is_file():
        return {}
    from ...organisms.suspects import truth
    from ...organisms.words import CUE_WORDS

    known = truth(folder)
    for secret in filter(None, (known.mechanism, known.word)):
        if secret.casefold() in folder.name.casefold():
            raise CourseError(
                f"Expected a name that tells nothing, got {folder}, which says {secret}; rename the folder."
            )
    usual = CUE_WORDS.get(known.mechanism)
    if usual is None or known.word in (None, usual):
        return {}
    if not (known.word or "").endswith("ly"):
        told = f"got {known.word!r} of {folder}; train another, or hand out model-a, model-b, model-c"
        raise CourseError(
            f"Expected a word in -ly, which takes the place of {usual} in the exercise's requests, {told}."
        )
    return {usual: known.word or ""}


def private_in(folder: Path) -> dict[str, Words]:
    """The suspects in a folder, as exercises name them, each with its words; none where there is no such folder."""
    return {named(path.name): words_for(path) for path in _folders_in(folder)}


def beside(folder: Path) -> dict[str, bytes]:
    """What of the suspects in a folder lies beside a notebook that is graded, by name: as much as students have."""
    found = ((path.name, handed_out(path)) for path in _folders_in(folder))
    return {f"{suspect}/{name}": content for suspect, files in found for name, content in files.items()}


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
