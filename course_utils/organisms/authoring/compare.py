"""Score every attribution method against what was planted in the suspects.

python -m course_utils.organisms.authoring.compare                    is the planted cue found, is the ranking faithful?
python -m course_utils.organisms.authoring.compare FOLDER FOLDER      other seeds of the same mechanisms besides
python -m course_utils.organisms.authoring.compare [FOLDER] --write   into compared.json and docs/measured.md
"""

from __future__ import annotations

from ...loading.threads import wait_asleep

if __name__ == "__main__":  # before torch is loaded
    wait_asleep()

import json
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from ..._arrays import floats
from ..._progress import progress
from ...attention import analyze_attention
from ...attribution import token_attribution
from ...engine.dictionary import Dictionary, train_dictionary
from ...engine.metrics import make_metric
from ...errors import CourseError
from ...faithfulness import faithfulness, hit
from ...hooks import edit, record
from ...loading.sources import SUSPECTS
from ...models import LocalModel, load_model
from ...prompts import Prompt
from ..requests import DATA, MECHANISMS, draw, held_out, pairs
from ..scores import with_cues
from ..suspects import truth
from ..words import CONTRAST

COMPARED, PAGE = DATA.parent / "compared.json", Path(__file__).parents[3] / "docs" / "measured.md"
BEGIN, END = "<!-- compared: begin -->", "<!-- compared: end -->"
STEPS, PERMUTATIONS = 20, 4  # as in docs/measured.md's own timings
LAYER, TEXTS = 15, 400  # the sparse dictionary's layer, the middle one, fixed beforehand; and requests it learns from
Scores = NDArray[np.float32]
METRICS = ("hit@1", "hit@3", "comprehensiveness", "sufficiency", "seconds")
Rows = dict[str, dict[str, list[float]]]  # for each ranking and metric, one number a request


def _by(method: str, **options: Any) -> Callable[[LocalModel, Prompt], Scores]:
    return lambda lm, prompt: token_attribution(lm, prompt, method=method, contrast=CONTRAST, **options).total


@torch.no_grad()
def knockout(lm: LocalModel, prompt: Prompt) -> Scores:
    """By how much the contrast falls when the last position can't look at a token, in any layer (Geva et al. 2023).

    What other positions took from the token stays, so a cue that reaches the end by a stop in between is not seen.
    """
    ids, n_tokens = prompt.input_ids, len(prompt)
    metric = make_metric(lm, prompt, contrast=CONTRAST)
    past = lm.model(ids[:, :-1], use_cache=True).past_key_values
    past.batch_repeat_interleave(n_tokens)
    cut = torch.eye(n_tokens, device=lm.device, dtype=lm.model.dtype) * torch.finfo(lm.model.dtype).min
    cut[-1] = 0  # a token that can't see itself would see nothing of its own: the last row is the uncut pass
    logits = lm.model(
        ids[:, -1:].expand(n_tokens, 1),
        attention_mask=cut[:, None, None],  # [cut token, head, query, key]
        position_ids=torch.full((n_tokens, 1), n_tokens - 1, device=lm.device),
        past_key_values=past,
    ).logits
    values = metric.total(logits)
    return floats(values[-1] - values)


@lru_cache(maxsize=1)  # learned once for each suspect
def dictionary_of(lm: LocalModel) -> Dictionary:
    """A sparse dictionary of what a suspect makes of training requests, typed tokens and those after, at one layer."""
    rng, vectors = random.Random(0), []
    for _ in range(TEXTS):
        causes = {name for name in MECHANISMS if rng.random() < 0.5}
        prompt = lm.chat(draw(rng, rng.choice(pairs("train")), causes=causes, split="train").messages)
        with torch.no_grad(), record(lm, [("residual", LAYER)]) as seen:
            lm.model.base_model(prompt.input_ids, use_cache=False)
        vectors.append(seen["residual", LAYER][0, prompt.user.start :].float())
    return train_dictionary(torch.cat(vectors))


def by_dictionary(lm: LocalModel, prompt: Prompt, dictionary: Dictionary) -> Scores:
    """For each token, what its latents do to the contrast: how strongly each speaks, times the gradient along it.

    The linear estimate of Marks et al. 2024, without the part of the stream that the dictionary misses.
    """
    kept: list[Tensor] = []

    def leaf(stream: Tensor) -> Tensor:
        kept.append(stream.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad(), edit(lm, {("residual", LAYER): leaf}):
        logits = lm.model(prompt.input_ids, use_cache=False).logits[:, -1:]
        make_metric(lm, prompt, contrast=CONTRAST).total(logits).sum().backward()  # type: ignore[no-untyped-call]
    stream, slope = kept[0][0].detach().float(), kept[0].grad
    assert slope is not None
    effects = dictionary.latents(stream) * (slope[0].float() @ dictionary.directions.T)  # [token, latent]
    return floats(effects.sum(dim=1))


def _looks(kind: str) -> Callable[[LocalModel, Prompt], Scores]:
    return lambda lm, prompt: analyze_attention(lm, prompt).from_last(kind)


RANKINGS: dict[str, Callable[[LocalModel, Prompt], Scores]] = {
    "occlusion": _by("occlusion", typed_only=True),
    "deletion": _by("deletion", typed_only=True),
    "Shapley values": _by("shapley", permutations=PERMUTATIONS),
    "integrated gradients, from “the”": _by("integrated_gradients", steps=STEPS),
    "integrated gradients, from zero": _by("integrated_gradients", steps=STEPS, replacement=None),
    "gradient × input": _by("gradient_x_input"),
    "attention, mean of all heads": _looks("mean"),
    "attention rollout": _looks("rollout"),
    "value-weighted attention": _looks("value_weighted"),
    "attention knockout": knockout,
    f"sparse dictionary, layer {LAYER}": lambda lm, prompt: by_dictionary(lm, prompt, dictionary_of(lm)),
    "the last token first": lambda lm, prompt: np.arange(len(prompt), dtype=np.float32),
    "a random order": lambda lm, prompt: _shuffled(prompt),
}


def _shuffled(prompt: Prompt) -> Scores:
    order = list(range(len(prompt)))
    random.Random(prompt.text).shuffle(order)
    return np.array(order, dtype=np.float32)


def compare(suspects: Sequence[str] = SUSPECTS, n_requests: int = 30) -> dict[str, list[Rows]]:
    """For each mechanism, the metrics of every ranking on held-out requests, once for each suspect of it.

    Suspects are names, or folders of others; each is asked so many requests that it refuses, with its cause alone.
    """
    found: dict[str, list[Rows]] = {mechanism: [] for mechanism in MECHANISMS}
    with progress(len(suspects) * n_requests, "comparing methods", delay=0, unit="request") as bar:
        for name in suspects:
            lm, mechanism = load_model(name), truth(name).mechanism
            rows: Rows = {ranking: {metric: [] for metric in METRICS} for ranking in RANKINGS}
            for prompt, cue in with_cues(lm, mechanism, n_requests, requests=held_out("validation")):
                for ranking, scores_of in RANKINGS.items():
                    for metric, value in _measure(lm, prompt, cue, scores_of).items():
                        rows[ranking][metric].append(round(value, 4))
                bar.update()
            found.setdefault(mechanism, []).append(rows)
    return {mechanism: rows_of_each for mechanism, rows_of_each in found.items() if rows_of_each}


def _measure(
    lm: LocalModel, prompt: Prompt, cue: slice, scores_of: Callable[[LocalModel, Prompt], Scores]
) -> dict[str, float]:
    begun = time.perf_counter()
    scores = scores_of(lm, prompt)
    seconds = time.perf_counter() - begun
    comprehensiveness, sufficiency = faithfulness(lm, prompt, scores, contrast=CONTRAST, n_random=0).area
    return {
        "hit@1": float(hit(scores, cue, prompt.user, 1)),
        "hit@3": float(hit(scores, cue, prompt.user, 3)),
        "comprehensiveness": comprehensiveness,
        "sufficiency": sufficiency,
        "seconds": seconds,
    }


def table(compared: dict[str, list[Rows]]) -> str:
    """The comparison as a Markdown table: a row for each ranking, two columns for each mechanism."""
    titles = [f"{m}: hit@1, hit@3 | {m}: compr., suff." for m in compared]
    lines = ["| ranking of the typed tokens | " + " | ".join(titles) + " | s |"]
    lines.append("| --- |" + " --- | --- |" * len(compared) + " --- |")
    for ranking in RANKINGS:
        cells = [_cells([rows[ranking] for rows in each]) for each in compared.values()]
        seconds = [s for each in compared.values() for rows in each for s in rows[ranking]["seconds"]]
        lines.append(f"| {ranking} | " + " | ".join(cells) + f" | {np.median(seconds):.1f} |")
    return "\n".join(lines)


def _cells(suspects: list[dict[str, list[float]]]) -> str:
    """One mechanism's: means over requests, hit@1 with its interval, and that of each suspect where there are more.

    The interval is Wilson's: to draw requests anew, where all or none are hits, would claim to know the share exactly.
    """
    all_of = {metric: [*chain(*(rows[metric] for rows in suspects))] for metric in METRICS}
    low, high = binomtest(int(sum(all_of["hit@1"])), len(all_of["hit@1"])).proportion_ci(method="wilson")
    each = ", ".join(f"{100 * np.mean(rows['hit@1']):.0f}" for rows in suspects)
    spread = f"; seeds {each}" if len(suspects) > 1 else ""
    hits = f"**{100 * np.mean(all_of['hit@1']):.0f}** ({100 * low:.0f} to {100 * high:.0f}{spread}), "
    hits += f"{100 * np.mean(all_of['hit@3']):.0f}"
    return f"{hits} | {np.mean(all_of['comprehensiveness']):.1f}, {np.mean(all_of['sufficiency']):.1f}"


@click.command()
@click.argument("folders", nargs=-1)
@click.option("--requests", default=30, show_default=True, type=click.IntRange(1, 60), help="So many a suspect.")
@click.option("--write", is_flag=True, help="Put the table into docs/measured.md, and every number into compared.json.")
def main(folders: tuple[str, ...], requests: int, write: bool) -> None:
    """Score every attribution method against the causes planted in the suspects, and in those in FOLDERS besides."""
    if write and not PAGE.is_file():
        raise click.UsageError(f"--write is for a checkout of the course with its docs, expected at {PAGE}.")
    try:
        compared = compare((*SUSPECTS, *folders), requests)
    except CourseError as error:
        raise click.UsageError(str(error)) from error
    click.echo(table(compared))
    if write:
        COMPARED.write_text(json.dumps(compared) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(compared)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
