"""A tiny random model of each architecture in transformers' causal mapping, and of some that a setting changes.

Weights are fixed by a seed and large enough for every part to matter: no norm weight is one and no bias is zero, so a
dropped bias, a norm of weight + 1 or a forgotten multiplier shows in the output.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from course_utils.checks.tiny import WORDS
from course_utils.models import LocalModel

VOCABULARY = 200
MOST_PARAMETERS = 7_000_000
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

# What a configuration is given under each of these names, where it has that name; a window ends inside a long prompt.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_layers", "encoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dim_ff"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"), 128),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 16
    ),
    **dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "global_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "mamba_d_state", "state_size", "ssm_state_size", "linear_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads", "rotary_dim", "index_topk"), 4),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("sliding_window", "attention_window", "attention_chunk_size"), 16),
    **dict.fromkeys(("linear_num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("swa_num_key_value_heads", "n_layers_per_attn_res_block"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "swa_head_dim"), 8),
    "rel_extent": 32,
    "mamba_d_ssm": 64,
    "vocab_size_per_layer_input": VOCABULARY,
    "image_size": 32,
    "patch_size": 16,
}
_WHOLE_HEADS = {"num_key_value_heads": 4}
_PAIRS = ["sliding_attention", "full_attention"] * 2
_WITHOUT_EXTRAS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}

# What else a type needs to be built small, or to be a causal language model.
NEEDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"),
        _WHOLE_HEADS,
    ),
    **dict.fromkeys(("minicpm3", "youtu", "kimi_linear"), _WHOLE_HEADS),
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        **{part: {"hidden_size_global": 32} for part in ("encoder_config", "decoder_config")},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cpmant": {"dim_ff": 64, "dim_head": 8, "prompt_length": 4, "segment_types": 4, "prompt_types": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": {
        **_WHOLE_HEADS,
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim")},
        **{f"swa_{name}": 8 for name in ("qk_nope_head_dim", "v_head_dim")},
        "head_dim": 16,
    },
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _PAIRS, "laurel_rank": 8},
    "gemma4_assistant": {"text_config": {**_WITHOUT_EXTRAS, "num_kv_shared_layers": 4}},
    "gemma4_text": {"layer_types": _PAIRS, "num_kv_shared_layers": 0, "global_head_dim": 16},
    "gemma4_unified_text": {"layer_types": _PAIRS, "num_kv_shared_layers": 0, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_WHOLE_HEADS, "layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "qwen4_exp_text": {
        **{f"indexer_{name}": value for name, value in {"n_heads": 2, "kv_heads": 1, "head_dim": 8}.items()},
        **{"indexer_budget": 4, "indexer_compress_ratio": 2, "hc_lowrank": 8, "output_gate_type": "sigmoid"},
    },
    "reformer": {
        **{"is_decoder": True, "attention_head_size": 8, "feed_forward_size": 64, "num_buckets": 2, "hash_seed": 0},
        **{"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"] * 2},
        **{"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    },
    "roc_bert": {
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 4, "adapter_rank": 8},
    "zaya": {"num_experts_per_tok": 1},
}

# Settings that change what is right: windows and positions past their ends, multipliers, caps, encoders and decoders.
_SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert@decoder": ("bert", {"is_decoder": True}),
    "roberta@decoder": ("roberta", {"is_decoder": True}),
    "gpt_neo@window 4": ("gpt_neo", {"window_size": 4}),
    "mistral@window 4": ("mistral", {"sliding_window": 4}),
    "gemma2@window 4": ("gemma2", {"sliding_window": 4}),
    "gemma2@caps": (
        "gemma2",
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3_text@window 4": ("gemma3_text", {"sliding_window": 4, "layer_types": _PAIRS}),
    "gemma4_text@plain": ("gemma4_text", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    "gemma4_text@shared keys": ("gemma4_text", {"num_kv_shared_layers": 2}),
    "granite@multipliers": (
        "granite",
        {
            **{"logits_scaling": 8.0, "residual_multiplier": 0.4},
            **{"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
        },
    ),
    "cohere@logit scale": ("cohere", {"logit_scale": 0.25}),
    "llama@biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama@dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", **_SCALED}, "max_position_embeddings": 8},
    ),
    "llama@longrope": (
        "llama",
        {
            "rope_parameters": {
                **{"rope_type": "longrope", **_SCALED},
                **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]},
            }
        },
    ),
    "llama@tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2@window 4": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "opt@post norm": ("opt", {"do_layer_norm_before": False}),
    "opt@projected": ("opt", {"word_embed_proj_dim": 16}),
    "falcon@alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": True}),
    "gpt2@scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    "stablelm@parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True, "qk_layernorm": True}),
    "phi@qk norm": ("phi", {"qk_layernorm": True}),
    "mpt@no alibi": ("mpt", {"attn_config": {"alibi": False}}),
    "llama4_text@chunks of 4": ("llama4_text", {"attention_chunk_size": 4}),
}


class NotBuildable(Exception):
    """A type that no small causal language model can be made of here; the text says why."""


def names() -> list[str]:
    """All that can be asked of `build`: model types, and variants as "type@what is different"."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def build(name: str, *, attention: str | None = None) -> LocalModel:
    """A tiny model of an architecture, or of a variant, with the same weights each time.

    Args:
        name: one of `names()`.
        attention: the implementation of attention, such as "eager"; by default what the model takes.

    Raises:
        NotBuildable: with the reason.
    """
    model_type, changes = VARIANTS.get(name, (name, {}))
    try:
        config = shrunk(transformers.CONFIG_MAPPING[model_type], changes)
        given = {} if attention is None else {"attn_implementation": attention}
        with torch.device("meta"):
            size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            raise NotBuildable(f"{size / 1e6:,.0f} million parameters remain")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, **given).eval().requires_grad_(False)
    except NotBuildable:
        raise
    except Exception as error:  # each architecture has its own ways to refuse
        lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        raise NotBuildable(" ".join(lines[:2])) from error
    fill(model)
    if model_type == "xmod":
        model.set_default_language("en_XX")
    return LocalModel(name, model, tokenizer())


def shrunk(config_class: Any, changes: dict[str, Any]) -> Any:
    """A configuration with each of its sizes made small, those of its parts too."""
    usual = config_class()
    known = {*usual.to_dict(), *getattr(config_class, "attribute_map", {})}
    changes = {**NEEDS.get(config_class.model_type, {}), **changes}
    parts = {name: part for name in config_class.sub_configs if hasattr(part := getattr(usual, name, None), "to_dict")}
    nested = {name: shrunk(type(part), changes.get(name, {})) for name, part in parts.items()}
    own = {name: value for name, value in changes.items() if name not in parts}
    return config_class(**{**{name: value for name, value in SMALL.items() if name in known}, **own, **nested})


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Random weights of one seed; what is one-dimensional is moved away from zero and one, biases too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(0.3 * noise)
        else:
            parameter.add_(0.1 * noise if parameter.abs().max() == 0 else 0.2 * noise)


@cache
def tokenizer() -> Any:
    """Whole words, with offsets, behind a beginning-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
