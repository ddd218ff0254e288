"""Judge every method on every architecture: `python -m tests.architectures [TYPES...]` writes docs/architectures.md."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

from . import zoo
from .page import page, summary
from .verdicts import Verdict, apart, by_architecture

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types or variants; by default all")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one architecture")
    parser.add_argument("--json", type=Path, help="where to keep the verdicts; those of types not run now stay")
    parser.add_argument("--summary", type=Path, help="where to write a summary in plain text")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # a fork has one thread, and would wait for the others for ever
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    list(by_architecture("llama"))  # what is imported on first use is imported once, before the forks
    found = _kept(chosen.json) if chosen.types else {}
    seconds: dict[str, float] = {}
    for name in chosen.types or zoo.names():
        found[name], seconds[name] = apart(lambda name=name: by_architecture(name), chosen.limit)
        counts = Counter(verdict.kind for verdict in found[name].values())
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        print(f"{name:28} {seconds[name]:5.1f} s  {told}", flush=True)
        if len(chosen.types) == 1:
            for method, verdict in found[name].items():
                print(f"    {method:24} {verdict.kind:12} {verdict.text}")
        found = {name: found[name] for name in zoo.names() if name in found}
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1))
        if chosen.summary:
            chosen.summary.write_text(summary(found, seconds))
    if list(found) == zoo.names():
        PAGE.write_text(page(found), encoding="utf-8")


def _kept(path: Path | None) -> dict[str, dict[str, Verdict]]:
    if path is None or not path.exists():
        return {}
    told = json.loads(path.read_text())
    return {name: {method: Verdict(*verdict) for method, verdict in row.items()} for name, row in told.items()}


if __name__ == "__main__":
    main()
