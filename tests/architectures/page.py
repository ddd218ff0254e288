"""The verdicts as a page of the documentation, and as plain text to work from."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from .oracles import METHODS
from .verdicts import NO_ORACLE, NOT_BUILDABLE, RIGHT, SENTENCE, TRACEBACK, WRONG, Verdict

Found = dict[str, dict[str, Verdict]]
SYMBOLS = {RIGHT: "✓", SENTENCE: "s", NO_ORACLE: "·", WRONG: "✗", TRACEBACK: "!", NOT_BUILDABLE: "–"}
MEANING = {
    RIGHT: "right",
    SENTENCE: "says in one sentence why not",
    NO_ORACLE: "nothing to compare with could be established",
    WRONG: "wrong",
    TRACEBACK: "an error that is no sentence",
}
INTRODUCTION = """# Every architecture, every method: right, or a sentence

Each architecture in transformers' causal mapping is built tiny (about four layers, d_model 32, random weights in
float32, no bias zero and no norm weight one), and each method of the package is compared with plain full passes of one
input at a time: with other ids, with weights set to zero, or with plain hooks. Right means within a thousandth of the
largest score. Prompts have 7 tokens, and {long} where windows matter. A name with an @ is a variant that a setting
makes. Made by `python -m tests.architectures`; the oracles are `tests/architectures/oracles.py`."""


def page(found: Found) -> str:
    """The page, in Markdown."""
    built = {name: row for name, row in found.items() if not _unbuilt(row)}
    parts = [INTRODUCTION.format(long=24), _totals(found, built), _table(built), _methods(), _sentences(built)]
    return "\n\n".join([*parts, _left_out(found)]) + "\n"


def summary(found: Found, seconds: dict[str, float]) -> str:
    """Counts, then each kind of fault with the architectures that have it."""
    built = {name: row for name, row in found.items() if not _unbuilt(row)}
    counts = Counter(verdict.kind for row in built.values() for verdict in row.values())
    slow = sorted(seconds.items(), key=lambda item: -item[1])[:5]
    lines = [
        f"{len(found)} run, {len(built)} built; verdicts: {', '.join(f'{n} {kind}' for kind, n in counts.most_common())}",
        f"seconds of a core: mean {sum(seconds.values()) / len(seconds):.1f}; {', '.join(f'{n} {s:.1f}' for n, s in slow)}",
        "",
        "method: right, sentence, wrong, traceback, no oracle",
    ]
    for method in METHODS:
        kinds = Counter(row[method].kind for row in built.values())
        numbers = " ".join(f"{kinds[kind]:4}" for kind in (RIGHT, SENTENCE, WRONG, TRACEBACK, NO_ORACLE))
        lines.append(f"  {method:26} {numbers}")
    for kind in (TRACEBACK, WRONG, SENTENCE, NO_ORACLE, RIGHT):
        lines += ["", f"--- {kind}"]
        for method in METHODS:
            which = [(name, row[method].text) for name, row in built.items() if row[method].kind == kind]
            which = [(name, text) for name, text in which if text]
            if not which:
                continue
            lines.append(f"{method} ({len(which)})")
            if kind == WRONG:
                lines += [f"    {name:26} {text}" for name, text in which]
            else:
                lines += [f"    {len(names):3} {text[:200]}: {', '.join(names)}" for text, names in _grouped(which)]
    lines += [
        "",
        "--- not buildable",
        *(f"    {name}: {next(iter(row.values())).text}" for name, row in found.items() if _unbuilt(row)),
    ]
    return "\n".join(lines) + "\n"


def _unbuilt(row: dict[str, Verdict]) -> bool:
    return next(iter(row.values())).kind == NOT_BUILDABLE


def _grouped(which: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Texts with the names they belong to, the most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, text in which:
        groups[text].append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _totals(found: Found, built: Found) -> str:
    counts = Counter(verdict.kind for row in built.values() for verdict in row.values())
    all_right = sum(all(v.kind == RIGHT for v in row.values()) for row in built.values())
    types, variants = sum("@" not in name for name in built), sum("@" in name for name in built)
    rows = [f"| {SYMBOLS[kind]} | {meaning} | {counts[kind]:,} |" for kind, meaning in MEANING.items()]
    opening = (
        f"{types} types and {variants} variants built, {len(found) - len(built)} not buildable here; {len(METHODS)} "
        f"methods on each. All right on {all_right}."
    )
    partly = sum(verdict.kind == RIGHT and bool(verdict.text) for row in built.values() for verdict in row.values())
    opening += (
        f" Of the verdicts “right”, {partly} rest on less than all of a method's comparisons, or on scores below 0.02."
    )
    return "\n".join([opening, "", "| symbol | meaning | verdicts |", "| --- | --- | ---: |", *rows])


def _table(built: Found) -> str:
    heads = [str(number) for number in range(1, len(METHODS) + 1)]
    lines = [f"| architecture | {' | '.join(heads)} |", f"| --- |{' :-: |' * len(heads)}"]
    for name, row in built.items():
        lines.append(f"| {name} | {' | '.join(SYMBOLS[row[method].kind] for method in METHODS)} |")
    return "\n".join(lines)


def _methods() -> str:
    return "Columns: " + ", ".join(f"{number} {method}" for number, method in enumerate(METHODS, 1)) + "."


def _sentences(built: Found) -> str:
    """Each sentence, its architecture's name taken out, with how many architectures and which methods say it."""
    said: dict[str, tuple[set[str], set[str]]] = {}
    for name, row in built.items():
        for method, verdict in row.items():
            if verdict.kind == SENTENCE:
                names, methods = said.setdefault(_general(name, verdict.text), (set(), set()))
                names.add(name)
                methods.add(method)
    lines = [
        f"- {text} **{len(names)}**: {_few(names)} ({', '.join(m for m in METHODS if m in methods)})"
        for text, (names, methods) in sorted(said.items(), key=lambda item: -len(item[1][0]))
    ]
    return "\n".join(["## The sentences, and how many architectures each is for", "", *lines])


def _general(name: str, text: str) -> str:
    """A sentence without what is this architecture's own: classes, its name, numbers."""
    words = re.sub(r"\b(?=\w*[a-z])(?=\w*[A-Z]\w*[A-Z])[A-Z]\w+", "CLASS", text)
    return re.sub(r"\b\d+\b", "N", words.replace(f"{name} ", "MODEL ").replace(f"{name},", "MODEL,"))


def _few(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _left_out(found: Found) -> str:
    lines = [f"- {name}: {next(iter(row.values())).text}" for name, row in found.items() if _unbuilt(row)]
    return "\n".join(["## Not buildable here", "", *lines]) if lines else ""
