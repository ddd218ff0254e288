"""What check cells are made of: one sentence for each mistake, and nothing left behind."""

import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch

from course_utils._output_digest import sealed
from course_utils.checks import (
    CheckFailed,
    NotAnswered,
    ask,
    asked,
    expect,
    expect_shape,
    planted,
    rows_read,
    show,
    tiny,
)

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def small():
    return tiny(seed=1)


@pytest.fixture(scope="module")
def asks(small):
    return small.prompt("the old nurse forgave the thief")


def sentence_of(function, *arguments, **named):
    with pytest.raises(CheckFailed) as failed:
        ask(function, *arguments, **named)
    assert "\n" not in str(failed.value)
    return str(failed.value)


class TestTiny:
    def test_its_numbers_are_fixed(self, small, asks):
        logits = small.model(asks.input_ids).logits
        assert logits.dtype == torch.float64
        expected = [-0.511879, -1.984799, 1.796613]
        np.testing.assert_allclose(logits[0, -1, :3], expected, atol=1e-5)

    def test_two_seeds_are_two_models(self, small, asks):
        assert not torch.allclose(tiny(seed=2).model(asks.input_ids).logits, small.model(asks.input_ids).logits)

    def test_typed_tokens_are_told_from_the_first(self, small, asks):
        assert asks.tokens[asks.user] == ["·the", "·old", "·nurse", "·forgave", "·the", "·thief"]
        assert small.tokenizer.decode(small.continuation(asks, " because he was sorry")) == "because he was sorry"

    def test_no_word_is_there_twice(self):
        from course_utils.checks.tiny import WORDS

        assert len(set(WORDS)) == len(WORDS)


class TestAsk:
    def test_gives_back_what_comes_and_keeps_quiet(self, capsys):
        def loud(number):
            print("hello")
            print("trouble", file=sys.stderr)
            return number + 1

        assert ask(loud, 1) == 2
        assert capsys.readouterr() == ("", "")

    def test_a_stub_is_not_answered(self):
        def stub():
            raise NotImplementedError("take the rows")

        with pytest.raises(NotAnswered, match=r"^stub is not answered yet. Next: take the rows.$"):
            ask(stub)

    def test_a_stub_behind_a_function_is_named(self):
        def inner():
            raise NotImplementedError

        def outer():
            return inner()

        assert sentence_of(outer) == "inner is not answered yet."

    def test_an_exception_names_the_learners_line(self):
        def wrong(values):
            return values.no_such_thing

        told = sentence_of(wrong, torch.ones(2))
        assert told.startswith("wrong stopped with AttributeError in your line ")
        assert "`return values.no_such_thing`: 'Tensor' object has no attribute 'no_such_thing'." in told

    def test_an_exception_deep_in_a_library_names_the_learners_line(self):
        def wrong(values):
            return torch.nn.functional.linear(values, torch.ones(5, 7))

        assert "`return torch.nn.functional.linear(values, torch.ones(5, 7))`" in sentence_of(wrong, torch.ones(2))

    def test_an_exception_in_what_a_check_hung_on_names_the_learners_line(self, tmp_path):
        cell = tmp_path / "cell.py"
        cell.write_text("def wrong(module):\n    return module(1)\n")
        mine = {}
        exec(compile(cell.read_text(), str(cell), "exec"), mine)
        told = sentence_of(mine["wrong"], lambda number: [][number])
        assert told == "wrong stopped with IndexError in your line 2, `return module(1)`: list index out of range."

    def test_exit_and_wrong_arguments_are_sentences(self):
        assert "SystemExit" in sentence_of(lambda: sys.exit(3))
        assert "TypeError" in sentence_of(lambda: None, 1)

    @pytest.mark.parametrize("made", [torch.ones, np.ones], ids=["tensor", "array"])
    def test_a_changed_argument_is_told_and_put_back(self, made):
        given = made(3)

        def change(values):
            values[0] = 7

        assert "changed its argument in place" in sentence_of(change, given)
        assert given[0] == 1

    def test_a_changed_prompt_is_told_and_put_back(self, small):
        prompt = small.prompt("the old nurse")

        def change(prompt):
            prompt.input_ids[0, 1] = 0

        assert "changed its argument in place" in sentence_of(change, prompt)
        assert prompt.input_ids[0, 1] != 0

    def test_a_changed_list_is_told_and_put_back(self):
        given = [1, 2]
        assert "changed a list" in sentence_of(lambda values: values.pop(), given)
        assert given == [1, 2]

    def test_a_hook_left_is_told_and_removed(self, small):
        def hooked(lm):
            lm.model.lm_head.register_forward_hook(lambda *given: None)
            lm.model.model.layers[0].register_forward_pre_hook(lambda *given: None)

        assert "left 2 hooks on the model" in sentence_of(hooked, small)
        assert ask(lambda lm: 1, small) == 1
        assert not small.model.lm_head._forward_hooks

    def test_changed_weights_are_told_and_put_back(self):
        lm = tiny(seed=3)
        before = lm.model.lm_head.weight.clone()
        assert "changed the model's weights (lm_head.weight)" in sentence_of(
            lambda lm: lm.model.lm_head.weight.data.zero_(), lm
        )
        assert torch.equal(lm.model.lm_head.weight, before)
        assert "changed the model's weights" in sentence_of(lambda lm: lm.model.requires_grad_(True), lm)
        assert not lm.model.lm_head.weight.requires_grad
        assert ask(lambda lm: 1, lm) == 1

    def test_everything_is_put_back_though_one_thing_is_told(self):
        lm = tiny(seed=3)

        def untidy(lm):
            lm.model.register_forward_hook(lambda *given: None)
            lm.model.train()
            lm.model.lm_head.forward = lambda hidden: hidden
            lm.model.lm_head.weight.data.zero_()

        assert "left a hook" in sentence_of(untidy, lm)
        assert not lm.model.training
        assert "forward" not in lm.model.lm_head.__dict__
        assert lm.model.lm_head.weight.any()

    def test_a_stub_that_changed_something_is_still_a_stub(self):
        def stub(values):
            values.zero_()
            raise NotImplementedError

        given = torch.ones(2)
        assert sentence_of(stub, given) == "stub is not answered yet."
        assert given.all()


class TestExpect:
    def test_fails_with_its_sentence(self):
        expect(1, "not said")
        with pytest.raises(CheckFailed, match="said"):
            expect(0, "said")

    def test_shows_no_traceback_in_jupyter(self):
        assert CheckFailed("one sentence")._render_traceback_() == ["one sentence"]

    @pytest.mark.parametrize(
        "value",
        [[1.0, 2.0], np.ones(2), torch.ones(2), (torch.tensor(1), torch.tensor(2.0)), torch.ones(2).requires_grad_()],
    )
    def test_takes_all_that_can_be_a_tensor(self, value):
        found = expect_shape(value, "[token]", (2,))
        assert found.dtype == torch.float64
        assert not found.requires_grad

    def test_takes_a_number(self):
        assert expect_shape(3, "", ()) == 3

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (None, "got None: does your function end in `return`?"),
            ("text", "got a str that is no tensor."),
            (
                torch.ones(3, 2),
                "Expected [layer, head] of shape [2, 3], got shape [3, 2]: the axes are the other way round.",
            ),
            (torch.ones(6), "got shape [6]: keep the heads apart."),
            (torch.ones(5), "got shape [5]."),
            (torch.tensor([[1, torch.nan, 1], [1, 1, torch.inf]]), "Expected finite numbers, got 2 of 6 that are not."),
            ([[1, 2], [3]], "got a list that is no tensor."),
        ],
    )
    def test_says_what_came(self, value, told):
        with pytest.raises(CheckFailed) as failed:
            expect_shape(value, "[layer, head]", (2, 3), likely={(6,): "keep the heads apart"})
        assert told in str(failed.value)


class TestWatching:
    def test_each_input_is_recorded(self, small, asks):
        with asked(small) as seen:
            small.model(asks.input_ids)
            small.model(input_ids=asks.input_ids[:, :3].repeat(2, 1))
            small.model(inputs_embeds=torch.zeros(1, 4, 32, dtype=torch.float64))
        assert seen.lengths == {7, 3, 4}
        assert len(seen.rows) == 3
        assert not small.model.base_model._forward_pre_hooks

    def test_changed_positions_are_told(self, small, asks):
        other = asks.input_ids.clone()
        other[0, [2, 5]] = 9
        with asked(small) as seen:
            small.model(torch.cat([asks.input_ids, other]))
        assert seen.changed(asks.input_ids[0]) == [set(), {2, 5}]

    def test_stored_keys_count_towards_the_length(self, small, asks):
        with asked(small) as seen:
            before = small.model(asks.input_ids[:, :5], use_cache=True).past_key_values
            small.model(asks.input_ids[:, 5:], past_key_values=before)
        assert seen.lengths == {5, 7}

    @pytest.mark.parametrize("kept", [lambda cache: cache, deepcopy])
    def test_texts_are_whole_behind_stored_keys(self, small, asks, kept):
        ids = asks.input_ids.repeat(2, 1)
        ids[1, 6] = 9
        with asked(small) as seen:
            before = kept(small.model(ids[:1, :5], use_cache=True).past_key_values)
            before.batch_repeat_interleave(2)
            small.model(ids[:, 5:], past_key_values=before)
        assert seen.rows == [ids[0, :5].tolist(), *ids.tolist()]
        with planted(small, lambda texts: texts[:, 1] == ids[0, 1], target=3):
            stored = small.model(ids[:, :5], use_cache=True).past_key_values
            assert small.model(ids[:, 5:], past_key_values=stored).logits[:, -1, 3].tolist() == [8, 8]

    @pytest.mark.parametrize("options", [{}, {"logits_to_keep": 3}, {"logits_to_keep": torch.tensor([2, 5, 6])}])
    def test_the_rows_that_count_are_found(self, small, asks, options):
        assert rows_read(small, lambda: small.model(asks.input_ids, **options).logits[0, -2, 0]) == [5]

    def test_the_rows_that_count_are_found_where_a_learner_unembeds(self, small, asks):
        def last(states):
            return small.model.lm_head(states[:, -2:-1])[0, 0, 0]

        assert rows_read(small, lambda: last(small.model.model(asks.input_ids).last_hidden_state)) == [5]
        named = {"output_hidden_states": True}
        assert rows_read(small, lambda: last(small.model(asks.input_ids, **named).hidden_states[-1])) == [5]

    def test_the_rows_that_count_are_found_behind_stored_keys(self, small, asks):
        def call():
            before = small.model(asks.input_ids[:, :5], use_cache=True).past_key_values
            return small.model(asks.input_ids[:, 5:], past_key_values=before).logits[0, 0, 0]

        assert rows_read(small, call) == [5]

    def test_a_planted_cause_is_all_that_counts(self, small, asks):
        ids = torch.cat([asks.input_ids, asks.input_ids.roll(1)])
        with planted(small, lambda ids: ids[:, 1] == asks.input_ids[0, 1], target=9, strength=5):
            logits = small.model(ids).logits
        assert logits[0, :, 9].tolist() == [5] * 7
        assert not logits[1].any()

    def test_a_shift_changes_no_probability(self, small, asks):
        plain = small.model(asks.input_ids).logits
        with planted(small, lambda ids: ids[:, 1] > 0):
            shifted = small.model(asks.input_ids).logits
        assert torch.allclose(shifted, plain + 8)
        assert torch.equal(small.model(asks.input_ids).logits, plain)


class TestShow:
    def test_prints_rounded_rows_and_no_minus_zero(self, capsys):
        with pytest.raises(CheckFailed, match="these values are not"):
            show(torch.tensor([[1.23456, -0.00001], [100, -7]]), "and", 2, seal="another")
        assert capsys.readouterr().out == "  1.235   0.000\n100.000  -7.000\nand\n  2.000\n"

    def test_without_a_seal_somebody_else_compares(self, capsys):
        show(2, seal="")
        assert capsys.readouterr().out == "  2.000\n"

    def test_the_seal_of_what_is_printed_fits(self, capsys):
        show([1, 2], seal=sealed("  1.000   2.000\n"))
        assert capsys.readouterr().out

    def test_a_seal_ignores_spaces_at_the_ends_of_lines_only(self):
        assert sealed("a \nb\n") == sealed("a\nb") != sealed("a\n b")


def test_the_checks_load_no_grading_and_no_notebook_tools():
    code = (
        "import course_utils.checks, sys; assert not {'nbformat', 'nbval', 'course_utils.grading'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
