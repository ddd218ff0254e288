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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from nbformat import NotebookNode
from scipy import sparse

from .notebook import ANSWER, MANUAL, grade_id, kind, student_view
from .tables import rows_as_csv

SAME, RENAMED, ALIKE = "the same text", "the same but for names, comments and layout", "alike"
_SHINGLE = 6  # tokens
_SHORTEST = 25  # tokens of an answer, beyond what was given: shorter ones are alike by chance
_LONGEST = 50_000  # characters of an answer that are looked at
_BLOCK = 256  # answers compared with all others at a time
_BUILTIN = frozenset(dir(builtins)) | frozenset(keyword.kwlist)


@dataclass(frozen=True)
class Alike:
    """Answers that resemble each other.

    Attributes:
        exercise: the notebook.
        check: the answer, by the name of its cell.
        similarity: the weight of the shingles that they share, over that of all that they have, 0 to 1.
        how: SAME, RENAMED or ALIKE.
        tokens: how long the shorter one is.
        rare: how many of the shared shingles nobody else in the class has.
        students: who they are.
    """

    exercise: str
    check: str
    similarity: float
    how: str
    tokens: int
    rare: int
    students: tuple[str, ...]


def alike(
    notebooks: Iterable[tuple[str, NotebookNode]], reference: NotebookNode, exercise: str, least: float = 0.5
) -> list[Alike]:
    """Which answers of a class resemble each other, those with most in common that nobody else has first.

    Args:
        notebooks: student and notebook.
        reference: the solution; what students are given of it counts for nothing.
        exercise: its name.
        least: the smallest similarity to list.
    """
    given = {grade_id(cell): cell.source for cell in student_view(reference).cells if kind(cell) in (ANSWER, MANUAL)}
    is_code = {grade_id(cell): cell.cell_type == "code" for cell in reference.cells}
    answers: dict[str, dict[str, list[str]]] = {name: {} for name in given}  # cell -> text -> students
    for student, notebook in notebooks:
        for cell in notebook.cells:
            if grade_id(cell) in given:
                answers[grade_id(cell)].setdefault(cell.source.strip()[:_LONGEST], []).append(student)
    found: list[Alike] = []
    for name, texts in answers.items():
        tokens = {text: _code(text) if is_code[name] else _prose(text) for text in texts}
        base = set(_shingles(_code(given[name]) if is_code[name] else _prose(given[name])))
        found += [Alike(exercise, name, *rest) for rest in _compared(texts, tokens, base, least)]
    return sorted(found, key=lambda each: (-each.rare, -each.similarity, each.check, each.students))


def table_of(found: Iterable[Alike]) -> bytes:
    """Answers that resemble each other, as CSV."""
    rows = [["exercise", "answer", "similarity", "how", "tokens", "rare", "students"]]
    for each in found:
        told = (f"{each.similarity:.2f}", each.how, str(each.tokens), str(each.rare), "; ".join(each.students))
        rows.append([each.exercise, each.check, *told])
    return rows_as_csv(rows)


def _compared(
    texts: Mapping[str, list[str]], tokens: Mapping[str, list[str]], base: set[str], least: float
) -> Iterator[tuple[float, str, int, int, tuple[str, ...]]]:
    """Similarity, how, tokens, rare shingles and students: one line for all with one text, and for each other pair."""
    forms: dict[tuple[str, ...], list[str]] = {}  # what is left without names -> texts
    for text in texts:
        forms.setdefault(tuple(_canonical(tokens[text])), []).append(text)
    shingles = {form: set(_shingles(tokens[same[0]])) - base for form, same in forms.items()}
    kept = [form for form in forms if len(form) >= _SHORTEST and shingles[form]]
    columns: dict[str, int] = {}
    rows = [[columns.setdefault(shingle, len(columns)) for shingle in sorted(shingles[form])] for form in kept]
    if not rows:
        return
    ends = np.cumsum([0, *map(len, rows)])
    has = sparse.csr_array(
        (np.ones(ends[-1]), np.concatenate([np.array(row) for row in rows]), ends), shape=(len(rows), len(columns))
    )
    students = np.array([sum(len(texts[text]) for text in forms[form]) for form in kept])
    spread = has.T @ students  # how many students have a shingle
    weight = np.log((students.sum() + 1) / spread)
    for number, form in enumerate(kept):
        who = [student for text in forms[form] for student in texts[text]]
        if len(who) > 1:
            how = SAME if len(forms[form]) == 1 else RENAMED
            yield 1.0, how, len(form), int((spread[rows[number]] == len(who)).sum()), tuple(sorted(who))
    totals = has @ weight
    weighted = (has * weight[None, :]).tocsr()
    for start in range(0, len(kept), _BLOCK):
        shared = (weighted[start : start + _BLOCK] @ has.T).tocoo()
        similarity = shared.data / (totals[shared.row + start] + totals[shared.col] - shared.data)
        close = (similarity >= least) & (shared.row + start < shared.col)
        for i, j, similar in zip(shared.row[close] + start, shared.col[close], similarity[close], strict=True):
            both = np.intersect1d(rows[i], rows[j])
            who = [student for form in (kept[i], kept[j]) for text in forms[form] for student in texts[text]]
            rare = int((spread[both] == len(who)).sum())
            yield float(similar), ALIKE, min(len(kept[i]), len(kept[j])), rare, tuple(sorted(who))


def _shingles(tokens: Sequence[str]) -> Iterator[str]:
    """Each run of tokens, in it names by the order in which they first come."""
    for start in range(max(1, len(tokens) - _SHINGLE + 1)):
        run = "\x1f".join(_canonical(tokens[start : start + _SHINGLE]))
        yield hashlib.blake2b(run.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _canonical(tokens: Sequence[str]) -> list[str]:
    """Tokens with a student's own names (those that begin with a NUL) numbered as they come."""
    numbers: dict[str, str] = {}
    return [numbers.setdefault(token, f"\0{len(numbers)}") if token.startswith("\0") else token for token in tokens]


def _code(source: str) -> list[str]:
    """The tokens of Python source, without comments, docstrings and layout; names of a student's own are marked."""
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # half an answer, or a magic: as it is
        source = ast.unparse(_Bare().visit(ast.parse(source)))
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
