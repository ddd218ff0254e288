"""What `load_model` gives is the checkpoint, whole: equal in its logits to the sound one, or a sentence."""

import json
import os
import platform
import random
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load as unpacked
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils import CourseError, load_model
from course_utils.loading import devices, load
from course_utils.loading.sources import find
from tests import gguf_twin as twin
from tests.architectures import zoo
from tests.conftest import built, tiny_model, word_tokenizer
from tests.shared import told

pytestmark = pytest.mark.quick
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def ids_of(length, seed=0, vocabulary=97):
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    """A small model in a folder."""
    made = tiny_model("llama").model.float()
    made.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights_of(folder, change):
    path = folder / "model.safetensors"
    save_file(change(unpacked(path.read_bytes())), path, metadata={"format": "pt"})


def config_of(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --------------------------------------------------------------------------------------------------- weights of folders


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_that_is_missing_is_told_by_its_name(tmp_path, tied):
    made = twin.model(tied=tied)
    made.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    whole = unpacked((tmp_path / "model.safetensors").read_bytes())  # no map of what is written over
    for name in whole:
        save_file({k: v for k, v in whole.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
        with told("lacks weights", name, "fetch it again"):
            load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 4}, "lacks weights (model.layers.3."),
        ({"num_hidden_layers": 2}, "no place there (model.layers.2."),
        ({"attention_bias": True}, "lacks weights (model.layers.0.self_attn.k_proj.bias"),
        ({"intermediate_size": 41}, "another shape (model.layers.0.mlp.down_proj.weight [24, 40] for [24, 41]"),
        ({"vocab_size": 96}, "another shape"),
        ({"num_hidden_layers": 3_333_333}, "3,333,333"),
        ({"num_attention_heads": 8}, "another shape"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_hidden_layers": 1}, "no place there"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "lacks weights"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "lacks weights"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_belong_to_the_weights_is_told(folder, change, said):
    config_of(folder, **change)
    with told(said, str(folder)):
        load_model(folder)


def test_the_trunk_alone_and_a_classifier_are_told(folder, tmp_path):
    from transformers import LlamaForSequenceClassification

    lm = load_model(folder)
    for name, made in (("trunk", lm.model.model), ("judge", LlamaForSequenceClassification(lm.model.config))):
        made.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
        with told("lacks weights (lm_head.weight)"):
            load_model(tmp_path / name)


def test_what_sound_checkpoints_hold_besides_is_let_through(folder):
    ids = ids_of(9)
    right = logits(load_model(folder).model, ids)
    weights_of(folder, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
                                  "visual.blocks.0.weight": torch.ones(3), "mtp.layers.0.weight": torch.ones(3)})  # fmt: skip
    assert torch.equal(logits(load_model(folder).model, ids), right)
    weights_of(folder, lambda w: {**w, "model.layers.0.self_attn.q_norm.weight": torch.ones(6)})
    with told("no place there (model.layers.0.self_attn.q_norm.weight)"):
        load_model(folder)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma3_text", "falcon", "bloom", "opt"])
def test_sound_checkpoints_of_other_architectures_load(architecture, tmp_path):
    sizes = {"opt": {"ffn_dim": 16, "word_embed_proj_dim": 16}, "gemma3_text": {"num_key_value_heads": 1}}
    lm = built(architecture, **sizes.get(architecture, {}))
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    ids = ids_of(7)
    torch.testing.assert_close(logits(load_model(tmp_path).model, ids), logits(lm.model, ids))


def test_shards_and_their_index(folder, tmp_path):
    ids, lm = ids_of(9), load_model(folder)
    right = logits(lm.model, ids)
    sharded = tmp_path / "sharded"
    lm.model.save_pretrained(sharded, max_shard_size="20KB")
    lm.tokenizer.save_pretrained(sharded)
    shards, index = sorted(sharded.glob("model-*")), sharded / "model.safetensors.index.json"
    assert len(shards) > 1
    assert torch.equal(logits(load_model(sharded).model, ids), right)
    whole = json.loads(index.read_text())
    fewer = {**whole, "weight_map": {k: v for k, v in whole["weight_map"].items() if "layers.1" not in k}}
    nowhere = {**whole, "weight_map": {**whole["weight_map"], "lm_head.weight": "model-00099-of-00099.safetensors"}}
    for text in (json.dumps(nowhere), "{}", "{", "[]"):
        index.write_text(text)
        with told(str(sharded)):
            load_model(sharded)
    index.write_text(json.dumps(fewer))
    loaded, said = loaded_or_told(sharded)  # the shards may hold what the index does not name
    assert torch.equal(logits(loaded.model, ids), right) if loaded else "lacks weights" in said
    index.write_text(json.dumps(whole))
    shards[0].unlink()
    with told(str(sharded)):
        load_model(sharded)


def test_the_package_that_a_quantised_folder_needs_is_named(folder):
    config_of(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with told("bitsandbytes", "install it"):
        load_model(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "hqq", "abacus", None])
def test_a_quantised_folder_without_its_package_is_told(folder, method):
    config_of(folder, quantization_config={"quant_method": method, "load_in_4bit": True, "bits": 4, "group_size": 8})
    with told(str(folder)):
        load_model(folder)


# --------------------------------------------------------------------------------------------------- damaged folders

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
DAMAGE = {
    "delete": lambda path, chance: path.unlink(),
    "empty": lambda path, chance: path.write_bytes(b""),
    "truncate": lambda path, chance: path.write_bytes(path.read_bytes()[: chance.randrange(1, path.stat().st_size)]),
    "point": lambda path, chance: path.write_bytes(POINTER),
    "zeros": lambda path, chance: path.write_bytes(bytes(100)),
    "a folder": lambda path, chance: (path.unlink(), path.mkdir()),
    "a dead link": lambda path, chance: (path.unlink(), path.symlink_to("nowhere")),
}


def loaded_or_told(folder):
    """The model, or the sentence that says why not."""
    try:
        return load_model(folder), ""
    except CourseError as error:
        said = str(error)
    assert "\n" not in said
    assert said.endswith(".")
    return None, said


def same_or_told(folder, ids, right):
    """The sound model or a sentence; returns which."""
    loaded, _ = loaded_or_told(folder)
    if not loaded:
        return "told"
    torch.testing.assert_close(logits(loaded.model, ids), right)
    try:
        loaded.prompt("w3 w4")
    except CourseError:
        assert transformers.__version__.startswith("5.4.")  # which makes another tokenizer of the same words
        return "told"
    return "same"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_gives_the_sound_model_or_a_sentence(folder, tmp_path, damage):
    ids, chance = ids_of(9), random.Random(0)
    right = logits(load_model(folder).model, ids)
    seen = {}
    for name in sorted(path.name for path in folder.iterdir()):
        spoilt = tmp_path / f"{name}-spoilt"
        shutil.copytree(folder, spoilt)
        DAMAGE[damage](spoilt / name, chance)
        seen[name] = same_or_told(spoilt, ids, right)
    assert {seen[name] for name in ("model.safetensors", "config.json", "tokenizer.json")} == {"told"}
    if damage == "point":
        assert "same" not in seen.values()


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_in_json_give_a_model_of_these_weights_or_a_sentence(folder, tmp_path, seed):
    chance, names = random.Random(seed), sorted(path.name for path in folder.glob("*.json"))
    for number in range(12):
        spoilt = tmp_path / str(number)
        shutil.copytree(folder, spoilt)
        path = spoilt / chance.choice(names)
        content = bytearray(path.read_bytes())
        for _ in range(chance.choice([1, 3])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(bytes(content))
        loaded, _ = loaded_or_told(spoilt)
        if loaded:  # never at random
            weights = unpacked((spoilt / "model.safetensors").read_bytes())
            assert all(torch.equal(v.float(), weights[k].float()) for k, v in loaded.model.state_dict().items())


def test_a_pointer_says_how_to_get_the_file(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(POINTER)
    with told("model.safetensors", "git lfs pull"):
        load_model(folder)
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with told("model.gguf", "git lfs pull"):
        load_model(tmp_path / "model.gguf")


def test_a_tokenizer_that_fails_at_a_text_is_told(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "w0"', '"unk_token": "gone"'))
    with told("tokenizer", "UNK"):
        load_model(folder).prompt("unheard-of")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma2", "gpt_neox", "opt", "mistral"])
def test_a_folder_without_any_tokenizer_is_told(tmp_path, kind):
    """A checkpoint as training leaves it: for many architectures transformers makes up a tokenizer that knows no word."""
    zoo.build(kind).model.save_pretrained(tmp_path)
    with told(str(tmp_path), "tokenizer"):
        load_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "."])
def test_no_permission_is_told(folder, name):
    (folder / name).chmod(0)
    try:
        with told(str(folder)):
            load_model(folder)
    finally:
        (folder / name).chmod(0o700)


# ------------------------------------------------------------------------------------------------------------------ GGUF


@pytest.fixture
def pair(tmp_path):
    """A model, and its GGUF file."""
    made = twin.model()
    return made, twin.write(made, tmp_path / "model.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path, tied):
    made = twin.model(tied=tied)
    path = twin.write(made, tmp_path / "model.gguf")
    torch.testing.assert_close(
        logits(load_model(path).model, ids_of(40)), logits(made, ids_of(40)), atol=1e-4, rtol=1e-4
    )


def test_rope_freqs_give_llama_3s_positions_near_and_far(tmp_path):
    made = twin.model(LLAMA3)
    freqs = twin.llama3_factors(LLAMA3)
    assert freqs.min() == 1
    assert freqs.max() == 32
    path = twin.write(made, tmp_path / "model.gguf", more={"rope_freqs.weight": freqs})
    loaded = load_model(path).model
    unscaled = twin.model()
    for length in (8, 60, 500, 1500):
        ids = ids_of(length, vocabulary=len(twin.TOKENS))
        right = logits(made, ids)
        torch.testing.assert_close(logits(loaded, ids), right, atol=2e-3, rtol=1e-3)
        agree = (logits(unscaled, ids).argmax(-1) == right.argmax(-1)).float().mean()
        assert length < 60 or agree < 0.95  # without them it is another model


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
        ),
    ],
    ids=["linear", "yarn"],
)
def test_other_scalings_that_the_file_states_are_rebuilt(tmp_path, rope, keys):
    made = twin.model(rope)
    path = twin.write(made, tmp_path / "m.gguf", told={f"llama.rope.scaling.{k}": v for k, v in keys.items()})
    loaded = load_model(path).model
    for length in (8, 500):
        torch.testing.assert_close(logits(loaded, ids_of(length)), logits(made, ids_of(length)), atol=2e-3, rtol=1e-3)


# Gemma: layers with a window and without have their own rotary positions, and no key says how attention is scaled
GEMMA = {"attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 7}
GEMMA2 = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA_PLAIN = {
    kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
}
GEMMA_LINEAR = GEMMA_PLAIN | {"full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}}


@pytest.mark.parametrize(
    ("kind", "architecture", "sizes", "keys"),
    [
        ("qwen3", "qwen3", {"head_dim": 32}, {"attention.key_length": 32, "attention.value_length": 32}),
        ("qwen2", "qwen2", {"rms_norm_eps": 1e-2}, {}),
        ("stablelm", "stablelm", {"layer_norm_eps": 1e-2, "partial_rotary_factor": 0.5},
         {"rope.dimension_count": 8, "attention.layer_norm_epsilon": 1e-2}),
        ("starcoder2", "starcoder2", {"norm_epsilon": 1e-2, "sliding_window": 7}, {"attention.layer_norm_epsilon": 1e-2, "attention.sliding_window": 7}),
        ("gemma3_text", "gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 7, "num_hidden_layers": 6, "rope_parameters": GEMMA_LINEAR},
         GEMMA | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
        ("gemma3_text", "gemma3", {"head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 7, "num_hidden_layers": 62, "rope_parameters": GEMMA_PLAIN}, GEMMA),
        ("gemma2", "gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 7}, GEMMA | GEMMA2),
        ("gemma2", "gemma2", {"head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 7, "num_hidden_layers": 46}, GEMMA | GEMMA2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_file_states_otherwise_than_the_architectures_default_is_followed(
    tmp_path, kind, architecture, sizes, keys
):
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "vocab_size": len(twin.TOKENS), "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **({"partial_rotary_factor": sizes["partial_rotary_factor"]} if "partial_rotary_factor" in sizes else {})}}  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small | sizes)).eval().requires_grad_(False)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    stated = {f"{architecture}.{key}": value for key, value in keys.items()}
    path = twin.write(made, tmp_path / "m.gguf", architecture=architecture, told=stated)
    torch.testing.assert_close(
        logits(load_model(path).model, ids_of(40)), logits(made, ids_of(40)), atol=2e-3, rtol=1e-3
    )


def test_a_scaling_that_cannot_be_rebuilt_is_told(tmp_path):
    with told("longrope", "safetensors"):
        load_model(twin.write(twin.model(), tmp_path / "m.gguf", told={"llama.rope.scaling.type": "longrope"}))
    freqs = {"rope_freqs.weight": np.ones(5, np.float32)}
    with told("rope_freqs.weight", "shape"):
        load_model(twin.write(twin.model(), tmp_path / "n.gguf", more=freqs))


def test_a_gguf_file_is_walked_through_once_and_the_reader_is_gguf_s_own_again(pair, monkeypatch):
    """A large vocabulary takes seconds each time."""
    walked, own = [], gguf.GGUFReader
    counted = lambda path: (walked.append(path), own(path))[1]  # noqa: E731
    monkeypatch.setattr(gguf, "GGUFReader", counted)
    load_model(pair[1])
    assert len(walked) == 1
    assert gguf.GGUFReader is counted


def test_a_gguf_file_that_lacks_a_tensor_or_holds_another_is_told(tmp_path):
    made = twin.model()
    for name in ("blk.1.attn_k.weight", "output_norm.weight", "token_embd.weight"):
        with told("lacks weights"):
            load_model(twin.write(made, tmp_path / f"{name}.gguf", without=[name]))
    for name, tensor in (
        ("blk.0.attn_q.bias", np.ones(64, np.float32)),
        ("rope_factors_long.weight", np.ones(8, np.float32)),
        ("blk.1.attn_sinks.weight", np.ones(4, np.float32)),
    ):
        with told("every tensor", name):
            load_model(twin.write(made, tmp_path / f"more-{name}.gguf", more={name: tensor}))


@pytest.mark.parametrize("share", [0.001, 0.2, 0.6, 0.99])
def test_a_cut_gguf_file_is_told(pair, share):
    _, path = pair
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with told("model.gguf", "whole"):
        load_model(path)


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bytes_in_a_gguf_header_raise_no_other_error(pair, tmp_path, seed):
    _, path = pair
    content, chance = path.read_bytes(), random.Random(seed)
    for number in range(8):
        spoilt = bytearray(content)
        spoilt[chance.randrange(4, 1500)] = chance.randrange(256)
        other = tmp_path / f"{number}.gguf"
        other.write_bytes(bytes(spoilt))
        loaded_or_told(other)


def test_a_split_gguf_model_is_joined_from_any_part_and_from_its_folder(tmp_path):
    made = twin.model()
    twin.write(made, tmp_path / "big.gguf", split=8)
    parts = sorted(tmp_path.glob("big-*-of-*.gguf"))
    assert len(parts) >= 3
    ids, before = ids_of(20), set(tmp_path.iterdir())
    for place in (parts[0], parts[-1], tmp_path):
        torch.testing.assert_close(logits(load_model(place).model, ids), logits(made, ids), atol=1e-4, rtol=1e-4)
    assert set(tmp_path.iterdir()) == before
    parts[1].unlink()
    for place in (parts[0], parts[2], tmp_path):
        with told(parts[1].name, "missing"):
            load_model(place)


def test_a_part_of_another_model_is_told(tmp_path):
    for name, layers in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        twin.write(twin.model(layers=layers), tmp_path / name / "m.gguf", split=14)
    shutil.copy(tmp_path / "a" / "m-00002-of-00002.gguf", tmp_path / "b" / "m-00002-of-00003.gguf")
    with told("parts"):
        load_model(tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------------- Ollama


def lora_for(made, alpha=16.0, rank=4, seed=1):
    """Factors for GGUF's names and layout, and the weights that they give."""
    draw, factors, changed = np.random.RandomState(seed), {}, {}
    heads = (made.config.num_attention_heads, made.config.num_key_value_heads)
    for key in (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ):
        out, into = made.state_dict()[key].shape
        a, b = (draw.normal(size=size).astype(np.float32) * 0.3 for size in ((rank, into), (out, rank)))
        changed[key] = torch.from_numpy(alpha / rank * (b @ a))
        factors[twin.renamed(key)] = (a, np.ascontiguousarray(twin.permuted(key, b, *heads)))
    return factors, changed


def modelfile(root, layers, name="mine"):
    """Lay a model down as `ollama create` does: `layers` is a list of (kind, content or path)."""
    told_of = []
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for i, (kind, content) in enumerate(layers):
        (root / "blobs" / f"sha256-{i:064}").write_bytes(
            content if isinstance(content, bytes) else content.read_bytes()
        )
        told_of.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{i:064}"})
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"layers": told_of}))
    return f"ollama:{name}"


@pytest.fixture
def ollama(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "ollama"


def test_ollamas_adapter_is_applied(ollama, pair, tmp_path):
    made, path = pair
    factors, changed = lora_for(made)
    lora = twin.write_lora(factors, tmp_path / "lora.gguf")
    loaded = load_model(modelfile(ollama, [("model", path), ("adapter", lora)]))
    plain = logits(made, ids_of(20))
    for key, change in changed.items():
        made.get_parameter(key).add_(change)
    right = logits(made, ids_of(20))
    torch.testing.assert_close(logits(loaded.model, ids_of(20)), right, atol=2e-3, rtol=1e-3)
    assert (right - plain).abs().max() > 0.5


def test_an_adapter_of_ollamas_that_does_not_fit_is_told(ollama, pair, tmp_path):
    made, path = pair
    factors, _ = lora_for(made)
    name, (a, b) = next(iter(factors.items()))
    wrong = {
        "architecture": twin.write_lora(factors, tmp_path / "1", architecture="qwen2"),
        "kind": twin.write_lora(factors, tmp_path / "2", kind="ia3"),
        "weight": twin.write_lora({"blk.9.attn_q.weight": (a, b)}, tmp_path / "3"),
        "shape": twin.write_lora({name: (a[:, :-2].copy(), b)}, tmp_path / "4"),
        "rank": twin.write_lora({name: (a[:2], b)}, tmp_path / "5"),
        "nothing": twin.write_lora({}, tmp_path / "6"),
        "no adapter": path,
    }
    for lora in wrong.values():
        with told("adapter"):
            load_model(modelfile(ollama, [("model", path), ("adapter", lora)]))


def test_ollamas_system_text_is_used_and_its_template_told(ollama, pair):
    layers = [("model", pair[1]), ("system", "Be brief, Füchse.".encode()), ("params", b'{"temperature": 2}')]
    lm = load_model(modelfile(ollama, layers))
    assert lm.chat("Hi").text == "<system>Be brief, Füchse.<user>Hi"
    assert lm.chat("Hi", system="No.").text == "<system>No.<user>Hi"
    assert lm.tokenizer.decode(lm.chat("Hi").input_ids[0, lm.chat("Hi").user]) == "Hi"
    with pytest.warns(UserWarning, match="template of mine cannot be applied"):
        load_model(modelfile(ollama, [*layers, ("template", b"{{ .Prompt }}")]))


@pytest.mark.parametrize(
    ("more", "told_of"),
    [
        ([("template", b"[INST] {{ .Prompt }}")], "template of mine"),
        ([("system", b"Be brief.")], "system text of mine"),
        ([("system", b"Be brief."), ("template", b"{{ .System }}")], "template and system text of mine"),
    ],
)
def test_a_model_of_ollamas_without_a_chat_template_of_its_own_is_told_to_read_plain_text(
    ollama, tmp_path, monkeypatch, more, told_of
):
    monkeypatch.setattr(twin.GGUFWriter, "add_chat_template", lambda writer, template: None)
    path = twin.write(twin.model(), tmp_path / "plain.gguf")
    with pytest.warns(UserWarning, match=rf"{told_of} cannot be applied here; .* reads plain text here, no chat"):
        lm = load_model(modelfile(ollama, [("model", path), *more]))
    assert not lm.is_chat


@pytest.mark.parametrize("asked", ["Mine", "library/mine", "registry.ollama.ai/library/mine:Latest"])
def test_an_ollama_name_may_be_given_as_ollama_takes_it(ollama, pair, asked):
    modelfile(ollama, [("model", pair[1])])
    assert find(f"ollama:{asked}").gguf_file == f"sha256-{0:064}"


def test_layers_of_ollamas_that_are_missing_or_too_many_are_told(ollama, pair):
    path = pair[1]
    name = modelfile(ollama, [("model", path), ("projector", b"pictures"), ("adapter", b"GGUF nothing")])
    with told("whole GGUF file"):
        load_model(name)
    with told("keeps 2", "mine"):
        load_model(modelfile(ollama, [("model", path), ("model", path)]))
    name = modelfile(ollama, [("model", path), ("adapter", b"x")])
    (ollama / "blobs" / f"sha256-{1:064}").unlink()
    with told("manifest", "mine"):
        load_model(name)
    assert find(modelfile(ollama, [("model", path), ("projector", b"pictures")])).gguf_adapters == ()
    with told("single tensors", "hub id"):
        load_model(modelfile(ollama, [("tensor", b"one"), ("tensor", b"two")]))


# --------------------------------------------------------------------------------------------------------------- adapters


def adapted(folder, where, config=None, **options):
    """Train nothing, but save a random adapter; returns its folder and the logits with it."""
    from peft import LoraConfig, get_peft_model

    lm = load_model(folder)
    torch.manual_seed(1)
    config = config or LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    peft = get_peft_model(lm.model, config)
    for name, weight in peft.named_parameters():
        if "lora_" in name or "ia3" in name:
            torch.nn.init.normal_(weight, mean=0.5 if "ia3" in name else 0.0, std=0.3)
    peft.save_pretrained(where)
    return where, logits(peft.eval(), ids_of(9))


def keep_plain(adapter):
    """Keep those of an adapter's settings that others' tools write, too."""
    plain = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "target_modules"}
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k in plain}))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"lora_alpha": 3}, {"rank_pattern": {"q_proj": 1}},
                                     {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [1]}], ids=str)  # fmt: skip
def test_adapters_of_lora_are_merged(folder, tmp_path, options):
    adapter, right = adapted(folder, tmp_path / "adapter", **options)
    torch.testing.assert_close(logits(load_model(adapter).model, ids_of(9)), right, atol=1e-4, rtol=1e-4)
    config_path = adapter / "adapter_config.json"
    config_path.write_text(config_path.read_text().replace(str(folder), "nobody/nothing"))
    with_base = load_model(folder, adapter=adapter)
    torch.testing.assert_close(logits(with_base.model, ids_of(9)), right, atol=1e-4, rtol=1e-4)
    assert str(adapter) in with_base.name


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_that_share_a_weight_changes_that_one(tmp_path, target, is_plain):
    from peft import LoraConfig

    tiny_model("llama", tie_word_embeddings=True).model.float().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    config = LoraConfig(r=2, target_modules=["q_proj", target], task_type="CAUSAL_LM")
    adapter, right = adapted(tmp_path / "model", tmp_path / "adapter", config)
    if is_plain:
        keep_plain(adapter)
    lm = load_model(adapter)
    torch.testing.assert_close(logits(lm.model, ids_of(9)), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["c_proj", "c_attn", "attn.c_proj"])
def test_a_plain_adapter_of_weights_kept_the_other_way_round(tmp_path, target):
    from peft import LoraConfig

    tiny_model("gpt2", n_inner=24).model.float().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    config = LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM")
    adapter, right = adapted(tmp_path / "model", tmp_path / "adapter", config)
    keep_plain(adapter)
    torch.testing.assert_close(logits(load_model(adapter).model, ids_of(9)), right, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_runs_layers_twice_is_told(folder, tmp_path):
    adapter, _ = adapted(folder, tmp_path / "adapter", layer_replication=[[0, 2], [1, 3]])
    with told("layer_replication"):
        load_model(adapter)


def test_an_adapters_own_version_of_its_base_is_loaded(folder, tmp_path):
    adapter, _ = adapted(folder, tmp_path / "adapter", revision="v1")
    config_of_adapter = adapter / "adapter_config.json"
    config_of_adapter.write_text(config_of_adapter.read_text().replace(str(folder), "nobody/nothing"))
    assert find(str(adapter)).revision == "v1"


def test_ia3_is_merged_and_a_prefix_is_told(folder, tmp_path):
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig

    scales = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    adapter, right = adapted(folder, tmp_path / "ia3", scales)
    torch.testing.assert_close(logits(load_model(adapter).model, ids_of(9)), right, atol=1e-4, rtol=1e-4)
    for kind in (PrefixTuningConfig, PromptTuningConfig):
        adapter, _ = adapted(folder, tmp_path / kind.__name__, kind(num_virtual_tokens=3, task_type="CAUSAL_LM"))
        with told("added into a model's weights", "_TUNING"):
            load_model(adapter)


@pytest.mark.parametrize("options", [{"alora_invocation_tokens": [31, 8]}, {"lora_bias": True}], ids=str)
def test_a_lora_that_no_weights_can_stand_for_is_told(folder, tmp_path, options):
    adapter, _ = adapted(folder, tmp_path / "adapter", **options)
    with told("can be added into a model's weights", "without it"):
        load_model(adapter)


def test_an_adapter_that_is_not_whole_or_of_another_model_is_told(folder, tmp_path):
    adapter, _ = adapted(folder, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    whole = unpacked(path.read_bytes())
    some = min(whole)  # of layer 0
    for weights in (
        {k: v for k, v in whole.items() if k != some},
        {**whole, some.replace("layers.0", "layers.9"): whole[some].clone()},
    ):
        save_file(weights, path)
        with told("adapter", "differs in"):
            load_model(adapter)
    save_file({k: v[..., :-1].contiguous() for k, v in whole.items()}, path)
    with told(str(adapter)):
        load_model(adapter)


def test_adapters_without_the_library_are_held_to_the_same(folder, tmp_path):
    """As ours are: only the plainest settings, which the package adds into the weights by itself."""
    adapter, right = adapted(folder, tmp_path / "adapter")
    keep_plain(adapter)
    torch.testing.assert_close(logits(load_model(adapter).model, ids_of(9)), right, atol=1e-4, rtol=1e-4)
    path = adapter / "adapter_model.safetensors"
    whole = unpacked(path.read_bytes())
    some = min(whole)  # of layer 0
    more = {**whole, some.replace("layers.0", "layers.9"): whole[some].clone(), "extra.weight": torch.ones(2)}
    for weights in (
        {k: v for k, v in whole.items() if k != some},
        {k: v for k, v in whole.items() if "layers.1" not in k},
        more,
    ):
        save_file(weights, path)
        with told("adapter", "differs in"):
            load_model(adapter)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_told_or_the_same(folder, tmp_path, damage):
    adapter, right = adapted(folder, tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        spoilt = tmp_path / f"{name}-spoilt"
        shutil.copytree(adapter, spoilt)
        DAMAGE[damage](spoilt / name, random.Random(1))
        assert same_or_told(spoilt, ids_of(9), right) == "told"


def test_an_adapters_own_tokenizer_and_template_are_used(folder, tmp_path):
    adapter, _ = adapted(folder, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    assert load_model(adapter).tokenizer.chat_template == "<{{ messages[0].content }}>"
    tokenizer = word_tokenizer().from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    lm = load_model(adapter)
    assert lm.chat("w3 w4").input_ids.tolist() == [[3, 4]]
    with told("embedding", "'<new>'"):
        lm.prompt("<new>")


def test_an_adapter_with_tokens_of_its_own_brings_their_rows(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = load_model(folder)
    tokenizer = word_tokenizer().from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    base.model.resize_token_embeddings(98, mean_resizing=False)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
    )
    peft = get_peft_model(base.model, config).eval()
    peft.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    lm = load_model(tmp_path / "adapter")
    ids = lm.prompt("w3 <new> w4").input_ids
    assert ids.tolist() == [[3, 97, 4]]
    torch.testing.assert_close(logits(lm.model, ids), logits(peft, ids), atol=1e-4, rtol=1e-4)


def test_a_base_named_from_the_adapters_own_folder(folder, tmp_path, monkeypatch):
    adapter, right = adapted(folder, tmp_path / "adapters" / "mine")
    config_path = adapter / "adapter_config.json"
    config_path.write_text(config_path.read_text().replace(str(folder), "../../model"))
    for name in (adapter, "."):
        torch.testing.assert_close(logits(load_model(name).model, ids_of(9)), right, atol=1e-4, rtol=1e-4)
        monkeypatch.chdir(adapter)


def test_a_folder_with_both_a_model_and_an_adapter_is_told(folder, tmp_path):
    adapter, _ = adapted(folder, tmp_path / "adapter")
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    with told("both", str(folder)):
        load_model(folder)


def test_adapter_that_is_none_is_told(folder, tmp_path):
    for name in (tmp_path, folder, "nobody/nothing"):
        with told("adapter=", str(name)):
            load_model(folder, adapter=name)


# ---------------------------------------------------------------------------------------------------- options and memory


def test_a_folder_that_asks_for_tuples_is_run_all_the_same(folder):
    config_of(folder, return_dict=False)
    assert load_model(folder).model(ids_of(9)).logits.isfinite().all()


def test_dtype_and_device_as_a_user_of_transformers_gives_them(folder):
    config_of(folder, dtype="bfloat16")
    dtypes = {None: torch.float32, "auto": torch.bfloat16, torch.bfloat16: torch.bfloat16, "float16": torch.float16}
    for dtype, right in dtypes.items():
        lm = load_model(folder, dtype=dtype, device=torch.device("cpu"))
        assert {p.dtype for p in lm.model.parameters()} == {right}


@pytest.mark.parametrize(("free", "right"), [(10**9, "float32"), (20_000, "bfloat16"), (5_000, None)])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_what_does_not_fit_is_refused_before_anything_is_read_with_the_figure(folder, monkeypatch, free, right, device):
    monkeypatch.setattr(devices, "_parameters", lambda config: 6_000)
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    if right:
        assert load_model(folder, device=device).model.dtype == getattr(torch, right)
        return
    (folder / "model.safetensors").write_bytes(b"never read")
    for dtype in (None, "auto", "float16", "float32"):
        with told("GB", f"free on {device}"):
            load_model(folder, device=device, dtype=dtype)


def test_a_half_precision_is_the_checkpoints_own(folder, monkeypatch):
    monkeypatch.setattr(devices, "_parameters", lambda config: 6_000)
    monkeypatch.setattr(devices, "free_memory", lambda device: 20_000)
    config_of(folder, dtype="float16")
    assert load_model(folder).model.dtype == torch.float16


def test_a_gguf_file_counts_with_the_size_that_it_unpacks_to(pair, monkeypatch):
    made, path = pair
    size = 4 * made.num_parameters()
    monkeypatch.setattr(devices, "free_memory", lambda device: size)
    assert load_model(path).model.dtype == torch.bfloat16
    with told("GB"):
        load_model(path, dtype="float32")


def test_parts_that_would_not_fit_are_not_joined(tmp_path, monkeypatch):
    twin.write(twin.model(), tmp_path / "big.gguf", split=8)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    monkeypatch.setattr(load, "join", lambda *given: pytest.fail("a large file was written"))
    with told("GB"):
        load_model(tmp_path)


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "900"),
        ("memory.stat", "anon 1\ninactive_file 300\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "CONTAINER", tmp_path)
    assert devices.free_memory("cpu") == 400
    (tmp_path / "memory.max").write_text("max")
    assert devices.free_memory("cpu") > 400


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks Linux what an Intel or AMD processor can do")
@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="asks Linux what the processor can do")
def test_bfloat16_is_multiplied_where_the_processor_does_so_itself():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    itself = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    assert devices.multiplies_bfloat16(torch.device("cpu")) == itself


def test_a_revision_is_for_hub_ids(folder):
    with told("revision", "hub id"):
        load_model(folder, revision="main")
