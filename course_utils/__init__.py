"""Interpretability for people who run language models on their own machines.

Importing this package is instant: torch and transformers load with the first name that needs them.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ablation import ablate as ablate
    from .ablation import ablation_sweep as ablation_sweep
    from .attention import analyze_attention as analyze_attention
    from .attribution import token_attribution as token_attribution
    from .errors import CourseError as CourseError
    from .lens import direct_logit_attribution as direct_logit_attribution
    from .lens import logit_lens as logit_lens
    from .models import load_model as load_model
    from .patching import activation_patching as activation_patching
    from .probing import probe_layers as probe_layers

__version__ = "0.1.0"
_HOME = {
    "CourseError": "errors",
    "ablate": "ablation",
    "ablation_sweep": "ablation",
    "activation_patching": "patching",
    "analyze_attention": "attention",
    "direct_logit_attribution": "lens",
    "load_model": "models",
    "logit_lens": "lens",
    "probe_layers": "probing",
    "token_attribution": "attribution",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .loading.threads import waiting_asleep

    with waiting_asleep():
        return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


if "torch" in sys.modules:  # loaded before us, and not told how to wait
    from .loading.threads import too_many

    too_many()
