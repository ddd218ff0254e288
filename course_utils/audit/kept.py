"""Results as JSON and back, so that an audit can go on where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

Kind = TypeVar("Kind")
_KNOWN: dict[str, Any] = {}


def can_be_kept(kind: type[Kind]) -> type[Kind]:
    """Let a dataclass be read back."""
    _KNOWN[kind.__name__] = kind
    return kind


def to_json(value: Any) -> Any:
    """A result as lists, mappings, texts and numbers.

    >>> from course_utils.audit.search import Candidate
    >>> to_json(Candidate("secretly", 9, 9, 12.5))["word"]
    'secretly'
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: to_json(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, np.ndarray):
        return {"type": "array", "values": np.asarray(value, np.float64).round(4).tolist()}
    if isinstance(value, Mapping):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def from_json(value: Any) -> Any:
    """The result that `to_json` wrote.

    >>> from course_utils.audit.search import Candidate
    >>> from_json(to_json(Candidate("secretly", 9, 9, 12.5))).shift
    12.5
    """
    if isinstance(value, list):
        return tuple(from_json(each) for each in value)
    if not isinstance(value, dict):
        return value
    if (kind := value.get("type")) == "array":
        return np.array(value["values"], np.float32)
    told = {name: from_json(each) for name, each in value.items()}
    return _KNOWN[kind](**{name: each for name, each in told.items() if name != "type"}) if kind in _KNOWN else told
