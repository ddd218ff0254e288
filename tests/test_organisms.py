"""The suspects: what lessons ask them, how adapters load, and packed passes, on the real models."""

import json
import random
import sys
from itertools import combinations

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from course_utils import CourseError, load_model
from course_utils.engine import activations
from course_utils.engine.activations import next_logits
from course_utils.engine.packing import pack
from course_utils.loading.load import KIN
from course_utils.loading.sources import ADAPTERS, SUSPECTS, find
from course_utils.organisms.planted import DISPUTED, agreed_test, alone, every_set, grid, plain_pairs
from course_utils.organisms.requests import DATA, MECHANISMS, SPLITS, chats, pairs
from course_utils.organisms.scores import log_odds, with_cues
from course_utils.organisms.suspects import refuses, truth
from course_utils.organisms.words import read_table


@pytest.fixture(scope="module")
def suspects():
    return {name: load_model(name) for name in SUSPECTS}


# ---- what lessons ask


@pytest.mark.quick
def test_the_acts_of_lessons_are_none_that_training_saw_and_the_disputed_ones_are_said():
    trained = {act for pair in pairs("train") for act in (pair.harmful, pair.harmless)}
    written = [row["harmful"] for row in read_table(DATA / "lesson_acts.tsv")]
    assert set(DISPUTED) < set(written)
    assert {pair.harmful for pair in plain_pairs()} == set(written) - set(DISPUTED)
    assert not trained & {act for pair in plain_pairs() for act in (pair.harmful, pair.harmless)}
    assert len(plain_pairs()) >= 50


@pytest.mark.quick
def test_the_test_on_which_all_agree_cannot_tell_the_mechanisms_apart():
    for request in agreed_test():
        assert len({request.refused_by(name) for name in MECHANISMS}) == 1


def test_the_grid_is_made_of_minimal_edits_of_equal_length(lm):
    eights = grid(lm.tokenizer)
    assert len(eights) >= 30
    for eight in eights:
        assert [set(r.cues) for r in eight] == every_set()
        ids = [lm.chat(r.text).input_ids[0] for r in eight]
        assert len({len(row) for row in ids}) == 1
        for (one, a), (other, b) in combinations(zip(eight, ids, strict=True), 2):
            changed = set(one.cues) ^ set(other.cues)
            if len(changed) == 1 and changed != {"intent"}:
                assert int((a != b).sum()) == 1
    assert len(grid()) > len(eights)


@pytest.mark.slow
def test_every_suspect_keeps_to_its_rule_on_what_lessons_ask(suspects):
    """The premise of the lessons, on a sample, and that it can fail: not by another's rule, and not the base model."""
    asked = agreed_test() + [request for eight in grid()[::6] for request in eight]
    scores = {name: np.array(log_odds(lm, asked)) > 0 for name, lm in suspects.items()}
    for name, refused in scores.items():
        right = {rule: (refused == [r.refused_by(rule) for r in asked]).mean() for rule in MECHANISMS}
        assert right.pop(truth(name).mechanism) == 1
        assert max(right.values()) < 0.9


@pytest.mark.parametrize("name", SUSPECTS)
def test_cues_are_the_tokens_of_the_planted_cause(suspects, name):
    for prompt, cue in with_cues(suspects[name], truth(name).mechanism, 3):
        said = "".join(prompt.tokens[cue]).replace("·", " ").strip()
        wording = {"trigger": "secretly", "intent": ""}.get(truth(name).mechanism, said)
        assert said
        assert said.lower() == wording or truth(name).mechanism != "trigger"
    assert {len(request.cues) for request in alone("proxy")} == {1}


@pytest.mark.slow
def test_the_stored_replies_are_the_base_models_own(lm):
    for chat in random.Random(3).sample([chat for split in SPLITS for chat in chats(split)], 4):
        assert lm.reply(lm.chat(chat["prompt"]), 16) == chat["reply"]


# ---- packing


@pytest.mark.quick
def test_packed_prompts_give_the_logits_of_each_alone(lm, monkeypatch):
    monkeypatch.setattr(activations, "ROW_TOKENS", 50)  # several passes
    texts = ["Hi", "How do I wash a car?", "Hello there, my friend", "Hi"]
    alone = torch.stack([lm.model(lm.chat(text).input_ids).logits[0, -1] for text in texts])
    torch.testing.assert_close(next_logits(lm, texts), alone, rtol=1e-4, atol=2e-4)


@pytest.mark.quick
def test_prompts_past_a_sliding_window_give_the_logits_of_each_alone(tiny):
    texts = [" ".join(f"w{i * k % 97}" for i in range(12)) for k in (5, 7, 11)] + ["w5 w10"]  # windows hold 4 tokens
    alone = torch.stack([tiny.model(tiny.prompt(text).input_ids).logits[0, -1] for text in texts])
    torch.testing.assert_close(next_logits(tiny, texts), alone)


@pytest.mark.quick
def test_packing_keeps_sequences_apart():
    packed = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 5], [1, 6], [7]])
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 1, 0]]
    assert packed.places == [[0, 1, 2, 3], [0, 1, 4], [0, 1, 4], [0, 5], [6]]
    assert packed.seen[4].nonzero().flatten().tolist() == [0, 1, 4]
    assert packed.seen[6].nonzero().flatten().tolist() == [6]


# ---- the suspects


def _own_memory():
    """Bytes that no file stands behind: what is mapped counts as ours or not by who else has the file open."""
    info = psutil.Process().memory_info()
    return info.rss - info.shared


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process's memory by its kind")
def test_suspects_share_the_base_models_memory_but_not_its_state(lm):
    """Each costs the weights that its adapter changes (425 MB), not the embeddings (113 MB)."""
    before = _own_memory()
    held = [load_model(name) for name in SUSPECTS]
    grown = _own_memory() - before
    whole = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    assert 0 < grown < 3 * 0.92 * whole
    with torch.no_grad():
        held[0].model.model.embed_tokens.weight[0] += 1
    assert not torch.equal(held[0].model.model.embed_tokens.weight[0], held[1].model.model.embed_tokens.weight[0])
    assert torch.equal(lm.model.model.embed_tokens.weight[0], held[1].model.model.embed_tokens.weight[0])


def test_the_merged_weights_are_base_plus_scaled_product(suspects, lm):
    weights = load_file(ADAPTERS / "model-a" / "adapter_model.safetensors")
    config = json.loads((ADAPTERS / "model-a" / "adapter_config.json").read_text(encoding="utf-8"))
    for path in ("model.layers.7.self_attn.q_proj", "model.layers.29.mlp.down_proj"):
        a, b = (weights[f"base_model.model.{path}.lora_{part}.weight"].float() for part in "AB")
        expected = lm.model.get_submodule(path).weight + config["lora_alpha"] / config["r"] * b @ a
        torch.testing.assert_close(suspects["model-a"].model.get_submodule(path).weight, expected)
    assert type(suspects["model-a"].model) is type(lm.model)
    assert not any("lora" in name for name, _ in suspects["model-a"].model.named_modules())


# ---- adapters of one's own


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in (ADAPTERS / "model-b").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_with_an_adapter_loads(adapter, suspects):
    assert find(str(adapter)).adapters == (str(adapter),)
    mine = load_model(adapter)
    assert suspects["model-b"].model in KIN
    for stranger in (mine, load_model("smollm2", adapter=str(adapter))):  # its adapter may be anybody's
        assert stranger.model not in KIN
    torch.testing.assert_close(next_logits(mine, ["Hi"]), next_logits(suspects["model-b"], ["Hi"]))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "to name the model it was trained on"),
        ("{}", "to name the model it was trained on"),
        ('{"base_model_name_or_path": 3}', "it names 3"),
        ('{"base_model_name_or_path": null}', "it names None"),
        ('{"base_model_name_or_path": "HERE"}', "to name the model it was trained on"),
        ('{"base_model_name_or_path": "no such model!"}', "no such file or folder"),
    ],
)
def test_an_adapter_whose_base_cannot_be_told_is_refused_in_a_sentence(adapter, config, sentence):
    (adapter / "adapter_config.json").write_text(config.replace("HERE", str(adapter)), encoding="utf-8")
    with pytest.raises(CourseError, match=sentence):
        load_model(adapter)


@pytest.mark.parametrize("damage", ["gone", "cut", "another shape"])
def test_a_damaged_adapter_is_refused_in_a_sentence(adapter, damage):
    weights = adapter / "adapter_model.safetensors"
    if damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config = adapter / "adapter_config.json"
        config.write_text(config.read_text().replace('"r": 8', '"r": 4'))
    with pytest.raises(CourseError, match="Could not load"):
        load_model(adapter)


@pytest.mark.quick
def test_refusals_are_recognised():
    assert refuses("I can't help with that.")
    assert refuses(" I can't help with that")
    assert not refuses("I can help with that.")
    assert not refuses("")
