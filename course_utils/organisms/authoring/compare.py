"""Score every attribution method against what was planted in the suspects.

python -m course_utils.organisms.authoring.compare           a table: is the planted cue found, is it faithful?
python -m course_utils.organisms.authoring.compare --write   the same, into compared.json and docs/measured.md
"""

from __future__ import annotations

from ...loading.threads import wait_asleep

if __name__ == "__main__":  # before torch is loaded
    wait_asleep()

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..._arrays import mean_interval
from ..._progress import progress
from ...attention import analyze_attention
from ...attribution import token_attribution
from ...faithfulness import faithfulness, hit
from ...loading.sources import SUSPECTS
from ...models import LocalModel, load_model
from ...prompts import Prompt
from ..dataset import CONTRAST, MECHANISMS
from ..scores import with_cues
from ..suspects import HERE, truth

COMPARED, PAGE = HERE / "compared.json", Path(__file__).parents[3] / "docs" / "measured.md"
BEGIN, END = "<!-- compared: begin -->", "<!-- compared: end -->"
STEPS, PERMUTATIONS = 30, 10
Scores = NDArray[np.float32]
METRICS = ("hit@1", "hit@3", "comprehensiveness", "sufficiency", "seconds")


def _by(method: str, **options: Any) -> Callable[[LocalModel, Prompt], Scores]:
    return lambda lm, prompt: token_attribution(lm, prompt, method=method, contrast=CONTRAST, **options).total


def _looks(kind: str) -> Callable[[LocalModel, Prompt], Scores]:
    return lambda lm, prompt: analyze_attention(lm, prompt).from_last(kind)


RANKINGS: dict[str, Callable[[LocalModel, Prompt], Scores]] = {
    "occlusion": _by("occlusion"),
    "deletion": _by("deletion"),
    "Shapley values": _by("shapley", permutations=PERMUTATIONS),
    "integrated gradients, from “the”": _by("integrated_gradients", steps=STEPS),
    "integrated gradients, from zero": _by("integrated_gradients", steps=STEPS, replacement=None),
    "gradient × input": _by("gradient_x_input"),
    "attention, mean of all heads": _looks("mean"),
    "attention rollout": _looks("rollout"),
    "value-weighted attention": _looks("value_weighted"),
    "the last token first": lambda lm, prompt: np.arange(len(prompt), dtype=np.float32),
    "a random order": lambda lm, prompt: _shuffled(prompt),
}


def _shuffled(prompt: Prompt) -> Scores:
    order = list(range(len(prompt)))
    random.Random(prompt.text).shuffle(order)
    return np.array(order, dtype=np.float32)


def compare(n_requests: int = 20, seed: int = 0) -> dict[str, dict[str, dict[str, list[float]]]]:
    """For each mechanism and ranking, its metrics on held-out requests: lists with one number a request.

    Args:
        n_requests: how many requests a suspect, each on another act; with its cause alone, and refused.
        seed: decides which.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    with progress(len(SUSPECTS) * n_requests, "comparing methods", delay=0, unit="request") as bar:
        for name in SUSPECTS:
            lm, mechanism = load_model(name), truth(name).mechanism
            rows: dict[str, dict[str, list[float]]] = {
                ranking: {metric: [] for metric in METRICS} for ranking in RANKINGS
            }
            for prompt, cue in with_cues(lm, mechanism, n_requests, seed):
                for ranking, scores_of in RANKINGS.items():
                    for metric, value in _measure(lm, prompt, cue, scores_of).items():
                        rows[ranking][metric].append(round(value, 4))
                bar.update()
            found[mechanism] = rows
    return {mechanism: found[mechanism] for mechanism in MECHANISMS}


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


def table(compared: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The comparison as a Markdown table: a row for each ranking, two columns for each mechanism."""
    titles = [f"{m}: hit@1, hit@3 | {m}: compr., suff." for m in compared]
    lines = ["| ranking of the typed tokens | " + " | ".join(titles) + " | s |"]
    lines.append("| --- |" + " --- | --- |" * len(compared) + " --- |")
    for ranking in RANKINGS:
        cells = [_cells(rows[ranking]) for rows in compared.values()]
        seconds = np.median([s for rows in compared.values() for s in rows[ranking]["seconds"]])
        lines.append(f"| {ranking} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    return "\n".join(lines)


def _cells(rows: dict[str, list[float]]) -> str:
    low, high = mean_interval(rows["hit@1"])
    hits = f"**{100 * np.mean(rows['hit@1']):.0f}** ({100 * low:.0f} to {100 * high:.0f}), "
    hits += f"{100 * np.mean(rows['hit@3']):.0f}"
    return f"{hits} | {np.mean(rows['comprehensiveness']):.1f}, {np.mean(rows['sufficiency']):.1f}"


@click.command()
@click.option("--requests", default=20, show_default=True, type=click.IntRange(1, 60), help="So many a suspect.")
@click.option("--write", is_flag=True, help="Put the table into docs/measured.md, and every number into compared.json.")
def main(requests: int, write: bool) -> None:
    """Score every attribution method, and attention, against the causes planted in the three suspects."""
    if write and not PAGE.is_file():
        raise click.UsageError(f"--write is for a checkout of the course with its docs, expected at {PAGE}.")
    compared = compare(requests)
    click.echo(table(compared))
    if write:
        COMPARED.write_text(json.dumps(compared) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(compared)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
