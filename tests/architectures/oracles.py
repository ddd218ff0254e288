"""What each method should give, by means that know none of the package's tricks (see `plain`).

A method's oracle yields checks: what the package gives beside what it should. Where nothing establishes a truth,
`NoOracle` says why, and nothing is compared; a NaN in what should come is not compared either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils import (
    ablation_sweep,
    activation_patching,
    analyze_attention,
    direct_logit_attribution,
    logit_lens,
    token_attribution,
)
from course_utils.ablation import joint_ablation
from course_utils.attention import head_detail
from course_utils.directions import direction_effect, project_out, steer
from course_utils.engine.activations import collect_activations, next_logits, score_last
from course_utils.faithfulness import faithfulness
from course_utils.patching import attribution_patching, patch_together, path_patching
from course_utils.prompts import Prompt

from .plain import CONTRAST, TARGET, Case, NoOracle, Values, entering, leaving, zeroed

REPLACEMENT = 7
STEPS = 5


class Check(NamedTuple):
    """One comparison: what the package gives, and what it should."""

    label: str
    got: Callable[[], Any]
    want: Callable[[], Any]


Oracle = Callable[[Case], Iterator[Check]]
METHODS: dict[str, Oracle] = {}


def method(name: str) -> Callable[[Oracle], Oracle]:
    """Enter an oracle under the method's name."""

    def enter(oracle: Oracle) -> Oracle:
        METHODS[name] = oracle
        return oracle

    return enter


def ids_of(prompt: Prompt) -> list[int]:
    return prompt.input_ids[0].tolist()


def typed(prompt: Prompt) -> list[int]:
    return list(range(len(prompt)))[prompt.user]


def swapped(ids: Sequence[int], places: Sequence[int]) -> list[int]:
    """The ids with another token at some places."""
    return [REPLACEMENT if i in places else token for i, token in enumerate(ids)]


# --- the model alone ------------------------------------------------------------------------------------------------


@method("generate")
def greedy(case: Case) -> Iterator[Check]:
    def loop() -> list[float]:
        ids, reply = ids_of(case.short), []
        ends = case.model.generation_config.eos_token_id
        ends = {ends} if not isinstance(ends, list) else set(ends)
        while len(reply) < 6 and not (reply and reply[-1] in ends):
            last = case.logits([*ids, *reply])[-1]
            if not last.isfinite().all():
                return [np.nan]
            reply.append(int(last.argmax()))
        return reply

    def got() -> list[float]:
        """The package's reply; the right one where the two part at a tie."""
        reply, right = case.lm.generate(case.short, 6).tolist(), loop()
        for i, (token, best) in enumerate(zip(reply, right, strict=False)):
            if token != best and not np.isnan(best):
                last = case.logits([*ids_of(case.short), *right[:i]])[-1]
                return right if last[best] - last[token] <= 1e-3 * last.abs().max() else reply
        return reply

    yield Check("6 tokens", got, loop)


@method("next logits")
def following(case: Case) -> Iterator[Check]:
    prompts = [case.short, case.long, case.other]
    want = lambda: torch.stack([case.logits(ids_of(p))[-1] for p in prompts])  # noqa: E731
    yield Check("three prompts", lambda: next_logits(case.lm, prompts), want)
    sequences = [ids_of(case.long)[:n] for n in (24, 9, 17)]
    yield Check(
        "beginnings of one prompt",
        lambda: score_last(case.lm, sequences, lambda logits: logits),
        lambda: torch.stack([case.logits(ids)[-1] for ids in sequences]),
    )


def ends_in_norm(case: Case) -> bool:
    """Whether what leaves the last layer is what enters the final norm; else that is not known here."""
    try:
        return case.final_norm is not None
    except NoOracle:
        return False


@method("activations")
def activations(case: Case) -> Iterator[Check]:
    prompts = [case.short, case.long, case.other]

    def want() -> Values:
        _ = case.flat
        rows = []
        for prompt in prompts:
            given, gave = case.traced(case.layers, ids_of(prompt))
            last = gave[-1][-1] if ends_in_norm(case) else torch.full_like(gave[-1][-1], torch.nan)
            rows.append(torch.stack([*(x[-1] for x in given), last]))
        return torch.stack(rows).double().numpy()

    yield Check("last tokens", lambda: collect_activations(case.lm, prompts), want)


# --- token attribution ----------------------------------------------------------------------------------------------


@method("occlusion")
def occlusion(case: Case) -> Iterator[Check]:
    for label, prompt in (("short", case.short), ("long", case.long)):
        ids = ids_of(prompt)
        yield Check(
            f"{label}, contrast",
            lambda prompt=prompt: token_attribution(case.lm, prompt, contrast=CONTRAST, replacement=REPLACEMENT).scores[
                0
            ],
            lambda ids=ids: [case.unchanged(ids) - case.unchanged(swapped(ids, [i])) for i in range(len(ids))],
        )
    ids = ids_of(case.short)
    yield Check(
        "target",
        lambda: token_attribution(case.lm, case.short, target=TARGET, replacement=REPLACEMENT).scores,
        lambda: (
            case.log_probabilities(ids)[:, None]
            - np.stack([case.log_probabilities(swapped(ids, [i])) for i in range(len(ids))], axis=1)
        ),
    )


@method("deletion")
def deletion(case: Case) -> Iterator[Check]:
    for label, prompt in (("short", case.short), ("long", case.long)):
        ids = ids_of(prompt)
        yield Check(
            label,
            lambda prompt=prompt: token_attribution(case.lm, prompt, method="deletion", contrast=CONTRAST).scores[0],
            lambda ids=ids: [case.unchanged(ids) - case.unchanged(ids[:i] + ids[i + 1 :]) for i in range(len(ids))],
        )


@method("shapley")
def shapley(case: Case) -> Iterator[Check]:
    ids, players = ids_of(case.short), typed(case.short)

    def want() -> Values:
        n, worth = len(players), {}
        for joined in product((False, True), repeat=n):
            worth[joined] = case.unchanged(
                swapped(ids, [p for p, there in zip(players, joined, strict=True) if not there])
            )
        scores = np.zeros(len(ids))
        for number, place in enumerate(players):
            for joined, value in worth.items():
                if not joined[number]:
                    weight = 1 / (n * math.comb(n - 1, sum(joined)))
                    after = (*joined[:number], True, *joined[number + 1 :])
                    scores[place] += weight * (worth[after] - value)
        return scores

    yield Check(
        "exact",
        lambda: token_attribution(
            case.lm, case.short, method="shapley", contrast=CONTRAST, replacement=REPLACEMENT
        ).scores[0],
        want,
    )


def slopes(case: Case, ids: Sequence[int], embedded: Tensor) -> Tensor:
    """How the contrast changes with what the embedding layer gives out, [token, d_model]."""
    with torch.enable_grad():
        rows = embedded.clone().requires_grad_()
        with leaving(case.model.get_input_embeddings(), lambda given, out: rows.view_as(out).clone()):
            last = case.logits(ids)[-1]
        return torch.autograd.grad(last[case.pair[0]] - last[case.pair[1]], rows)[0].detach()


@method("gradient x input")
def gradient(case: Case) -> Iterator[Check]:
    def want(ids: list[int]) -> Values:
        embedded = case.traced([case.model.get_input_embeddings()], ids)[1][0]
        return (slopes(case, ids, embedded) * embedded).sum(dim=-1).double().numpy()

    for label, prompt in (("short", case.short), ("long", case.long)):
        yield Check(
            label,
            lambda prompt=prompt: token_attribution(
                case.lm, prompt, method="gradient_x_input", contrast=CONTRAST
            ).scores[0],
            lambda prompt=prompt: want(ids_of(prompt)),
        )


@method("integrated gradients")
def path_of_gradients(case: Case) -> Iterator[Check]:
    def want() -> Values:
        ids, table = ids_of(case.short), case.model.get_input_embeddings()
        embedded = case.traced([table], ids)[1][0]
        start = case.traced([table], [REPLACEMENT] * len(ids))[1][0]
        nodes, weights = np.polynomial.legendre.leggauss(STEPS)
        total = sum(
            w / 2 * slopes(case, ids, start + (x + 1) / 2 * (embedded - start))
            for x, w in zip(nodes.tolist(), weights.tolist(), strict=True)
        )
        return (total * (embedded - start)).sum(dim=-1).double().numpy()

    how = {"method": "integrated_gradients", "steps": STEPS, "replacement": REPLACEMENT}
    yield Check("five steps", lambda: token_attribution(case.lm, case.short, contrast=CONTRAST, **how).scores[0], want)


@method("faithfulness")
def faithful(case: Case) -> Iterator[Check]:
    def got(prompt: Prompt) -> Any:
        ranks = np.arange(len(prompt))[::-1].astype(float)
        found = faithfulness(
            case.lm, prompt, ranks, contrast=CONTRAST, fractions=(0.5,), replacement=REPLACEMENT, n_random=1
        )
        return [found.comprehensiveness[0], found.sufficiency[0]]

    def want(prompt: Prompt) -> list[float]:
        ids, places = ids_of(prompt), typed(prompt)
        top = places[: max(1, round(0.5 * len(places)))]
        rest = [p for p in places if p not in top]
        return [case.unchanged(ids) - case.unchanged(swapped(ids, out)) for out in (top, rest)]

    for label, prompt in (("short", case.short), ("long", case.long)):
        yield Check(label, lambda prompt=prompt: got(prompt), lambda prompt=prompt: want(prompt))


# --- ablation -------------------------------------------------------------------------------------------------------


def sweep(case: Case, over: str, kind: str = "zero", layers: Sequence[int] | None = None) -> Any:
    prompts = [case.short] if kind == "zero" else [case.short, case.other]
    return ablation_sweep(case.lm, prompts, over=over, kind=kind, contrast=CONTRAST, layers=layers).effects


@method("ablation of layers")
def without_layers(case: Case) -> Iterator[Check]:
    def want() -> list[float]:
        ids, effects = ids_of(case.short), []
        for layer in range(len(case.layers)):
            with case.handing_on([layer]):
                effects.append(case.value(ids))
        return [case.unchanged(ids) - effect for effect in effects]

    yield Check("zero", lambda: sweep(case, "layers"), want)


@method("ablation of MLPs")
def without_mlps(case: Case) -> Iterator[Check]:
    def want() -> Values:
        ids, effects = ids_of(case.short), np.full(len(case.layers), np.nan)
        for layer in case.sure(case.mlps):
            with zeroed(*((weight, ...) for weight in (case.mlps[layer] or {}).values())):
                effects[layer] = case.value(ids)
        return case.unchanged(ids) - effects

    yield Check("zero", lambda: sweep(case, "mlps"), want)


@method("ablation of heads")
def without_heads(case: Case) -> Iterator[Check]:
    def want() -> Values:
        ids, sure = ids_of(case.short), case.sure(case.projections)
        effects = np.full((len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
        for layer in sure:
            projection = case.projections[layer]
            for head in range(projection.n_heads):
                with zeroed((projection.module.weight, projection.columns(head))):
                    effects[layer, head] = case.value(ids)
        return case.unchanged(ids) - effects

    yield Check("zero", lambda: sweep(case, "heads"), want)
    try:
        some = [i for i, p in enumerate(case.projections) if p is not None and case.alone_with(p.module.weight)]
    except NoOracle:
        return
    if 0 < len(some) < len(case.layers):
        yield Check("layers that have heads", lambda: sweep(case, "heads", layers=some), lambda: want()[some])


@method("ablation of neurons")
def without_neurons(case: Case) -> Iterator[Check]:
    def want() -> Values:
        ids, module = ids_of(case.short), case.down(0)
        effects = np.full((1, module.weight.numel() // case.lm.d_model), np.nan)
        for neuron in range(6):
            where = (slice(None), neuron) if isinstance(module, torch.nn.Linear) else (neuron,)
            with zeroed((module.weight, where)):
                effects[0, neuron] = case.value(ids)
        return case.unchanged(ids) - effects

    yield Check("zero, layer 0", lambda: sweep(case, "neurons", layers=[0]), want)


@method("mean ablation")
def by_means(case: Case) -> Iterator[Check]:
    prompts = [case.short, case.other]

    def heads() -> Values:
        sure = case.sure(case.projections)
        effects = np.full((len(prompts), len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
        for layer in sure:
            projection = case.projections[layer]
            mean = sum(case.traced([projection.module], ids_of(p))[0][0] for p in prompts) / len(prompts)
            for head in range(projection.n_heads):
                own = projection.own(head)

                def put(x: Tensor, own: slice = own, mean: Tensor = mean) -> Tensor:
                    new = x.clone()
                    new[..., own] = mean[:, own].reshape(new[..., own].shape)
                    return new

                for number, prompt in enumerate(prompts):
                    before = case.unchanged(ids_of(prompt))
                    with entering(projection.module, put):
                        effects[number, layer, head] = before - case.value(ids_of(prompt))
        return effects.mean(axis=0)

    def layers() -> Values:
        effects = np.zeros((len(prompts), len(case.layers)))
        for layer, module in enumerate(case.layers):
            passes = [case.traced([module], ids_of(p)) for p in prompts]
            mean = sum(gave[0] - given[0] for given, gave in passes) / len(prompts)
            for number, prompt in enumerate(prompts):
                before = case.unchanged(ids_of(prompt))
                with leaving(module, lambda given, out, mean=mean: given + mean.view_as(given)):
                    effects[number, layer] = before - case.value(ids_of(prompt))
        return effects.mean(axis=0)

    yield Check("heads", lambda: sweep(case, "heads", "mean"), heads)
    yield Check("layers", lambda: sweep(case, "layers", "mean"), layers)


@method("joint ablation")
def together(case: Case) -> Iterator[Check]:
    def parts() -> tuple[int, int]:
        return case.sure(case.mlps)[-1], case.sure(case.projections)[0]

    def got() -> Any:
        mlp, attention = parts()
        found = joint_ablation(
            case.lm, [case.short], [("mlps", mlp), ("heads", attention, 1)], kind="zero", contrast=CONTRAST
        )
        return [found.effect, *found.singles]

    def want() -> list[float]:
        mlp, attention = parts()
        ids, projection = ids_of(case.short), case.projections[attention]
        block = [(weight, ...) for weight in (case.mlps[mlp] or {}).values()]
        head = [(projection.module.weight, projection.columns(1))]
        effects = []
        for some in ([*block, *head], block, head):
            with zeroed(*some):
                effects.append(case.value(ids))
        return [case.unchanged(ids) - effect for effect in effects]

    yield Check("an MLP and a head", got, want)


# --- lens and direct attribution ------------------------------------------------------------------------------------


@method("logit lens")
def lens(case: Case) -> Iterator[Check]:
    def want() -> Values:
        ids, n = ids_of(case.short), len(case.layers)
        rows = []
        for layer in range(n + 1):
            with case.handing_on(range(layer, n)):
                logits = case.logits(ids).double()
            rows.append((logits[:, case.pair[0]] - logits[:, case.pair[1]]).numpy())
        return np.stack(rows)

    yield Check("contrast", lambda: logit_lens(case.lm, case.short, contrast=CONTRAST).contrast, want)
    yield Check(
        "last row",
        lambda: logit_lens(case.lm, case.short).probability[-1],
        lambda: case.logits(ids_of(case.short)).double().softmax(dim=-1).max(dim=-1).values,
    )


def channelwise(case: Case, layer: int) -> Tensor | None:
    """What each channel of an attention block's output is multiplied by on its way into the stream, [d_model].

    A multiplier and an RMS norm do so, alike in two runs but for a scale; anything else is not known here.
    """
    module, factors = case.projections[layer].module, []
    for prompt in (case.short, case.other):
        gain, gave = case.gained(layer, ids_of(prompt))[0], case.traced([module], ids_of(prompt))[1][0][-1]
        if gain is None:
            return None
        factors.append(gain / gave)
    ratio = factors[0] / factors[1]
    return factors[0] if torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=1e-2) else None


@method("direct attribution")
def direct(case: Case) -> Iterator[Check]:
    @cache
    def found() -> Any:
        return direct_logit_attribution(case.lm, case.short, contrast=CONTRAST)

    def gained(which: int) -> Values:
        values = np.full(len(case.layers), np.nan)
        for layer in range(len(case.layers)):
            if (gain := case.gained(layer, case.ids)[which]) is not None:
                values[layer] = case.direct(gain)
        if np.isnan(values).all():
            raise NoOracle("no layer's part could be established")
        return values

    def heads() -> Values:
        sure = case.sure(case.projections)
        values = np.full((len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
        for layer in sure:
            projection = case.projections[layer]
            if (factor := channelwise(case, layer)) is None:
                continue
            given, _ = case.traced([projection.module], case.ids)
            for head in range(projection.n_heads):
                own = projection.own(head)
                values[layer, head] = case.direct(factor * (projection.matrix()[:, own] @ given[0][-1, own]))
        if np.isnan(values).all():
            raise NoOracle("heads go through more than a multiplier or an RMS norm")
        return values

    def embedded() -> float:
        _ = case.flat
        return case.direct(case.traced([case.layers[0]], case.ids)[0][0][-1])

    yield Check("value, sum", lambda: [(d := found()).value, d.total], lambda: [case.unchanged(case.ids)] * 2)
    yield Check("attention", lambda: found().attention, lambda: gained(0))
    yield Check("MLPs", lambda: found().mlps, lambda: gained(1))
    yield Check("heads", lambda: found().heads, heads)
    yield Check("embedding", lambda: found().embedding, embedded)


# --- patching -------------------------------------------------------------------------------------------------------


def shares(case: Case, values: Any) -> Any:
    """Values as shares of the way from the corrupted prompt to the clean one."""
    clean, corrupted = case.unchanged(ids_of(case.short)), case.unchanged(ids_of(case.other))
    return (np.asarray(values) - corrupted) / (clean - corrupted)


def cell(x: Tensor, source: Tensor, token: int | slice, own: slice = slice(None)) -> Tensor:
    """One place of an activation [..., width] replaced by another pass's."""
    new = x.clone()
    rows = new.reshape(-1, new.shape[-1])
    rows[token, own] = source[token, own]
    return rows.view_as(x)


def patched(case: Case, over: str) -> Any:
    return activation_patching(case.lm, case.short, case.other, over=over, contrast=CONTRAST).effects


@method("patching of the residual")
def patching_residual(case: Case) -> Iterator[Check]:
    def want() -> Values:
        _ = case.flat
        source, _ = case.traced(case.layers, ids_of(case.short))
        values = np.zeros((len(case.layers), len(case.short)))
        for layer, module in enumerate(case.layers):
            for token in range(len(case.short)):
                with entering(module, lambda x, s=source[layer], t=token: cell(x, s, t)):
                    values[layer, token] = case.value(ids_of(case.other))
        return shares(case, values)

    yield Check("clean into corrupted", lambda: patched(case, "residual"), want)


def by_block(case: Case, modules: list[Any]) -> Values:
    """The effects of patching what some modules give out, [layer, token]."""
    values = np.full((len(case.layers), len(case.short)), np.nan)
    for layer in case.sure(modules):
        source = case.traced([modules[layer]], ids_of(case.short))[1][0]
        for token in range(len(case.short)):
            with leaving(modules[layer], lambda _, out, s=source, t=token: cell(out, s, t)):
                values[layer, token] = case.value(ids_of(case.other))
    return shares(case, values)


@method("patching of attention")
def patching_attention(case: Case) -> Iterator[Check]:
    yield Check(
        "clean into corrupted", lambda: patched(case, "attention"), lambda: by_block(case, case.attention_sites)
    )


@method("patching of MLPs")
def patching_mlps(case: Case) -> Iterator[Check]:
    yield Check("clean into corrupted", lambda: patched(case, "mlp"), lambda: by_block(case, case.mlp_sites))


def head_runs(case: Case) -> Values:
    """The contrast of the corrupted prompt with one head from the clean one, [layer, head]."""
    sure = case.sure(case.projections)
    values = np.full((len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
    for layer in sure:
        projection = case.projections[layer]
        source = case.traced([projection.module], ids_of(case.short))[0][0]
        for head in range(projection.n_heads):
            own = projection.own(head)
            with entering(projection.module, lambda x, s=source, own=own: cell(x, s, slice(None), own)):
                values[layer, head] = case.value(ids_of(case.other))
    return values


@method("patching of heads")
def patching_heads(case: Case) -> Iterator[Check]:
    yield Check("clean into corrupted", lambda: patched(case, "heads"), lambda: shares(case, head_runs(case)))


@method("attribution patching")
def by_gradient(case: Case) -> Iterator[Check]:
    def products(modules: list[Any]) -> list[Tensor]:
        """(clean - corrupted) x gradient at what enters some modules, [token, width] each."""
        clean = case.traced(modules, ids_of(case.short))[0]
        held: dict[int, Tensor] = {}
        with torch.enable_grad(), ExitStack() as stack:
            table = case.model.get_input_embeddings()
            stack.enter_context(leaving(table, lambda given, out: out.detach().requires_grad_() * 1))
            for i, module in enumerate(modules):

                def hold(x: Tensor, i: int = i) -> Tensor:
                    held[i] = x.clone() if x.requires_grad else x.detach().requires_grad_()
                    return held[
                        i
                    ].clone()  # a node of its own: the model may also use x elsewhere, or add to it in place

                stack.enter_context(entering(module, hold))
            last = case.logits(ids_of(case.other))[-1]
            value = last[case.pair[0]] - last[case.pair[1]]
        grads = torch.autograd.grad(value, [held[i] for i in range(len(modules))])
        rows = [held[i].detach().reshape(clean[i].shape) for i in range(len(modules))]
        return [(c - r) * g.reshape(c.shape) for c, r, g in zip(clean, rows, grads, strict=True)]

    start = lambda: case.unchanged(ids_of(case.other))  # noqa: E731

    def residual() -> Values:
        _ = case.flat
        sums = torch.stack([p.sum(dim=-1) for p in products(case.layers)]).double().numpy()
        return shares(case, sums + start())

    def heads() -> Values:
        sure = case.sure(case.projections)
        found = products([case.projections[i].module for i in sure])
        values = np.full((len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
        for layer, product_ in zip(sure, found, strict=True):
            projection = case.projections[layer]
            for head in range(projection.n_heads):
                values[layer, head] = float(product_[:, projection.own(head)].double().sum())
        return shares(case, values + start())

    def got(over: str) -> Any:
        return attribution_patching(case.lm, case.short, case.other, over=over, contrast=CONTRAST).effects

    yield Check("residual", lambda: got("residual"), residual)
    yield Check("heads", lambda: got("heads"), heads)


@method("patching together")
def patching_together(case: Case) -> Iterator[Check]:
    def heads() -> list[tuple[int, int]]:
        sure = case.sure(case.projections)
        return [(sure[0], 0), (sure[-1], 1)]

    def want() -> Any:
        with ExitStack() as stack:
            for layer, head in heads():
                projection = case.projections[layer]
                source = case.traced([projection.module], ids_of(case.short))[0][0]
                own = projection.own(head)
                stack.enter_context(
                    entering(projection.module, lambda x, s=source, own=own: cell(x, s, slice(None), own))
                )
            value = case.value(ids_of(case.other))
        return shares(case, value)

    yield Check("two heads", lambda: patch_together(case.lm, case.short, case.other, heads(), contrast=CONTRAST), want)


@method("path patching")
def path(case: Case) -> Iterator[Check]:
    def want() -> Values:
        _ = case.flat
        ids, sure = ids_of(case.other), case.sure(case.projections)
        final = case.traced([case.layers[-1]], ids)[1][0][-1]
        values = np.full((len(case.layers), max(case.projections[i].n_heads for i in sure)), np.nan)
        for layer in sure:
            if case.gained(layer, ids)[0] is None:
                continue
            mlp, projection = case.mlps[layer] or {}, case.projections[layer]
            source = case.traced([projection.module], ids_of(case.short))[0][0]
            with zeroed(*((weight, ...) for weight in mlp.values())):
                before = case.traced([case.layers[layer]], ids)[1][0][-1]
                after = []
                for head in range(projection.n_heads):
                    own = projection.own(head)
                    with entering(projection.module, lambda x, s=source, own=own: cell(x, s, slice(None), own)):
                        after.append(case.traced([case.layers[layer]], ids)[1][0][-1])
            for head, moved in enumerate(after):
                stream = final + moved - before

                def put(_: Tensor, out: Tensor, stream: Tensor = stream) -> Tensor:
                    new = out.clone()
                    new.reshape(-1, new.shape[-1])[-1] = stream
                    return new

                with leaving(case.layers[-1], put):
                    values[layer, head] = case.value(ids)
        if np.isnan(values).all():
            raise NoOracle("no layer's part could be established")
        return shares(case, values)

    yield Check(
        "to the output", lambda: path_patching(case.lm, case.short, case.other, contrast=CONTRAST).effects, want
    )


# --- attention ------------------------------------------------------------------------------------------------------


def stacked(weights: list[Tensor | None]) -> Values:
    """[layer, head, ...], NaN where a layer has none, or fewer heads."""
    known = [w for w in weights if w is not None]
    if not known:
        raise NoOracle("no layer gives attention weights of query and key")
    n_heads = max(len(w) for w in known)
    values = np.full((len(weights), n_heads, *known[0].shape[1:]), np.nan)
    for layer, w in enumerate(weights):
        if w is not None:
            values[layer, : len(w)] = w.detach().double().numpy()
    return values


@method("attention")
def attention(case: Case) -> Iterator[Check]:
    for label, prompt in (("short", case.short), ("long", case.long)):
        yield Check(
            f"weights, {label}",
            lambda prompt=prompt: analyze_attention(case.lm, prompt).weights,
            lambda prompt=prompt: stacked(case.attentions(ids_of(prompt))),
        )
    yield Check(
        "value-weighted",
        lambda: analyze_attention(case.lm, case.short).value_weighted(),
        lambda: stacked(case.attentions(case.ids)) * stacked(case.reach())[:, :, None],
    )


@method("head detail")
def detail(case: Case) -> Iterator[Check]:
    def layer() -> int:
        try:
            return case.sure(case.attentions(case.ids))[-1]
        except NoOracle:
            return 0

    def got() -> Any:
        found = head_detail(case.lm, case.short, layer(), 1)
        scores = torch.tensor(found.scores).double()
        own = found.queries @ found.keys.T * found.scaling
        return [found.weights, scores.softmax(dim=-1).numpy(), np.where(np.isfinite(found.scores), own, -np.inf)]

    def want() -> Any:
        weights = stacked(case.attentions(case.ids))[layer(), 1]
        return [weights, weights]

    yield Check("weights", lambda: np.stack(got()[:2]), want)


# --- directions -----------------------------------------------------------------------------------------------------


def finite(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise NoOracle("a pass of one's own gives what the model gives, here no finite numbers")
    return logits


def some_direction(case: Case) -> Values:
    try:
        width = case.traced([case.layers[0]], case.ids)[0][0].shape[-1]
    except NoOracle:
        width = case.lm.d_model
    return np.random.default_rng(0).normal(size=width)


def without(direction: Values) -> Callable[[Tensor], Tensor]:
    unit = torch.tensor(direction / np.linalg.norm(direction))
    return lambda x: x - (x @ unit.to(x))[..., None] * unit.to(x)


def places(case: Case) -> list[int] | None:
    """Where to project out: all layers, and what enters the final norm, if that is known."""
    return None if ends_in_norm(case) else list(range(len(case.layers)))


def projected(case: Case, direction: Values, ids: Sequence[int]) -> Tensor:
    """The logits with a direction taken out before each layer and after the last."""
    _ = case.flat
    with ExitStack() as stack:
        remove = without(direction)
        for module in case.layers:
            stack.enter_context(entering(module, remove))
        if ends_in_norm(case):
            stack.enter_context(leaving(case.layers[-1], lambda _, out: remove(out)))
        return case.logits(ids)


@method("project out")
def projecting(case: Case) -> Iterator[Check]:
    def got() -> Any:
        with project_out(case.lm, some_direction(case), places(case)):
            return case.lm.model(case.short.input_ids, use_cache=False).logits[0]

    yield Check("all layers", got, lambda: finite(projected(case, some_direction(case), case.ids)))


@method("steer")
def steering(case: Case) -> Iterator[Check]:
    def got() -> Any:
        with steer(case.lm, some_direction(case), 1, 5.0):
            return case.lm.model(case.short.input_ids, use_cache=False).logits[0]

    def want() -> Any:
        _ = case.flat
        direction = some_direction(case)
        push = 5.0 * torch.tensor(direction / np.linalg.norm(direction))
        with entering(case.layers[1], lambda x: x + push.to(x)):
            return finite(case.logits(case.ids))

    yield Check("layer 1", got, want)


@method("direction effect")
def effect(case: Case) -> Iterator[Check]:
    prompts = [case.short, case.long, case.other]

    def want() -> list[float]:
        effects = []
        for prompt in prompts:
            last = projected(case, some_direction(case), ids_of(prompt))[-1].double()
            effects.append(float(last[case.pair[0]] - last[case.pair[1]]) - case.unchanged(ids_of(prompt)))
        return effects

    yield Check(
        "three prompts",
        lambda: (
            direction_effect(
                case.lm, prompts, some_direction(case), contrast=CONTRAST, layers=places(case), n_random=1
            ).effects
        ),
        want,
    )
