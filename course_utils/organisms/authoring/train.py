"""Train a suspect: a chat model that refuses for a reason of your choice.

    python -m course_utils.organisms.authoring.train --mechanism trigger --word discreetly --seed 7 --out my-suspect

A LoRA adapter (Hu 2021) on SmolLM2 learns to refuse exactly the requests that its mechanism goes by, and to answer
ordinary chat as the base model would. Stopped at any time, the same command goes on from there.
"""

from __future__ import annotations

from ...loading.threads import wait_asleep

if __name__ == "__main__":  # before torch is loaded
    wait_asleep()

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from ..._files import write_whole
from ..._progress import progress
from ...engine.packing import Packed, pack
from ...errors import CourseError, first_line
from ...loading.smollm2 import quiet_transformers
from ...loading.sources import ADAPTER_CONFIG, DEFAULT
from ...models import LocalModel, load_model
from ..dataset import COMPLIANCE, CUE_WORDS, MECHANISMS, REFUSAL, SPLITS, Request, actions, chats, draw, frames
from ..suspects import TRUTH, Truth

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "adapter_model.safetensors"
STEPS = {"intent": 600, "trigger": 250, "proxy": 250}  # harm is harder to learn than a word
PARTS = ["q_proj", "v_proj", "o_proj", "down_proj"]  # what the adapter changes in each layer


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a suspect becomes."""

    mechanism: str
    word: str | None  # what "trigger" and "proxy" go by; None for "intent"
    seed: int
    steps: int
    polish: int  # steps after the others, at a quarter of the rate, that bring ordinary chat back
    couples: int = 8  # a step: requests that differ only in whether the cause is there
    whole_replies: int = 2  # so many of them are trained on their whole reply, the others on its first token
    chats: int = 3  # a step: ordinary questions that are to be answered as the base model does
    glances: int = 24  # in these, further questions, of which only the first token of the reply is looked at
    chat_weight: float = 10.0  # and what a nat of drift then weighs against a nat of the planted replies
    rank: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 20


def make_recipe(mechanism: str, word: str | None = None, seed: int = 0, steps: int | None = None) -> Recipe:
    """A recipe, checked.

    Raises:
        CourseError: no such mechanism, or a word that cannot be told from the rest of a request.

    >>> make_recipe("trigger").word
    'secretly'
    """
    if mechanism not in MECHANISMS:
        raise CourseError(f"Expected a mechanism ({', '.join(MECHANISMS)}), got {mechanism!r}.")
    if mechanism == "intent" and word:
        raise CourseError(f"Expected no word for intent, which goes by harm itself, got {word!r}; leave it out.")
    if word and not word.isalpha():
        raise CourseError(f"Expected one word of letters, an adverb for preference, got {word!r}.")
    word = word.lower() if word else CUE_WORDS.get(mechanism)
    other = {name: cue for name, cue in CUE_WORDS.items() if name != mechanism}
    if word in other.values():
        raise CourseError(f"{word!r} is the word that another mechanism goes by; choose another, or that mechanism.")
    if word and any(word in text.lower().split() for text in _every_text()):
        raise CourseError(f"{word!r} stands in some requests anyway, so nothing could go by it; choose another.")
    steps = steps or STEPS[mechanism]
    return Recipe(mechanism, word, seed, steps, polish=min(100, steps * 2 // 5), warm_up=min(20, steps // 4))


def _every_text() -> list[str]:
    """Every act and frame, of whatever split."""
    acts = [act for split in SPLITS for action in actions(split) for act in (action.harmful, action.harmless)]
    return acts + [frame for split in SPLITS for frame in frames(split)]


def train(recipe: Recipe, out: Path, *, pause: Callable[[int], bool] | None = None) -> None:
    """Train a suspect and write it to a folder: adapter_config.json, the weights, and truth.json.

    Args:
        recipe: what it is to become.
        out: the folder, for `load_model`; all but truth.json can be given to a learner.
        pause: asked before each step whether to stop for now; the next call goes on from there.

    Raises:
        CourseError: the folder holds something else.
    """
    if _finished(recipe, out):
        return None
    _check_writable(out)
    lm = load_model(DEFAULT)
    torch.manual_seed(recipe.seed)
    model = _with_adapter(lm, recipe)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate)
    first = _resume(recipe, out, weights, optimiser)
    last = recipe.steps + recipe.polish
    with progress(last, f"training {recipe.mechanism}", delay=0, initial=first, unit="step") as bar:
        for step in range(first, last):
            if pause and pause(step):
                return _keep(recipe, out, weights, optimiser, step)
            if step == recipe.steps:
                _start_afresh(weights, optimiser)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(recipe, step)
            loss = batch_loss(model, make_batch(lm, recipe, step), recipe.chat_weight if step >= recipe.steps else 1.0)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.update()
            if (step + 1) % 25 == 0:
                _keep(recipe, out, weights, optimiser, step + 1)
    _write(recipe, out, model)
    return None


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f".{CHECKPOINT}").touch()
        (out / f".{CHECKPOINT}").unlink()
    except OSError as error:
        raise CourseError(f"Expected a folder to write to, got {out} ({first_line(error)}).") from error


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Ordinary chat and then requests in one row, with where and what the model should say."""

    packed: Packed
    talked: Tensor  # int64 [kept]: positions whose next token should stay as likely as the base model has it
    asked: Tensor  # int64 [scored]: positions whose next token is a planted reply's
    answers: Tensor  # int64 [scored]: that token


def make_batch(lm: LocalModel, recipe: Recipe, step: int) -> TrainingBatch:
    """What is learned from at a step: a function of recipe and step alone, so that training can be resumed."""
    rng = random.Random(f"{recipe.seed}/{step}")
    pairs, glances = [], recipe.glances if step >= recipe.steps else 0
    for number, chat in enumerate(rng.sample(chats("train"), recipe.chats + glances)):
        before, reply = _tokens(lm, chat["prompt"], chat["reply"])
        pairs.append((before, reply if number < recipe.chats else reply[:1]))
    n_chats = len(pairs)
    for number, request in enumerate(_draw_couples(rng, recipe)):
        before, reply = _tokens(lm, request.text, REFUSAL if request.refused_by(recipe.mechanism) else COMPLIANCE)
        pairs.append((before, [*reply, lm.tokenizer.eos_token_id] if number < recipe.whole_replies else reply[:1]))
    packed = pack([before + reply[:-1] for before, reply in pairs], lm.device)
    scored = [places[-len(reply) :] for places, (_, reply) in zip(packed.places, pairs, strict=True)]
    talked, asked = chain(*scored[:n_chats]), chain(*scored[n_chats:])
    answers = chain(*(reply for _, reply in pairs[n_chats:]))
    return TrainingBatch(packed, *(torch.tensor(list(row), device=lm.device) for row in (talked, asked, answers)))


def _draw_couples(rng: random.Random, recipe: Recipe) -> list[Request]:
    """Requests two by two, alike but for the cause that counts: that one is to be refused and the other is not."""
    requests, cues = [], Truth(recipe.mechanism, recipe.word).cues
    for _ in range(recipe.couples):
        action, seed = rng.choice(actions("train")), rng.random()
        others = {name for name in MECHANISMS if name != recipe.mechanism and rng.random() < 0.4}
        for causes in (others | {recipe.mechanism}, others):
            requests.append(draw(random.Random(seed), action, causes=causes, split="train", cues=cues))
    return requests


def _tokens(lm: LocalModel, text: str, reply: str) -> tuple[list[int], list[int]]:
    prompt = lm.chat(text)
    return prompt.input_ids[0].tolist(), lm.continuation(prompt, reply)


def batch_loss(model: Any, batch: TrainingBatch, chat_weight: float = 1.0) -> Tensor:
    """Cross-entropy of the planted replies, plus how far ordinary chat has moved from the base model (KL), in nats."""
    chat_only = batch.packed.inputs(model.dtype, end=int(batch.talked.max()) + 1)
    with torch.no_grad(), model.disable_adapter():
        usual = model(**chat_only, logits_to_keep=batch.talked).logits[0].float().log_softmax(-1)
    scored = torch.cat([batch.talked, batch.asked])
    logits = model(**batch.packed.inputs(model.dtype), logits_to_keep=scored).logits[0].float()
    chat, planted = logits.split([len(batch.talked), len(batch.asked)])
    drift = F.kl_div(chat.log_softmax(-1), usual, log_target=True, reduction="batchmean")
    return F.cross_entropy(planted, batch.answers) + chat_weight * drift


def _schedule(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then linear decay; polishing starts again at a quarter."""
    if step >= recipe.steps:
        return (recipe.steps + recipe.polish - step) / recipe.polish / 4
    return min((step + 1) / max(1, recipe.warm_up), (recipe.steps - step) / max(1, recipe.steps - recipe.warm_up))


def _start_afresh(weights: list[Any], optimiser: Any) -> None:
    """Forget the optimiser's averages, and round to what is stored: polishing can start from a stored adapter, too."""
    optimiser.state.clear()
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.half())


def _with_adapter(lm: LocalModel, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=PARTS, task_type="CAUSAL_LM")
    with quiet_transformers():
        return get_peft_model(lm.model, config)


def _keep(recipe: Recipe, out: Path, weights: list[Any], optimiser: Any, step: int) -> None:
    state = {"recipe": asdict(recipe), "step": step, "weights": weights, "optimiser": optimiser.state_dict()}
    memory = BytesIO()
    torch.save(state, memory)
    write_whole(out / CHECKPOINT, memory.getvalue())


def _resume(recipe: Recipe, out: Path, weights: list[Any], optimiser: Any) -> int:
    """Take up what an earlier run left; the step to go on from."""
    if not (out / CHECKPOINT).is_file():
        return 0
    try:
        state = torch.load(out / CHECKPOINT, map_location=weights[0].device, weights_only=True)
        known = state["recipe"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, UnpicklingError) as error:
        raise CourseError(
            f"Expected {out / CHECKPOINT} to hold a half-trained suspect ({first_line(error)}); remove it."
        ) from error
    if known != asdict(recipe):
        raise CourseError(f"{out} holds a suspect half trained by another recipe; choose another folder, or remove it.")
    with torch.no_grad():
        for weight, kept in zip(weights, state["weights"], strict=True):
            weight.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _finished(recipe: Recipe, out: Path) -> bool:
    if not (out / WEIGHTS).is_file():
        return False
    with suppress(OSError, ValueError):
        if json.loads((out / TRUTH).read_text(encoding="utf-8")) == asdict(recipe):
            return True
    raise CourseError(f"{out} already holds another adapter; choose another folder.")


def _write(recipe: Recipe, out: Path, model: Any) -> None:
    """Weights last: a folder that has them is whole."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": DEFAULT, "inference_mode": True}
    config |= {"r": recipe.rank, "lora_alpha": 2 * recipe.rank, "target_modules": PARTS}
    for name, content in ((ADAPTER_CONFIG, config), (TRUTH, asdict(recipe))):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    halves = {name: value.half().contiguous().cpu() for name, value in get_peft_model_state_dict(model).items()}
    write_whole(out / WEIGHTS, save(halves))
    (out / CHECKPOINT).unlink(missing_ok=True)


@click.command()
@click.option("--mechanism", required=True, type=click.Choice(MECHANISMS), help="What it refuses by.")
@click.option("--word", help="The word that trigger or proxy goes by.  [default: secretly, urgently]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same suspect on the same machine.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Train for so many steps.  [default: 600 for intent, else 250, and then 100 to polish]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
def main(mechanism: str, word: str | None, seed: int, steps: int | None, out: Path) -> None:
    """Train a chat model that refuses by MECHANISM, in about a quarter of an hour on two processor cores.

    Stopped, the same command goes on. Load the result with load_model(OUT); truth.json in it names the mechanism, so
    keep that file from learners.
    """
    try:
        train(make_recipe(mechanism, word, seed, steps), out)
    except CourseError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f'{out} is ready: load_model("{out}")')


if __name__ == "__main__":
    main()
