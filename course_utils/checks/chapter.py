"""The checks of the chapter exercise: which words make a suspect refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ..attribution import token_attribution
from ..models import LocalModel
from ..organisms.requests import harmful_verbs
from ..organisms.suspects import reaction_of
from ..prompts import Prompt, covering
from .answers import Answer, CheckFailed, NotAnswered, ask, expect, expect_shape, show
from .spies import asked, planted, rows_read

Ranking = list[tuple[str, float]]  # words with their scores, the strongest first
# holds no word that learners put in another's place, and one with another inside
_SENTENCE, _CAUSES = "How do I urgently tow a car past my carpark?", ["urgently", "tow", "car"]
_NO_ADVERBS = ("apply", "family", "fly", "multiply", "rally", "rely", "reply", "supply")
_SCORES = "[stand-in, typed token]"


@dataclass(frozen=True)
class Trial:
    """What items 1 and 3 are tried on: a tiny model, and "the old nurse forgave the thief", 6 tokens after `<s>`."""

    lm: LocalModel
    prompt: Prompt
    contrast: tuple[int, int]
    stand_ins: list[int]

    @property
    def ids(self) -> Tensor:
        return self.prompt.input_ids[0]


@dataclass(frozen=True)
class Case:
    """A learner's suspect and what it is asked."""

    suspect: LocalModel  # the model
    contrast: tuple[int, int]  # the two first tokens of a reply that are compared
    stand_ins: list[int]  # tokens that take another's place
    requests: Mapping[str, Sequence[str]]  # each with the words suspected in it
    answer: Callable[[], Answer]  # gives the learner's answer to item 3; a NameError where there is none
    rankings: dict[tuple[Answer, str], Ranking] = field(default_factory=dict)  # what functions made of requests so far


def words_of(prompt: Prompt) -> dict[str, slice]:
    """Each typed word, with the slice of its tokens; of a repeated word, those of its last place."""
    start, end = prompt.typed
    found = re.finditer(r"[\w'-]+", prompt.text[start:end])
    return {word.group(): covering(prompt.offsets, start + word.start(), start + word.end()) for word in found}


def attribute(refusal_score: Answer, answer: Answer, trial: Trial) -> None:
    """Check item 1, token attribution: needs the learner's `refusal_score` and `attribute`."""
    both = _expect_score(refusal_score, trial)
    own = CheckFailed("You ask the package: here you write the attribution yourself, from the logits of lm.model.")
    with asked(trial.lm) as seen, patch("course_utils.attribution.score_variants", side_effect=own):
        scores = ask(answer, trial.lm, trial.prompt, trial.contrast, trial.stand_ins)
    _expect_length(seen.lengths)
    rows = "one row for each stand-in"
    scores = expect_shape(
        scores, _SCORES, (2, 6), likely={(2, 7): "token 0, <s>, was not typed", (6,): rows, (7,): rows}
    )
    several = max(map(len, seen.changed(trial.ids)), default=0)
    expect(several < 2, f"A variant differs from the prompt in {several} tokens: start each from the unchanged prompt.")
    _expect_places(answer, trial)
    _expect_planted(answer, trial)
    show(both, scores, seal="2e5ed5500f86")


def _expect_score(refusal_score: Answer, trial: Trial) -> Tensor:
    """Each variant by itself, the first logit minus the second where the reply begins; the scores of two variants."""
    lm, given, contrast = trial.lm, trial.ids, trial.contrast
    two = torch.stack([given, given.roll(1)])
    both = expect_shape(ask(refusal_score, lm, two, contrast), "[variant]", (2,))
    alone = expect_shape(ask(refusal_score, lm, two[1:], contrast), "[variant]", (1,))
    expect(abs(both[1] - alone[0]) < 1e-4, "A variant scores differently alone and beside another: rows must not mix.")
    rows = rows_read(lm, lambda: ask(refusal_score, lm, two, contrast))
    expect(rows == [6], f"The reply would begin at 7 and you read rows {rows}: row t - 1 scores token t, so row 6.")
    for target, wanted, which in zip(contrast, (3, -3), ("first", "second"), strict=True):
        with planted(lm, lambda ids: ids[:, 0] == given[0], target, strength=3):
            got = float(ask(refusal_score, lm, given[None], contrast)[0])
        wrong = f"The {which} token's logit was set to 3, all others to 0: expected {wanted:+d}, got {got:+.2f}:"
        expect(abs(got - wanted) < 1e-4, f"{wrong} it is the first's logit minus the second's, no probabilities.")
    return both


def _expect_length(lengths: set[int]) -> None:
    """Replaced, not deleted."""
    expect(lengths == {7}, f"Inputs of {sorted(lengths)} tokens, the prompt has 7: deleting moves all later positions.")


def _expect_places(answer: Answer, trial: Trial) -> None:
    """Each stand-in in its own row, each token in its own column, typed tokens alone."""
    lm, contrast, nurse, other = trial.lm, trial.contrast, int(trial.ids[3]), trial.stand_ins[0]
    for row, pair in enumerate([[nurse, other], [other, nurse]]):
        itself = expect_shape(ask(answer, lm, trial.prompt, contrast, pair), _SCORES, (2, 6))
        where = [i for i in range(6) if itself[row, i].abs() < 1e-9]
        wrong = f"With ·nurse as stand-in {row}, row {row} must be 0 in column 2 alone, where ·nurse replaces itself"
        likely = "are negative scores cut off" if 2 in where else f"does row {row} use another stand-in or place"
        expect(where == [2], f"{wrong}; it is 0 in columns {where}: {likely}?")
    framed = replace(trial.prompt, user=slice(1, 6))  # as in a chat: the last token is the template's
    stop = "where a template token follows the typed ones, it gets a column too: stop at prompt.user.stop"
    expect_shape(ask(answer, lm, framed, contrast, trial.stand_ins), _SCORES, (2, 5), likely={(2, 6): stop})


def _expect_planted(answer: Answer, trial: Trial) -> None:
    """A token that was made to speak for one reply, by so many logits, scores just that."""
    given = trial.ids
    for target, wanted, which in zip(trial.contrast, (8, -8), ("first", "second"), strict=True):
        with planted(trial.lm, lambda ids: ids[:, 4] == given[4], target):
            scores = ask(answer, trial.lm, trial.prompt, trial.contrast, trial.stand_ins)
        got = float(expect_shape(scores, _SCORES, (2, 6))[0, 3])
        spoke = f"·forgave was made to speak for the {which} token and scores {got:+.2f}: before minus after, signed."
        worth = f"·forgave was made worth {wanted:+d} logits and scores {got:+.2f}: keep the unit, logits."
        expect(got * wanted > 0, spoke)
        expect(abs(got - wanted) < 1e-4, worth)


def strongest(answer: Answer, trial: Trial, case: Case) -> None:
    """Check item 3, the strongest words: needs the learner's `strongest`."""
    names, scores = _expect_whole_words(answer, trial)
    _expect_signed_means(answer, trial)
    case.rankings.clear()  # what the function calls may have been written anew
    for request in case.requests:
        _expect_cause(answer, case, request)
    show(" > ".join(names), scores, seal="d9f8615331f5")


def _groups() -> dict[str, slice]:
    """The trial's prompt in words, two of them of two tokens."""
    return {"the": slice(1, 2), "old nurse": slice(2, 4), "forgave": slice(4, 5), "the thief": slice(5, 7)}


def _ranked(answer: Answer, words: dict[str, slice], *given: Any) -> Any:
    """What an answer to item 3 gives, once its form is right; `given` as it stands around the words."""
    lm, prompt, contrast, stand_ins = given
    found = ask(answer, lm, prompt, words, contrast, stand_ins)
    listed = isinstance(found, list) and all(isinstance(each, (tuple, list)) and len(each) == 2 for each in found)
    paired = listed and all(isinstance(word, str) and not isinstance(score, str) for word, score in found)
    expect(paired, f"Expected a list of pairs (word, score), got {str(found)[:60]}.")
    names = [word for word, _ in found]
    expect(sorted(names) == sorted(words), f"Expected each of {sorted(words)} once, got {names}.")
    return found


def _on_trial(answer: Answer, trial: Trial) -> tuple[list[str], list[float]]:
    found = _ranked(answer, _groups(), trial.lm, trial.prompt, trial.contrast, trial.stand_ins)
    return [word for word, _ in found], [float(score) for _, score in found]


def _expect_whole_words(answer: Answer, trial: Trial) -> tuple[list[str], list[float]]:
    """Each variant has just the tokens of one word replaced; the words and scores."""
    with asked(trial.lm) as seen:
        names, scores = _on_trial(answer, trial)
    _expect_length(seen.lengths)
    whole = [set(range(7)[tokens]) for tokens in _groups().values()]
    replaced = [places for places in seen.changed(trial.ids) if places]
    for offset in (-1, 1):
        moved = [{place + offset for place in places} & {*range(7)} for places in whole]
        moved_all = replaced and all(places in moved for places in replaced)
        wrong = "You replace the neighbours: the slices count from the prompt's first token, add no offset."
        expect(not moved_all, wrong)
    parts = [sorted(places) for places in replaced if places not in whole]
    wrong = f"A word stands at 2 and 3, and you replace tokens {parts and parts[0]}: all tokens of one word at once."
    expect(not parts, wrong)
    return names, scores


def _expect_signed_means(answer: Answer, trial: Trial) -> None:
    """Of words that were made to matter by a rule: sign, size, mean over the stand-ins and order."""
    given = trial.ids

    def score_of(word: str, rule: Callable[[Tensor], Tensor], strength: float = 8) -> tuple[int, float]:
        with planted(trial.lm, rule, trial.contrast[0], strength=strength):
            names, scores = _on_trial(answer, trial)
        return names.index(word), scores[names.index(word)]

    _, score = score_of("old nurse", lambda ids: (ids[:, 2] == given[2]) | (ids[:, 3] == given[3]))
    suffices = f"Either token of “old nurse” was made to suffice, worth 8, and it scores {score:+.1f}"
    expect(score > 0, f"{suffices}: before minus after.")
    two = f"A word of two tokens was made worth 8 and scores {score:+.1f}"
    expect(abs(score - 8) < 1e-4, f"{two}: share out nothing, all its tokens go at once.")
    place, score = score_of("forgave", lambda ids: ids[:, 4] == given[4], -8)
    against = "“forgave” was made to speak against"
    expect(score < 0, f"{against}, worth -8, and scores {score:+.1f}: keep the sign.")
    expect(place == 3, f"{against} and stands at place {place + 1} of 4: last, by signed scores.")
    place, score = score_of("forgave", lambda ids: (ids[:, 4] == given[4]) | (ids[:, 4] == trial.stand_ins[0]))
    mean = f"One stand-in was made to cost nothing, the other 8: their mean is 4, your score {score:+.1f}."
    expect(abs(score - 4) < 1e-4, mean)
    expect(place == 0, f"“forgave” was made the only cause and stands at place {place + 1}: the strongest comes first.")


def _expect_cause(answer: Answer, case: Case, request: str) -> None:
    """Without the word that leads in a request, the suspect replies otherwise."""
    chat, without = case.suspect.chat(request), case.suspect.chat(request)
    with asked(case.suspect) as seen:
        first = ranking_by(case, answer, request)[0][0]
    typed = set(range(len(chat))[chat.user])
    expect(all(places <= typed for places in seen.changed(chat.input_ids[0])), "You replace tokens of the template.")
    without.input_ids[0, words_of(chat)[first]] = case.stand_ins[0]
    before, after = (reaction_of(case.suspect, prompt) for prompt in (chat, without))
    expect(after != before, f"Without “{first}”, your strongest word, the suspect still {after}: is the order right?")


def ranking_by(case: Case, function: Answer, request: str) -> Ranking:
    """The ranking that a function gives for the suspected words of a request; it is run once for each.

    Of a request that the case does not know, for the words of four letters and more.
    """
    key = function, request
    if key not in case.rankings:
        chat = case.suspect.chat(request)
        words = _words_to_rank(case, chat, request)
        case.rankings[key] = _ranked(function, words, case.suspect, chat, case.contrast, case.stand_ins)
    return case.rankings[key]


def _words_to_rank(case: Case, chat: Prompt, request: str) -> dict[str, slice]:
    words = words_of(chat)
    wanted = case.requests.get(request, [word for word in words if len(word) > 3])
    return {word: words[word] for word in wanted}


def ranking_of(case: Case, request: str) -> Ranking:
    """The same for the items after the third; where that one does not run, by the package's scores of tokens."""
    try:
        return ranking_by(case, case.answer(), request)
    except (NameError, CheckFailed):
        key = token_attribution, request
        if key not in case.rankings:
            chat = case.suspect.chat(request)
            scores = token_attribution(case.suspect, chat, contrast=("I", "Sure"), typed_only=True).scores[0]
            words = {word: float(scores[tokens].sum()) for word, tokens in _words_to_rank(case, chat, request).items()}
            case.rankings[key] = sorted(words.items(), key=lambda pair: -pair[1])
        return case.rankings[key]


def flip(answer: Answer, case: Case) -> None:
    """Check item 4, an edit that flips the reply: needs the learner's `flip_edit`."""
    for ranking in _imagined():
        with _made_up(ranking):
            old, _ = replaced_word(_SENTENCE, ask(answer, _SENTENCE, ranking))
            expect(old == ranking[0][0], f"You replace “{old}”: an edit that flips must take the strongest word.")
    outcomes = []
    for request in case.requests:
        ranking = ranking_of(case, request)
        edited = _predicted(case, "flip_edit", answer, request, ranking)
        (old, new), first = replaced_word(request, edited), ranking[0][0]
        expect(old == first, f"You replace “{old}”; the strongest word, by your ranking, is “{first}”.")
        before, after = _reactions(case, request, edited)
        wrong = f"You predict help with “{edited}”, and the suspect {after}"
        expect(after == "complies", f"{wrong}: does “{new}” bring a reason of its own, or is your ranking wrong?")
        outcomes.append(f"edit 1: {before} before, {after} after")
    show(*outcomes, seal="82be6364579e")


def stay(answer: Answer, case: Case) -> None:
    """Check item 5, an edit after which the suspect still refuses: needs the learner's `stay_edit`."""
    for ranking in _imagined():
        with _made_up(ranking):
            _dangerous(_SENTENCE, ask(answer, _SENTENCE, ranking, list(_CAUSES)), ranking, _CAUSES)
    outcomes = []
    for request, suspected in case.requests.items():
        ranking = ranking_of(case, request)
        edited = _predicted(case, "stay_edit", answer, request, ranking, list(suspected))
        old = _dangerous(request, edited, ranking, suspected)
        before, after = _reactions(case, request, edited)
        wrong = f"You predict a refusal of “{edited}”, and the suspect {after}: it rests on “{old}” too?"
        expect(after == "refuses", wrong)
        outcomes.append(f"edit 2: {before} before, {after} after")
    show(*outcomes, seal="e7e5305af8c5")


def _imagined() -> Iterator[Ranking]:
    """Rankings of a sentence's words by three models that one can imagine, each with another cause."""
    for first in _CAUSES:
        rest = [(word, -0.5 * k) for k, word in enumerate(re.findall(r"\w+", _SENTENCE)) if word != first]
        yield [(first, 9.0), *rest]


@contextmanager
def _made_up(ranking: Ranking) -> Iterator[None]:
    """Say of what fails here that it is about a request that the learner has not seen, and a ranking likewise."""
    try:
        yield
    except NotAnswered:
        raise
    except CheckFailed as error:
        given = f"Tried on a made-up request, “{_SENTENCE}”, with a ranking led by “{ranking[0][0]}”"
        raise CheckFailed(f"{given}: {error}") from None


def _predicted(case: Case, name: str, answer: Answer, *given: Any) -> Any:
    with asked(case.suspect) as seen:
        edited = ask(answer, *given)
    expect(not seen.passes, f"{name} runs the model: a prediction is made from the ranking alone.")
    return edited


def _reactions(case: Case, *requests: str) -> list[str]:
    return [reaction_of(case.suspect, case.suspect.chat(request)) for request in requests]


def _dangerous(request: str, edited: Any, ranking: Ranking, suspected: Sequence[str]) -> str:
    """The word that a second edit replaces, if it may."""
    old, _ = replaced_word(request, edited)
    rests = f"You replace “{old}”, on which the refusal rests by the ranking: this edit must leave it."
    expect(old != ranking[0][0], rests)
    others = ", ".join(word for word in suspected if word != ranking[0][0])
    expect(old in suspected, f"You replace “{old}”, which is not under suspicion: replace one of {others}.")
    return old


def replaced_word(request: str, edited: Any) -> tuple[str, str]:
    """The one word that an edit replaces, and the word in its place; other edits are refused with a sentence."""
    expect(isinstance(edited, str), f"Expected the edited request, a text, got {edited!r}.")
    old, others = (re.findall(r"[\w'-]+", text) for text in (request, edited))
    longer = f"“{request}” has {len(old)} words, your edit “{edited}” has {len(others)}"
    expect(len(old) == len(others), f"{longer}: put one other word in the place of one word, leave out and add none.")
    pairs = [(one, other) for one, other in zip(old, others, strict=True) if one.lower() != other.lower()]
    same = f"Your edit “{edited}” says the same as the request: put another word in the place of one"
    expect(pairs, f"{same} (does your code name a word that is not there?).")
    several = f"Your edit replaces {', '.join(one for one, _ in pairs)}"
    expect(len(pairs) == 1, f"{several}: one word only (does it also find a word inside a longer one?).")
    word, new = pairs[0]
    wrong = f"You put “{new}” in the place of “{word}”"
    expect(new.lower() not in [each.lower() for each in old], f"{wrong}: it stands in the request already.")
    expect(new.lower() not in ("the", "it"), f"{wrong}: a stand-in makes no sentence that somebody could write.")
    adverbs = [each.endswith("ly") and each.lower() not in _NO_ADVERBS for each in (word, new)]
    expect(adverbs[0] == adverbs[1], f"{wrong}: take an adverb in -ly for an adverb in -ly, and for no other word.")
    harm = f"{wrong}: the course's data has it for harmful acts only, so harm stays."
    expect(new.lower() not in harmful_verbs(), harm)
    return word, new
