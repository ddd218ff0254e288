"""A model seen by plain means, none of them the package's: full passes, weights set to zero, hooks, autograd.

A value here comes from plain full passes of one input at a time, without a cache and without padding: with other ids,
with weights set to zero, or with plain hooks. Where a model keeps its parts is found anew, by watching one pass and by
zeroing weights; where that does not establish a truth, `NoOracle` says why, and nothing is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from course_utils.models import LocalModel
from course_utils.prompts import Prompt

Values = NDArray[np.float64]
Change = Callable[[Tensor], Tensor]
TEXT, OTHER = "the old nurse forgave the doctor", "the young nurse forgave the doctor"
LONG = (
    "the old nurse forgave the doctor and the young pilot thanked a cruel king who lost the red book in Paris but "
    + ("found the small key")
)
CONTRAST, TARGET = (" blamed", " thanked"), " thanked the nurse"


class NoOracle(Exception):
    """Nothing here establishes what is right; the text says why."""


# --- plain passes ---------------------------------------------------------------------------------------------------


def stream_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a module is given."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None


def stream_out(output: Any) -> Tensor | None:
    """The first tensor that a module gives."""
    found = output[0] if isinstance(output, (tuple, list)) and output else output
    return found if isinstance(found, Tensor) else None


@contextmanager
def entering(module: nn.Module, change: Change) -> Iterator[None]:
    """Change what enters a module."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def leaving(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Change what leaves a module, by what entered it and what would leave it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given, out = stream_in(args, kwargs), stream_out(output)
        if hasattr(output, "_replace"):
            return type(output)(change(given, out), *output[1:])
        if isinstance(output, (tuple, list)):
            return type(output)([change(given, out), *output[1:]])
        return change(given, out)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scaled(weights: Sequence[Tensor], factor: float) -> Iterator[None]:
    """Multiply some weights."""
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


@contextmanager
def zeroed(*parts: tuple[Tensor, Any]) -> Iterator[None]:
    """Set some entries of some weights to zero."""
    kept = [(weight, weight.detach().clone()) for weight, _ in parts]
    with torch.no_grad():
        for weight, where in parts:
            weight[where] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in reversed(kept):
                weight.copy_(value)


# --- where the parts are --------------------------------------------------------------------------------------------

_ATTENTION = re.compile(r"attn|attention|(^|\.)att(\.|$)|mha|temporal_block")
_NOT_MLP = re.compile(_ATTENTION.pattern + r"|norm|indexer")
_ITS_BIAS = re.compile(r"^(mlp|moe|feed_forward|block_sparse_moe)\.bias$")  # what JetMoE's adds after its experts
_ROUTER = re.compile(r"router|(^|\.)gate\.")
_CROSS = re.compile(r"cross|encoder_attn|encoder_decoder|inter_attn")
_DOWN = re.compile(
    r"(^|\.)(down_proj|Wo|fc2|c_proj|dense_4h_to_h|w2|wo|w_out|lin2|fc_out|proj_down|ffn_down|output_linear|"
    r"output\.dense|out_proj|layer_2|linear_2|2|w2_weight|down|o_proj)([._]weight|[._]bias)?$"
)
_UP = re.compile(
    r"(^|\.)(up_proj|Wi|gate_proj|gate_up_proj|fc1|c_fc|dense_h_to_4h|w1|w3|v1|wi|wi_0|wi_1|w_in\..*|w_0|w_1|lin1|fc_in|"
    r"gate|router|input_linear|intermediate\.dense|up|layer_1|linear_1|0|in_proj|ffn_up|fc_gate)([._]weight|[._]bias)?$"
)
_MLP = re.compile(r"mlp|ffn|feed_forward|feedforward|moe|expert|(^|\.)fc[12]|(^|\.)ff(\.|$)|^output\.|^intermediate\.")
_OUT = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "wo", "attention_out", "o", "project_o", "Wo")
_INTO_HEADS = re.compile(
    r"(^|\.)(q|k|v|o_gate)?_?(q_proj|k_proj|v_proj|qkv_proj|query_key_value|c_attn|Wqkv|query|key|value|q_lin|k_lin|v_lin|"
    r"qkv|in_proj|kv_b_proj|q_b_proj|project_v|W_pack|att_proj|Wq|Wk|Wv)(\.weight)?$"
)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "attn_heads", "num_attn_heads")


class Projection(NamedTuple):
    """An attention block's output projection: [layer's own heads side by side] to [d_model]."""

    module: Any
    n_heads: int

    @property
    def turned(self) -> bool:
        return not isinstance(self.module, nn.Linear)

    @property
    def width(self) -> int:
        return int(self.module.weight.shape[0 if self.turned else 1])

    def own(self, head: int) -> slice:
        size = self.width // self.n_heads
        return slice(head * size, (head + 1) * size)

    def columns(self, head: int) -> Any:
        return (self.own(head),) if self.turned else (slice(None), self.own(head))

    def matrix(self) -> Tensor:
        """[d_model, width]."""
        weight: Tensor = self.module.weight.detach()
        return weight.T if self.turned else weight


@dataclass(eq=False)
class Case:
    """A model, some prompts, and the truth about them.

    Attributes:
        lm: what the package is given.
        written_out: makes the same model with its attention written out ("eager").
        model: the model that plain passes are made with; by default that of `lm`.
    """

    lm: LocalModel
    written_out: Callable[[], Any]
    model: Any = None

    def __post_init__(self) -> None:
        self.model = self.lm.model if self.model is None else self.model
        self._values: dict[tuple[int, ...], float] = {}
        self._gains: dict[tuple[int, tuple[int, ...]], tuple[Tensor | None, Tensor | None]] = {}
        self.short, self.other = self.lm.prompt(TEXT), self.lm.prompt(OTHER)
        vocabulary = self.lm.tokenizer.get_vocab()
        self.pair = [vocabulary[word.strip()] for word in CONTRAST]
        self.target = [vocabulary[word] for word in TARGET.split()]

    @cached_property
    def long(self) -> Prompt:
        return self.lm.prompt(LONG)

    # plain passes

    def logits(self, ids: Sequence[int]) -> Tensor:
        """[token, vocabulary] by one full pass of one input."""
        return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def value(self, ids: Sequence[int]) -> float:
        """The contrast after the last token."""
        last = self.logits(ids)[-1].detach().double()
        return float(last[self.pair[0]] - last[self.pair[1]])

    def unchanged(self, ids: Sequence[int]) -> float:
        """The same of the model as it is, computed once; not to be called with hooks or zeroed weights about."""
        if tuple(ids) not in self._values:
            self._values[tuple(ids)] = self.value(ids)
        return self._values[tuple(ids)]

    def log_probabilities(self, ids: Sequence[int]) -> Values:
        """Of each token of the target after some ids."""
        rows = self.logits([*ids, *self.target[:-1]])[-len(self.target) :].detach().double().log_softmax(dim=-1)
        return rows[range(len(self.target)), self.target].numpy()

    def traced(self, modules: Sequence[nn.Module], ids: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """What enters and what leaves some modules in one pass, without the batch: [token, width]."""
        given: dict[int, Tensor] = {}
        gave: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for i, module in enumerate(modules):

                def keep(x: Tensor, y: Tensor, i: int = i) -> Tensor:
                    given[i], gave[i] = x.detach().clone(), y.detach().clone()
                    return y

                stack.enter_context(leaving(module, keep))
            self.logits(ids)
        if len(given) < len(modules):
            raise NoOracle("a part is not run")
        flat = [[seen[i].reshape(-1, seen[i].shape[-1]) for i in range(len(modules))] for seen in (given, gave)]
        return flat[0], flat[1]

    # parts

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The modules that the stream runs through one after the other."""
        best: tuple[int, list[nn.Module]] = (0, [])
        total = self._size_of_what_runs()
        for modules in self.model.modules():
            if not isinstance(modules, nn.ModuleList) or len(modules) < 2:
                continue
            size = sum(p.numel() for p in modules.parameters())
            if size > max(best[0], 0.4 * total) and self._in_order(list(modules)):
                best = size, list(modules)
        if not best[1]:
            raise NoOracle("no list of layers that the stream runs through once, in order")
        return best[1]

    def _size_of_what_runs(self) -> int:
        """The parameters of the modules that a pass runs, but for tables of tokens."""
        sizes: dict[nn.Module, int] = {}
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if not re.search("emb|lm_head|wte|predictions", name):
                    own = sum(p.numel() for p in module.parameters(recurse=False))
                    hook = module.register_forward_pre_hook(lambda m, args, own=own: sizes.update({m: own}))
                    stack.callback(hook.remove)
            self.logits(self.ids)
        return sum(sizes.values())

    def _in_order(self, modules: list[nn.Module]) -> bool:
        calls: list[tuple[int, Any, Any]] = []
        with ExitStack() as stack:
            for i, module in enumerate(modules):

                def hook(_: Any, args: Any, kwargs: Any, output: Any, i: int = i) -> None:
                    calls.append((i, stream_in(args, kwargs), stream_out(output)))

                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self.logits(self.ids)
        if [i for i, _, _ in calls] != list(range(len(modules))):
            return False
        shapes = {tuple(x.shape) if x is not None else None for _, given, out in calls for x in (given, out)}
        return len(shapes) == 1 and None not in shapes and len(self.ids) in next(iter(shapes))

    @property
    def ids(self) -> list[int]:
        return self.short.input_ids[0].tolist()

    @cached_property
    def flat(self) -> None:
        """Raise where the stream is more than one vector a token."""
        given, _ = self.traced(self.layers, self.ids)
        if len(given[0]) != len(self.ids):
            raise NoOracle("the stream is more than one vector a token")

    @cached_property
    def chained(self) -> bool:
        """Whether what leaves a layer is what enters the next."""
        given, gave = self.traced(self.layers, self.ids)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gave[:-1], given[1:], strict=True))

    @cached_property
    def mlps(self) -> list[dict[str, Tensor] | None]:
        """For each layer, the weights by which its MLP writes; None where there is no MLP, or none is sure."""
        return [self._mlp(layer) for layer in self.layers]

    def _mlp(self, layer: nn.Module) -> dict[str, Tensor] | None:
        own = {n: p for n, p in layer.named_parameters() if not _NOT_MLP.search(n) and _MLP.search(n)}
        down = {n: p for n, p in own.items() if (_DOWN.search(n) or _ITS_BIAS.search(n)) and not _ROUTER.search(n)}
        up = [p for n, p in own.items() if n not in down and _UP.search(n)]
        return down if down and up and self._closed(layer, [*down.values()], up) else None

    def _closed(self, layer: nn.Module, out: list[Tensor], into: list[Tensor]) -> bool:
        """Whether some weights matter to a layer, and no longer once the others are zero."""

        def given() -> Tensor:
            return self.traced([layer], self.ids)[1][0]

        def moved() -> float:
            before, kept = given(), [weight.detach().clone() for weight in into]
            with torch.no_grad():
                for weight in into:
                    weight.mul_(-0.5)
            after = given()
            with torch.no_grad():
                for weight, value in zip(into, kept, strict=True):
                    weight.copy_(value)
            return float((after - before).abs().max() / before.abs().max())

        matter = moved()
        with zeroed(*((weight, ...) for weight in out)):
            return matter > 1e-4 and moved() < 1e-6

    @cached_property
    def projections(self) -> list[Projection | None]:
        """For each layer, its attention's output projection; None where there is none, or none is sure."""
        return [self._projection(layer) for layer in self.layers]

    def _projection(self, layer: nn.Module) -> Projection | None:
        found = [
            (name, module)
            for name, module in layer.named_modules()
            if name.removesuffix(".linear").rsplit(".", 1)[-1] in _OUT
            and _ATTENTION.search(name)
            and not _CROSS.search(name)
            and getattr(module, "weight", None) is not None
            and module.weight.dim() == 2
        ]
        if len(found) != 1:
            return None
        name, module = found[0]
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            return None
        into = [
            p
            for n, p in layer.named_parameters()
            if _ATTENTION.search(n) and not _CROSS.search(n) and not n.startswith(name + ".") and _INTO_HEADS.search(n)
        ]
        weights = list(module.parameters())
        projection = Projection(module, self._n_heads(layer, name))
        if not into or projection.width % projection.n_heads or not self._closed(layer, weights, into):
            return None
        return projection

    def _n_heads(self, layer: nn.Module, name: str) -> int:
        path = name.split(".")[:-1]
        for depth in range(len(path), 0, -1):
            block = layer.get_submodule(".".join(path[:depth]))
            for known in _HEADS:
                if isinstance(count := getattr(block, known, None), int):
                    return count
        return int(self.model.config.get_text_config().num_attention_heads)

    def down(self, layer: int) -> Any:
        """The one linear module by which an MLP writes."""
        weights = self.mlps[layer]
        if weights is None or len({name.rsplit(".", 1)[0] for name in weights}) > 1:
            raise NoOracle("no single down projection")
        name = next(iter(weights)).rsplit(".", 1)[0]
        module = self.layers[layer].get_submodule(name)
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            raise NoOracle("no single down projection")
        return module

    @cached_property
    def attention_sites(self) -> list[nn.Module | None]:
        """For each layer, the innermost module whose output decides what the stream gains by attention."""
        return [
            None if p is None else self._site(layer, list(p.module.parameters()), 0)
            for layer, p in enumerate(self.projections)
        ]

    @cached_property
    def mlp_sites(self) -> list[nn.Module | None]:
        """For each layer, the innermost module whose output decides what the stream gains by the MLP."""
        return [
            None if mlp is None else self._site(layer, list(mlp.values()), 1) for layer, mlp in enumerate(self.mlps)
        ]

    def _site(self, layer: int, weights: list[Tensor], which: int) -> nn.Module | None:
        """A module with some weights whose output, put into another run, brings along what the stream gains."""
        here, there = (prompt.input_ids[0].tolist() for prompt in (self.other, self.short))
        own = {id(weight) for weight in weights}
        around = [m for m in self.layers[layer].modules() if own <= {id(p) for p in m.parameters()}]  # outer ones first
        wanted = self.gained(layer, there)[which]
        mlp = [(weight, ...) for weight in (self.mlps[layer] or {}).values()]
        for module in around[:0:-1]:
            try:
                source = self.traced([module], there)[1][0]
                with zeroed(*(mlp if which == 0 else ()), *((w, ...) for w in weights)):
                    without = self.traced([self.layers[layer]], here)[1][0][-1]
                with (
                    zeroed(*(mlp if which == 0 else ())),
                    leaving(module, lambda _, out, source=source: source.view_as(out)),
                ):
                    put = self.traced([self.layers[layer]], here)[1][0][-1]
            except (NoOracle, RuntimeError):  # not run, or of another shape
                continue
            if wanted is not None and torch.allclose(put - without, wanted, atol=1e-3 * float(wanted.abs().max())):
                return module
        return None

    def alone_with(self, weight: Tensor) -> bool:
        """Whether one layer alone has a weight: zeroed, it is gone from no other."""
        return sum(any(weight is p for p in layer.parameters()) for layer in self.layers) == 1

    def sure(self, parts: list[Any]) -> list[int]:
        """The layers in which a part is known."""
        found = [i for i, part in enumerate(parts) if part is not None]
        if not found:
            raise NoOracle("no layer's part could be established")
        return found

    def handing_on(self, layers: Sequence[int]) -> ExitStack:
        """Let some layers hand on what enters them, in the stream."""
        stack = ExitStack()
        for layer in layers:
            stack.enter_context(leaving(self.layers[layer], lambda given, out: given))
        return stack

    # the ending

    @cached_property
    def final_stream(self) -> Tensor:
        """[d_model], what leaves the last layer at the last token."""
        _ = self.flat
        return self.traced([self.layers[-1]], self.ids)[1][0][-1]

    def ending(self, stream: Tensor) -> float:
        """The contrast with another vector in the place of the final stream's last."""

        def put(_: Tensor, out: Tensor) -> Tensor:
            new = out.clone()
            new.reshape(-1, new.shape[-1])[-1] = stream
            return new

        with leaving(self.layers[-1], put):
            return self.value(self.ids)

    @cached_property
    def final_norm(self) -> Any:
        """The module that what leaves the last layer enters."""
        last, inside = self.traced([self.layers[-1]], self.ids)[1][0], set(self.layers[-1].modules())
        seen: list[nn.Module] = []
        with ExitStack() as stack:
            for module in self.model.modules():
                if module in inside or any(m in set(self.layers) for m in module.modules()):
                    continue

                def hook(m: Any, args: Any, kwargs: Any, output: Any) -> None:
                    given, out = stream_in(args, kwargs), stream_out(output)
                    if given is None or out is None or given.shape != out.shape or given.shape[-1] != last.shape[-1]:
                        return
                    rows = given.reshape(-1, given.shape[-1])
                    if rows.shape == last.shape and torch.allclose(rows, last, atol=1e-5):
                        seen.append(m)

                handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            self.logits(self.ids)
        if len(seen) != 1:
            raise NoOracle("the final norm is not found")
        return seen[0]

    @cached_property
    def frozen(self) -> Change:
        """The final norm with its scale fixed at the last token's, without its bias, by what the norm does."""
        norm, at = self.final_norm, self.final_stream
        generator = torch.Generator().manual_seed(1)
        x, y, z = 10 * torch.randn(3, len(at), generator=generator)

        def square(v: Tensor) -> Tensor:
            return v.pow(2).mean().sqrt()

        def centred(v: Tensor) -> Tensor:
            return (v - v.mean()) / v.var(unbiased=False).sqrt()

        gain = norm(x) * square(x) / x
        if torch.allclose(gain, norm(y) * square(y) / y, rtol=1e-3, atol=1e-4):
            return lambda part: part * gain / square(at)
        gain = (norm(x) - norm(y)) / (centred(x) - centred(y))
        bias = norm(x) - gain * centred(x)
        if not torch.allclose(norm(z), gain * centred(z) + bias, rtol=1e-3, atol=1e-3):
            raise NoOracle("the final norm is neither an RMS norm nor a layer norm")
        return lambda part: (part - part.mean()) / at.var(unbiased=False).sqrt() * gain

    def direct(self, part: Tensor) -> float:
        """What a part of the final stream adds to the contrast, with the norm's scale frozen."""
        nothing, _ = self._linear
        return self._after_norm(self.frozen(part)) - nothing

    @cached_property
    def _linear(self) -> tuple[float, float]:
        normed = self.traced([self.final_norm], self.ids)[1][0][-1]
        zero, one, two = (self._after_norm(scale * normed) for scale in (0.0, 1.0, 2.0))
        if abs(two - 2 * one + zero) > 1e-3 * max(abs(one), abs(two), 1e-2):
            raise NoOracle("what follows the final norm is not linear")
        return zero, one

    def _after_norm(self, normed: Tensor) -> float:
        last = self.final_stream

        def put(given: Tensor, out: Tensor) -> Tensor:
            rows, new = given.reshape(-1, given.shape[-1]), out.clone()
            if torch.allclose(rows[-1], last, atol=1e-5):  # the same norm may be used elsewhere, too
                new.reshape(-1, new.shape[-1])[-1] = normed
            return new

        with leaving(self.final_norm, put):
            return self.value(self.ids)

    # what blocks add

    def gained(self, layer: int, ids: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """What the stream gains at the last token by a layer's attention, and by its MLP, [d_model] each.

        None where there is no such part, or where its output does not simply add. With half its output weights a part
        that adds gives half as much, or, behind a norm of its own, as much. Computed once; not to be called with hooks
        or zeroed weights about.
        """
        key = (layer, tuple(ids))
        if key not in self._gains:
            self._gains[key] = self._gained(layer, ids)
        return self._gains[key]

    def _gained(self, layer: int, ids: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        _ = self.flat
        mlp, projection = list((self.mlps[layer] or {}).values()), self.projections[layer]
        attention = [] if projection is None else list(projection.module.parameters())

        def gain(weights: list[Tensor]) -> Tensor | None:
            outs = []
            for factor in (1.0, 0.5, 0.0):
                with scaled(weights, factor):
                    outs.append(self.traced([self.layers[layer]], ids)[1][0][-1])
            whole, half = outs[0] - outs[2], outs[1] - outs[2]
            tolerance = 1e-3 * float(whole.abs().max())
            adds = any(torch.allclose(half, share * whole, atol=tolerance) for share in (0.5, 1.0))
            return whole if weights and adds else None

        with scaled(mlp, 0.0):
            by_attention = gain(attention)
        return by_attention, gain(mlp)

    @cached_property
    def eager(self) -> Any:
        return self.written_out()

    def attentions(self, ids: Sequence[int]) -> list[Tensor | None]:
        """[head, query, key] of each layer."""
        given = self.eager(input_ids=torch.tensor([list(ids)]), use_cache=False, output_attentions=True)
        found = list(getattr(given, "attentions", None) or ())
        if not found or all(w is None for w in found):
            raise NoOracle("the model gives no attention weights")
        shape = (len(ids), len(ids))
        good = [w[0] if w is not None and w.dim() == 4 and w.shape[-2:] == shape else None for w in found]
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None) or []
        for placed in (
            range(len(self.layers)),
            [i for i, projection in enumerate(self.projections) if projection is not None],
            [i for i, kind in enumerate(kinds) if "attention" in kind and "linear" not in kind],
        ):
            if len(placed) == len(good):
                by_layer = dict(zip(placed, good, strict=True))
                return [by_layer.get(layer) for layer in range(len(self.layers))]
        raise NoOracle("attention weights of another number of layers")

    def reach(self) -> list[Tensor | None]:
        """|v W_O| of each head for a look of weight one, [head, key] of each layer."""
        weights = self.attentions(self.ids)
        found = [
            None if w is None or p is None else self._reach(layer, p, w.detach())
            for layer, p, w in zip(self.layers, self.projections, weights, strict=True)
        ]
        self.sure(found)
        return found

    def _reach(self, layer: nn.Module, projection: Projection, weights: Tensor) -> Tensor | None:
        """By whichever reading of what some module gives out as values makes weights x values what enters W_O."""
        mixed = self.traced([projection.module], self.ids)[0][0]  # [token, head * d_head]
        n_heads, size = projection.n_heads, projection.width // projection.n_heads
        if len(weights) != n_heads:
            return None
        by_head = mixed.reshape(len(mixed), n_heads, size)
        for name, module in layer.named_modules():
            if not re.search(r"(^|[._])(v|value|qkv|query_key_value|c_attn|Wqkv|v_proj|v_lin|qkv_proj|v_norm)", name):
                continue
            try:
                out = self.traced([module], self.ids)[1][0]
            except (NoOracle, AttributeError):  # not run, or gives no tensor
                continue
            if out.numel() % len(mixed):
                continue
            for values in _readings(out.reshape(len(mixed), -1), n_heads, size):
                if torch.allclose(torch.einsum("hqk,khd->qhd", weights, values), by_head, rtol=1e-3, atol=1e-3):
                    matrix = projection.matrix().reshape(-1, n_heads, size)
                    return torch.einsum("khd,mhd->hkm", values, matrix).norm(dim=-1)
        return None


def _readings(out: Tensor, n_heads: int, size: int) -> Iterator[Tensor]:
    """The values [token, head, d_head] that may lie in what a projection gives out."""
    n_tokens, width = out.shape
    for kv in (n for n in range(1, n_heads + 1) if n_heads % n == 0):
        group = n_heads // kv
        if width == kv * size:
            yield out.reshape(n_tokens, kv, size).repeat_interleave(group, dim=1)
        elif width == (n_heads + 2 * kv) * size:
            yield out[:, -kv * size :].reshape(n_tokens, kv, size).repeat_interleave(group, dim=1)
            yield out.reshape(n_tokens, kv, group + 2, size)[:, :, -1].repeat_interleave(group, dim=1)
    if width == 3 * n_heads * size:
        yield out.reshape(n_tokens, n_heads, 3, size)[:, :, 2]
