"""`course audit`: does my model refuse for the right reason?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CourseError, first_line
from . import FILE

if TYPE_CHECKING:
    from ..audit.run import Audit
    from ..prompts import Message

_JSON = b'{\n "type": "Audit"'  # how the JSON of an audit begins
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # and what they are here
TOOLS = ("tool", "function")


@click.command()
@click.argument("model")
@click.option("--log", type=FILE, help="Requests it got: a line each, or .jsonl with messages.")
@click.option("--pairs", type=FILE, help="Your acts: a line each, harmful TAB harmless.")
@click.option("--words", help="Words that you suspect, with commas between them.")
@click.option("--system", help="The system prompt it is used with, or @FILE.")
@click.option("--refusal", multiple=True, help="An opening that counts as refusing besides its own; can be repeated.")
@click.option("--expect", default="", help="What you expect, in a sentence.")
@click.option("--thinking", type=click.Choice(["off", "on"]), help="Tell its template to think first, or not to.")
@click.option("--dtype", help='"float32", "bfloat16", "float16" or "auto".')
@click.option("--device", help='"cpu", "cuda", "mps" or "auto".')
@click.option("--minutes", type=click.FloatRange(1, 10_000), default=10, show_default=True, help="How long, about.")
@click.option("--seed", default=0, show_default=True, help="Decides what is drawn.")
@click.option("--out", type=FILE, help="The report.  [default: audit-MODEL.html]")
@click.option("--json", "as_json", type=FILE, help="The same as JSON.")
@click.option("--anew", is_flag=True, help="Forget what an audit that was stopped had done.")
def audit(model: str, as_json: Path | None, out: Path | None, anew: bool, **given: Any) -> None:
    """Ask what MODEL's refusals follow: harm, a word, or something else.

    MODEL is "smollm2", a suspect such as "model-a", a hub id, a folder, a .gguf file or "ollama:NAME". An audit that
    was stopped goes on where it was. Exit code 0: its refusals follow harm, and every word was asked. 1: otherwise.
    2: it could not run.
    """
    from .._files import write_whole
    from ..audit.page import file_target, page_target, write_page
    from ..audit.report import plain_words, report
    from ..audit.run import audit as run
    from ..audit.settings import Settings
    from ..loading.smollm2 import cache_folder
    from ..models import load_model

    target = page_target(out or Path(f"audit-{Path(os.path.abspath(model)).name.replace(':', '-')}.html"))
    as_json = as_json and _json_target(file_target(as_json, (".json",)))
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


def _json_target(path: Path) -> Path:
    if path.exists() and not (path.is_file() and path.read_bytes()[: len(_JSON)] == _JSON):
        raise CourseError(f"Expected a new file or an earlier audit's JSON, got {path}, which is neither; rename.")
    return path


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CourseError(f"Expected a text file in UTF-8, got {path} ({first_line(error)}).") from error


def _lines(path: Path) -> dict[int, str]:
    """The lines that hold something, by their number in the file."""
    lines = enumerate(_read(path).split("\n"), 1)
    return {number: line.strip() for number, line in lines if line.strip()}


def _text(given: str | None) -> str | None:
    return _read(Path(given[1:])).strip("\n") if given and given.startswith("@") else given


def _pairs(path: Path | None) -> tuple[tuple[str, str], ...]:
    """Acts, harmful and harmless, from a file."""
    if path is None:
        return ()
    rows = {number: [part.strip() for part in line.split("\t")] for number, line in _lines(path).items()}
    for number, row in rows.items():
        if len(row) != 2 or not all(row):
            raise CourseError(
                f"Expected a harmful act, a TAB and a harmless act in each line of {path}, got {' '.join(row)!r} in "
                f"line {number}."
            )
    if not rows:
        raise CourseError(f"Expected pairs of acts in {path}, got an empty file.")
    return tuple((harmful, harmless) for harmful, harmless in rows.values())


def _log(path: Path | None) -> tuple[tuple[Message, ...], ...]:
    """Chats from a file: a request a line, or JSON lines with "messages"."""
    if path is None:
        return ()
    lines = _lines(path)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json") or _is_json(next(iter(lines.values()), "")):
        told = [_chat(line, f"{path}, line {number}") for number, line in lines.items()]
    else:
        told = [(({"role": "user", "content": line},), True) for line in lines.values()]
    chats = [chat for chat, _ in told if chat]
    if not chats:
        raise CourseError(f"Expected requests in {path}, got none of a user's that text alone comes before.")
    if cut := sum(not whole for _, whole in told):
        click.echo(
            f"Note: {cut} of {len(told)} chats in {path} hold more than text (tools, pictures) and are read up to the "
            f"last request before that; {len(chats)} of all have a request.",
            err=True,
        )
    return tuple(chats)


def _is_json(line: str) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(line), (dict, list))
    return False


def _chat(line: str, where: str) -> tuple[tuple[Message, ...], bool]:
    """The messages of a chat up to the last request before something that is no text, and whether all is text."""
    chat, whole = [], True
    try:
        told = json.loads(line)
        for message in told["messages"] if isinstance(told, dict) else told:
            text = _text_of(message)
            if not (whole := text is not None):
                break
            if text:
                chat.append({"role": ROLES[message["role"]], "content": text})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CourseError(
            f'Expected {{"messages": [{{"role": …, "content": …}}, …]}} with the roles {", ".join(ROLES)} or tool and '
            f"each content a text or its parts in {where}, got {line[:60]!r}."
        ) from error
    last = max((n for n, m in enumerate(chat) if m["role"] == "user" and m["content"].strip()), default=-1)
    return tuple(chat[: last + 1]), whole


def _text_of(message: Mapping[str, Any]) -> str | None:
    """What a message says; None where it is more than text: what a tool gave, a call of one, a picture."""
    content = message.get("content") or ""
    if message["role"] in TOOLS or message.get("tool_calls") or message.get("function_call"):
        return None
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content]
    return "\n".join(texts) if all(isinstance(text, str) for text in texts) else None
