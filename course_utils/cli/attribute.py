"""`course attribute`: which tokens of a text raised or lowered what a model says."""

from __future__ import annotations

import json
from typing import Any

import click

from ..errors import CourseError


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODEL] TEXT")
@click.option("--target", help="Score this reply: its tokens' log-probability, in nats.")
@click.option("--contrast", nargs=2, metavar="A B", help="Score the logit of A minus that of B as first reply token.")
@click.option(
    "--method",
    default="occlusion",
    show_default=True,
    help="How tokens are scored: occlusion, deletion, gradient_x_input, integrated_gradients or shapley.",
)
@click.option(
    "--replacement",
    show_default=" the",
    help="What stands in for a token that is left out: a text of one token, or a token's id.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the scores of all tokens as JSON.")
def attribute(
    words: tuple[str, ...],
    *,
    target: str | None,
    contrast: tuple[str, str] | None,
    method: str,
    replacement: str | None,
    as_json: bool,
) -> None:
    """Show which tokens of TEXT raised or lowered what MODEL says next.

    MODEL is "smollm2" (the default), a suspect such as "model-a", a hub id, a folder, a .gguf file or "ollama:NAME".
    Without --target or --contrast the first five tokens of the model's own reply are scored.
    """
    if len(words) > 2:
        raise CourseError(f"Expected a text, or a model and a text, got {len(words)} arguments; quote the text.")
    model, text = words if len(words) == 2 else ("smollm2", words[0])
    if not text.strip():
        raise CourseError("Expected some text, got an empty one; type at least one word.")
    from ..attribution import UNREPLACED, token_attribution
    from ..models import load_model

    if replacement is not None and method in UNREPLACED:
        raise CourseError(
            f"Expected no --replacement with {method}, which puts nothing in a token's place; leave it out."
        )
    lm = load_model(model)
    prompt = lm.chat(text) if lm.is_chat else lm.prompt(text)
    stand_in = " the" if replacement is None else int(replacement) if replacement.isdecimal() else replacement
    result = token_attribution(lm, prompt, method=method, target=target, contrast=contrast, replacement=stand_in)
    if as_json:
        click.echo(json.dumps(_as_json(model, result)))
    else:
        _print(result)


def _as_json(model: str, result: Any) -> dict[str, Any]:
    typed = range(len(result.tokens))[result.user]
    return {
        "model": model,
        "method": result.method,
        "unit": result.unit,
        "value": result.value.tolist(),
        "tokens": [{"token": token, "typed": i in typed} for i, token in enumerate(result.tokens)],
        "outputs": result.to_records(),
    }


def _print(result: Any) -> None:
    from rich.console import Console

    from ..attribution import tokens_text

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    console.print(tokens_text(result))
    console.print()
    console.print(repr(result), markup=False)
