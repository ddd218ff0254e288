"""Interpretability for people who run language models on their own machines.

Importing this package is instant: torch and transformers load with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import token_attribution as token_attribution
    from .errors import CourseError as CourseError
    from .models import load_model as load_model

__version__ = "0.1.0"
_HOME = {
    "CourseError": "errors",
    "load_model": "models",
    "token_attribution": "attribution",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
