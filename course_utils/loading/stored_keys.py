"""Stored keys and values, by the name that transformers gives them: `past_key_values`, and from 5.24 on `cache`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

_NAMES = ("cache", "past_key_values")


@cache
def cache_name() -> str:
    """What the installed transformers calls stored keys and values, as an argument and in an output.

    >>> cache_name() in ("cache", "past_key_values")
    True
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return next(name for name in _NAMES if name in BaseModelOutputWithPast.__dataclass_fields__)


def cache_in(given: Mapping[str, Any]) -> Any:
    """The stored keys and values among a model's keyword arguments or in its output, by either name; None without any.

    >>> cache_in({"input_ids": [], "past_key_values": "stored"})
    'stored'
    """
    return next((given[name] for name in _NAMES if name in given and given[name] is not None), None)
