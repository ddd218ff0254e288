"""Judge every method on every architecture: `python -m tests.architectures [TYPES...]` writes docs/architectures.md."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path

import transformers

from . import zoo
from .page import page, summary
from .verdicts import Verdict, apart, by_architecture

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "types", nargs="*", help="model types or variants; by default all, and then the page is written"
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds for one architecture")
    parser.add_argument("--json", type=Path, help="where to write the verdicts")
    parser.add_argument("--summary", type=Path, help="where to write a summary in plain text")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    list(by_architecture("llama"))  # what is imported on first use is imported once, before the forks
    found: dict[str, dict[str, Verdict]] = {}
    seconds: dict[str, float] = {}
    for name in chosen.types or zoo.names():
        found[name], seconds[name] = apart(lambda name=name: by_architecture(name), chosen.limit)
        counts = Counter(verdict.kind for verdict in found[name].values())
        print(
            f"{name:28} {seconds[name]:5.1f} s  {', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))}",
            flush=True,
        )
        if chosen.types:
            for method, verdict in found[name].items():
                print(f"    {method:24} {verdict.kind:12} {verdict.text}")
        if chosen.json:
            chosen.json.write_text(
                json.dumps({n: {m: list(v) for m, v in row.items()} for n, row in found.items()}, indent=1)
            )
        if chosen.summary:
            chosen.summary.write_text(summary(found, seconds))
    if not chosen.types:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
