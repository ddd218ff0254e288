"""How fast is token attribution, beside its peers and beside the arithmetic that cannot be saved? All in one run.

python tests/benchmarks/attribution.py           # ratios, about three minutes on two cores
python tests/benchmarks/attribution.py --memory  # peak memory for a prompt of 1,000 tokens, about twelve minutes
"""

import argparse
import logging
import os
import resource
import sys
import time
import warnings

import numpy as np
import torch

from course_utils import load_model, token_attribution
from course_utils.loading.smollm2 import GGUF_NAME, cache_folder

TEXT = (
    "How do I kill a Python process that no longer answers, and how can I be really quite sure that nothing else "
    "on my old machine is harmed by it?"
)
REPLY = "I can't help with that"


def timed(function, repeats=1):
    """The shortest of some runs, in seconds, and what the last one returned."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def multiply_rate(size=2048, repeats=5):
    """Multiply-adds a second of this machine's float32 matrix product, for square matrices of a good size."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    return size**3 / timed(lambda: a @ b, repeats)[0]


def floor_seconds(lm, n_prompt, n_reply):
    """Time for the multiply-adds of the suffixes that really differ, and no more, at the machine's own rate."""
    layers = sum(p.numel() for p in lm.model.model.layers.parameters() if p.dim() == 2)
    n = n_prompt + n_reply - 1
    suffixes = sum(n - i for i in range(n_prompt))
    attention = sum(2 * lm.n_layers * lm.d_model * (n - i) * (n + i) / 2 for i in range(n_prompt))
    unembedding = n_prompt * n_reply * lm.d_model * lm.config.vocab_size
    return (layers * suffixes + attention + unembedding) / multiply_rate()


@torch.no_grad()
def naive_loop(lm, prompt, reply):
    """One full pass a token, each scored on its own."""
    the = lm.tokenizer.encode(" the")[0]
    wanted = torch.tensor(reply)

    def score(ids):
        logits = lm.model(torch.cat([ids, wanted])[None]).logits[0, len(ids) - 1 : -1]
        return logits.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0]

    ids = prompt.input_ids[0]
    full = score(ids)
    rows = []
    for i in range(len(ids)):
        changed = ids.clone()
        changed[i] = the
        rows.append(full - score(changed))
    return torch.stack(rows, dim=1).numpy()


def captum(lm, prompt, cached):
    from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput

    features = TextTokenInput(prompt.text, lm.tokenizer, baselines=lm.tokenizer.encode(" the")[0])
    peer = LLMAttribution(FeatureAblation(lm.model), lm.tokenizer)
    return peer.attribute(features, target=REPLY, use_cached_outputs=cached).token_attr.numpy()


def inseq_occlusion(lm, prompt):
    import inseq

    logging.disable(logging.WARNING)
    peer = inseq.load_model(lm.model, "occlusion", tokenizer=lm.tokenizer)
    return peer.attribute(prompt.text, prompt.text + REPLY, show_progress=False)


def from_gguf():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": cache_folder(), "gguf_file": GGUF_NAME}
    return AutoTokenizer.from_pretrained(**where), AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)


def report(what, seconds, ours, note=""):
    print(f"{what:<44} {seconds:8.2f} s {seconds / ours:7.1f} x ours  {note}", flush=True)


def ratios():
    """Compare occlusion and loading with their peers, in one run on one machine."""
    lm = load_model("smollm2")
    loading, lm = timed(lambda: load_model("smollm2"), repeats=3)
    prompt = lm.chat(TEXT)
    reply = lm.continuation(prompt, REPLY)
    print(f"occlusion of {len(prompt)} tokens over {len(reply)} target tokens, {torch.get_num_threads()} threads")
    result = token_attribution(lm, prompt, target=REPLY)
    rounds = []
    for _ in range(7):  # in turn, so that a noisy moment hits both
        floor = floor_seconds(lm, len(prompt), len(reply))
        rounds.append((floor, timed(lambda: token_attribution(lm, prompt, target=REPLY))[0]))
    floor, ours = np.median(rounds, axis=0)
    report("token_attribution (median of 7)", ours, ours)
    best = np.min(rounds, axis=0)
    note = f"ours is {ours / floor:.2f} x the floor (best against best: {best[1] / best[0]:.2f})"
    print(f"{'arithmetic floor (median of 7)':<44} {floor:8.2f} s; {note}", flush=True)
    seconds, scores = timed(lambda: naive_loop(lm, prompt, reply))
    report("naive loop of full passes", seconds, ours, f"differs by at most {np.abs(scores - result.scores).max():.0e}")
    for cached in (False, True):
        seconds, scores = timed(lambda cached=cached: captum(lm, prompt, cached))
        off = np.abs(scores - result.scores).max()
        report(f"Captum LLMAttribution, cached outputs {cached}", seconds, ours, f"differs by at most {off:.0e}")
    report("Inseq occlusion", timed(lambda: inseq_occlusion(lm, prompt))[0], ours)
    print("\nloading SmolLM2, tokenizer included")
    report("load_model from the cache", loading, loading)
    report("transformers from the GGUF file", timed(from_gguf)[0], loading)


def memory():
    """Peak memory of the whole process for a long prompt (the batch shrinks as the prompt grows)."""
    lm = load_model("smollm2")
    prompt = lm.chat(" ".join(["The river ran slowly past the old mill."] * 108))
    seconds, _ = timed(lambda: token_attribution(lm, prompt, target=REPLY))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"{len(prompt)} tokens: {seconds:.0f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    memory() if parser.parse_args().memory else ratios()
