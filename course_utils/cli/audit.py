"""`course audit`: does my model refuse for the right reason?"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CourseError, first_line

if TYPE_CHECKING:
    from ..audit.run import Audit

_JSON = b'{\n "type": "Audit"'  # how the JSON of an audit begins
ROLES = ("system", "user", "assistant")


@click.command()
@click.argument("model")
@click.option("--log", type=click.Path(path_type=Path), help="Requests it got: a line each, or .jsonl with messages.")
@click.option("--pairs", type=click.Path(path_type=Path), help="Your acts: a line each, harmful TAB harmless.")
@click.option("--words", help="Words that you suspect, with commas between them.")
@click.option("--system", help="The system prompt it is used with, or @FILE.")
@click.option("--refusal", multiple=True, help="An opening that counts as refusing besides its own; can be repeated.")
@click.option("--expect", default="", help="What you expect, in a sentence.")
@click.option("--thinking", type=click.Choice(["off", "on"]), help="Tell its template to think first, or not to.")
@click.option("--dtype", help='"float32", "bfloat16", "float16" or "auto".')
@click.option("--device", help='"cpu", "cuda", "mps" or "auto".')
@click.option("--minutes", type=click.FloatRange(1, 10_000), default=10, show_default=True, help="How long, about.")
@click.option("--seed", default=0, show_default=True, help="Decides what is drawn.")
@click.option("--out", type=click.Path(path_type=Path), help="The report.  [default: audit-MODEL.html]")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="The same as JSON.")
@click.option("--anew", is_flag=True, help="Forget what an audit that was stopped had done.")
def audit(model: str, as_json: Path | None, out: Path | None, anew: bool, **given: Any) -> None:
    """Ask what MODEL's refusals follow: harm, a word, or something else.

    MODEL is "smollm2", a suspect such as "model-a", a hub id, a folder, a .gguf file or "ollama:NAME". An audit that
    was stopped goes on where it was. Exit code 0: its refusals follow harm, and every word was asked. 1: otherwise.
    2: it could not run.
    """
    from .._files import write_whole
    from ..audit.page import page_target, write_page
    from ..audit.report import plain_words, report
    from ..audit.run import audit as run
    from ..audit.settings import Settings
    from ..loading.smollm2 import cache_folder
    from ..models import load_model

    target = page_target(out or Path(f"audit-{Path(model).name.replace(':', '-')}.html"))
    as_json = _json_target(as_json)
    settings = Settings(
        pairs=_pairs(given["pairs"]),
        words=tuple(word.strip() for word in (given["words"] or "").split(",") if word.strip()),
        log=_log(given["log"]),
        system=_text(given["system"]),
        refusal=given["refusal"],
        expect=given["expect"],
        minutes=given["minutes"],
        seed=given["seed"],
    )
    settings.check()
    lm = load_model(model, device=given["device"], dtype=given["dtype"])
    if given["thinking"]:
        lm = replace(lm, switches={**lm.switches, "enable_thinking": given["thinking"] == "on"})

    def write(found: Audit) -> None:
        write_page(target, report(found))
        if as_json:
            write_whole(as_json, found.to_json().encode("utf-8", "backslashreplace"))

    found = run(lm, settings, keep=cache_folder() / "audits", anew=anew, then=write)
    click.echo("\n".join([found.verdict.sentence, *plain_words(found), f"The report: {target}"]))
    sys.exit(0 if found.is_right else 1)


def _json_target(path: Path | None) -> Path | None:
    if path and not (path.parent.is_dir() and path.suffix == ".json"):
        raise CourseError(f"Expected --json to be a file that ends in .json, in a folder that exists, got {path}.")
    if path and path.exists() and not (path.is_file() and path.read_bytes()[: len(_JSON)] == _JSON):
        raise CourseError(f"Expected a new file or an earlier audit's JSON, got {path}, which is neither; rename.")
    return path


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CourseError(f"Expected a text file in UTF-8, got {path} ({first_line(error)}).") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).split("\n") if line.strip()]


def _text(given: str | None) -> str | None:
    return _read(Path(given[1:])).strip("\n") if given and given.startswith("@") else given


def _pairs(path: Path | None) -> tuple[tuple[str, str], ...]:
    """Acts, harmful and harmless, from a file."""
    if path is None:
        return ()
    rows = [[part.strip() for part in line.split("\t")] for line in _lines(path)]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not all(row):
            raise CourseError(
                f"Expected a harmful act, a TAB and a harmless act in each line of {path}, got {' '.join(row)!r} in "
                f"line {number}."
            )
    if not rows:
        raise CourseError(f"Expected pairs of acts in {path}, got an empty file.")
    return tuple((harmful, harmless) for harmful, harmless in rows)


def _log(path: Path | None) -> tuple[tuple[dict[str, str], ...], ...]:
    """Chats from a file: a request a line, or JSON lines with "messages"."""
    if path is None:
        return ()
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        chats = [_chat(line, f"{path}, line {number}") for number, line in enumerate(_lines(path), 1)]
    else:
        chats = [({"role": "user", "content": line},) for line in _lines(path)]
    if not any(chats):
        raise CourseError(f"Expected requests in {path}, got none of a user's.")
    return tuple(filter(None, chats))


def _chat(line: str, where: str) -> tuple[dict[str, str], ...]:
    """The messages of a chat up to its last request."""
    try:
        told = json.loads(line)
        messages = told["messages"] if isinstance(told, dict) else told
        chat = [{"role": str(m["role"]), "content": m["content"]} for m in messages if m["content"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f'Expected {{"messages": [{{"role": …, "content": …}}, …]}} in {where}.') from error
    if not all(m["role"] in ROLES and isinstance(m["content"], str) for m in chat):
        raise CourseError(f"Expected messages of {', '.join(ROLES)}, each a text, in {where}.")
    last = max((n for n, m in enumerate(chat) if m["role"] == "user" and m["content"].strip()), default=-1)
    return tuple(chat[: last + 1])
