"""How fast is token attribution, beside its peers and beside the arithmetic that cannot be saved? All in one run.

python tests/benchmarks/attribution.py               # ratios, about three minutes on two cores
python tests/benchmarks/attribution.py --memory      # peak memory for a prompt of 1,000 tokens, about twelve minutes
python tests/benchmarks/attribution.py --interpreto  # beside Interpreto, in an environment made for it, five minutes
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from pathlib import Path

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


def multiply_adds(lm, n_prompt, n_reply, *, whole=False):
    """Those of the suffixes that really differ and of the scored logits; or of whole passes with all their logits."""
    layers = sum(p.numel() for p in lm.model.model.layers.parameters() if p.dim() == 2)
    n = n_prompt + n_reply - 1
    starts = [0 if whole else i for i in range(n_prompt)]
    attention = sum(2 * lm.n_layers * lm.d_model * (n - i) * (n + i) / 2 for i in starts)
    unembedding = n_prompt * (n if whole else n_reply) * lm.d_model * lm.config.vocab_size
    return layers * sum(n - i for i in starts) + attention + unembedding


def floor_seconds(lm, n_prompt, n_reply):
    """Time for the multiply-adds that cannot be saved, at the machine's own rate."""
    return multiply_adds(lm, n_prompt, n_reply) / multiply_rate()


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


def with_interpreto():
    """Make an environment with Interpreto, whose requirements clash with Inseq's, and compare there."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        wanted = [f"torch=={torch.__version__.partition('+')[0]}", "interpreto==0.5.*", "-e", str(root)]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        subprocess.run([python, __file__, "--beside-interpreto"], check=True)


def beside_interpreto():
    """Occlusion beside Interpreto's, at each of three batch sizes, in turn."""
    from interpreto import Granularity, Occlusion
    from interpreto.attributions import InferenceModes

    lm, theirs = load_model("smollm2"), load_model("smollm2")  # theirs gets a token more
    prompt = lm.chat(TEXT)
    n_reply = len(lm.continuation(prompt, REPLY))
    how = {"granularity": Granularity.ALL_TOKENS, "inference_mode": InferenceModes.LOG_SOFTMAX}
    peers = {size: Occlusion(theirs.model, theirs.tokenizer, batch_size=size, **how) for size in (4, 16, 64)}
    assert (
        peers[64](prompt.text, REPLY)[0].attributions.shape == token_attribution(lm, prompt, target=REPLY).scores.shape
    )
    rounds = []
    for _ in range(5):
        ours = timed(lambda: token_attribution(lm, prompt, target=REPLY))[0]
        rounds.append([ours, *(timed(lambda peer=peer: peer(prompt.text, REPLY))[0] for peer in peers.values())])
    ours, *seconds = np.median(rounds, axis=0)
    report("token_attribution (median of 5)", ours, ours)
    for size, each in zip(peers, seconds, strict=True):
        report(f"Interpreto, batches of {size}", each, ours)
    whole, floor = (multiply_adds(lm, len(prompt), n_reply, whole=whole) for whole in (True, False))
    print(f"whole passes, all logits, hold {whole / floor:.1f} times the multiply-adds that cannot be saved")


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
    parser.add_argument("--memory", dest="what", action="store_const", const=memory, default=ratios)
    parser.add_argument("--interpreto", dest="what", action="store_const", const=with_interpreto)
    parser.add_argument("--beside-interpreto", dest="what", action="store_const", const=beside_interpreto)
    parser.parse_args().what()
