"""What a fast method takes for granted about a model, tried out on that model: once, against its own plain passes.

Rules by the name of an architecture rot. So a shortcut comes with a trial: it is taken on short random input and
compared with what the model's own forward pass gives. Where they agree, the shortcut is taken from then on; where not,
the method runs whole passes, or says in a sentence why it can't be right. What was learned of a model is kept with it,
as long as its configuration stays and none of its modules is run in another way, and shared by the built-in suspects,
which differ in weights alone. Trials are of the model alone: hooks on it rest meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .._arrays import HALF, close
from ..errors import CourseError, first_line
from ..hooks import CompiledError
from ..loading.load import KIN
from ..loading.others_hooks import alone, has_unknown_hooks
from ..models import LocalModel

STATES = 16  # of a model that are remembered
LENGTH = 8  # tokens of a trial whose outcome doesn't depend on length
_ENCODER_WANTED = ("encoder_attn", "crossattention", "cross_attn", "cross_attention")  # what looks at an encoder
_known: WeakKeyDictionary[nn.Module, dict[Any, dict[str, Any]]] = WeakKeyDictionary()
_of_kin: dict[Any, dict[str, Any]] = {}  # of models that are alike in all but their weights, together
_latest: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()  # what was known when it was last asked for

Trial = Callable[[LocalModel, int], bool]


def facts(lm: LocalModel) -> dict[str, Any]:
    """What is known of a model so far, as its modules are run now."""
    modules = list(lm.model.modules())
    kinds: tuple[Any, ...] = tuple(map(type, modules))
    own = tuple(_weakly(module.__dict__.get("forward")) for module in modules)  # in place of its kind's
    compiled = any(module._compiled_call_impl for module in modules)
    training = any(module.training for module in modules)
    ways = (kinds, frozenset(_weakly(kind.forward) for kind in set(kinds)), own, compiled, training)
    attention = getattr(lm.model.config, "_attn_implementation", None)
    mark = (attention, lm.model.dtype, str(lm.device), _settings(lm.config), ways)
    known = _of_kin if lm.model in KIN else _known.setdefault(lm.model, {})
    if len(known) > STATES:
        known.clear()
    _latest[lm.model] = known.setdefault(mark, {})
    return _latest[lm.model]


def _weakly(function: Any) -> Any:
    """A function as long as it lives: its id may be given to another later, and it may hold the model itself."""
    try:
        return ref(function)
    except TypeError:  # None, and what no weak reference can be made to
        return function


def _settings(config: Any) -> str:
    """What stands in a configuration, but for what transformers keeps there for itself."""
    return str([item for item in vars(config).items() if item[0][0] != "_" and not hasattr(item[1], "to_dict")])


def holds(lm: LocalModel, premise: str, trial: Trial, length: int = LENGTH) -> bool:
    """Whether a premise holds for inputs up to a length: tried on one at least as long (a power of two), and kept.

    In half precision it is tried at the length itself: what goes wrong may be lost there in the noise of a longer one.
    What a trial raises is a no.

    >>> holds(lm, "nothing", lambda lm, length: True)
    True
    """
    known = facts(lm)
    good, bad = known.setdefault(premise, (0, float("inf")))
    if length <= good:
        return True
    longer = length if lm.model.dtype in HALF else max(2 * LENGTH, 1 << (length - 1).bit_length())
    longer = LENGTH if length <= LENGTH else longer
    longer = max(length, min(longer, lm.context or longer))
    for size in (longer, length):  # a window may lie between the two
        if size < bad:
            held = _tried(lm, trial, size)
            good, bad = (size, bad) if held else (good, size)
            known[premise] = good, bad
            if held:
                return True
    return False


def require(lm: LocalModel, premise: str, trial: Trial, complaint: str) -> None:
    """Raise a CourseError with a complaint unless the model is a decoder and a premise holds, whatever the length."""
    check_model(lm)
    if not holds(lm, premise, trial):
        raise CourseError(complaint)


def _tried(lm: LocalModel, trial: Trial, length: int) -> bool:
    try:
        with torch.inference_mode(False), torch.no_grad(), alone(lm.model):  # gradients may be tried
            return trial(lm, length)
    except CompiledError:  # no answer to what was tried
        raise
    except Exception:  # models raise what they like where they cannot do a thing
        return False


@contextmanager
def with_gradients() -> Iterator[None]:
    """Let gradients through, also inside `torch.no_grad()`; `torch.inference_mode()` cannot."""
    if torch.is_inference_mode_enabled():
        raise CourseError(
            "Expected to compute gradients, and torch.inference_mode() is on, which lets none through; call this "
            "outside of it (torch.no_grad() is no hindrance)."
        )
    with torch.enable_grad():
        yield


def random_ids(lm: LocalModel, length: int, seed: int = 0) -> Tensor:
    """Token ids at random, int64 `[token]`, none of them special, always the same for a seed."""
    size = lm.model.get_input_embeddings().weight.shape[0]
    special = {getattr(lm.config, "pad_token_id", None), *getattr(lm.tokenizer, "all_special_ids", [])}
    usual = [i for i in range(min(size, 2048)) if i not in special] or list(range(size))
    drawn = torch.randint(len(usual), (length,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([usual[i] for i in drawn], device=lm.device)


def another(lm: LocalModel, ids: Tensor) -> Tensor:
    """For each of some ids at random, another one, int64 `[token]`."""
    drawn = random_ids(lm, 4 * len(ids) + 4, seed=1)
    return torch.stack([drawn[drawn != one][i] for i, one in enumerate(ids)])


def plain_logits(lm: LocalModel, rows: Tensor) -> Tensor:
    """The logits of whole passes, as the model itself computes them: `[row, token, vocabulary]`."""
    return lm.model(input_ids=rows, use_cache=False).logits


def logits_at(lm: LocalModel, rows: Tensor, positions: Tensor, /, **inputs: Any) -> Tensor:
    """The logits at some positions of a pass, `[scored, vocabulary]`; if the model allows it, no others are computed.

    >>> logits_at(lm, torch.tensor([0]), torch.tensor([-1]), input_ids=ids[None]).shape
    torch.Size([1, 49152])
    """
    head = lm.model.get_output_embeddings()
    if _latest.get(lm.model, {}).get("unembeds whole") or has_unknown_hooks((lm.model, head)):
        return lm.model(**inputs).logits[rows, positions]
    with head.register_forward_pre_hook(lambda module, args: (args[0][rows, positions][None],)):
        return lm.model(**inputs).logits[0]


def can_batch(lm: LocalModel) -> bool:
    """Whether rows of one batch give what each gives alone; tried once.

    Never while a hook hangs on the model of which nothing is known: it may have been written for one prompt a pass.
    """
    return not has_unknown_hooks(lm.model.modules()) and holds(lm, "batches", _batches)


def _batches(lm: LocalModel, length: int) -> bool:
    rows = torch.stack([random_ids(lm, length), random_ids(lm, length, seed=1)])
    return close(plain_logits(lm, rows), torch.cat([plain_logits(lm, row[None]) for row in rows]))


def check_model(lm: LocalModel) -> None:
    """Raise unless the model is a decoder: the same input gives the same logits, and no token changes those before it.

    Refused are encoders, a decoder without its encoder, a model in training mode, values that are not finite.
    """
    known = facts(lm)
    if "decoder" not in known:
        with torch.no_grad(), alone(lm.model):
            known["decoder"] = _complaint(lm)
    if known["decoder"]:
        raise CourseError(known["decoder"])


def _complaint(lm: LocalModel) -> str:
    name = type(lm.model).__name__
    if any(part.rpartition(".")[2] in _ENCODER_WANTED for part, _ in lm.model.named_modules()):
        return f"Expected a decoder that stands alone, got {name}, which lacks its encoder; choose a causal model."
    ids = random_ids(lm, min(LENGTH, lm.context or LENGTH))
    other = torch.cat([ids[:-1], another(lm, ids[-1:])])
    try:
        first = plain_logits(lm, ids[None])[0]
        if first.shape[:1] != ids.shape:
            raise ValueError(f"logits of shape {list(first.shape)} for {len(ids)} tokens")
        whole = not _unembeds_in_part(lm, other, first)
        facts(lm)["unembeds whole"] = whole
        changed = plain_logits(lm, other[None])[0] if whole else first
    except Exception as error:  # models raise what they like
        return (
            f"Expected a model that maps token ids to logits, got {name}, which does not on its own "
            f"({type(error).__name__}: {first_line(error)})."
        )
    if not first.isfinite().all():
        return not_finite(lm)
    if close(changed[:-1], first[:-1]):
        return ""
    if not close(plain_logits(lm, ids[None])[0], first):
        return f"{name} gives other logits each time (dropout is on?); call lm.model.eval() first."
    return (
        f"Expected a decoder, which reads from left to right, got {name}, in which later tokens change what earlier "
        "ones give (an encoder?); choose a causal model."
    )


def _unembeds_in_part(lm: LocalModel, ids: Tensor, logits: Tensor) -> bool:
    """Whether the unembedding gives the same for some positions alone: those of another input that changes none."""
    places = torch.arange(len(ids) - 1, device=ids.device).flip(0)
    try:
        found = logits_at(lm, torch.zeros_like(places), places, input_ids=ids[None], use_cache=False)
    except Exception:  # models raise what they like
        return False
    return close(found, logits[places])


def not_finite(lm: LocalModel) -> str:
    return (
        f"{lm.name} gives values that are not finite numbers; its weights are broken, or too large for its precision: "
        'load it with dtype="float32".'
    )


def check_finite(lm: LocalModel, values: Tensor) -> Tensor:
    """Values as they are; CourseError where some are NaN or infinite."""
    if not values.isfinite().all():
        raise CourseError(not_finite(lm))
    return values
