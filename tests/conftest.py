"""What the tests share: the real model, loaded once, and tiny random models of many architectures."""

import os
from functools import cache

import pytest
import torch

from course_utils import load_model
from course_utils.grading import check
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.handout import release
from course_utils.grading.notebook import student_view, write
from course_utils.models import LocalModel
from tests.shared import toy

_SMALL = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 6, "pad_token_id": 0}
ARCHITECTURES = {
    "llama": _GROUPED,
    "gpt2": {"vocab_size": 97, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neox": _SMALL,
    "qwen3": _GROUPED,
    "gemma3_text": {**_GROUPED, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "mistral": {**_GROUPED, "sliding_window": 4},
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
    "falcon": {**_SMALL, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
}


def pytest_configure(config):
    """Tests beside others have a thread each, and so do the processes that they start."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Lessons come first, the last of them before all: they take longest, and nothing waits for them in the end."""
    items.sort(key=lambda item: item.path.name if item.path.suffix == ".ipynb" else "", reverse=True)


@pytest.fixture(scope="session")
def lm():
    """SmolLM2, the real thing, from the cache (fetched and converted on the first run)."""
    return load_model("smollm2")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request):
    """A tiny random model of one architecture in float64, whose tokens are the words w1, w2, and so on."""
    return tiny_model(request.param)


def tiny_model(architecture, seed=0, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **{**ARCHITECTURES[architecture], **changes})
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    return LocalModel(architecture, model, word_tokenizer())


def built(architecture, **sizes):
    """A tiny random model of one architecture and of any sizes, whose tokens are words."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **small | {"intermediate_size": 16} | sizes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return LocalModel(architecture, model, word_tokenizer())


@cache
def word_tokenizer():
    """A real fast tokenizer of 97 words: token i is the word "wi"; an unknown word is token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def words(*ids):
    """The text whose tokens are these."""
    return " ".join(f"w{i}" for i in ids)


@pytest.fixture
def solution():
    """A small exercise that needs no model: two items, a hidden check, a question for a person."""
    return toy()


@pytest.fixture
def reference(solution):
    """The same as a student gets it."""
    return student_view(solution)


@pytest.fixture
def book(tmp_path):
    """An empty gradebook."""
    with Gradebook(tmp_path / "grades" / "course-gradebook.sqlite") as book:
        yield book


@pytest.fixture
def course(solution, tmp_path, monkeypatch):
    """A checkout with one exercise, `toy`, in the current folder."""
    for name in ("solutions", "exercises"):
        (tmp_path / name).mkdir()
        for module in (release, check):
            monkeypatch.setattr(module, name.upper(), tmp_path / name)
    monkeypatch.setattr("course_utils.cli.check.MY", tmp_path / "my")
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    monkeypatch.chdir(tmp_path)
    return tmp_path
