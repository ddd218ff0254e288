"""How fast are sweeps and attributions, beside loops of full passes, Captum, and their arithmetic? All in one run.

python tests/benchmarks/methods.py   # ratios, about six minutes on two cores
"""

import os
import warnings

import numpy as np
import torch
from attribution import TEXT, multiply_rate, timed

from course_utils import ablation_sweep, activation_patching, load_model, token_attribution
from course_utils.engine.metrics import make_metric
from course_utils.hooks import edit, record

CONTRAST = ("I", "Sure")
STEPS, PERMUTATIONS = 20, 4


def pair_of(lm):
    """Two prompts of 62 tokens that differ in one, early among the typed ones."""
    return lm.chat(TEXT), lm.chat(TEXT.replace("kill", "stop"))


@torch.no_grad()
def contrast_of(lm, ids, metric):
    return float(metric.total(lm.model(ids[None], use_cache=False).logits[:, -1:]))


def looped_heads(lm, prompt):
    """One full hooked pass a head."""
    metric = make_metric(lm, prompt, contrast=CONTRAST)
    full, size = contrast_of(lm, metric.ids, metric), lm.d_model // lm.n_heads
    effects = np.zeros((lm.n_layers, lm.n_heads))
    for layer in range(lm.n_layers):
        for head in range(lm.n_heads):

            def zero(activation, own=slice(head * size, (head + 1) * size)):
                new = activation.clone()
                new[..., own] = 0
                return new

            with edit(lm, {("heads", layer): zero}):
                effects[layer, head] = full - contrast_of(lm, metric.ids, metric)
    return effects


def looped_patching(lm, clean, corrupted, layers):
    """One full hooked pass a layer and token that can matter, for some layers."""
    metric = make_metric(lm, clean, contrast=CONTRAST)
    with record(lm, [("residual", layer) for layer in layers]) as seen:
        top = contrast_of(lm, clean.input_ids[0], metric)
    bottom = contrast_of(lm, corrupted.input_ids[0], metric)
    effects = np.zeros((len(layers), len(clean)))
    for row, layer in enumerate(layers):
        for token in range(len(clean)):

            def patch(activation, layer=layer, token=token):
                new = activation.clone()
                new[:, token] = seen["residual", layer][:, token]
                return new

            with edit(lm, {("residual", layer): patch}):
                effects[row, token] = contrast_of(lm, corrupted.input_ids[0], metric)
    return (effects - bottom) / (top - bottom)


def floor_seconds(lm, passes_by_layer, n_outputs):
    """Time for the multiply-adds of some token passes of each layer and of the unembeddings, at the machine's rate."""
    per_layer = sum(p.numel() for p in lm.model.model.layers[0].parameters() if p.dim() == 2)
    work = per_layer * sum(passes_by_layer) + n_outputs * lm.d_model * lm.config.vocab_size
    return work / multiply_rate()


def captum_gradients(lm, prompt):
    from captum.attr import IntegratedGradients

    layer, pair = lm.model.get_input_embeddings(), [lm.tokenizer.encode(word)[0] for word in CONTRAST]

    def forward(embedded):
        logits = lm.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits[:, pair[0]] - logits[:, pair[1]]

    start = layer(torch.full_like(prompt.input_ids, lm.tokenizer.encode(" the")[0])).detach()
    peer = IntegratedGradients(forward)
    embedded = layer(prompt.input_ids).detach()
    options = {"n_steps": STEPS, "internal_batch_size": 10, "return_convergence_delta": True}  # ours reports it, too
    return peer.attribute(embedded, start, **options)[0].sum(dim=-1).detach().numpy()


def captum_shapley(lm, prompt):
    """Twice as many orders as ours are named for: we walk each of them both ways."""
    from captum.attr import ShapleyValueSampling

    pair = [lm.tokenizer.encode(word)[0] for word in CONTRAST]
    user, n_players = prompt.user, prompt.user.stop - prompt.user.start
    ids, the = prompt.input_ids, lm.tokenizer.encode(" the")[0]

    @torch.no_grad()
    def forward(typed):
        whole = ids.repeat(len(typed), 1)
        whole[:, user] = typed
        logits = lm.model(whole, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits[:, pair[0]] - logits[:, pair[1]]

    peer = ShapleyValueSampling(forward)
    typed = ids[:, user]
    start = torch.full((1, n_players), the)
    return peer.attribute(typed, start, n_samples=2 * PERMUTATIONS, perturbations_per_eval=8).numpy()


def report(name, seconds, ours):
    print(f"{name:<64} {seconds:7.1f} s   {seconds / ours:5.2f} x ours", flush=True)


def main():
    warnings.filterwarnings("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    lm = load_model()
    clean, corrupted = pair_of(lm)
    n, layers = len(clean), lm.n_layers
    print(f"{n} tokens, {torch.get_num_threads()} threads")

    ours, sweep = timed(lambda: ablation_sweep(lm, clean, kind="zero", contrast=CONTRAST), 3)
    report(f"head sweep, {layers} x {lm.n_heads}, zero", ours, ours)
    floor = floor_seconds(lm, [lm.n_heads * n * (layers - layer) for layer in range(layers)], layers * lm.n_heads)
    report("  its arithmetic", floor, ours)
    slow, naive = timed(lambda: looped_heads(lm, clean))
    report("  a loop of hooked full passes", slow, ours)
    print(f"  largest difference {np.abs(naive - sweep.effects).max():.1e} logits")

    prompts = [clean, corrupted]
    ours, sweep = timed(lambda: ablation_sweep(lm, prompts, kind="mean", contrast=CONTRAST), 3)
    report("head sweep of two prompts, mean over both", ours, ours)
    report("  a loop of hooked full passes, twice the one above", 2 * slow, ours)

    ours, patching = timed(lambda: activation_patching(lm, clean, corrupted, contrast=CONTRAST), 3)
    report(f"residual patching, {layers} layers x {n} tokens", ours, ours)
    first = int((clean.input_ids != corrupted.input_ids)[0].int().argmax())
    suffixes = sum(n - token for token in range(first, n))
    floor = floor_seconds(lm, [suffixes * (layers - layer) for layer in range(layers)], layers * (n - first))
    report("  its arithmetic", floor, ours)
    some = list(range(0, layers, 5))
    slow, naive = timed(lambda: looped_patching(lm, clean, corrupted, some))
    report(
        f"  a loop of hooked full passes ({len(some)} layers timed, times {layers / len(some):.0f})",
        slow * layers / len(some),
        ours,
    )
    print(
        f"  of these, the loop needs only {n - first} of {n} tokens: {slow * layers / len(some) * (n - first) / n / ours:.2f} x ours"
    )
    print(f"  largest difference {np.abs(naive - patching.effects[some]).max():.1e} of the difference between the runs")

    ours, a = timed(
        lambda: token_attribution(lm, clean, method="integrated_gradients", contrast=CONTRAST, steps=STEPS), 2
    )
    report(f"integrated gradients, {STEPS} steps", ours, ours)
    slow, theirs = timed(lambda: captum_gradients(lm, clean), 2)
    report("  Captum", slow, ours)
    print(f"  largest difference {np.abs(a.scores - theirs).max():.1e} logits")

    ours, a = timed(
        lambda: token_attribution(lm, clean, method="shapley", contrast=CONTRAST, permutations=PERMUTATIONS)
    )
    report(
        f"Shapley values, {2 * PERMUTATIONS} orders of {clean.user.stop - clean.user.start} typed tokens", ours, ours
    )
    slow, theirs = timed(lambda: captum_shapley(lm, clean))
    report("  Captum, as many orders, 8 at a time", slow, ours)
    print(f"  both sum to {a.scores.sum():.3f} and {theirs.sum():.3f} logits")


if __name__ == "__main__":
    main()
