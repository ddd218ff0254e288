"""Whether a model has the weights of its checkpoint, all of them and no others; adapters added into them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CourseError, first_line
from .gguf_files import ROPE_FREQS, Gguf
from .sources import ADAPTER_CONFIG

_PLAIN = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "target_modules"}
_OTHER_TOWERS = re.compile(r"(^|\.)(visual|vision|audio|speech|image|multi_modal|mm_|embed_vision|embed_audio|mtp)")
_MASKS = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$")  # made anew by today's classes
_BEYOND_TEXT = re.compile(r"\.nextn\.|^(v|a|mm)\.")


def check_loaded(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise if weights are missing, left over or of another shape: transformers fills their places at random.

    It says so in `info` (its `output_loading_info`), without the keys that the model's class knows to be idle.
    """
    unexpected = [key for key in info["unexpected_keys"] if not (_OTHER_TOWERS.search(key) or _MASKS.search(key))]
    shapes = [f"{key} {list(stored)} for {list(made)}" for key, stored, made in sorted(info["mismatched_keys"])]
    faults = [
        f"{said} ({_some(keys)})"
        for said, keys in (
            ("lacks weights", info["missing_keys"]),
            ("holds weights that have no place there", unexpected),
            ("has weights of another shape", shapes),
            ("has weights that cannot be read", info["error_msgs"]),
        )
        if keys
    ]
    if faults:
        raise CourseError(
            f"Expected {name} to hold the weights of a whole {type(model).__name__}, and it {' and '.join(faults)}; "
            "fetch it again, or see that its config belongs to its weights."
        )


def check_gguf(name: str, model: Any, gguf: Gguf) -> None:
    """Raise if a GGUF file holds tensors that transformers has dropped without a word."""
    layers = model.config.get_text_config().num_hidden_layers
    stored = {
        key: tensor
        for key, tensor in gguf.tensors.items()
        if key != ROPE_FREQS and not _BEYOND_TEXT.search(key) and _block(key) < layers
    }
    head, embedding = stored.get("output.weight"), stored.get("token_embd.weight")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and head and embedding and head.kind == embedding.kind and (head.data == embedding.data).all():
        stored.pop("output.weight")  # a copy
    size = sum(tensor.data.size and torch.Size(tensor.shape).numel() for tensor in stored.values())
    known = {id(weight): weight.numel() for weight in model.state_dict(keep_vars=True).values()}
    if size != sum(known.values()):
        raise CourseError(
            f"Expected transformers to take every tensor of {name}, and of {size:,} numbers the model has "
            f"{sum(known.values()):,} (perhaps without {_some(_unplaced(model, gguf, stored))}); "
            "give the model as safetensors, from its hub id or folder."
        )


def _block(key: str) -> int:
    found = re.match(r"blk\.(\d+)\.", key)
    return int(found[1]) if found else -1


def _unplaced(model: Any, gguf: Gguf, stored: Iterable[str]) -> list[str]:
    """Which names of a GGUF file stand for no weight of the model, as far as the `gguf` package knows."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    named = gguf.told.get("general.architecture")
    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == named), None)
    if kind is None:
        return list(stored)
    names = get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    split = (key.rpartition(".") for key in model.state_dict())
    taken = {f"{names.get_name(stem)}.{end}" for stem, _, end in split}
    return [key for key in stored if key not in taken] or list(stored)


def rescale_rotary(model: Any, gguf: Gguf) -> None:
    """Divide the rotary frequencies by `rope_freqs.weight`, as llama.cpp does: the scaling of Llama 3.1 and later."""
    if ROPE_FREQS not in gguf.tensors:
        return
    factors = torch.from_numpy(gguf.tensors[ROPE_FREQS].numbers().copy())  # [head size / 2]
    found = [module for module in model.modules() if getattr(module, "inv_freq", None) is not None]
    if not found or any(module.inv_freq.shape != factors.shape for module in found):
        raise CourseError(
            f"Expected rotary frequencies that {ROPE_FREQS} of {gguf.path} scales, and {type(model).__name__} has none "
            "of that shape; give the model as safetensors, from its hub id or folder."
        )
    for module in found:
        for name in ("inv_freq", "original_inv_freq"):
            if (frequencies := getattr(module, name, None)) is not None:
                frequencies.div_(factors.to(frequencies))


def merged(model: Any, adapter: str) -> Any:
    """The model with an adapter added into its weights: W + scale x B A for LoRA (Hu 2021).

    Weights that the adapter leaves alone stay mapped from the base model's file, and all models here share them.
    """
    folder = Path(adapter)
    told = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if told.get("layer_replication"):
        raise CourseError(
            f"Expected an adapter of the layers that the model has, got {folder}, which runs some of them twice "
            "(layer_replication); merge it with peft, and give the folder of the whole model."
        )
    if set(told) == _PLAIN and told["peft_type"] == "LORA" and _of_linear(model, told["target_modules"]):
        return _with_products(model, folder / "adapter_model.safetensors", told)  # ours: peft takes a second to import
    return _by_peft(model, folder)


def _of_linear(model: Any, targets: Any) -> bool:
    """Whether an adapter's targets are the last names of layers' modules that keep their weights as `[out, in]`."""
    if not isinstance(targets, list) or any("." in str(target) for target in targets):
        return False
    named = [module for name, module in model.named_modules() if name.rpartition(".")[2] in targets]
    return all(isinstance(module, torch.nn.Linear) for module in named) and model.get_output_embeddings() not in named


def _untie(model: Any, stored: Iterable[str]) -> None:
    """Give the unembedding a weight of its own if an adapter changes it or the embedding: not both, then."""
    both = (model.get_output_embeddings(), model.get_input_embeddings())
    names = [name for name, module in model.named_modules() if module in both]
    if both[0].weight is both[1].weight and any(f".{name}.lora_" in key for key in stored for name in names):
        both[0].weight = torch.nn.Parameter(both[0].weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _by_peft(model: Any, folder: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    stored = load_peft_weights(str(folder), device="cpu")
    rows = [len(weight) for key, weight in stored.items() if re.search(r"(embed_tokens|wte|lm_head)\.weight$", key)]
    if rows and max(rows) > len(model.get_input_embeddings().weight):  # trained with tokens of its own
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    _untie(model, stored)
    adapted = PeftModel.from_pretrained(model, str(folder))
    kind = adapted.peft_config["default"].peft_type.value
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise CourseError(
            f"Expected an adapter that can be added into a model's weights, such as LoRA, got {folder} of the kind "
            f"{kind}, which adds tokens or layers instead; give a model without it."
        )
    taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)  # else it asks the network for the base
    there = {key.replace(".default.", "."): weight for key, weight in adapted.state_dict().items()} | taken
    wrong = taken.keys() - stored.keys()
    wrong |= {k for k, v in stored.items() if k not in there or not torch.equal(there[k].cpu().float(), v.float())}
    if wrong:
        raise _other_model(folder, wrong)
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:  # it acts from some token on, or gives numbers that are none
        raise CourseError(
            f"Expected an adapter that can be added into a model's weights, got {folder}, which cannot be "
            f"({first_line(error)}); give a model without it."
        ) from error


@torch.no_grad()
def _with_products(model: Any, weights: Path, told: Mapping[str, Any]) -> Any:
    from safetensors.torch import load_file

    parts = load_file(weights, device=str(model.device))
    changed = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in told["target_modules"]]
    keys = {f"base_model.model.{name}.lora_{factor}.weight" for name in changed for factor in "AB"}
    if wrong := parts.keys() ^ keys:
        raise _other_model(weights.parent, wrong)
    for name in changed:
        a, b = (parts[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")  # [rank, in], [out, rank]
        if len(a) != told["r"]:
            raise ValueError(f"expected an adapter of rank {told['r']}, got one of {len(a)}")
        weight = model.get_submodule(name).weight
        scale = told["lora_alpha"] / told["r"]
        weight.data = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight)
    return model


def _other_model(folder: Path, keys: Iterable[str]) -> CourseError:
    return CourseError(
        f"Expected the adapter {folder} to hold what its {ADAPTER_CONFIG} says, for this model, and it differs in "
        f"{_some(keys)}; export it again, or give the model that it was trained on."
    )


def _some(names: Iterable[str]) -> str:
    """The first of some names, in their order, and how many more there are."""
    names = sorted(first_line(ValueError(name)) for name in names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
