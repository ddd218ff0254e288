"""Where a prompt begins and ends, how a reply is chosen, and what the tables of a model have no row for."""

import copy
from dataclasses import replace

import pytest
import torch

from course_utils import CourseError, load_model, token_attribution
from course_utils.attribution import describe
from course_utils.prompts import encode, sequence_strings, token_strings
from tests.conftest import built, words
from tests.shared import told

pytestmark = pytest.mark.quick
BOS, EOS = 1, 2


def with_template(lm, single, chat=None):
    """The same model behind a tokenizer that puts <|im_start|> (1) and <|im_end|> (2) where a template says."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(lm.tokenizer)
    marks = [("<|im_start|>", BOS), ("<|im_end|>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=marks)
    tokenizer.chat_template = chat or tokenizer.chat_template
    return replace(lm, tokenizer=tokenizer)


def argmax_loop(lm, ids, n_tokens):
    """Plain passes, the largest logit each time, until the end token."""
    reply = []
    for _ in range(n_tokens):
        logits = lm.model(torch.cat([ids, ids.new_tensor([reply], dtype=torch.long)], 1), use_cache=False).logits
        reply.append(int(logits[0, -1].argmax()))
        if reply[-1] == EOS:
            break
    return reply


class TestTheEnds:
    @pytest.mark.parametrize("single", ["$A <|im_end|>", "<|im_start|> $A <|im_end|>", "$A <|im_end|> <|im_end|>"])
    def test_what_a_tokenizer_appends_is_left_out_everywhere(self, lm, single):
        model, text = with_template(lm, single), "The capital of France is"
        before = [BOS] if single.startswith("<") else []
        plain = lm.prompt(text).input_ids[0].tolist()
        prompt = model.prompt(text)
        assert prompt.input_ids[0].tolist() == [*before, *plain]
        assert [i for i, _ in zip(*encode(model.tokenizer, text, special=True), strict=True)] == [*before, *plain]
        assert model.continuation(prompt, " Paris") == lm.continuation(lm.prompt(text), " Paris")
        assert model.chat("Hi").input_ids.tolist() == lm.chat("Hi").input_ids.tolist()
        assert prompt.user == slice(len(before), len(prompt))
        if not before:
            assert model.reply(prompt, 4) == lm.reply(lm.prompt(text), 4)

    def test_a_bos_that_the_text_has_is_not_doubled_and_counts_as_typed(self, lm):
        model = with_template(lm, "<|im_start|> $A")
        alone, typed = model.prompt("Hi there"), model.prompt("<|im_start|>Hi there")
        assert typed.input_ids.tolist() == alone.input_ids.tolist()
        assert (alone.user, typed.user) == (slice(1, 3), slice(0, 3))
        assert model.continuation(typed, " you") == model.continuation(alone, " you")
        twice = model.prompt("<|im_start|><|im_start|>Hi")  # typed twice on purpose
        assert twice.input_ids[0, :2].tolist() == [BOS, BOS]
        assert twice.input_ids[0, 2] != BOS

    def test_an_end_token_inside_or_at_the_end_that_was_typed_stays(self, lm):
        model = with_template(lm, "<|im_start|> $A <|im_end|>")
        assert model.prompt("a<|im_end|>b<|im_end|>").input_ids[0].tolist().count(EOS) == 2

    def test_a_chat_template_with_a_bos_has_one_bos(self, lm):
        chat = "<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}"
        prompt = with_template(lm, "<|im_start|> $A <|im_end|>", chat).chat("Hi")
        assert prompt.input_ids[0].tolist() == [BOS, *lm.prompt("Hi").input_ids[0].tolist()]

    def test_a_stored_truncation_or_padding_is_not_followed(self, lm):
        tokenizer = copy.deepcopy(lm.tokenizer)
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=64)
        text = "one two three four five six"
        assert replace(lm, tokenizer=tokenizer).prompt(text).input_ids.tolist() == lm.prompt(text).input_ids.tolist()


HOSTILE = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(40)),
    "begin_suppress_tokens": list(range(60)),
    "min_length": 50,
    "min_new_tokens": 30,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 9,
    "num_beams": 3,
    "num_return_sequences": 2,
    "guidance_scale": 3.0,
    "stop_strings": ["a"],
    "max_length": 2,
    "max_new_tokens": 1,
    "bad_words_ids": [[5]],
    "sequence_bias": [[[3], 100.0]],
    "exponential_decay_length_penalty": (1, 2.0),
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 1,
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 3,
    "custom_entry": 3,
}


class TestGreedyIsArgMax:
    @pytest.mark.parametrize("setting", [*HOSTILE, "all"])
    def test_whatever_the_checkpoint_says(self, setting, monkeypatch):
        lm = built("llama", eos_token_id=EOS)
        prompt = lm.prompt(words(3, 4, 5))
        right = argmax_loop(lm, prompt.input_ids, 12)
        for name in HOSTILE if setting == "all" else [setting]:
            monkeypatch.setattr(lm.model.generation_config, name, HOSTILE[name], raising=False)
        own = lm.model.generation_config
        assert lm.generate(prompt, 12).tolist() == right
        assert lm.model.generation_config is own

    def test_from_a_folder_with_a_hostile_generation_config(self, tmp_path):
        lm = built("llama", eos_token_id=EOS)
        lm.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, min_length=20)
        lm.model.save_pretrained(tmp_path)
        lm.tokenizer.save_pretrained(tmp_path)
        loaded = load_model(tmp_path)
        assert loaded.model.generation_config.repetition_penalty == 5.0
        prompt = loaded.prompt(words(3, 4, 5))
        assert loaded.generate(prompt, 12).tolist() == argmax_loop(lm, prompt.input_ids, 12)

    def test_it_still_ends_at_any_of_the_checkpoints_end_tokens(self):
        lm = built("llama", eos_token_id=None)
        prompt = lm.prompt(words(3, 4, 5))
        free = lm.generate(prompt, 8).tolist()
        lm.model.generation_config.eos_token_id = [96, free[2]]
        assert lm.generate(prompt, 8).tolist() == free[: free.index(free[2]) + 1]

    @pytest.mark.parametrize("n", [0, -1])
    def test_no_reply_is_told(self, lm, n):
        with told("at least one token", f"n_tokens={n}"):
            lm.generate(lm.prompt("Hi"), n)


class TestOutsideTheTables:
    @pytest.fixture
    def added(self, lm):
        tokenizer = copy.deepcopy(lm.tokenizer)
        tokenizer.add_tokens(["<u>"])
        return replace(lm, tokenizer=tokenizer)

    def test_an_added_token_without_a_row_is_told_wherever_text_comes_in(self, added):
        prompt = added.prompt("Hi")
        for use in (
            lambda: added.prompt("a<u>"),
            lambda: added.chat("a<u>"),
            lambda: added.continuation(prompt, "<u>"),
            lambda: token_attribution(added, prompt, target="<u>"),
            lambda: token_attribution(added, prompt, contrast=("<u>", " the")),
            lambda: token_attribution(added, prompt, replacement="<u>"),
        ):
            with told("49,152", "'<u>'", "embedding"):
                use()

    @pytest.mark.parametrize(
        ("architecture", "sizes", "context"),
        [
            ("gpt2", {"n_positions": 16}, 16),
            ("opt", {"max_position_embeddings": 16, "ffn_dim": 16, "word_embed_proj_dim": 16}, 16),
            ("roberta", {"max_position_embeddings": 18, "is_decoder": True, "pad_token_id": 1}, 16),
            ("bert", {"max_position_embeddings": 16, "is_decoder": True}, 16),
            ("biogpt", {"max_position_embeddings": 16}, 16),
            ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 16}, 16),
            ("whisper", {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_target_positions": 16,
                         "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}, 16),
            ("llama", {"max_position_embeddings": 16}, 16),
            ("bloom", {"n_layer": 2, "n_head": 2}, None),
            ("mamba", {}, None),
        ],
    )  # fmt: skip
    def test_the_context_is_known_by_its_many_names_and_fits_to_the_last_position(self, architecture, sizes, context):
        lm = built(architecture, **sizes)
        assert lm.context == context
        prompt = lm.prompt(words(*range(3, 19)))
        with torch.no_grad():
            assert lm.model(prompt.input_ids).logits.isfinite().all()
        if context:
            with told("16", "17", "shorten"):
                lm.prompt(words(*range(3, 20)))

    def test_a_reply_past_the_context_is_told_before_anything_runs(self, monkeypatch):
        lm = built("gpt2", n_positions=16)
        prompt = lm.prompt(words(*range(3, 16)))  # 13 tokens
        right = argmax_loop(lm, prompt.input_ids, 4)
        assert lm.generate(prompt, 4).tolist() == right  # the last token is not read again: 13 + 3
        monkeypatch.setattr(lm.model, "forward", lambda *a, **k: pytest.fail("it ran"))
        for use in (
            lambda: lm.generate(prompt, 5),
            lambda: lm.reply(prompt),
            lambda: token_attribution(lm, prompt, replacement=5),
            lambda: token_attribution(lm, prompt, replacement=5, target=" w3" * 5),
        ):
            with pytest.raises(CourseError, match="16 tokens, the context of gpt2"):
                use()


class TestCharactersOverSeveralTokens:
    def test_each_piece_shows_the_character_and_its_number(self, lm):
        assert lm.prompt("a 🦉").tokens == ["a", "·🦉[1/3]", "🦉[2/3]", "🦉[3/3]"]
        assert lm.prompt("你好").tokens == ["你[1/2]", "你[2/2]", "好[1/2]", "好[2/2]"]
        assert lm.prompt("x न").tokens == ["x", "·न[1/2]", "न[2/2]"]  # the first piece holds the space, too

    @pytest.mark.parametrize("text", ["🦉 你好 नमस्ते", "👩‍👩‍👧 é 日本語", "한국어 العربية", "\ufffd", "a\ufffd🦉\ufffd"])
    def test_no_row_of_replacement_characters_and_the_text_can_be_read_off(self, lm, text):
        prompt = lm.prompt(text)
        assert sum(token.count("\ufffd") for token in prompt.tokens) == text.count("\ufffd")
        firsts = [t.split("[")[0] for t in prompt.tokens if not t.endswith("]") or "[1/" in t]
        assert "".join(firsts).replace("·", " ").replace("\\u200d", "\u200d") == text

    def test_tokens_that_do_not_follow_each_other_make_no_character(self, lm):
        owl = lm.prompt("🦉").input_ids[0].tolist()
        assert token_strings(lm.tokenizer, owl) == ["<0xF0><0x9F>", "<0xA6>", "<0x89>"]
        assert sequence_strings(lm.tokenizer, owl[1:]) == ["<0xA6>", "<0x89>"]  # cut in the middle
        assert sequence_strings(lm.tokenizer, [*owl[:2], 504, *owl]) == [
            "<0xF0><0x9F>", "<0xA6>", "The", "🦉[1/3]", "🦉[2/3]", "🦉[3/3]",
        ]  # fmt: skip

    def test_an_id_without_a_token_is_shown_by_its_number(self, lm):
        assert token_strings(lm.tokenizer, [10**6]) == ["#1000000"]

    def test_sentencepiece_byte_fallback(self):
        from tokenizers import Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": 1 + b for b in range(256)}, "a": 257, "▁": 258}
        inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        ids = tokenizer("a你a")["input_ids"]
        assert sequence_strings(tokenizer, ids) == ["a", "你[1/3]", "你[2/3]", "你[3/3]", "a"]
        assert token_strings(tokenizer, ids)[1] == "<0xE4>"

    def test_a_reply_and_the_figures_show_them_too(self, lm):
        a = token_attribution(lm, lm.prompt("I like"), target=" 🦉", method="gradient_x_input")
        assert a.output_tokens == ["·🦉[1/3]", "🦉[2/3]", "🦉[3/3]"]
        assert "log-probability of “·🦉” =" in describe(a)
