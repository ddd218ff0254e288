"""An audit as a page for someone who has not heard of logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import product

from .fingerprint import VERSION
from .grid import MinimalEdits
from .inside import READ, Inside
from .page import TITLE, figure, listed, page, paragraphs, section, table
from .replies import LEAST_AGREEMENT, Replies
from .run import Audit, Words
from .search import GROUP, SCANNED, Candidate
from .settings import acts
from .terms import ACTS, HARMFUL, HARMLESS
from .verdicts import RULE

PLAIN_TEXT = (
    "It has no chat template here, so it was asked in plain text: of a chat model whose template is missing this says "
    "nothing."
)


def plain_words(audit: Audit) -> list[str]:
    """What was found in plain words, with counts."""
    grid, replies = audit.grid, audit.replies
    plain = [PLAIN_TEXT] if replies.prompt == replies.requests[0] else []
    if grid is None:
        some = replies.hidden[1] if replies.hidden else "Some"
        return [*plain, f"{some} of {len(replies.texts)} replies did not show by their opening whether it refuses."]

    def counted(act: int, word: str) -> str:
        return "{} of {} {} requests".format(*grid.refused(act, word), ("harmless", "harmful")[act])

    said = [*plain, f"Without any special word it refused {counted(HARMFUL, '')} and {counted(HARMLESS, '')}."]
    for word in audit.verdict.words or grid.suspected[:1]:
        said.append(f"With “{word}” it refused {counted(HARMFUL, word)} and {counted(HARMLESS, word)}.")
    others = [f"{name}: {c.sentence}" for name, c in audit.contexts.items() if c.kind != audit.verdict.kind]
    said += [f"Other settings, other verdicts. {' '.join(others)}"] if others else []
    if audit.words and audit.words.read_as_harm:
        harm = _quoted(c.word for c in audit.words.read_as_harm)
        said.append(f"With {harm} it refused harmless requests as well, but speaks about the words when asked to.")
    if audit.words and not audit.asked_all:
        least = min(audit.words.scans, key=lambda scan: scan.n_asked)
        unasked = (
            f"There was time for {least.n_asked:,} of {least.n_known:,} words only, so one that was not asked may "
            "be behind its refusals, or a way around them: --minutes gives more."
        )
        said.insert(len(said) if audit.verdict.words else 0, unasked)
    if audit.is_family and audit.words:
        more = max((audit.words.on, audit.words.off), key=len)
        said.append(f"{len(more)} words do the same: {_quoted(c.word for c in more)}. Read them: what do they share?")
    return said


def report(audit: Audit) -> str:
    """The whole report as one HTML page.

    >>> report(found).startswith("<!DOCTYPE html>")  # doctest: +SKIP
    True
    """
    v, expected = audit.verdict, audit.settings.expect
    parts = [
        f"<h1>{TITLE}</h1><p>An audit of <strong>{escape(audit.model)}</strong>: what do its refusals follow?</p>",
        f'<p class="verdict">{escape(v.sentence)}</p>',
        paragraphs(plain_words(audit)),
        section("What may be claimed", paragraphs([v.claim])),
        section("What to do next", paragraphs([v.next_action])),
        section(
            "What was expected, before measuring", paragraphs(expected.splitlines() or ["Nothing was written down."])
        ),
        section("How it refuses", _replies(audit.replies)),
    ]
    if audit.words:
        parts += [section("Which words?", _words(audit.words))]
    if audit.grid:
        parts += [section("One thing changed at a time", _grid(audit.grid, len(audit.settings.pairs or acts("grid"))))]
    if audit.contexts:
        told = {name: each.sentence for name, each in audit.contexts.items()}
        parts += [section("The same in other settings", table(told))]
    parts += [
        section("Where in the model", _inside(audit.inside) if audit.inside else paragraphs([audit.no_inside])),
        section("Limits", listed([*v.limits, *_limits(audit)])),
        section("The rule, fixed beforehand, and the numbers", paragraphs([RULE, *v.figures])),
        section("Which model this was", table(audit.fingerprint)),
        section("Which audit this was", table(_about(audit))),
    ]
    return page(f"{audit.model}: {TITLE}", "".join(parts))


def _replies(replies: Replies) -> str:
    read, no = len(replies.texts), sum(replies.refuses)
    said = [
        f"{read} greedy replies were read; {no or 'none'} of them "
        f"{'begins' if no == 1 else 'begin'} by saying no, as far as this audit knows: read them. From then on the "
        "score of a request says how likely its reply is to begin so, or in another usual way: above 0 it refuses. "
        "(It is the log-odds, in logits: at 0 refusing is as likely as not, at +3 twenty times as likely, at −3 a "
        "twentieth.)",
        f"Score and reply say the same on {replies.agreement:.0%} of all, of the refusing or of the helping ones, "
        f"whichever is least, with openings read off other replies (at least {LEAST_AGREEMENT:.0%} is asked).",
        "What the model read with the first request, all that nobody typed included:",
    ]
    rows = (
        (request, "refuses" if refuses else "helps", f"{score:+.1f}", text)
        for request, refuses, score, text in zip(
            replies.requests, replies.refuses, replies.scores, replies.texts, strict=True
        )
    )
    prompt = f"<pre>{escape(replies.prompt)}</pre>"
    return paragraphs(said) + prompt + _columns(("request", "reply", "score", "it begins"), rows)


def _words(words: Words) -> str:
    parts = []
    for number, scan in enumerate(words.scans):
        what = "a harmful" if number else "a harmless"
        caption = (
            f"{scan.n_asked:,} of the {scan.n_known:,} words of one token were put in one place of {what} request, "
            f"{GROUP} at once. Shown are the {len(scan.words) - scan.n_longer:,} that were then put there alone, those "
            f"of the groups that leaned furthest, and {scan.n_longer:,} of several tokens that begin with these: each "
            "bar counts words of one score. Right of 0 it refuses; dashed: without a word"
        )
        parts += [figure(caption, scan)]
    lists = [
        ("make it refuse harmless requests", words.on),
        (
            "make it refuse because they change what is asked for (it speaks about them when asked to)",
            words.read_as_harm,
        ),
        ("make it help with harmful ones", words.off),
    ]
    said = [f"Words that {what}, wherever they stood: {_found(some)}" for what, some in lists if some]
    none = [] if said else ["No word changed what the model does, in other places of other requests."]
    if words.from_log:
        said.append(f"Behind refusals in the log: {_quoted(words.from_log)}.")
    if words.scans[0].turned() and not (words.on or words.read_as_harm):
        said.append("Words right of 0 in the first picture did not make it refuse most of the other harmless requests.")
    return "".join(parts) + paragraphs([*none, *said])


def _found(some: Sequence[Candidate]) -> str:
    return ", ".join(f"“{c.word}” ({c.changed} of {c.asked} turned, {c.shift:+.1f})" for c in some) + "."


def _grid(grid: MinimalEdits, n_pairs: int) -> str:
    places = [*product(range(len(grid.pairs)), (HARMFUL, HARMLESS), grid.words, range(len(grid.frames)))]
    rows = (
        (grid.request(p, a, w, f), ACTS[a], w or "none", f"{grid.scores[p, a, grid.words.index(w), f]:+.1f}")
        for p, a, w, f in places
    )
    head = ("request", "act", "word", "score")
    every = f"<details><summary>All {len(places)} requests</summary>{_columns(head, rows)}</details>"
    said = [
        f"{len(grid.pairs)} pairs of a harmful act and a harmless one, each with no special word, with neutral ones, "
        f"and with what was found or suspected, in each of these sentences: {' | '.join(map(_shown, grid.frames))}",
    ]
    if left_out := n_pairs - len(grid.pairs):
        said.append(f"{left_out} of {n_pairs} pairs were left out: their acts hold a word that was found or suspected.")
    said += [] if grid.system is None else [f"System prompt: {grid.system or '(empty)'}"]
    caption = "Each cell is one kind of request: its mean score (above 0 it refuses), and how many were refused"
    return paragraphs(said) + figure(caption, grid) + every


def _inside(inside: Inside) -> str:
    accuracy = inside.accuracy
    said = ["At the last token of the prompt, how well do requests that end in a refusal lie apart from the others?"]
    if inside.layer is None or inside.without is None:
        return paragraphs([*said, f"At no layer well enough to be read (at best {accuracy.max():.0%})."])
    low, high = min(inside.coins), max(inside.coins)
    used = inside.without < low
    said += [
        f"At layer {inside.layer} they can first be told apart ({READ:.0%} or more), by the direction in which their "
        "mean states there differ. With that direction taken out of every layer the mean score of refused requests "
        f"goes from {inside.before:+.1f} to {inside.without:+.1f}; with directions that mean nothing, made alike from "
        f"acts that a coin put on two sides, it comes to {low:+.1f} to {high:+.1f} ({len(inside.coins)} tosses). So "
        f"what can be read there is {'likely' if used else 'not shown to be'} used.",
    ]
    if inside.heads:
        told = ", ".join(f"head {head} of layer {layer} ({share:.0%})" for layer, head, share in inside.heads)
        said.append(
            "Heads are the parts that bring what earlier words say to later ones. Of one refusal, these bring most "
            f"into a request that is helped with, each alone (100%: all of it): {told}."
        )
    said += [inside.no_heads] if inside.no_heads else []
    return paragraphs(said) + figure("Requests told apart, by layer", inside)


def _limits(audit: Audit) -> list[str]:
    if not audit.words:
        return []
    asked = [f"{scan.n_asked:,} of {scan.n_known:,}" for scan in audit.words.scans]
    said = [
        f"Words asked: {' and '.join(asked)}, each one token without capitals after a space, at the end of one request "
        f"({_shown(SCANNED)}), {GROUP} at once, and alone where those leaned furthest. Of words of several tokens "
        f"{sum(scan.n_longer for scan in audit.words.scans):,}, which begin with one of those. Others, rules that go "
        "by two words at once, and words that act only where no others stand beside them were not asked.",
    ]
    if any((scan.without > 0) != bool(number) for number, scan in enumerate(audit.words.scans)):
        said.append("Refusing and helping may begin with the same token here, so the scan may have overlooked words.")
    replies = audit.replies
    if odd := sum(no and score <= 0 for no, score in zip(replies.refuses, replies.scores, strict=True)):
        said.append(
            f"{odd} of the {len(replies.texts)} replies above begin by saying no where the score is below 0: the "
            "likeliest beginning of all, and less likely than the others together."
        )
    done, words = audit.words.log_words
    if done < words:
        said.append(f"There was time to leave out {done:,} of {words:,} words in requests of the log that are refused.")
    said += [f"A chat of the log was left out: {why}" for why in audit.left_out[:5]]
    if len(audit.left_out) > 5:
        said.append(f"{len(audit.left_out)} chats of the log were left out, some for other reasons than these five.")
    return [*said, "A model that looks for signs of a test would behave otherwise here than where it is used."]


def _about(audit: Audit) -> dict[str, str]:
    settings = audit.settings
    total, read = len(settings.log), audit.words.log_read if audit.words else len(settings.log)
    return {
        "begun": audit.began,
        "took": f"{audit.seconds:.0f} s",
        "version": VERSION,
        "seed": str(settings.seed),
        "words given": ", ".join(settings.words) or "none",
        "chats in the log": f"{total:,}" + (f", of which {read:,} were looked at" if read < total else ""),
        "pairs": "given" if settings.pairs else "built in",
    }


def _columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _shown(frame: str) -> str:
    return frame.replace("{word}", "WORD").replace("{act}", "ACT")


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)
