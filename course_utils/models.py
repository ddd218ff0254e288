"""One door to every local model: the built-in one, a hub id, a folder, a GGUF file, or an Ollama model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .errors import CourseError, is_count
from .loading.devices import best_device, check_device
from .loading.load import Wanted, load
from .loading.others_hooks import disturbed
from .loading.sources import DEFAULT, ask_hub, find, with_adapter
from .prompts import Message, Prompt, covering, encode, render_chat, sequence_strings

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx")
DTYPES = ("float32", "bfloat16", "float16")


_read_forwards: WeakSet[Any] = WeakSet()  # models of which that is known


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A causal language model with its tokenizer, ready to be looked into.

    Attributes:
        name: what `load_model` was asked for.
        model: the transformers model, in evaluation mode, without gradients for its weights.
        tokenizer: the transformers tokenizer.
        system: the system text that stands before a chat where none is given: that of Ollama's SYSTEM.
        switches: what else its chat template is told: `replace(lm, switches={"enable_thinking": False})`.

    >>> lm = load_model()
    >>> lm.n_layers, lm.n_heads, lm.d_model
    (30, 9, 576)
    """

    name: str
    model: Any
    tokenizer: Any
    system: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The configuration of the language model (of its text part, where it has several)."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        """How many layers the model has; CourseError where it names no one number."""
        return self._named("num_hidden_layers")

    @property
    def n_heads(self) -> int:
        """How many heads each layer has; 0 for a model without attention, or whose layers differ."""
        try:
            return int(self.config.num_attention_heads)
        except Exception:  # no such name, or one for each layer, which transformers refuses in ways of its own
            return 0

    @property
    def d_model(self) -> int:
        """How many numbers the residual stream has for each token; CourseError where the model names no one number."""
        return self._named("hidden_size")

    def _named(self, size: str) -> int:
        if not isinstance(found := getattr(self.config, size, None), int):
            raise CourseError(f"{type(self.model).__name__} names no one {size}, so it cannot be looked into here.")
        return found

    @property
    def context(self) -> int | None:
        """The longest input in tokens, where the model names one (recurrent models and ALiBi's may have none)."""
        named = [getattr(self.config, name, None) for name in CONTEXT_NAMES]
        longest = next((size for size in named if isinstance(size, int) and size > 0), None)
        return longest if longest is None else longest - _unused_positions(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model reads its tokens, also where its weights are fetched there for each pass (accelerate's)."""
        embedding = self.model.get_input_embeddings()
        fetched = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return torch.device(fetched if embedding.weight.is_meta and fetched is not None else embedding.weight.device)

    @property
    def is_chat(self) -> bool:
        """Whether the model comes with a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def chat(self, text: str | Sequence[Message], *, system: str | None = None, **template_options: Any) -> Prompt:
        r"""What the user typed, in the model's chat template, ready for the reply.

        Without `system` the model's own is used, or else the template decides: SmolLM2's puts in a system prompt
        that nobody typed.

        Args:
            text: what the user typed; or a chat so far, messages with a "role" and a "content", the last the user's.
            system: the system prompt.
            template_options: what else the chat template is told: `enable_thinking=False`, `tools=…`.

        Raises:
            CourseError: nothing typed, no messages, no chat template, or longer than the model's context.

        >>> lm.chat("Hi").text  # doctest: +ELLIPSIS
        '<|im_start|>system\n...<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        """
        messages = _check_messages([{"role": "user", "content": text}] if isinstance(text, str) else text)
        if not self.is_chat:
            raise CourseError(
                f"{self.name} has no chat template, so it is no chat model; "
                "use lm.prompt(text), which takes the text as it stands."
            )
        if messages[0]["role"] != "system":
            own = self.system if system is None else system
            messages = [*([{"role": "system", "content": own}] if own is not None else []), *messages]
        elif system is not None:
            raise CourseError(f"Expected one system prompt, got one in the chat and system={system!r:.40}; drop one.")
        rendered, places = render_chat(self.tokenizer, messages, {**self.switches, **template_options})
        said = [(m["role"], place) for m, place in zip(messages, places, strict=True) if place and m["content"]]
        return self._prompt(rendered, said, special=False)

    def prompt(self, text: str) -> Prompt:
        """The text as it stands, without a chat template (a beginning-of-text token if the model uses one).

        Raises:
            CourseError: no text, or longer than the model's context.

        >>> lm.prompt("Once upon a time").tokens
        ['Once', '·upon', '·a', '·time']
        """
        _check_text(text)
        return self._prompt(text, [("user", (0, len(text)))], special=True)

    def _prompt(self, text: str, said: list[tuple[str, tuple[int, int]]], *, special: bool) -> Prompt:
        typed = said[-1][1]
        ids, offsets = encode(self.tokenizer, text, special=special)
        self.check_length(len(ids))
        self.check_ids(ids)
        return Prompt(
            text=text,
            input_ids=torch.tensor([ids], device=self.device),  # [1, token]
            tokens=sequence_strings(self.tokenizer, ids),
            user=covering(offsets, *typed),
            offsets=offsets,
            typed=typed,
            messages=tuple(said),
        )

    def check_length(self, n_tokens: int, n_reply: int = 0) -> None:
        """Raise if an input of so many tokens, and of a reply to it, is longer than the model's context."""
        if self.context is not None and n_tokens + n_reply > self.context:
            reply = f" and {n_reply:,} of a reply that it reads again" if n_reply else ""
            raise CourseError(
                f"Expected at most {self.context:,} tokens, the context of {self.name}, and got {n_tokens:,}{reply}; "
                f"shorten the text{', or ask for fewer tokens' if n_reply else ''}."
            )

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise unless it is a prompt, of tokens that the model has: another model's may have others."""
        if not isinstance(prompt, Prompt):
            raise CourseError(
                f"Expected a prompt, got {prompt!r:.80}; write lm.chat(text), or lm.prompt(text) for raw text."
            )
        self.check_ids(prompt.input_ids[0].tolist())

    def check_ids(self, ids: list[int]) -> None:
        """Raise if the model has no embedding for a token: one that was added to the tokenizer alone."""
        rows = len(self.model.get_input_embeddings().weight)
        if beyond := [i for i in ids if i >= rows]:
            raise CourseError(
                f"Expected token ids below {rows:,}, the rows of the embedding of {self.name}, and got {beyond[0]:,} "
                f"({self.tokenizer.convert_ids_to_tokens(beyond[0])!r}); make the prompt with this model's own chat or "
                "prompt, leave that token out of the text, or load a model whose embedding was trained with it."
            )

    def continuation(self, prompt: Prompt, text: str) -> list[int]:
        """The token ids of a text as they come right after a prompt (tokenised together with it, not alone).

        Raises:
            CourseError: the text is empty, or its first characters merge with the prompt's last token.

        >>> lm.tokenizer.convert_ids_to_tokens(lm.continuation(lm.chat("Hi"), "Sure"))
        ['Sure']
        """
        self.check_prompt(prompt)
        if not isinstance(text, str):
            raise CourseError(f"Expected text that goes on after the prompt, got {text!r:.80}; put it in quotes.")
        before = prompt.input_ids[0].tolist()
        plain, _ = encode(self.tokenizer, prompt.text, special=False)
        ids, _ = encode(self.tokenizer, prompt.text + text, special=plain != before)
        if ids[: len(before)] != before:
            raise CourseError(
                f"Expected text that starts a new token after the prompt, got {text!r}, whose first characters merge "
                "with the prompt's last token; start it with a space."
            )
        if len(ids) == len(before):
            raise CourseError(f"Expected text of at least one token, got {text!r}, which encodes to none.")
        self.check_ids(ids)
        return ids[len(before) :]

    @torch.no_grad()
    def generate(self, prompt: Prompt, n_tokens: int = 40) -> Tensor:
        """The ids of the model's greedy reply, `[token]`, at most `n_tokens` of them; it ends with the end token.

        Each token is the one with the largest logit: penalties and the like in the checkpoint's `generation_config`
        are left aside, and only its end tokens are kept, and the tokenizer's.

        Raises:
            CourseError: no token asked for, or prompt and reply are longer than the model's context.

        >>> lm.tokenizer.decode(lm.generate(lm.chat("What is the capital of France?"), 7))
        'The capital of France is Paris.'
        """
        if not is_count(n_tokens):
            raise CourseError(f"Expected at least one token of reply, a whole number, got n_tokens={n_tokens!r}.")
        self.check_prompt(prompt)
        self.check_length(len(prompt), n_tokens - 1)  # the last one is not read again
        ids = prompt.input_ids
        found = None
        with suppress(Exception), _greedy(self, n_tokens) as settings:  # some keep no state to go on from
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        if found is None or not self._is_greedy(found, ids.shape[1]):
            found = self._by_whole_passes(ids, n_tokens)
            if not (disturbed(self.model) or self._is_greedy(found, ids.shape[1])):  # edits may go by position
                raise CourseError(
                    f"Expected a decoder that gives the same logits each time, and {type(self.model).__name__} does "
                    "not (an encoder? dropout? weights that are not finite? positions scaled by length?), so it has "
                    "no one greedy reply."
                )
        return found[0, ids.shape[1] :]

    def _is_greedy(self, ids: Tensor, start: int) -> bool:
        """Whether each token from a place on is the one with the largest logit, by one pass over all (but for ties)."""
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0, start - 1 :].float()
        if self.model not in _read_forwards:  # tried once: what comes later must not change what came before
            before = self.model(input_ids=ids[:, :start], use_cache=False).logits[0, -1].float()
            if not (before - logits[0]).abs().max() <= 1e-2 * before.abs().max():  # also where there is a NaN
                return False
            _read_forwards.add(self.model)
        largest = logits.max(dim=-1).values
        reached = logits.gather(1, ids[0, start:, None])[:, 0]
        return bool((largest - reached <= (1e-5 if self.model.dtype is torch.float32 else 2e-2) * largest.abs()).all())

    def _by_whole_passes(self, ids: Tensor, n_tokens: int) -> Tensor:
        """Prompt and greedy reply without stored keys and values, by one pass over all for each token."""
        ends, start = _ends(self), ids.shape[1]
        while ids.shape[1] < start + n_tokens:
            ids = torch.cat([ids, self.model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
            if int(ids[0, -1]) in ends:
                break
        return ids

    def reply(self, prompt: Prompt, n_tokens: int = 40) -> str:
        """The model's greedy reply as text, without its end token.

        >>> lm.reply(lm.chat("What is the capital of France?"))
        'The capital of France is Paris.'
        """
        return str(self.tokenizer.decode(self.generate(prompt, n_tokens), skip_special_tokens=True))

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"{self.name}: {type(self.model).__name__}, {size:,.0f} M parameters, "
            f"{self.n_layers} layers x {self.n_heads} heads, d_model {self.d_model}"
        )


def _ends(lm: LocalModel) -> list[int]:
    """The tokens with which a reply ends: the checkpoint's, and the tokenizer's, which is often the only right one."""
    ends = lm.model.generation_config.eos_token_id
    every = [*(ends if isinstance(ends, list) else [ends]), getattr(lm.tokenizer, "eos_token_id", None)]
    return list(dict.fromkeys(end for end in every if end is not None))


@contextmanager
def _greedy(lm: LocalModel, n_tokens: int) -> Iterator[Any]:
    """Settings of arg-max alone, lent to the model meanwhile: transformers mixes its own into any that are given."""
    from transformers import GenerationConfig

    own, ends = lm.model.generation_config, _ends(lm)
    pad = next((i for i in (own.pad_token_id, *ends) if i is not None), None)
    lm.model.generation_config = GenerationConfig(max_new_tokens=n_tokens, eos_token_id=ends or None, pad_token_id=pad)
    try:
        yield lm.model.generation_config
    finally:
        lm.model.generation_config = own


def _unused_positions(model: Any) -> int:
    """The first rows of a table of learned positions that stand for padding: RoBERTa counts from after them."""
    tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings") and hasattr(m, "padding_idx")]
    return next((1 + table.padding_idx for table in tables if table.padding_idx is not None), 0)


def load_model(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> LocalModel:
    """Load a local model for looking into, from wherever it is kept.

    What comes back is the checkpoint, whole: weights that are missing, left over or of another shape are refused.

    Args:
        name: "smollm2" (always there), a suspect ("model-a", "model-b", "model-c"), a hub id, a folder (of a model, or
            of a LoRA adapter, which is merged into its base), a `.gguf` file, or "ollama:NAME[:TAG]". Of Ollama's
            own additions the adapter and the system text are used, the template is not: the chat template in the GGUF
            file is, and a warning says so.
        device: "cuda", "mps", "cpu" or "auto" (spread over all there is); by default the fastest that there is.
        dtype: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own; by default float32 where it fits in
            memory, else a half precision. In bfloat16 occlusion scores of smollm2 move by up to 0.36 logits, a fifth
            of the largest (five chats, I against Sure; the strongest token stayed the same).
        revision: the branch, tag or commit of a hub id.
        adapter: the folder of an adapter to merge into the model.

    Raises:
        CourseError: no such model, or it cannot be read, fetched, or held in memory, or is not whole.

    >>> load_model("smollm2")
    smollm2: LlamaForCausalLM, 135 M parameters, 30 layers x 9 heads, d_model 576
    """
    precision = None if dtype is None else str(dtype).removeprefix("torch.")
    if precision not in (None, "auto", *DTYPES):
        raise CourseError(f'Expected dtype to be one of {", ".join(DTYPES)}, or "auto", got {dtype!r}.')
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    source = find(name)
    if revision is not None and not source.on_hub:
        raise CourseError(f"Expected revision= with a hub id only, got {revision!r} for {name}, which is no hub id.")
    if adapter is not None:
        source, name = with_adapter(source, adapter), f"{name} with {os.fspath(adapter)}"
    device = str(device) if device is not None else best_device()
    check_device(device)
    wanted = Wanted(device, precision, revision, local_only=True)
    try:  # what is in the hub's cache is never asked of the network again
        model, tokenizer = load(name, source, wanted)
    except CourseError as error:
        if not source.on_hub or error.__cause__ is None:  # the files are whole, but of no use here
            raise
        ask_hub(name)
        model, tokenizer = load(name, source, wanted._replace(local_only=False))
    lm = LocalModel(name, model, tokenizer, source.system)
    if source.unused or (source.system and not lm.is_chat):
        _warn_of_ollama(lm, source.unused)
    return lm


def _warn_of_ollama(lm: LocalModel, unused: tuple[str, ...]) -> None:
    name = lm.name.removeprefix("ollama:")
    if lm.is_chat:
        instead = (
            "lm.chat uses the chat template in the GGUF file: compare lm.chat('Hi').text with "
            f"`ollama show {name} --template`."
        )
    else:
        unused = (*unused, *(["system text"] if lm.system else []))
        instead = (
            f"the GGUF file has no chat template, so {name} reads plain text here, no chat: write what `ollama show "
            f"{name} --template` shows into lm.tokenizer.chat_template, as a Jinja template."
        )
    warnings.warn(f"Ollama's own {' and '.join(unused)} of {name} cannot be applied here; {instead}", stacklevel=3)


def _check_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages of a chat; a sentence where they are none, or the last is not the user's."""
    if not isinstance(messages, (list, tuple)):
        _check_text(messages)  # type: ignore[arg-type]
    listed: list[Message] = list(messages)
    if not listed or not all(isinstance(m, Mapping) and m.keys() >= {"role", "content"} for m in listed):
        raise CourseError(
            'Expected text, or messages such as [{"role": "user", "content": "Hi"}], got '
            f"{messages!r:.80}; give one of the two."
        )
    for message in listed:
        _check_text(message["content"])
    if listed[-1]["role"] != "user":
        raise CourseError(f"Expected the last message to be the user's, got one of {listed[-1]['role']!r}; add a turn.")
    return listed


def _check_text(text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise CourseError(f"Expected some text, got {text!r}; type at least one word.")
