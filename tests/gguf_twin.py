"""A small Llama written as GGUF, as llama.cpp's converter does, beside the same model in a folder."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from transformers import LlamaConfig, LlamaForCausalLM

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(b) for b in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
TOKENS = ["<s>", "</s>", *LETTERS, "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def model(rope=None, layers=2, tied=False, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=len(TOKENS), num_hidden_layers=layers, max_position_embeddings=4096, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": 10000.0} | (rope or {}),
        **sizes | changes,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in made.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return made


def llama3_factors(scaling, head_dim=16, theta=10000.0):
    """llama.cpp's own `rope_freqs`, convert_hf_to_gguf.py."""
    low, high = (scaling["original_max_position_embeddings"] / scaling[f"{end}_freq_factor"] for end in ("low", "high"))
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        length = 2 * math.pi / frequency
        if length < high:
            factors.append(1.0)
        elif length > low:
            factors.append(scaling["factor"])
        else:
            smooth = (scaling["original_max_position_embeddings"] / length - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


@cache
def _names(architecture, layers):
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(kind, layers)


def renamed(key, architecture="llama", layers=2):
    stem, _, end = key.rpartition(".")
    return f"{_names(architecture, layers).get_name(stem)}.{end}"


def permuted(key, weight, heads, kv_heads):
    n = heads if "q_proj" in key else kv_heads
    if "q_proj" not in key and "k_proj" not in key:
        return weight
    return weight.reshape(n, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(made, architecture="llama"):
    tied = made.config.tie_word_embeddings
    heads = (made.config.num_attention_heads, made.config.num_key_value_heads)
    weights = {k: v.numpy() for k, v in made.state_dict().items() if not (tied and k == "lm_head.weight")}
    if architecture == "llama":
        weights = {k: permuted(k, v, *heads) for k, v in weights.items()}
    if architecture.startswith("gemma"):
        weights = {k: v + 1 if "norm" in k else v for k, v in weights.items()}
    layers = made.config.num_hidden_layers
    return {renamed(k, architecture, layers): np.ascontiguousarray(v) for k, v in weights.items()}


def write(made, path, *, more=None, without=(), told=None, split=0, architecture="llama"):
    """Write a model as one GGUF file, or as several of at most `split` tensors; tensors and keys may be added."""
    config = made.config
    parts = {"split_max_tensors": split} if split else {}
    writer = GGUFWriter(path, architecture, **parts)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(10000.0)
    if f"{architecture}.rope.dimension_count" not in (told or {}):
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)
    for key, value in (told or {}).items():
        add = (
            writer.add_string
            if isinstance(value, str)
            else writer.add_float32
            if isinstance(value, float)
            else writer.add_uint32
        )
        add(key, value)
    for name, weight in (
        {k: v for k, v in tensors_of(made, architecture).items() if k not in without} | (more or {})
    ).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_lora(factors, path, *, alpha=16.0, architecture="llama", kind="lora"):
    """Write a LoRA adapter, `{weight: (a, b)}`, as llama.cpp's convert_lora_to_gguf does."""
    writer = GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)
