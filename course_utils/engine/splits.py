"""Deal texts out to train, validation and test by whole groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CourseError

Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]  # [text], the number of each text's group
SPLITS = ("train", "validation", "test")
SHARES = (0.6, 0.2, 0.2)
LEFT_OUT = "left out"


class Plan(NamedTuple):
    """Labels and groups in the form in which the probes use them."""

    positive: Bools  # [text]
    classes: tuple[str, str]
    groupings: list[Codes]
    split: NDArray[np.str_]  # [text]


def plan_of(labels: Sequence[Any], groups: Sequence[Any], n_texts: int, seed: int) -> Plan:
    if len(labels) != n_texts:
        raise CourseError(f"Expected one label a text, got {len(labels)} labels for {n_texts} texts.")
    positive, classes = _two_classes(labels)
    groupings = _groupings(groups, n_texts)
    return Plan(positive, classes, groupings, split_by_groups(groupings, positive, seed))


def _two_classes(labels: Sequence[Any]) -> tuple[Bools, tuple[str, str]]:
    given = np.asarray(labels)
    found, which = np.unique(given.astype(str) if given.dtype == object else given, return_inverse=True)
    if given.ndim != 1 or len(found) != 2:
        shown = ", ".join(map(str, found[:5]))
        raise CourseError(
            f"Expected labels of two classes, one a text, got {len(found)} ({shown}); choose texts of two classes."
        )
    return which == 1, (str(found[0]), str(found[1]))


def _groupings(groups: Sequence[Any], n_texts: int) -> list[Codes]:
    kinds = (list, np.ndarray) if len(groups) == n_texts else (list, np.ndarray, tuple, range)
    several = all(isinstance(grouping, kinds) for grouping in groups)
    groupings = [numbered(grouping) for grouping in (groups if several else [groups])]
    if not groupings or any(len(codes) != n_texts for codes in groupings):
        raise CourseError(
            f"Expected one group a text ({n_texts}), or several sequences of as many, got groups of length "
            f"{len(groups)}; pass range(len(texts)) if every text stands for itself."
        )
    return groupings


def numbered(grouping: Sequence[Hashable]) -> Codes:
    number: dict[Hashable, int] = {}
    try:
        return np.array([number.setdefault(group, len(number)) for group in grouping], dtype=np.int64)
    except TypeError as error:
        raise CourseError(
            f"Expected groups that can be compared and counted ({error}); use texts or numbers."
        ) from error


def split_by_groups(groupings: Sequence[Codes], positive: Bools, seed: int = 0) -> NDArray[np.str_]:
    """Deal whole groups out to train, validation and test, 60/20/20: the name of each text's split, `[text]`.

    Of a hundred random deals it takes the one in which each class comes closest to its share of every split.

    >>> split_by_groups([np.repeat(range(5), 2)], np.tile([True, False], 5)).tolist().count("train")
    6
    """
    fewest = min(int(codes.max()) + 1 for codes in groupings)
    if fewest < len(SPLITS):
        raise CourseError(f"Expected at least three groups, one for each split, got {fewest}; use a finer grouping.")
    rng = np.random.default_rng(seed)
    deals = [_deal(groupings, rng) for _ in range(100)]
    evenness = [_evenness(deal, positive, len(groupings)) for deal in deals]
    if not max(evenness):
        raise CourseError(
            "Expected groups that leave texts of both classes in train, validation and test, and found no such "
            "division in 100; add groups of the rarer class, or drop a grouping."
        )
    return deals[int(np.argmax(evenness))]


def _deal(groupings: Sequence[Codes], rng: np.random.Generator) -> NDArray[np.str_]:
    dealt = []
    for codes in groupings:
        n_groups = int(codes.max()) + 1
        held = max(1, round(SHARES[2] * n_groups))
        names = np.repeat(SPLITS, [n_groups - 2 * held, held, held])
        dealt.append(rng.permutation(names)[codes])  # [text]
    return np.where(np.all([names == dealt[0] for names in dealt], axis=0), dealt[0], LEFT_OUT)


def _evenness(split: NDArray[np.str_], positive: Bools, n_groupings: int) -> float:
    """The smallest class of any split, as a share of what it would be were all divided evenly."""
    return min(
        float((split[positive == sign] == name).mean()) / share**n_groupings
        for name, share in zip(SPLITS, SHARES, strict=True)
        for sign in (True, False)
    )
