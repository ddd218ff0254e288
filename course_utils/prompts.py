"""A prompt as the model sees it: token ids, one printable string a token, and which tokens the user typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .errors import CourseError, first_line, is_count

if TYPE_CHECKING:
    from torch import Tensor

_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"})
_BROKEN, _LONGEST = "\ufffd", 8  # what decoders write for half a character; tokens that one group of them may span
_PIECE = re.compile(r"\[(\d)/\d\]$")
Message = Mapping[str, str]  # its "role" ("system", "user" or "assistant") and its "content"
_PLACEHOLDER = "\ue000typed\ue001"  # private-use characters: no chat template contains or trims them


@dataclass(frozen=True)
class Prompt:
    """Text that is ready for a model, with the tokens that the user typed marked.

    Attributes:
        text: what the model reads, chat template included.
        input_ids: int64 `[1, token]`.
        tokens: one printable string a token (space as ·, newline as ↵).
        user: the slice of the tokens that hold at least one character the user typed (of a chat: in the last turn).
        offsets: where each token stands in `text`, as (start, end) in characters.
        typed: where the typed part stands in `text`; its first token may also hold a newline of the template's.
        messages: the role of each message of the chat and where it stands in `text`, without those that the template
            rewrites or leaves out.

    >>> prompt = load_model().chat("Hi there")
    >>> prompt.tokens[prompt.user]
    ['Hi', '·there']
    """

    text: str
    input_ids: Tensor = field(repr=False)
    tokens: list[str] = field(repr=False)
    user: slice
    offsets: list[tuple[int, int]] = field(repr=False)
    typed: tuple[int, int] = field(repr=False)
    messages: tuple[tuple[str, tuple[int, int]], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def span(self, words: str) -> slice:
        """The slice of typed tokens that cover some words of the user's (a word may be several tokens).

        Raises:
            CourseError: the words are not there, or are there more than once.

        >>> prompt = load_model().chat("How do I embezzle money?")
        >>> prompt.tokens[prompt.span("embezzle")]
        ['·em', 'be', 'zzle']
        """
        start, end = self.typed
        count = self.text.count(words, start, end) if words else 0
        if count != 1:
            raise CourseError(
                f"Expected words that stand in the typed text exactly once, got {words!r}, which stands there "
                f"{count} times; the typed text is {self.text[start:end]!r}."
            )
        found = self.text.index(words, start, end)
        return covering(self.offsets, found, found + len(words))

    def place(self, position: int) -> int:
        """Which token a position is, counted from the first; CourseError where there is none."""
        if not is_count(position, -len(self)) or position >= len(self):
            raise CourseError(
                f"Expected a position from {-len(self)} to {len(self) - 1}, got {position!r}, which a prompt of "
                f"{len(self)} tokens does not have ({self.text[slice(*self.typed)]!r})."
            )
        return position % len(self)

    def _repr_html_(self) -> str:
        from .plots import tokens_html

        return tokens_html(self.tokens, user=self.user)


def render_chat(
    tokenizer: Any, messages: Sequence[Message], switches: Mapping[str, Any] | None = None
) -> tuple[str, list[tuple[int, int] | None]]:
    """Fill a chat template with messages; returns the text and where each of them starts and ends in it.

    A place is found by filling the same template with a placeholder: what stands before it and after it is template.
    Of a message that the template rewrites or leaves out there is no place, and the last, the user's, must have one.
    """

    def fill(number: int, content: str) -> str:
        said = [*messages[:number], {**messages[number], "content": content}, *messages[number + 1 :]]
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **(switches or {})))

    last = len(messages) - 1
    try:
        rendered = fill(last, messages[last]["content"])
        split = [fill(number, _PLACEHOLDER).split(_PLACEHOLDER) for number in range(len(messages))]
    except Exception as error:  # templates are programs of their own and raise what they like
        raise CourseError(
            f"The model's chat template does not take these messages ({first_line(error)}); "
            "build the text yourself and pass it to lm.prompt(text)."
        ) from error
    if messages[0]["role"] == "system" and messages[0]["content"].strip() and len(split[0]) == 1:
        raise CourseError(
            "The model's chat template leaves the system prompt out, so the model would not read it; give system='' "
            "and put it before the request."
        )
    places = [_place(rendered, parts, m["content"]) for parts, m in zip(split, messages, strict=True)]
    if places[last] is None:
        raise CourseError(
            "The model's chat template rewrites or repeats what the user typed, so typed tokens cannot be told "
            "from template tokens; build the text yourself and pass it to lm.prompt(text)."
        )
    return rendered, places


def _place(rendered: str, around: list[str], content: str) -> tuple[int, int] | None:
    """Where a message stands between what was around its placeholder."""
    start, end = len(around[0]), len(rendered) - len(around[-1])
    whole = len(around) == 2 and rendered.startswith(around[0]) and rendered.endswith(around[1])
    return (start, end) if whole and rendered[start:end] in (content, content.strip()) else None


def encode(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text and where each token stands in it; `special` puts the tokenizer's own BOS before it.

    A BOS that the text begins with is not doubled, and what the tokenizer would put after a text (EOS, SEP) is left
    out: the model is to go on with the text, not to answer after its end.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CourseError(f"Expected text of whole characters, got half of one ({first_line(error)}).") from error
    try:
        encoded = tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
    except Exception as error:  # the library behind it raises nothing narrower
        raise CourseError(f"The model's tokenizer does not take this text ({first_line(error)}); retype it.") from error
    told = list(zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True))
    opening = [i for i, _, _ in takewhile(itemgetter(2), told)]  # added tokens that the text itself holds count as text
    ids, offsets = [i for i, _, added in told if not added], [tuple(pair) for _, pair, added in told if not added]
    if ids[: len(opening)] == opening:
        return ids, offsets
    return [*opening, *ids], [*[(0, 0)] * len(opening), *offsets]


def covering(offsets: list[tuple[int, int]], start: int, end: int) -> slice:
    """The slice of tokens that hold at least one of the characters start … end."""
    inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start]
    if not inside:  # a vocabulary may lack some control characters, which its tokenizer then drops
        raise CourseError("Expected text that the model has tokens for, got characters its tokenizer drops; retype it.")
    return slice(inside[0], inside[-1] + 1)


def token_strings(tokenizer: Any, ids: list[int]) -> list[str]:
    """One printable string a token id, each for itself: what it adds to a text, spaces and newlines made visible.

    A token that holds part of a character only is shown as its bytes.
    """
    decoded = _decoder(tokenizer)
    alone = [(i, decoded([i])) for i in ids]
    return [visible(text) if text and _BROKEN not in text else _as_bytes(tokenizer, i) for i, text in alone]


def sequence_strings(tokenizer: Any, ids: list[int]) -> list[str]:
    """One printable string a token of a text; of a character that is split over tokens each shows which piece it is.

    >>> sequence_strings(tokenizer, tokenizer("an 🦉")["input_ids"])  # doctest: +SKIP
    ['an', '·🦉[1/3]', '🦉[2/3]', '🦉[3/3]']
    """
    shown, decoded = token_strings(tokenizer, ids), _decoder(tokenizer)
    start = 0
    while start < len(ids):
        stop = start + 1
        if _BROKEN in decoded(ids[start:stop]):
            ends = range(start + 2, min(start + _LONGEST, len(ids)) + 1)
            stop = next((end for end in ends if _BROKEN not in decoded(ids[start:end])), stop)
            text, n = visible(decoded(ids[start:stop])), stop - start
            if n > 1:
                shown[start:stop] = [f"{text if k == 1 else text.lstrip('·')}[{k}/{n}]" for k in range(1, n + 1)]
        start = stop
    return shown


def joined(tokens: Sequence[str]) -> str:
    r"""The text that the printable tokens of a sequence make, with each character once that is split over several.

    >>> joined(["an", "·🦉[1/2]", "🦉[2/2]"])
    'an·🦉'
    """
    firsts = [_PIECE.sub("", token) for token in tokens if not (found := _PIECE.search(token)) or found[1] == "1"]
    return "".join(firsts)


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """A function that tells what some tokens add to a text."""
    anchor, _ = encode(tokenizer, "a", special=False)  # some decoders strip the first token's space
    skip = len(tokenizer.decode(anchor))

    def decoded(ids: list[int]) -> str:
        return str(tokenizer.decode([*anchor, *ids], clean_up_tokenization_spaces=False)[skip:])

    return decoded


def _as_bytes(tokenizer: Any, token_id: int) -> str:
    """A token that is no text by itself: its bytes, as SentencePiece writes them, or its id where no token has it."""
    name = tokenizer.convert_ids_to_tokens(token_id)
    if name is None:
        return f"#{token_id}"
    known = _byte_characters()
    if not all(c in known for c in name):
        return visible(name) or f"#{token_id}"
    spelt = bytes(known[c] for c in name)
    try:
        return visible(spelt.decode())  # the text's own U+FFFD
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in spelt)


@cache
def _byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte (Radford et al. 2019), and the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def visible(text: str) -> str:
    r"""A text with spaces, newlines and other invisible characters shown.

    >>> visible(" a\n")
    '·a↵'
    """
    shown = text.translate(_VISIBLE)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
