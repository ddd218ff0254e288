"""From where a model's files are to the model itself, with its tokenizer."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from ..errors import CourseError, first_line
from .devices import fitting_dtype
from .gguf_files import Gguf, join, parts_of, read_gguf, reading
from .smollm2 import offline, quiet_transformers
from .sources import ADAPTERS, BUILT_IN, DEFAULT, EXPECTED, Source
from .weights import check_gguf, check_loaded, merged, rescale_rotary

KIN: WeakSet[Any] = WeakSet()  # the built-in model and the suspects: one code, other weights
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_TEMPLATE = "chat_template.jinja"
_STATED = {  # keys of a GGUF file, and what configurations call them
    "attention.key_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
}
_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the sizes whose attention is scaled by width / heads


class Wanted(NamedTuple):
    """How a model is to be loaded."""

    device: str
    dtype: str | None
    revision: str | None
    local_only: bool


def load(name: str, source: Source, wanted: Wanted) -> tuple[Any, Any]:
    """A model with the weights of its checkpoint, whole, and its tokenizer."""
    try:
        with (
            quiet_transformers() if name == DEFAULT or source.adapters else nullcontext(),
            offline() if wanted.local_only else nullcontext(),
        ):
            model, tokenizer = _gguf(name, source, wanted) if source.gguf_file else _folder(name, source, wanted)
            for adapter in source.adapters:
                model = merged(model, adapter)
                tokenizer = _tokenizer_of(Path(adapter), tokenizer)
            if name in BUILT_IN and all(Path(adapter).parent == ADAPTERS for adapter in source.adapters):
                KIN.add(model)
    except CourseError:
        raise
    except ImportError as error:
        raise CourseError(
            f"Expected to read {name} with the packages that are installed here, and it needs another "
            f"({first_line(error)}); install it, or take a form of the model that does without it."
        ) from error
    except Exception as error:  # files of strangers, read by five libraries: each raises what it likes
        raise CourseError(
            f"Could not load {name} ({first_line(error)}); expected {EXPECTED}, whole, a causal language model "
            "of a kind transformers reads."
        ) from error
    if not tokenizer.is_fast:
        raise CourseError(
            f"{name} has no fast tokenizer, so tokens cannot be placed in the text; choose another model."
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes up without files
        raise CourseError(
            f"Expected the tokenizer beside the weights of {name}, and found none; put tokenizer.json and "
            "tokenizer_config.json of the model that it was trained from there, or save it with its tokenizer."
        )
    return model.eval().requires_grad_(False), tokenizer


def _folder(name: str, source: Source, wanted: Wanted) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    where: dict[str, Any] = {
        "local_files_only": wanted.local_only,
        "revision": wanted.revision or source.revision or "main",
        "trust_remote_code": False,  # else transformers asks at the prompt whether to run a stranger's code
    }
    config = AutoConfig.from_pretrained(source.place, **where)
    tokenizer = AutoTokenizer.from_pretrained(source.place, **where)
    return _model(name, source.place, config, wanted, **where), tokenizer


def _gguf(name: str, source: Source, wanted: Wanted) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    parts = parts_of(read_gguf(Path(source.place, str(source.gguf_file))))
    gguf = parts[0]
    with tempfile.TemporaryDirectory(prefix="course-gguf-", ignore_cleanup_errors=True) as folder, reading():
        if len(parts) > 1 or source.gguf_adapters:
            config = AutoConfig.from_pretrained(gguf.path.parent, gguf_file=gguf.path.name, local_files_only=True)
            fitting_dtype(config, wanted.device, wanted.dtype, source.place)  # before a large file is written
            gguf = read_gguf(join(parts, map(read_gguf, source.gguf_adapters), Path(folder)))
        place, where = str(gguf.path.parent), {"gguf_file": gguf.path.name, "local_files_only": True}
        config = _as_stated(AutoConfig.from_pretrained(place, **where), gguf)
        tokenizer = AutoTokenizer.from_pretrained(place, **where)
        model = _model(name, place, config, wanted, **where)
        check_gguf(name, model, gguf)
        rescale_rotary(model, gguf)
    return model, tokenizer


def _model(name: str, place: str, config: Any, wanted: Wanted, **where: Any) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = fitting_dtype(config, wanted.device, wanted.dtype, place)
    for each in (config, config.get_text_config()):
        each.return_dict = True  # else a model's parts do not find each other's outputs by name
    model, info = AutoModelForCausalLM.from_pretrained(
        place,
        config=config,
        dtype=dtype,
        device_map=wanted.device,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, with their names
        **where,
    )
    check_loaded(name, model, info)
    return model


def _as_stated(config: Any, gguf: Gguf) -> Any:
    """The configuration with what a GGUF file states and transformers passes over: it would take its own defaults."""
    for key, names in _STATED.items():
        value = gguf.of_the_architecture(key)
        name = next((name for name in names if hasattr(config, name)), None)
        if value is not None and name is not None:
            setattr(config, name, value)
    rotary, rope = gguf.of_the_architecture("rope.dimension_count"), getattr(config, "rope_parameters", None)
    if rotary and rope and "partial_rotary_factor" in rope:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.rope_parameters = {**rope, "partial_rotary_factor": rotary / size}
    if hasattr(config, "query_pre_attn_scalar"):  # Gemma's, which no key states; llama.cpp goes by the layers, too
        wide = config.num_hidden_layers == _WIDE_GEMMA.get(str(gguf.told.get("general.architecture")))
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if wide else config.head_dim
    return _scaled(config, gguf)


def _scaled(config: Any, gguf: Gguf) -> Any:
    """The configuration with the scaling of rotary positions that a GGUF file states and transformers passes over."""
    kind, factor = (gguf.of_the_architecture(f"rope.scaling.{key}") for key in ("type", "factor"))
    every = getattr(config, "rope_parameters", None) or {}
    own = every.get("full_attention", every)  # Gemma's layers with a window are not scaled
    if kind in (None, "none") or own.get("rope_type", "default") != "default":
        return config
    if kind not in ("linear", "yarn") or not factor:
        raise CourseError(
            f'Expected rotary positions scaled by "linear" or "yarn" in {gguf.path}, got {kind!r}, which is not '
            "rebuilt here; give the model as safetensors, from its hub id or folder."
        )
    scaling = {**own, "rope_type": kind, "factor": float(factor)}
    if original := gguf.of_the_architecture("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    config.rope_parameters = {**every, "full_attention": scaling} if own is not every else scaling
    return config


def _tokenizer_of(adapter: Path, base: Any) -> Any:
    """The tokenizer that an adapter brings along, or else the base model's, with the adapter's chat template if any."""
    from transformers import AutoTokenizer

    if any((adapter / file).is_file() for file in _TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    if (adapter / _TEMPLATE).is_file():
        base.chat_template = (adapter / _TEMPLATE).read_text(encoding="utf-8")
    return base
