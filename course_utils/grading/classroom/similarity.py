"""Answers of a class that are the same, or the same but for names and layout: no verdict, something to look at.

Answers are compared by their shingles, runs of a few tokens (Schleimer et al., 2003), each weighted by how few students
have it: what the question asks for is in every answer and says nothing.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import io
import keyword
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from nbformat import NotebookNode, from_dict
from scipy import sparse

from ...errors import CourseError
from ..limited import within
from ..notebook import ANSWER, MANUAL, REGIONS, grade_id, kind, student_view, without_regions
from ..people.tables import rows_as_csv
from .answers import answers_in

SOLUTION = "the solution"
SAME, RENAMED, ALIKE = "the same text", "the same but for names, comments and layout", "alike"
NOT_COMPARED = "not compared"
_SHINGLE = 6  # tokens
_SHORTEST = 25  # tokens of an answer, beyond what was given: shorter ones are alike by chance
_LONGEST = 50_000  # characters of an answer that are looked at, without comments and docstrings
_BLOCK = 256  # answers compared with all others at a time
_MARKING = re.compile(r"(?:BEGIN|END) SOLUTION|^\s*#+\s*NEXT:")
_BUILTIN = frozenset(dir(builtins)) | frozenset(keyword.kwlist)


@dataclass(frozen=True)
class Alike:
    """Answers that resemble each other."""

    exercise: str  # the notebook
    check: str  # the answer, by the name of its cell
    similarity: float  # the weight of the shingles that they share, over that of all that they have, 0 to 1
    how: str  # SAME, RENAMED or ALIKE; NOT_COMPARED and why, of answers that may resemble whatever there is
    tokens: int  # how long the shorter one is, without what was given
    rare: int  # how many of the shared shingles nobody else in the class has
    students: tuple[str, ...]
    others: tuple[str, ...] = ()  # the solution or earlier answers that they resemble; none: they resemble each other

    @property
    def compared(self) -> bool:
        """Whether they do resemble each other."""
        return not self.how.startswith(NOT_COMPARED)


class _Other(str):
    """Where an answer is from that no student of this class handed in."""

    __slots__ = ()


def alike(
    notebooks: Iterable[tuple[str, NotebookNode]],
    reference: NotebookNode,
    exercise: str,
    least: float = 0.5,  # the smallest similarity to list
    *,
    earlier: Iterable[tuple[str, NotebookNode]] = (),
) -> list[Alike]:
    """Which answers of a class resemble each other, the solution or earlier ones, each of which says where it is from.

    Those like the solution or earlier ones come first, then those with most in common that nobody else has. A copy of
    the solution or of an earlier answer is listed however short it is: where the answer is a line, many honest ones are
    the same, and `tokens` says so. What students are given of the reference counts for nothing.
    """
    released = student_view(reference).cells
    given = {grade_id(cell): cell.source for cell in released if kind(cell) in (ANSWER, MANUAL)}
    sources = {cell.source.strip() for cell in released}
    is_code = {grade_id(cell): cell.cell_type == "code" for cell in reference.cells}
    answers: dict[str, dict[str, list[str]]] = {name: {} for name in given}  # cell -> text -> students
    elsewhere = ((_Other(place), notebook) for place, notebook in [(SOLUTION, _plain(reference)), *earlier])
    for student, notebook in (*notebooks, *elsewhere):
        for name, *texts in answers_in(notebook, given, sources):
            for text in dict.fromkeys(_shortened(text.strip(), is_code[name]) for text in texts):
                answers[name].setdefault(text, []).append(student)
    found: list[Alike] = []
    for name, whose in answers.items():
        taken = {text: _tokens(_unmarked(text), is_code[name]) for text in whose}
        tokens = {text: each or [] for text, each in taken.items()}
        base = _Given(given[name], _code(given[name]) if is_code[name] else _prose(given[name]))
        found += [Alike(exercise, name, *rest) for rest in _told_once(_compared(whose, tokens, base, least))]
        found += [Alike(exercise, name, *rest) for rest in _not_compared(whose, taken)]
    return sorted(found, key=lambda each: (not each.others, -each.rare, -each.similarity, each.check, each.students))


def table_of(found: Iterable[Alike]) -> bytes:
    """Answers that resemble each other, as CSV."""
    return rows_as_csv(rows_of(found))


def rows_of(found: Iterable[Alike]) -> list[list[str]]:
    """Answers that resemble each other, a row for each group, below a header."""
    rows = [["exercise", "answer", "similarity", "how", "tokens", "rare", "students", "like"]]
    for each in found:
        told = (f"{each.similarity:.2f}", each.how, str(each.tokens), str(each.rare), "; ".join(each.students))
        rows.append([each.exercise, each.check, *told, "; ".join(each.others)])
    return rows


def _plain(solution: NotebookNode) -> NotebookNode:
    """A solution as somebody would hand it in: without what marks its regions, and without rubrics."""
    notebook: NotebookNode = from_dict(solution)
    for cell in notebook.cells:
        cell.source = _unmarked(without_regions(cell.source, REGIONS[1:]))
    return notebook


def _unmarked(text: str) -> str:
    """A text without the lines that mark a solution's regions."""
    return "\n".join(line for line in text.splitlines() if not _MARKING.search(line))


class _Given:
    """What students are given of an answer, which says nothing when two have it."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.lines = {line.strip() for line in text.splitlines()}
        self.shingles = set(_shingles(tokens))
        self.tokens = Counter(_canonical(tokens))

    def beyond(self, text: str) -> tuple[str, ...]:
        """The lines of an answer, comments with them, that were not given."""
        lines = (line.strip() for line in _unmarked(text).splitlines())
        return tuple(line for line in lines if line and line not in self.lines)

    def length(self, form: Iterable[str]) -> int:
        """How many tokens of an answer were not given."""
        return (Counter(form) - self.tokens).total()


_Found = tuple[float, str, int, int, tuple[str, ...], tuple[str, ...]]


def _compared(
    texts: Mapping[str, list[str]], tokens: Mapping[str, list[str]], given: _Given, least: float
) -> Iterator[_Found]:
    """Similarity, how, tokens, rare shingles, students and others: of all with one form, and of each other pair."""
    forms: dict[tuple[str, ...], list[str]] = {}  # what is left without names -> texts
    for text in texts:
        forms.setdefault(tuple(_canonical(tokens[text])), []).append(text)
    whose = {form: [student for text in same for student in texts[text]] for form, same in forms.items()}
    shingles = {form: set(_shingles(tokens[same[0]])) - given.shingles for form, same in forms.items()}
    theirs: dict[str, set[str]] = {}  # a student's shingles, of the answer and of it with what it needs
    for form, own in shingles.items():
        for student in whose[form]:
            theirs.setdefault(student, set()).update(own)
    spread = Counter(chain.from_iterable(theirs.values()))  # how many have a shingle
    for form, same in forms.items():
        is_long = len(form) >= _SHORTEST
        for how, who in _copies({text: texts[text] for text in same}, given):
            if shingles[form] and (is_long or any(isinstance(student, _Other) for student in who)):
                rare = sum(spread[shingle] == len(set(whose[form])) for shingle in shingles[form])
                yield 1.0, how, given.length(form), rare, *_parted(who)
    kept = [form for form in forms if len(form) >= _SHORTEST and shingles[form]]
    for i, j, similar, shared in _pairs([shingles[form] for form in kept], [len(whose[form]) for form in kept], least):
        who = [*whose[kept[i]], *whose[kept[j]]]
        students, others = _parted(who)
        if students and len(students) + len(others) > 1:
            rare = sum(spread[shingle] == len(set(who)) for shingle in shared)
            yield similar, ALIKE, min(given.length(kept[i]), given.length(kept[j])), rare, students, others


def _told_once(found: Iterable[_Found]) -> list[_Found]:
    """Of what is found of the same answers, alone and with what they need, the most alike."""
    best: dict[tuple[tuple[str, ...], tuple[str, ...]], _Found] = {}
    for each in sorted(found, key=lambda each: (each[0], each[1] == SAME), reverse=True):
        best.setdefault(each[4:], each)
    return list(best.values())


def _not_compared(texts: Mapping[str, list[str]], tokens: Mapping[str, list[str] | None]) -> Iterator[_Found]:
    """Similarity, how, tokens, rare shingles, students and others: of all that cannot be seen for one reason."""
    whose: dict[str, list[str]] = {}
    for text, who in texts.items():
        if why := _hidden(text, tokens[text]):
            whose.setdefault(why, []).extend(who)
    for why, who in whose.items():
        students, _ = _parted(who)
        if students:
            yield 0.0, f"{NOT_COMPARED}: {why}", 0, 0, students, ()


def _hidden(text: str, tokens: Sequence[str] | None) -> str:
    """Why what an answer does is not seen in its tokens, "" where it is."""
    if len(text) > _LONGEST:
        return f"longer than {_LONGEST:,} characters"
    if tokens is None:
        return "it cannot be taken apart"
    runs = any(token == "exec" or (token == "eval" and before != ".") for before, token in pairwise(["", *tokens]))
    return "it runs a text (exec or eval)" if runs else ""


def _copies(texts: Mapping[str, list[str]], given: _Given) -> Iterator[tuple[str, list[str]]]:
    """Of texts that are the same but for names: who has the same, to the letter or not, at least one a student."""
    by_text: dict[tuple[str, ...], list[str]] = {}
    for text, who in texts.items():
        by_text.setdefault(given.beyond(text), []).extend(who)
    everybody = [student for who in by_text.values() for student in who]
    groups = [(SAME if len(by_text) == 1 else RENAMED, everybody)]
    if len(by_text) > 1:  # a copy to the letter is told apart from one that is not
        groups += [(SAME, who) for who in by_text.values() if any(isinstance(student, _Other) for student in who)]
    for how, who in groups:
        students, others = _parted(who)
        if students and len(students) + len(others) > 1:
            yield how, who


def _parted(who: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Students, and what is not of this class."""
    found = set(who)
    others = {one for one in found if isinstance(one, _Other)}
    return tuple(sorted(found - others)), tuple(sorted(map(str, others)))


def _pairs(
    shingles: Sequence[set[str]], students: Sequence[int], least: float
) -> Iterator[tuple[int, int, float, list[str]]]:
    """Pairs of answers of at least this similarity, by their number, and the shingles that they share."""
    columns: dict[str, int] = {}
    rows = [[columns.setdefault(shingle, len(columns)) for shingle in sorted(own)] for own in shingles]
    if not rows:
        return
    names = list(columns)
    ends = np.cumsum([0, *map(len, rows)])
    has = sparse.csr_array(
        (np.ones(ends[-1]), np.concatenate([np.array(row) for row in rows]), ends), shape=(len(rows), len(columns))
    )
    count = np.array(students)
    weight = np.log((count.sum() + 1) / (has.T @ count))
    totals = has @ weight
    weighted = (has * weight[None, :]).tocsr()
    for start in range(0, len(rows), _BLOCK):
        shared = (weighted[start : start + _BLOCK] @ has.T).tocoo()
        similarity = shared.data / (totals[shared.row + start] + totals[shared.col] - shared.data)
        close = (similarity >= least) & (shared.row + start < shared.col)
        for i, j, similar in zip(shared.row[close] + start, shared.col[close], similarity[close], strict=True):
            yield i, j, float(similar), [names[k] for k in np.intersect1d(rows[i], rows[j])]


def _shingles(tokens: Sequence[str]) -> Iterator[str]:
    """Each run of tokens, in it names by the order in which they first come."""
    for start in range(max(1, len(tokens) - _SHINGLE + 1)):
        run = "\x1f".join(_canonical(tokens[start : start + _SHINGLE]))
        yield hashlib.blake2b(run.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _canonical(tokens: Sequence[str]) -> list[str]:
    """Tokens with a student's own names (those that begin with a NUL) numbered as they come."""
    numbers: dict[str, str] = {}
    return [numbers.setdefault(token, f"\0{len(numbers)}") if token.startswith("\0") else token for token in tokens]


def _tokens(text: str, is_code: bool) -> list[str] | None:
    """The tokens of a student's text; None of one that cannot be taken apart, which is then compared with no other."""
    try:
        return within(_code if is_code else _prose, text)
    except CourseError:
        return None


def _shortened(source: str, is_code: bool) -> str:
    """An answer, at most a character longer than is looked at; of a long one first go comments and docstrings."""
    if is_code and len(source) > _LONGEST:
        with suppress(CourseError):
            source = within(_bare, source)
    return source[: _LONGEST + 1]


def _bare(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.unparse(_Bare().visit(ast.parse(source)))
    return re.sub(r"(?m)^[ \t]*#.*\n?", "", source)  # half an answer, or one with a magic


def _code(source: str) -> list[str]:
    """The tokens of Python source, without comments, docstrings and layout; names of a student's own are marked."""
    source = _bare(source)
    found: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                own = token.string not in _BUILTIN and found[-1:] != ["."]
                found.append(f"\0{token.string}" if own else token.string)
            elif token.type == tokenize.STRING:
                found.append("''")
            elif token.type in (tokenize.NUMBER, tokenize.OP):
                found.append(token.string)
    except (tokenize.TokenError, SyntaxError):
        return re.findall(r"\w+|[^\w\s]", re.sub(r"(?m)#.*$", "", source))
    return found


class _Bare(ast.NodeTransformer):
    """Without docstrings, type hints and other statements that do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _prose(source: str) -> list[str]:
    return re.findall(r"\w+", source.casefold())
