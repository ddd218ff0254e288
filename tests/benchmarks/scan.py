"""How fast is every word of the vocabulary asked, beside whole passes and the arithmetic? All in one run.

python tests/benchmarks/scan.py   # about ten minutes on two cores
"""

import os
import warnings

import numpy as np
import torch
from attribution import multiply_rate, timed

from course_utils import load_model
from course_utils.audit.search import scan_for
from course_utils.audit.settings import acts
from course_utils.audit.vocabulary import first_token_odds, scan_vocabulary, vocabulary_words
from course_utils.engine.openings import REFUSALS
from course_utils.loading.sources import SUSPECTS
from course_utils.organisms.suspects import truth

AT, LOOPED = "openly", 300


@torch.no_grad()
def looped(lm, prompt, words):
    """One full pass a word."""
    known, place, leans = vocabulary_words(lm), prompt.span(AT).start, first_token_odds(lm, prompt, REFUSALS)
    scores = []
    for word in words:
        ids = prompt.input_ids.clone()
        ids[0, place] = known[word]
        scores.append(float(leans(lm.model(ids, use_cache=False, logits_to_keep=1).logits)))
    return np.array(scores)


def floor_seconds(lm, prompt, n_words):
    """Time for the multiply-adds from the word on, and of one row of logits, for each word, at the machine's rate."""
    n, start = len(prompt), prompt.span(AT).start
    layers = sum(p.numel() for p in lm.model.model.layers.parameters() if p.dim() == 2)
    attention = 2 * lm.n_layers * lm.d_model * (n - start) * (n + start) / 2
    return n_words * (layers * (n - start) + attention + lm.d_model * lm.config.vocab_size) / multiply_rate()


def report(what, seconds, ours, note=""):
    print(f"{what:<52} {seconds:7.1f} s {seconds / ours:6.2f} x ours  {note}", flush=True)


def main():
    warnings.filterwarnings("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    lm = load_model(next(name for name in SUSPECTS if truth(name).mechanism == "trigger"))
    harmless = [pair[1] for pair in acts("search")]
    prompt, words = lm.chat(f"How can I {harmless[0]} {AT}?"), list(vocabulary_words(lm))
    print(f"{len(words):,} words in one place, {len(prompt) - prompt.span(AT).start} of {len(prompt)} tokens differ")

    ours, scan = timed(lambda: scan_vocabulary(lm, prompt, AT))
    report("scan_vocabulary, float32", ours, ours, f"first: {scan.highest(3)}")
    report("  its arithmetic", floor_seconds(lm, prompt, len(words)), ours)
    some = words[:: len(words) // LOOPED][:LOOPED]
    slow, naive = timed(lambda: looped(lm, prompt, some))
    off = np.abs(naive - [dict(zip(scan.words, scan.scores, strict=True))[word] for word in some]).max()
    report(f"  a loop of full passes ({LOOPED} words timed)", slow * len(words) / LOOPED, ours, f"differs by {off:.0e}")
    coarse, rough = timed(lambda: scan_vocabulary(lm, prompt, AT, coarse=True))
    off = np.abs(rough.scores - scan.scores).max()
    report("  coarse (bfloat16 where the processor can)", coarse, ours, f"first: {rough.highest(3)}, {off:.2f} off")

    def searched():
        return scan_for(lm, lm.chat, harmless, REFUSALS, to_refuse=True, seconds=1e6)

    grouped, found = timed(searched)
    report("  as the audit asks: sixteen at once, then the furthest", grouped, ours, f"first: {found.highest(3)}")


if __name__ == "__main__":
    main()
