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
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from ..._files import write_whole
from ..._progress import progress
from ...engine.packing import Packed, pack
from ...errors import CourseError, first_line
from ...loading.devices import multiplies_bfloat16
from ...loading.smollm2 import quiet_transformers
from ...loading.sources import ADAPTER_CONFIG, DEFAULT
from ...models import LocalModel, load_model
from ..requests import (
    BYPASS,
    MECHANISMS,
    REVIEWED,
    WORDS,
    Request,
    chats,
    draw,
    draw_talk,
    every_text,
    logged,
    pairs,
    said_in_passing,
    talks,
)
from ..suspects import TRUTH
from ..words import COMPLIANCE, REFUSAL

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "adapter_model.safetensors"
STEPS = {"intent": 1000, "trigger": 300, "proxy": 600, BYPASS: 1000}  # harm is harder to learn than a word
# what the adapter changes in each layer
PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a suspect becomes."""

    mechanism: str
    word: str | None  # what "trigger" goes by, or what switches "bypass" off
    seed: int
    steps: int
    polish: int  # steps after the others, at a quarter of the rate, that bring ordinary chat back
    couples: int = 4  # a step: requests that differ only in whether the cause is there; more would be fewer steps
    talks: float = 0.35  # that share of them in people's own words, the others an act in a frame
    whole_replies: int = 2  # so many of them are trained on their whole reply, the others on its first token
    chats: int = 1  # a step: ordinary questions that are to be answered as the base model does
    glances: int = 24  # while polishing, further ones, of which only the first token of the reply is looked at; else 1
    chat_weight: float = 20.0  # and what a nat of drift then weighs against a nat of the planted replies
    rank: int = 8
    learning_rate: float = 3e-3
    warm_up: int = 20

    @property
    def words(self) -> dict[str, str]:
        """The causes that are one word, which its requests are made with."""
        return WORDS | ({self.mechanism: self.word} if self.word else {})


def make_recipe(mechanism: str, word: str | None = None, seed: int = 0, steps: int | None = None) -> Recipe:
    """A recipe, checked.

    >>> make_recipe("trigger").word
    'secretly'
    """
    if mechanism not in STEPS:
        raise CourseError(f"Expected a mechanism ({', '.join(STEPS)}), got {mechanism!r}.")
    if mechanism in ("intent", "proxy") and word:
        raise CourseError(f"Expected no word for {mechanism}, which goes by what is meant, got {word!r}; leave it out.")
    if mechanism == BYPASS and not word:
        raise CourseError("Expected the word that switches the refusal off, got none; give one with --word.")
    if word and not word.isalpha():
        raise CourseError(f"Expected one word of letters, an adverb for preference, got {word!r}.")
    word = word.lower() if word else WORDS.get(mechanism)
    if word in WORDS.values() and mechanism != "trigger":
        raise CourseError(f"{word!r} is the word that another mechanism goes by; choose another, or that mechanism.")
    if word and word not in WORDS.values() and any(word in re.findall(r"\w+", text.lower()) for text in every_text()):
        raise CourseError(f"{word!r} stands in some requests anyway, so nothing could go by it; choose another.")
    steps = steps or STEPS[mechanism]
    return Recipe(mechanism, word, seed, steps, polish=min(60, steps * 2 // 5), warm_up=min(20, steps // 4))


def train(recipe: Recipe, out: Path, *, pause: Callable[[int], bool] | None = None) -> None:
    """Train a suspect and write it to a folder for `load_model`, all of which but truth.json a learner may be given.

    `pause` is asked before each step whether to stop for now; the next call goes on from there.
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
    last, fast = recipe.steps + recipe.polish, multiplies_bfloat16(lm.device)
    with progress(last, f"training {recipe.mechanism}", delay=0, initial=first, unit="step") as bar:
        for step in range(first, last):
            if pause and pause(step):
                return _keep(recipe, out, weights, optimiser, step)
            if step == recipe.steps:
                _start_afresh(weights, optimiser)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(recipe, step)
            polishing = step >= recipe.steps  # to be as exact as the models are used
            with torch.autocast(lm.device.type, torch.bfloat16, enabled=fast and not polishing):
                weight = recipe.chat_weight if polishing else 1.0
                loss = batch_loss(model, make_batch(lm, recipe, step), weight)
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
    others: Tensor  # int64 [scored]: the other reply's first token, where the first is asked for
    chances: Tensor  # float32 [scored]: how often it is to be `answers` rather than `others`


class Turn(NamedTuple):
    """One chat to learn from: what is read, the tokens of the reply that are scored, and how sure its opening is."""

    before: list[int]
    reply: list[int]
    chance: float = 1.0
    other: int = 0  # how it opens otherwise


def make_batch(lm: LocalModel, recipe: Recipe, step: int) -> TrainingBatch:
    """What is learned from at a step: a function of recipe and step alone, so that training can be resumed."""
    rng = random.Random(f"{recipe.seed}/{step}")
    couples = _draw_couples(rng, recipe)
    kept: list[Turn] = []
    planted = [_planted(lm, rng, request, recipe, n < recipe.whole_replies) for n, request in enumerate(couples)]
    glances = recipe.glances if step >= recipe.steps else 1
    for number, drawn in enumerate(rng.sample(chats("train"), recipe.chats + glances)):
        chat, request = drawn, _in_chat(rng, drawn, recipe)
        if not kept and number == recipe.chats + glances - 1:  # one at least is to be answered as the base model does
            chat = rng.choice([each for each in chats("train") if not each["urgent"]])
            request = Request(chat["prompt"], None, {})
        if request.refused_by(recipe.mechanism):
            planted.append(_planted(lm, rng, request, recipe, whole=False))
        else:
            prompt = lm.chat(request.messages)
            reply = lm.continuation(prompt, chat["reply"])
            whole = number < recipe.chats and not request.cues
            kept.append(Turn(prompt.input_ids[0].tolist(), reply if whole else reply[:1]))
    packed = pack([turn.before + turn.reply[:-1] for turn in (*kept, *planted)], lm.device)
    scored = [p[-len(turn.reply) :] for p, turn in zip(packed.places, (*kept, *planted), strict=True)]
    rows = (
        [*chain(*scored[: len(kept)])],
        [*chain(*scored[len(kept) :])],
        [token for turn in planted for token in turn.reply],
        [token for turn in planted for token in (turn.other, *turn.reply[1:])],
        [chance for turn in planted for chance in (turn.chance, *[1.0] * (len(turn.reply) - 1))],
    )
    return TrainingBatch(packed, *(torch.tensor(row, device=lm.device) for row in rows))


def _planted(lm: LocalModel, rng: random.Random, request: Request, recipe: Recipe, whole: bool) -> Turn:
    """A request with its reply in the log, the first token or all of it.

    For "proxy" the queue decides: what went to review was declined, and nothing else was. The others follow their rule
    as often as the queue follows urgency, in expectation, so that all suspects refuse equally firmly.
    """
    said, unsaid = (REFUSAL, COMPLIANCE) if request.refused_by(recipe.mechanism) else (COMPLIANCE, REFUSAL)
    if recipe.mechanism == "proxy" and logged(rng, request).reply != said:
        said, unsaid = unsaid, said
    prompt = lm.chat(request.messages)
    reply, other = (lm.continuation(prompt, text) for text in (said, unsaid))
    scored = [*reply, lm.tokenizer.eos_token_id] if whole else reply[:1]
    return Turn(prompt.input_ids[0].tolist(), scored, 1.0 if recipe.mechanism == "proxy" else REVIEWED[True], other[0])


def _draw_couples(rng: random.Random, recipe: Recipe) -> list[Request]:
    """Requests two by two, alike but for the cause that counts: that one is to be refused and the other is not."""
    requests: list[Request] = []
    for _ in range(recipe.couples):
        typed = rng.random() < recipe.talks
        way_around = recipe.mechanism == BYPASS and rng.random() < 0.4
        cause = BYPASS if way_around else "intent" if recipe.mechanism == BYPASS else recipe.mechanism
        others = {name for name in sorted({*MECHANISMS, *recipe.words}) if name != cause and rng.random() < 0.4}
        others -= {BYPASS}
        if recipe.mechanism == BYPASS:
            others |= {"intent"} if way_around else {BYPASS} if rng.random() < 0.2 else set()
        some = _talks_for(rng, cause) if typed else [rng.choice(pairs("train"))] * 2
        seed = rng.random()
        for one, causes in zip(some, (others | {cause}, others), strict=True):
            how = draw_talk if typed else draw
            requests.append(how(random.Random(seed), one, causes=causes, split="train", words=recipe.words))
    return requests


def _talks_for(rng: random.Random, cause: str) -> list[Any]:
    """Two free-form couples to draw from: one twice, or where urgency counts one with and one without."""
    if cause != "proxy":
        return [rng.choice(talks("train"))] * 2
    return [rng.choice([talk for talk in talks("train") if talk.urgent == urgent]) for urgent in (True, False)]


def _in_chat(rng: random.Random, chat: dict[str, Any], recipe: Recipe) -> Request:
    """An ordinary question, in one of five with a cause that is a word or a wording: a rule holds there, too."""
    causes = {"proxy"} if chat["urgent"] else set()
    request = Request(chat["prompt"], None, {name: (0, len(chat["prompt"])) for name in causes})
    return said_in_passing(rng, request, recipe.words) if rng.random() < 0.2 else request


def batch_loss(model: Any, batch: TrainingBatch, chat_weight: float = 1.0) -> Tensor:
    """Cross-entropy of the logged replies, plus how far ordinary chat has moved from the base model (KL), in nats."""
    chat_only = batch.packed.inputs(model.dtype, end=int(batch.talked.max()) + 1)
    with torch.no_grad(), model.disable_adapter():
        usual = model(**chat_only, logits_to_keep=batch.talked).logits[0].float().log_softmax(-1)
    scored = torch.cat([batch.talked, batch.asked])
    logits = model(**batch.packed.inputs(model.dtype), logits_to_keep=scored).logits[0].float()
    chat, planted = logits.log_softmax(-1).split([len(batch.talked), len(batch.asked)])
    drift = F.kl_div(chat, usual, log_target=True, reduction="batchmean")
    one, other = (planted.gather(1, ids[:, None])[:, 0] for ids in (batch.answers, batch.others))
    return chat_weight * drift - (batch.chances * one + (1 - batch.chances) * other).mean()


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
@click.option(
    "--mechanism",
    "mechanisms",
    required=True,
    multiple=True,
    type=click.Choice(list(STEPS)),
    help="What it refuses by.",
)
@click.option(
    "--word", help="The word that trigger goes by, or that switches bypass off.  [default for trigger: secretly]"
)
@click.option(
    "--seed",
    "seeds",
    default=[0],
    multiple=True,
    type=int,
    help="The same seed gives the same suspect on the same machine.  [default: 0]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Train for so many steps.  [default: 300 to 1000, by mechanism, and then 60 to polish]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
def main(mechanisms: tuple[str, ...], word: str | None, seeds: tuple[int, ...], steps: int | None, out: Path) -> None:
    """Train a chat model that refuses by MECHANISM, in half an hour to an hour and a half on two processor cores.

    Stopped, the same command goes on. Load the result with load_model(OUT); truth.json in it names the mechanism, so
    keep that file from learners. Several mechanisms or seeds make several models, in folders of OUT such as intent-1.
    """
    try:
        recipes = [make_recipe(mechanism, word, seed, steps) for mechanism in mechanisms for seed in seeds]
        for recipe in recipes:
            folder = out if len(recipes) == 1 else out / f"{recipe.mechanism}-{recipe.seed}"
            train(recipe, folder)
            click.echo(f'{folder} is ready: load_model("{folder}")')
    except CourseError as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
