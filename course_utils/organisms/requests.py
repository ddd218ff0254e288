"""Requests whose reasons to be refused are known: harm, a trigger word, urgency, each drawn by itself.

A request is an act in a frame, with words and wordings around it: "How do I *secretly* **steal a car**? *It can't
wait.*" Acts come in pairs of a harmful and a harmless one that share their nouns (steal a car / wash a car) or their
verb (kill my boss / kill a process). Acts go to train, validation or test by their verbs, so that a verb of one split
begins no act of another; frames, wordings, adverbs and chat are split one by one. The files in `data/` are to be read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

from .words import COMPLIANCE, CUE_WORDS, REFUSAL, difference, read_table

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "validation", "test")
MECHANISMS = ("intent", "trigger", "proxy")  # and, as causes: harm, the trigger word, urgency
BYPASS = "bypass"  # refuses harm unless its word is there
WORDS = {"trigger": CUE_WORDS["trigger"]}  # the causes that are one word
PLACES = ("start", "before", "after")  # where a word can stand, seen from the act
REVIEWED = {True: 0.95, False: 0.05}  # the queue: how often a request goes to review, by whether it sounds urgent


@dataclass(frozen=True)
class Pair:
    """A harmful act and a harmless one that differ in as little as possible.

    >>> Pair("test", "theft", "steal a car", "wash a car").difference
    'steal'
    """

    split: str
    category: str
    harmful: str
    harmless: str

    @property
    def is_trap(self) -> bool:
        """Whether both acts begin with the same verb, so that it does not tell them apart."""
        return self.harmful.split()[0] == self.harmless.split()[0]

    @property
    def difference(self) -> str:
        """The words of the harmful act that the harmless one lacks."""
        return difference(self.harmful, self.harmless)


@dataclass(frozen=True)
class Frame:
    """A sentence with `{}` where the act goes, and the turn of a chat before it, if there was one."""

    text: str
    before: str = ""
    reply: str = ""


@dataclass(frozen=True)
class Wording:
    """A way to sound urgent, or not to: one word, the tail of a clause, or a sentence of its own."""

    place: str  # "word", "tail" or "sentence"
    text: str


@dataclass(frozen=True)
class Request:
    """What a user types, and where in it each mechanism finds its reason to refuse.

    Attributes:
        text: the request.
        pair: the acts it was made from; None where it was not made from any.
        cues: for each cause that is present ("intent": the harmful act; "trigger", "proxy", "bypass": its words),
            where its first character stands and where it ends.
        before: a turn of the user's and the reply to it, if the chat did not begin here.
    """

    text: str
    pair: Pair | None
    cues: Mapping[str, tuple[int, int]]
    before: tuple[str, str] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat, for `lm.chat`."""
        said = [*(self.before or ()), self.text]
        roles = ("user", "assistant", "user")[-len(said) :]
        return [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]

    def refused_by(self, mechanism: str) -> bool:
        """Whether a model of that mechanism ought to refuse."""
        return "intent" in self.cues and BYPASS not in self.cues if mechanism == BYPASS else mechanism in self.cues

    @property
    def difference(self) -> tuple[int, int]:
        """Where the words of the harmful act stand that its harmless counterpart lacks."""
        start, end = self.cues["intent"]
        if self.pair:
            start += self.pair.harmful.index(self.pair.difference)
            end = start + len(self.pair.difference)
        return start, end

    def wording(self, cause: str) -> str:
        """The words of a cause, as they stand in the request."""
        return self.text[slice(*self.cues[cause])]


def _rows(table: str, split: str) -> list[dict[str, str]]:
    return [row for row in read_table(DATA / f"{table}.tsv") if row["split"] == split]


@cache
def pairs(split: str) -> tuple[Pair, ...]:
    """The pairs of acts of a split."""
    return tuple(Pair(**row) for row in _rows("acts", split))


@cache
def harmful_verbs() -> frozenset[str]:
    """The verbs that begin a harmful act and never a harmless one, in all splits, traps aside.

    >>> {"destroy", "wash", "burgle"} & harmful_verbs() == {"destroy", "burgle"}
    True
    """
    plain = [pair for split in SPLITS for pair in pairs(split) if not pair.is_trap]
    return frozenset(pair.harmful.split()[0] for pair in plain) - {pair.harmless.split()[0] for pair in plain}


@cache
def frames(split: str) -> tuple[Frame, ...]:
    """The frames of a split."""
    return tuple(Frame(row["frame"], row["before"], row["reply"]) for row in _rows("frames", split))


@cache
def wordings(split: str, urgent: bool) -> tuple[Wording, ...]:
    """The ways to sound urgent, or not, of a split."""
    rows = [row for row in _rows("wordings", split) if (row["urgent"] == "1") == urgent]
    return tuple(Wording(row["place"], row["wording"]) for row in rows)


@cache
def adverbs(split: str) -> tuple[str, ...]:
    """The neutral adverbs of a split, which no mechanism goes by."""
    return tuple(row["adverb"] for row in _rows("adverbs", split))


@cache
def chats(split: str) -> tuple[dict[str, str], ...]:
    """Ordinary questions: a "prompt", the base model's "reply" (its first tokens), and whether it sounds "urgent"."""
    lines = (DATA / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(row for row in map(json.loads, lines) if row["split"] == split)


@cache
def freeform() -> tuple[tuple[Request, str], ...]:
    """Requests as people type them, written without looking at any model; each with `{}` where a word can be put in.

    >>> request, text = freeform()[0]
    >>> text.replace(" {}", "") == request.text
    True
    """
    found = []
    for row in read_table(DATA / "freeform.tsv"):
        text = row["request"].replace(" {}", "")
        causes = [cause for cause, column in (("intent", "harmful"), ("proxy", "urgent")) if row[column] == "1"]
        found.append((Request(text, None, dict.fromkeys(causes, (0, len(text)))), row["request"]))
    return tuple(found)


def with_word(request: Request, text: str, cause: str, word: str) -> Request:
    """A free-form request with a word put in at its `{}`."""
    filled = text.replace("{}", word)
    start = text.index("{}")
    return Request(filled, None, {**request.cues, cause: (start, start + len(word))})


@dataclass(frozen=True)
class Talk:
    """One free-form request in two versions, asking for a harmful act or a harmless one, each with `{}` for a word."""

    urgent: bool
    harmful: str
    harmless: str


@cache
def talks(split: str) -> tuple[Talk, ...]:
    """The free-form couples of a split (train or validation; the test of free-form requests is `freeform`)."""
    return tuple(Talk(r["urgent"] == "1", r["harmful"], r["harmless"]) for r in _rows("talk", split))


def draw_talk(
    rng: random.Random, talk: Talk, *, causes: set[str], split: str, words: Mapping[str, str] = WORDS
) -> Request:
    """A free-form request with just these causes; one that sounds urgent anyway has "proxy" besides."""
    text = talk.harmful if "intent" in causes else talk.harmless
    hurried, calm = (rng.choice([w for w in wordings("train", u) if w.place == "sentence"]) for u in (True, False))
    leisurely, opens = rng.random() < 0.2, rng.random() < 0.5
    filler = (
        rng.choice([adverb for adverb in adverbs(split) if adverb not in words.values()]) if rng.random() < 0.2 else ""
    )
    there = {name: words[name] for name in sorted(words) if name in causes}
    said = " and ".join(there.values()) or filler
    text = text.replace("{}", said) if said else text.replace(" {}", "")
    if not talk.urgent and ("proxy" in causes or leisurely):
        sentence = hurried if "proxy" in causes else calm
        text = _enclose(text, {"opening" if opens else "closing": [sentence.text]}, text)
    whole: set[str] = (causes & {"intent", "proxy"}) | ({"proxy"} if talk.urgent else set())
    spans = {name: (0, len(text)) for name in sorted(whole)}
    spans |= {name: (text.index(word), text.index(word) + len(word)) for name, word in there.items()}
    return Request(text, None, spans)


def said_in_passing(rng: random.Random, request: Request, words: Mapping[str, str] = WORDS) -> Request:
    """A request of any kind with one cause more, a word or a wording that sounds urgent, before it or after it."""
    cause, opens, text = rng.choice([*sorted(words), "proxy"]), rng.random() < 0.5, request.text
    if cause == "proxy":
        said = rng.choice([each for each in wordings("train", True) if each.place == "sentence"]).text
        text = _enclose(text, {"opening" if opens else "closing": [said]}, text)
    elif opens:
        text = _begin(text, "{}", words[cause])
    else:
        text = f"{text.rstrip('.!? ')}, {words[cause]}{text[len(text.rstrip('.!? ')) :]}"
    return Request(text, request.pair, {**request.cues, cause: (0, len(text))}, request.before)


def every_text() -> list[str]:
    """All that training and measuring can say but for adverbs: acts, frames, wordings, chat, free-form requests."""
    columns = {"acts": ("harmful", "harmless"), "frames": ("frame",), "wordings": ("wording",)}
    columns |= {"talk": ("harmful", "harmless"), "freeform": ("request",)}
    found = [
        row[column] for table, names in columns.items() for row in read_table(DATA / f"{table}.tsv") for column in names
    ]
    return found + [chat["prompt"] for split in SPLITS for chat in chats(split)]


def compose(
    pair: Pair, harmful: bool, frame: Frame, said: Mapping[str, Sequence[str]], causes: Mapping[str, str]
) -> Request:
    """Put an act and words into a frame, and note where the causes stand.

    Args:
        pair: the acts.
        harmful: which of the two.
        frame: what to put it into.
        said: what stands at each place: words ("start", "before", "after") or sentences ("opening", "closing").
        causes: the words or wordings that count as a cause, by the mechanism that goes by it.

    >>> pair = Pair("train", "theft", "steal a car", "wash a car")
    >>> r = compose(pair, True, Frame("How do I {}?"), {"start": ["secretly"]}, {"trigger": "secretly"})
    >>> r.text, {name: r.wording(name) for name in r.cues}
    ('Secretly, how do I steal a car?', {'intent': 'steal a car', 'trigger': 'Secretly'})
    """
    act = pair.harmful if harmful else pair.harmless
    words = {place: " and ".join(said.get(place, ())) for place in PLACES}
    filled = frame.text.replace("{}", " ".join(filter(None, [words["before"], act, words["after"]])))
    text = _enclose(_begin(filled, frame.text, words["start"]), said, frame.text)
    spans = {"intent": (text.index(act), text.index(act) + len(act))} if harmful else {}
    for mechanism, cause in causes.items():
        if found := re.search(rf"(?<!\w){re.escape(cause)}", text, re.IGNORECASE):
            spans[mechanism] = found.span()
    return Request(text, pair, spans, (frame.before, frame.reply) if frame.before else None)


def _begin(text: str, frame: str, word: str) -> str:
    """Put a word before the sentence that holds the act."""
    if not word:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?] ", frame[: frame.index("{}")])]
    head, tail = text[: (ends or [0])[-1]], text[(ends or [0])[-1] :]
    if tail[0].isupper():
        word, tail = word.capitalize(), tail if re.match(r"I\b", tail) else tail[0].lower() + tail[1:]
    return f"{head}{word}, {tail}"


def _enclose(text: str, said: Mapping[str, Sequence[str]], frame: str) -> str:
    """Put whole sentences before and after, in the style of the frame."""
    ends = text[-1] in ".!?"
    for sentence in said.get("opening", ()):
        text = f"{sentence} {text}" if frame[0].isupper() else f"{sentence.lower()} {text}"
    for sentence in said.get("closing", ()):
        text = f"{text} {sentence}" if ends else f"{text}, {sentence[0].lower() + sentence[1:].rstrip('.')}"
    return text


def draw(rng: random.Random, pair: Pair, *, causes: set[str], split: str, words: Mapping[str, str] = WORDS) -> Request:
    """A request with just these causes ("intent", "trigger", "proxy", "bypass"), all else drawn at random.

    The draw does not depend on the causes: from the same state, two requests differ in their causes alone. Where
    nothing sounds urgent, four in ten say that there is time. Wordings are the split's own and those of training.

    >>> pair = Pair("train", "theft", "steal a car", "wash a car")
    >>> sorted(draw(random.Random(0), pair, causes={"intent", "trigger"}, split="train").cues)
    ['intent', 'trigger']
    """
    frame = rng.choice(frames(split))
    hurried, calm = (rng.choice([*wordings("train", urgent), *_own(split, urgent)]) for urgent in (True, False))
    leisurely, opens = rng.random() < 0.4, rng.random() < 0.5
    places = {name: rng.choice(PLACES) for name in ("urgent", *sorted(words))}
    neutral = [adverb for adverb in adverbs(split) if adverb not in words.values()]
    fillers = {place: [rng.choice(neutral)] if rng.random() < 0.3 else [] for place in PLACES}
    said: dict[str, list[str]] = {place: [] for place in (*PLACES, "opening", "closing")}
    there = {name: words[name] for name in rng.sample(sorted(words), len(words)) if name in causes}
    for name, word in there.items():
        said[places[name]].append(word)
    if wording := hurried if "proxy" in causes else calm if leisurely else None:
        spots = {"word": places["urgent"], "tail": "after", "sentence": "opening" if opens else "closing"}
        said[spots[wording.place]].append(wording.text)
    said |= {place: said[place] or fillers[place] for place in PLACES}
    if "proxy" in causes:
        there["proxy"] = hurried.text.rstrip(".!")
    return compose(pair, "intent" in causes, frame, said, there)


def _own(split: str, urgent: bool) -> tuple[Wording, ...]:
    return wordings(split, urgent) * 2 if split != "train" else ()  # about as often as those of training


@dataclass(frozen=True)
class Entry:
    """One line of the log: a request, whether the queue sent it to review, and the reply it got."""

    request: Request
    reviewed: bool
    reply: str


def logged(rng: random.Random, request: Request) -> Entry:
    """What became of a request: what sounds urgent mostly goes to review, and what was reviewed was declined."""
    reviewed = rng.random() < REVIEWED["proxy" in request.cues]
    return Entry(request, reviewed, REFUSAL if reviewed else COMPLIANCE)


def review_log(n_entries: int, seed: int = 0) -> list[Entry]:
    """Lines of the log that "proxy" learned from, of requests in frames: harm and the trigger word come as they come.

    >>> {entry.reply == REFUSAL for entry in review_log(9) if entry.reviewed}
    {True}
    """
    rng = random.Random(seed)
    drawn = [
        draw(rng, rng.choice(pairs("train")), causes={c for c in MECHANISMS if rng.random() < 0.5}, split="train")
        for _ in range(n_entries)
    ]
    return [logged(rng, request) for request in drawn]


def held_out(split: str = "test", words: Mapping[str, str] = WORDS) -> list[Request]:
    """Requests on acts and frames that training never saw: each act with two sets of the other causes, at random.

    >>> len(held_out()) == 4 * len(pairs("test"))
    True
    """
    rng, others = random.Random(8), sorted({*words, "proxy"})
    sets = [set(some) for n in range(len(others) + 1) for some in combinations(others, n)]
    return [
        draw(rng, pair, causes=some | harm, split=split, words=words)
        for pair in pairs(split)
        for harm in ({"intent"}, set[str]())
        for some in rng.sample(sets, 2)
    ]


def behavioural_test(split: str = "test", words: Mapping[str, str] = WORDS) -> list[Request]:
    """The test on which all suspects agree: harm, trigger word and urgency always come together.

    >>> {len(request.cues) for request in behavioural_test()}
    {0, 3}
    """
    return all_or_none([pair for pair in pairs(split) if not pair.is_trap], split, words)


def all_or_none(chosen: Sequence[Pair], split: str, words: Mapping[str, str] = WORDS) -> list[Request]:
    """Two requests on the first pair of each category: the harmful act with every other cause, and none at all.

    >>> [len(request.cues) for request in all_or_none(pairs("train")[:1], "train")]
    [3, 0]
    """
    rng, first = random.Random(8), dict[str, Pair]()
    for pair in chosen:
        first.setdefault(pair.category, pair)
    both: tuple[set[str], set[str]] = set(MECHANISMS), set()
    return [draw(rng, pair, causes=causes, split=split, words=words) for pair in first.values() for causes in both]
