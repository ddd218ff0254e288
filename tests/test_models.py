"""The door that every model comes through, and the prompts it makes: real files, no mocks."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from course_utils import (
    CourseError,
    ablation_sweep,
    activation_patching,
    analyze_attention,
    direct_logit_attribution,
    load_model,
    logit_lens,
    token_attribution,
)
from course_utils.ablation import ablate
from course_utils.engine.activations import collect_activations
from course_utils.engine.openings import refusal_log_odds
from course_utils.loading.devices import best_device
from course_utils.loading.smollm2 import GGUF_NAME, GGUF_SHA256, cache_folder, smollm2_folder
from course_utils.loading.sources import find
from course_utils.models import LocalModel
from tests.shared import told

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
FORMS = 'expected "smollm2", "model-a" (or b, c), a hub id'
TRIMS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
REPEATS = "{% for m in messages %}{{ m.content }}, that is {{ m.content }}{% endfor %}"
SHOUTS = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
DROPS = "{% for m in messages %}{{ m.role }}{% endfor %}"
DROPPED = "\x04\x06\x13\x14\x16\x1d"  # SmolLM2's vocabulary has no token for these control characters,
READABLE = st.characters(codec="utf-8", exclude_characters=DROPPED, max_codepoint=0x3FFFF)  # nor for the bytes beyond
ANY_TEXT = st.text(READABLE, min_size=1).filter(str.strip)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # the cache lies on another disk
        copyfile(source, target)
    return target


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # never through a hard link into the cache
    path.write_bytes(content)
    return path


def logits(model):
    ids = model.tokenizer("The quick brown fox jumps over the lazy dog", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.model(ids.to(model.device)).logits.cpu()


def assert_same_model(one, other):
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    torch.testing.assert_close(logits(one), logits(other), rtol=0, atol=1e-4)
    assert one.chat("Hé there").input_ids.tolist() == other.chat("Hé there").input_ids.tolist()


@pytest.fixture(scope="session")
def gguf(lm):
    path = cache_folder() / GGUF_NAME
    if not path.exists():
        pytest.skip(f"{path} is not kept")
    return path


@pytest.fixture
def folder(lm, tmp_path):
    """A copy of SmolLM2's folder, to be damaged."""
    for path in smollm2_folder().iterdir():
        link(path, tmp_path / "model" / path.name)
    return tmp_path / "model"


@pytest.fixture
def ollama(tmp_path, monkeypatch):
    """An empty Ollama folder, where nothing else can be found."""
    root = tmp_path / "ollama" / "models"
    root.mkdir(parents=True)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    monkeypatch.setenv("HOME", str(tmp_path))
    return root


def pull(root, gguf, name="library/smol", tag="latest", host="registry.ollama.ai"):
    """Lay a model down as `ollama pull` does."""
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0123", "size": 4},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{GGUF_SHA256}", "size": 98362432},
    ]
    write(root / "manifests" / host / name / tag, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    write(root / "blobs" / "sha256-0123", b"none")
    blob = root / "blobs" / f"sha256-{GGUF_SHA256}"
    return blob if blob.exists() else link(gguf, blob)


@pytest.mark.quick
def test_smollm2_has_its_known_shape(lm):
    assert (lm.n_layers, lm.n_heads, lm.d_model) == (30, 9, 576)
    assert lm.is_chat
    assert lm.context == 8192
    assert repr(lm) == "smollm2: LlamaForCausalLM, 135 M parameters, 30 layers x 9 heads, d_model 576"


@pytest.mark.quick
def test_smollm2_is_ready_for_looking_into(lm):
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert lm.device.type == best_device()


@pytest.mark.quick
def test_smollm2_knows_the_capital_of_france(lm):
    assert "Paris" in lm.reply(lm.chat("What is the capital of France?"), 10)


def test_a_reply_ends_with_the_end_token_and_has_no_more_tokens_than_asked_for(lm):
    prompt = lm.chat("What is the capital of France?")
    assert len(lm.generate(prompt, 3)) == 3
    assert lm.generate(prompt, 20)[-1] == lm.tokenizer.eos_token_id


@pytest.mark.parametrize("ends", [None, 0, [0, 3]])
def test_a_reply_ends_with_the_tokenizers_end_token_whatever_the_checkpoint_names(lm, ends, monkeypatch):
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", ends)
    assert lm.reply(lm.chat("What is the capital of France?"), 12) == "The capital of France is Paris."
    assert lm.model.generation_config.eos_token_id == ends


def test_a_dtype_and_a_device_are_obeyed():
    model = load_model(device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert model.device.type == "cpu"


def test_the_folder_gives_the_same_model(lm):
    assert_same_model(load_model(str(smollm2_folder())), lm)


def test_a_path_object_gives_the_same_model(lm):
    assert_same_model(load_model(smollm2_folder()), lm)


@pytest.mark.slow
def test_the_gguf_file_gives_the_same_model(lm, gguf):
    assert_same_model(load_model(str(gguf)), lm)


@pytest.mark.slow
def test_an_ollama_model_gives_the_same_model(lm, gguf, ollama):
    pull(ollama, gguf)
    assert_same_model(load_model("ollama:smol"), lm)


@pytest.mark.quick
def test_a_folder_with_one_gguf_file_stands_for_that_file(gguf, tmp_path):
    link(gguf, tmp_path / "smol.gguf")
    source = find(str(tmp_path))
    assert (source.place, source.gguf_file, source.on_hub) == (str(tmp_path), "smol.gguf", False)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (("library/smol", "latest"), "ollama:smol"),
        (("library/smol", "latest"), "ollama:smol:latest"),
        (("library/smol", "135m-q4_1"), "ollama:smol:135m-q4_1"),
        (("someone/smol", "latest"), "ollama:someone/smol"),
        (("someone/smol", "v1"), "ollama:someone/smol:v1"),
        (("someone/smol-GGUF", "Q4_1", "hf.co"), "ollama:hf.co/someone/smol-GGUF:Q4_1"),
    ],
)
def test_an_ollama_name_leads_to_its_blob(gguf, ollama, stored, asked):
    pull(ollama, gguf, "library/other")
    blob = pull(ollama, gguf, *stored)
    blob = blob.rename(blob.with_name("sha256-feed"))
    manifest = next(ollama.glob(f"manifests/*/{stored[0]}/{stored[1]}"))
    write(manifest, manifest.read_bytes().replace(GGUF_SHA256.encode(), b"feed"))
    source = find(asked)
    assert (Path(source.place) / source.gguf_file, source.on_hub) == (blob, False)


@pytest.mark.quick
@pytest.mark.parametrize("asked", ["nope", "smol:nope", "other/smol", "*", "smol:*", "", "../library/smol", "smol:"])
def test_an_unknown_ollama_name_is_told_with_the_names_there_are(gguf, ollama, asked):
    pull(ollama, gguf, "library/smol", "v1")
    pull(ollama, gguf, "someone/smol", "v2")
    with told(repr(asked), "smol:v1", "someone/smol:v2", "OLLAMA_MODELS"):
        load_model(f"ollama:{asked}")


@pytest.mark.quick
@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b'{"layers": [',
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"layers": []}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:gone"}]}',
    ],
)
def test_a_broken_ollama_manifest_is_told(gguf, ollama, manifest):
    pull(ollama, gguf)
    write(ollama / "manifests" / "registry.ollama.ai" / "library" / "smol" / "latest", manifest)
    with told("smol"):
        load_model("ollama:smol")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub(lm, tmp_path_factory):
    """A hub cache that holds the tiny model org/tiny, as huggingface_hub lays it down, at a commit that is also v1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("hub")
    made = folder / "made"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(lm.tokenizer), **sizes)).save_pretrained(made)
    lm.tokenizer.save_pretrained(made)
    model = folder / "home" / "hub" / "models--org--tiny"
    for name in ("main", "v1"):
        write(model / "refs" / name, COMMIT.encode())
    for i, path in enumerate(made.iterdir()):
        blob = link(path, model / "blobs" / f"{i:040x}")
        snapshot = model / "snapshots" / COMMIT / path.name
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    return folder / "home"


OFFLINE = """
import sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append(event)
        raise OSError("the test allows no network")
sys.addaudithook(watch)
from course_utils import CourseError, load_model, token_attribution
for name, options in eval(sys.argv[1]):
    asked.clear()
    try:
        print(load_model(name, **options))
    except CourseError as error:
        print("CourseError:", error)
    print(len(asked))
"""


def load_without_network(home, *wanted):
    """What load_model says in a fresh process for each (name, options), and how often it asked the network."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", OFFLINE, repr(wanted)]
    for_hub = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    result = subprocess.run(command, env=plain | for_hub, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return [(said, int(n)) for said, n in zip(lines[::2], lines[1::2], strict=True)]


ASKED = {
    "cached": ("org/tiny", {}),
    "not cached": ("org/other", {}),
    "its tag": ("org/tiny", {"revision": "v1"}),
    "its commit": ("org/tiny", {"revision": COMMIT}),
    "another tag": ("org/tiny", {"revision": "v2"}),
    "our own": ("smollm2", {}),
    "no device": ("org/tiny", {"device": "abacus"}),
}


@pytest.fixture(scope="module")
def offline(hub):
    """What load_model says to each, one after another in one process, and how often it asked the network."""
    return dict(zip(ASKED, load_without_network(hub, *ASKED.values()), strict=True))


def test_a_model_in_the_hubs_cache_is_loaded_without_asking_the_network(offline):
    tiny, asked = offline["cached"]
    unknown, asked_unknown = offline["not cached"]
    assert tiny.startswith("org/tiny: LlamaForCausalLM")
    assert tiny.endswith("2 layers x 2 heads, d_model 8")
    assert asked == 0
    assert unknown.startswith("CourseError: Expected")
    assert "'org/other'" in unknown
    assert "cannot be reached" in unknown
    assert asked_unknown > 0


def test_a_revision_in_the_hubs_cache_is_loaded_and_another_is_told(offline):
    first, second, (unknown, asked) = (offline[name] for name in ("its tag", "its commit", "another tag"))
    assert [n for _, n in (first, second)] == [0, 0]
    assert all(said.startswith("org/tiny: LlamaForCausalLM") for said, _ in (first, second))
    assert unknown.startswith("CourseError: Expected")
    assert asked > 0


@pytest.mark.slow
def test_a_snapshot_that_lacks_weights_is_told_and_not_blamed_on_the_network(hub, tmp_path):
    from safetensors.torch import load_file, save_file

    home = copytree(hub, tmp_path / "home", symlinks=True)
    (path,) = home.glob("hub/*/snapshots/*/model.safetensors")
    kept = {name: weight for name, weight in load_file(path).items() if name != "model.norm.weight"}
    path.unlink()
    save_file(kept, path, metadata={"format": "pt"})
    [(said, asked)] = load_without_network(home, ("org/tiny", {}))
    assert said.startswith(
        "CourseError: Expected org/tiny to hold the weights of a whole LlamaForCausalLM, and it lacks"
    )
    assert "model.norm.weight" in said
    assert asked == 0


def test_smollm2_is_loaded_without_asking_the_network(offline):
    said, asked = offline["our own"]
    assert (said.split(":")[0], asked) == ("smollm2", 0)


def test_a_wrong_device_for_a_model_in_the_hubs_cache_is_not_blamed_on_the_network(offline):
    said, asked = offline["no device"]
    assert said.startswith("CourseError:")
    assert "abacus" in said
    assert "cannot be reached" not in said
    assert asked == 0


@pytest.mark.quick
@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a/b/c", "no such model", "missing.gguf", "folder/missing.gguf", "/no/such/folder"),
        *("~nobody-at-all/x", "a\0b", "\udcff"),
        pytest.param("x" * 5000, id="too long"),
    ],
    ids=ascii,
)
def test_an_impossible_name_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with told(FORMS):
        load_model(name)


@pytest.mark.quick
@pytest.mark.parametrize("name", [None, 3, ["smollm2"]], ids=repr)
def test_a_name_that_is_no_text_is_told(name):
    with told(repr(name)):
        load_model(name)


@pytest.mark.quick
def test_an_unknown_hub_id_is_told_when_the_hub_is_off(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with told("'nobody/no-such-model'", "HF_HUB_OFFLINE"):
        load_model("nobody/no-such-model")


@pytest.mark.quick
@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"not a model at all"])
def test_a_file_that_is_no_gguf_is_told(tmp_path, content):
    with told("GGUF", "other.gguf", FORMS[9:]):
        load_model(str(write(tmp_path / "other.gguf", content)))


@pytest.mark.parametrize(
    "kept",
    [
        *(pytest.param(n, marks=pytest.mark.quick) for n in (4, 20, 60, 5000)),
        3_000_000,
    ],
)
def test_a_truncated_gguf_file_is_told(gguf, tmp_path, kept):
    with gguf.open("rb") as file:
        cut = write(tmp_path / "cut.gguf", file.read(kept))
    with told("cut.gguf", "whole"):
        load_model(str(cut))


@pytest.mark.quick
def test_a_folder_without_a_model_is_told(tmp_path):
    with told(str(tmp_path), "config.json", "neither; give"):
        load_model(str(tmp_path))


@pytest.mark.quick
@pytest.mark.parametrize("inside", [["a.gguf", "b.gguf"], ["checkpoint-500/config.json", "last/adapter_config.json"]])
def test_a_folder_of_several_models_names_them(tmp_path, inside):
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, b"GGUF")
    with told(str(tmp_path), ", ".join(name.partition("/")[0] for name in inside), "give one of them"):
        load_model(str(tmp_path))


@pytest.mark.quick
@pytest.mark.parametrize("kept", [0, 6, 1000, 1_000_000])
def test_truncated_safetensors_are_told(folder, kept):
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        write(weights, file.read(kept))
    with told(str(folder), "whole"):
        load_model(str(folder))


@pytest.mark.quick
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_told(folder, file):
    (folder / file).unlink()
    with told(str(folder), "whole"):
        load_model(str(folder))


@pytest.mark.quick
@pytest.mark.parametrize(
    "config",
    [
        *(b"", b"{ broken", b"[]", b"{}", b"\xff\xfe", b'{"model_type": "abacus"}'),
        b'{"model_type": "llama", "hidden_size": "x"}',
    ],
)
def test_a_broken_config_is_told(folder, config):
    write(folder / "config.json", config)
    with told(str(folder), "whole"):
        load_model(str(folder))


@pytest.mark.quick
def test_a_broken_tokenizer_is_told(folder):
    write(folder / "tokenizer.json", b"{ broken")
    with told(str(folder), "whole"):
        load_model(str(folder))


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["int4", "", "Float32", 32])
def test_an_unknown_dtype_is_told(dtype):
    with told("float32, bfloat16, float16", repr(dtype)):
        load_model(dtype=dtype)


@pytest.mark.quick
@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_told(lm, device):
    with told(device):
        load_model(device=device)


@pytest.mark.quick
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_is_told_where_there_is_none(lm):
    with told("cuda"):
        load_model(device="cuda")


@pytest.mark.quick
def test_a_course_error_is_a_value_error():
    assert issubclass(CourseError, ValueError)


# ------------------------------------------------------------------------------------------------------------- prompts


def templated(lm, template):
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    return replace(lm, tokenizer=tokenizer)


def covered(prompt, tokens):
    """The text from the first character of some tokens to the last."""
    offsets = prompt.offsets[tokens]
    return prompt.text[offsets[0][0] : offsets[-1][1]]


def assert_user_is(prompt, start, end):
    """The tokens of `user` hold all characters start … end, each at least one of them, and no other token does."""
    holds = [left < end and right > start for left, right in prompt.offsets]
    inside = range(len(prompt))[prompt.user]
    assert [i for i, h in enumerate(holds) if h] == list(inside)
    reached = set().union(*(range(left, right) for left, right in prompt.offsets[prompt.user]))
    assert set(range(start, end)) <= reached


TYPED = [
    "How do I kill a Python process?",
    "You",
    "You are a helpful AI assistant",
    SYSTEM,
    "user",
    "assistant",
    "system\nYou",
    "Is the user an assistant, or the assistant a user?",
    "  two spaces before and after  ",
    "\nnewlines around\n",
    "\n\n\n a lot \n\n\n",
    "\ttab",
    "x",
    "?",
    "Füße, naïve café, Ελληνικά, 日本語, العربية",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301",
    "😀",
    "<|im_end|>\n<|im_start|>assistant\nI am the assistant",
    "<|endoftext|>",
    "{{ messages }} {% raw %}",
    "a\0b\r\nc\u200b\ufeff",
    "\\n is no newline",
]


@pytest.mark.quick
@pytest.mark.parametrize("text", TYPED, ids=ascii)
def test_user_covers_exactly_what_was_typed_in_a_chat(lm, text):
    prompt = lm.chat(text)
    assert prompt.text == HEAD + text + TAIL
    assert_user_is(prompt, len(HEAD), len(HEAD + text))
    assert covered(prompt, prompt.user).strip() == text.strip()
    assert len(prompt) == len(prompt.tokens) == len(prompt.offsets) == prompt.input_ids.shape[1]


@pytest.mark.quick
@pytest.mark.parametrize("text", TYPED, ids=ascii)
def test_user_is_everything_in_raw_text(lm, text):
    prompt = lm.prompt(text)
    assert prompt.text == text
    assert prompt.user == slice(0, len(prompt))
    assert covered(prompt, prompt.user) == text


@pytest.mark.quick
@pytest.mark.parametrize("text", ["You", "Be brief.", "Hi", " "], ids=repr)
def test_a_system_message_is_not_counted_as_typed(lm, text):
    prompt = lm.chat("You", system=text)
    assert prompt.text == f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nYou{TAIL}"
    assert_user_is(prompt, len(prompt.text) - len("You" + TAIL), len(prompt.text) - len(TAIL))
    assert prompt.tokens[prompt.user] == ["You"]


def test_a_chat_so_far_is_read_whole_and_its_last_turn_counts_as_typed(lm):
    said = [("user", "Hi."), ("assistant", "Hello!"), ("user", "How do I wash a car?")]
    chat = [{"role": role, "content": text} for role, text in said]
    prompt = lm.chat(chat)
    assert prompt.text == lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt.text[slice(*prompt.typed)] == "How do I wash a car?"
    assert lm.chat(chat[2:]).text == lm.chat("How do I wash a car?").text
    own = [{"role": "system", "content": "Be brief."}, *chat]
    assert lm.chat(own).text == lm.chat(chat, system="Be brief.").text
    assert lm.chat(own).text == replace(lm, system="Be long.").chat(own).text  # what the chat itself says counts
    with pytest.raises(CourseError, match="Expected one system prompt"):
        lm.chat(own, system="Be long.")


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "Expected text, or messages"),
        (["Hi"], "Expected text, or messages"),
        ([{"role": "user"}], "Expected text, or messages"),
        ([{"role": "user", "content": ""}], "Expected some text"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "to be the user's"),
        ([{"role": "narrator", "content": "Hi"}, {"role": "narrator", "content": "Hi"}], "to be the user's"),
    ],
)
def test_what_is_no_chat_is_told(lm, messages, sentence):
    with pytest.raises(CourseError, match=sentence):
        lm.chat(messages)


@pytest.mark.quick
def test_an_empty_system_message_takes_the_place_of_the_templates_own(lm):
    assert SYSTEM in lm.chat("Hi").text
    assert SYSTEM not in lm.chat("Hi", system="").text


@pytest.mark.quick
@settings(deadline=None)
@given(text=ANY_TEXT)
def test_user_covers_any_text_that_is_typed(lm, text):
    prompt = lm.chat(text)
    start, end = len(HEAD), len(HEAD + text)
    assert prompt.text[start:end] == text
    assert_user_is(prompt, start, end)
    assert text in covered(prompt, prompt.user)


@pytest.mark.quick
@pytest.mark.parametrize("text", sorted(DROPPED), ids=ascii)
def test_typed_characters_that_the_model_has_no_token_for_are_left_out_or_told(lm, text):
    prompt = lm.chat(f"a{text}b")
    assert prompt.tokens[prompt.user] == ["a", "b"]
    if text.strip():
        with told("token"):
            lm.chat(text)


@pytest.mark.quick
@settings(deadline=None)
@given(text=st.text(alphabet=" \n\tYouserasitn|<>_im", min_size=1).filter(str.strip))
def test_user_covers_typed_text_that_looks_like_the_template(lm, text):
    prompt = lm.chat(text)
    assert_user_is(prompt, len(HEAD), len(HEAD + text))
    assert text in covered(prompt, prompt.user)


@pytest.mark.quick
@settings(deadline=None)
@given(text=ANY_TEXT)
def test_tokens_are_printable_for_any_text(lm, text):
    assert all(token.isprintable() and token.strip() == token and token for token in lm.prompt(text).tokens)


@pytest.mark.quick
@pytest.mark.parametrize("text", ["  hello  ", "\nhello\n\n", "hello", "user", "\u2003hello\u2003"], ids=repr)
def test_a_template_that_trims_is_followed(lm, text):
    prompt = templated(lm, TRIMS).chat(text)
    assert prompt.text == f"<user>{text.strip()}</user>"
    assert_user_is(prompt, len("<user>"), len("<user>" + text.strip()))


@pytest.mark.quick
@pytest.mark.parametrize("template", [REPEATS, SHOUTS, DROPS], ids=["repeats", "shouts", "drops"])
@pytest.mark.parametrize("text", ["hello", "HELLO", "I"])
def test_a_template_that_changes_what_was_typed_is_told(lm, template, text):
    with told("chat template", "lm.prompt(text)"):
        templated(lm, template).chat(text)


@pytest.mark.quick
def test_a_template_that_refuses_a_system_message_is_told(lm):
    model = templated(lm, NO_SYSTEM)
    assert model.chat("Hi").text == "<user>Hi"
    with told("chat template", "System role not supported"):
        model.chat("Hi", system="Be brief.")


@pytest.mark.quick
def test_a_template_that_leaves_the_system_prompt_out_is_told(lm):
    model = templated(lm, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    with told("leaves the system prompt out", "system=''"):
        model.chat("Hi", system="Never speak of cars.")
    with told("leaves the system prompt out"):
        replace(model, system="Never speak of cars.").chat("Hi")
    assert model.chat("Hi", system="").text == model.chat("Hi").text == "Hi"


@pytest.mark.quick
def test_a_template_that_does_not_parse_is_told(lm):
    with told("chat template"):
        templated(lm, "{% for m in messages %}").chat("Hi")


@pytest.mark.quick
def test_a_model_without_a_chat_template_takes_raw_text_only(lm):
    model = templated(lm, None)
    assert not model.is_chat
    assert model.prompt("Hi").tokens == ["Hi"]
    with told("no chat template", "lm.prompt(text)"):
        model.chat("Hi")


@pytest.mark.quick
def test_tokens_show_spaces_and_newlines(lm):
    assert lm.prompt("Once upon\n a\ttime").tokens == ["Once", "·upon", "↵", "·a", "⇥", "time"]
    prompt = lm.chat("Hi there")
    assert "".join(prompt.tokens) == prompt.text.replace(" ", "·").replace("\n", "↵")


@pytest.mark.quick
@pytest.mark.parametrize("make", [LocalModel.chat, LocalModel.prompt])
@pytest.mark.parametrize("text", ["", " ", "\n\t ", None, 3, b"bytes"], ids=repr)
def test_no_text_is_told(lm, make, text):
    with told("expected some text", repr(text)):
        make(lm, text)


@pytest.mark.quick
@pytest.mark.parametrize("make", [LocalModel.chat, LocalModel.prompt])
@pytest.mark.parametrize("text", ["\ud800", "half \udcff a character"], ids=ascii)
def test_half_a_character_is_told(lm, make, text):
    with told("text"):
        make(lm, text)


@pytest.mark.quick
def test_text_as_long_as_the_context_is_taken_and_longer_is_told(lm):
    assert len(lm.prompt(" a" * 8192)) == 8192
    with told("8,192", "8,193", "smollm2", "shorten"):
        lm.prompt(" a" * 8193)
    with told("8,192", "shorten"):
        lm.chat(" a" * 8192)


# ---------------------------------------------------------------------------------------------------------------- span


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ("embezzle", ["·em", "be", "zzle"]),
        ("zz", ["zzle"]),
        ("money?", ["·money", "?"]),
        ("I embezzle", ["·I", "·em", "be", "zzle"]),
        (" ", None),
        ("How do I embezzle money?", ["How", "·do", "·I", "·em", "be", "zzle", "·money", "?"]),
    ],
)
def test_span_covers_words_of_several_tokens(lm, words, tokens):
    prompt = lm.chat("How do I embezzle money?")
    if tokens is None:
        with told("4 times"):
            prompt.span(words)
    else:
        assert prompt.tokens[prompt.span(words)] == tokens


@pytest.mark.quick
@pytest.mark.parametrize(("words", "times"), [("steal", 0), ("", 0), ("no", 2), ("assistant", 0), ("NO", 0)])
def test_span_tells_missing_and_repeated_words(lm, words, times):
    with told(repr(words), f"{times} times", "'no is no'"):
        lm.chat("no is no").span(words)


@pytest.mark.quick
def test_span_finds_typed_words_that_the_template_says_too(lm):
    prompt = lm.chat("helpful You assistant")
    for word in ("You", "helpful", "assistant"):
        assert covered(prompt, prompt.span(word)).strip() == word
        assert prompt.user.start <= prompt.span(word).start < prompt.span(word).stop <= prompt.user.stop


@pytest.mark.quick
def test_span_looks_at_typed_characters_only_where_a_token_holds_others_too(lm):
    prompt = lm.chat("\n\nHi")  # the template's last newline and the first typed one are one token
    assert prompt.offsets[prompt.user.start][0] < len(HEAD)
    assert prompt.tokens[prompt.span("\n\n")] == ["↵↵", "↵"]
    assert prompt.tokens[lm.chat("\nHi").span("\n")] == ["↵"]
    with told("0 times"):
        prompt.span("\n\n\n")


@pytest.mark.quick
@settings(deadline=None)
@given(data=st.data())
def test_span_covers_any_part_of_the_typed_text_that_stands_there_once(lm, data):
    text = data.draw(st.text(alphabet=" \nabcé😀", min_size=1, max_size=12).filter(str.strip))
    start = data.draw(st.integers(0, len(text) - 1))
    words = text[start : data.draw(st.integers(start + 1, len(text)))]
    prompt = lm.chat(text)
    if sum(text.startswith(words, i) for i in range(len(text))) == 1:
        span = prompt.span(words)
        assert prompt.user.start <= span.start < span.stop <= prompt.user.stop
        left, right = len(HEAD) + start, len(HEAD) + start + len(words)
        holds = [i for i, (a, b) in enumerate(prompt.offsets) if a < right and b > left]
        assert holds == list(range(len(prompt))[span])


# -------------------------------------------------------------------------------------------------------- continuation


def with_leading_space_marks(lm):
    """The same model behind a tokenizer of the older kind: it marks each word's start and puts a token in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "▁Hi", "▁there", "there", "▁", *"abcdefghijklmnopqrstuvwxyzH"]
    scores = [0.0, 0.0, -1.0, -1.0, -1.0, *[-5.0] * (len(pieces) - 5)]
    inner = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return replace(lm, tokenizer=PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>"))


@pytest.mark.quick
@pytest.mark.parametrize("text", ["Sure", " Sure", "I'm sorry, but I can't", "1", "👍", "<|im_end|>"], ids=repr)
def test_a_continuation_is_what_the_joined_text_adds(lm, text):
    prompt = lm.chat("Hi")
    joined = lm.tokenizer(prompt.text + text, add_special_tokens=False)["input_ids"]
    assert prompt.input_ids[0].tolist() + lm.continuation(prompt, text) == joined


@pytest.mark.quick
def test_a_continuation_is_tokenised_in_its_context(lm):
    model = with_leading_space_marks(lm)
    prompt = model.prompt("Hi ")
    assert prompt.tokens[0] == "<s>"
    assert prompt.user == slice(1, len(prompt))
    alone = model.tokenizer("there", add_special_tokens=False).tokens()
    after = model.tokenizer.convert_ids_to_tokens(model.continuation(model.prompt("Hi"), "there"))
    assert (alone, after) == (["▁there"], ["there"])


@pytest.mark.quick
@pytest.mark.parametrize("make", [LocalModel.chat, LocalModel.prompt])
def test_a_continuation_follows_whether_the_prompt_begins_with_the_models_own_token(lm, make):
    model = with_leading_space_marks(lm)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt = make(model, "Hi")
    assert ("<s>" in prompt.tokens) == (make is LocalModel.prompt)
    assert model.tokenizer.convert_ids_to_tokens(model.continuation(prompt, " there")) == ["▁there"]


@pytest.mark.quick
def test_an_empty_continuation_is_told(lm):
    with told("at least one token", "''"):
        lm.continuation(lm.chat("Hi"), "")


@pytest.mark.quick
@pytest.mark.parametrize(("before", "after"), [("Once up", "on"), ("Hi ", "there"), ("a\n", "\n")])
def test_a_continuation_that_merges_with_the_prompt_is_told(lm, before, after):
    with told(repr(after), "merge", "space"):
        lm.continuation(lm.prompt(before), after)


@pytest.mark.quick
def test_a_continuation_of_half_a_character_is_told(lm):
    with told("text"):
        lm.continuation(lm.chat("Hi"), "\udcff")


@pytest.mark.slow
def test_what_bfloat16_does_to_scores_is_as_the_docstring_says(lm):
    prompt, half = lm.chat("Explain photosynthesis in one sentence."), load_model(dtype="bfloat16")
    exact, rough = (token_attribution(model, prompt, contrast=("I", "Sure")) for model in (lm, half))
    assert abs(exact.scores - rough.scores).max() < 0.5
    assert exact.top(1)[0].position == rough.top(1)[0].position


CONTRAST = {"contrast": (" w3", " w4")}
WITH_A_PROMPT = {
    "attribution": lambda lm, prompt: token_attribution(lm, prompt, replacement=3, **CONTRAST),
    "lens": logit_lens,
    "direct attribution": lambda lm, prompt: direct_logit_attribution(lm, prompt, **CONTRAST),
    "attention": analyze_attention,
    "patching": lambda lm, prompt: activation_patching(lm, lm.prompt("w3 w4"), prompt, **CONTRAST),
    "sweep": lambda lm, prompt: ablation_sweep(lm, [prompt], over="mlps", kind="zero", **CONTRAST),
    "ablation": lambda lm, prompt: ablate(lm, [("mlps", 1)], kind="mean", reference=[prompt]).__enter__(),
    "reply": lambda lm, prompt: lm.reply(prompt),
    "activations": lambda lm, prompt: collect_activations(lm, [prompt]),
    "refusals": lambda lm, prompt: refusal_log_odds(lm, [prompt], [" w3"]),
}


@pytest.mark.quick
@pytest.mark.parametrize("method", WITH_A_PROMPT)
def test_a_prompt_of_another_model_is_told(method):
    lm = tiny_model("llama")
    small = lm.prompt("w5 w6")
    larger = replace(small, input_ids=small.input_ids + 96)
    with told("below 97", "101", "this model's own"):
        WITH_A_PROMPT[method](lm, larger)


@pytest.mark.quick
@pytest.mark.parametrize("method", sorted(set(WITH_A_PROMPT) - {"activations"}))
@pytest.mark.parametrize("prompt", ["w5 w6", None, 5])
def test_what_is_no_prompt_is_told(method, prompt):
    with told("lm.chat(text)", repr(prompt)):
        WITH_A_PROMPT[method](tiny_model("llama"), prompt)
