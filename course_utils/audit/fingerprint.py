"""What tells a model from others."""

from __future__ import annotations

import hashlib

import torch

from ..models import LocalModel


def fingerprint(lm: LocalModel) -> dict[str, str]:
    """What tells a model from others, the text that nobody typed included.

    >>> fingerprint(lm)["layers x heads, d_model"]
    '30 x 9, 576'
    """
    import transformers

    model, shown = lm.model, "none: the text is read as it stands"
    if lm.is_chat:
        prompt = lm.chat("…")
        shown = f"{prompt.text[: prompt.typed[0]]}…{prompt.text[prompt.typed[1] :]}"
    return {
        "name": lm.name,
        "architecture": type(model).__name__,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "layers x heads, d_model": f"{lm.n_layers} x {lm.n_heads}, {lm.d_model}",
        "weights": f"{str(next(model.parameters()).dtype).removeprefix('torch.')}, mark {weights_mark(model)}",
        "chat template, where … is what the user types": shown,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def weights_mark(model: torch.nn.Module) -> str:
    """A short mark of a model's weights: a hash of the first numbers of each tensor, to notice that they changed."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().flatten()[:256].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
