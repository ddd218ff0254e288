"""Activations of many texts at once: the residual stream at one token of each, before every layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arrays import Floats, close, precise
from .._progress import progress
from ..errors import CourseError
from ..hooks import Edit, Site, edit
from ..loading.others_hooks import disturbed, has_unknown_hooks
from ..models import LocalModel
from ..prompts import Prompt
from .packing import pack
from .premises import can_batch, check_finite, check_model, holds, logits_at, random_ids

ROW_TOKENS = 512  # of a pass; more is no faster, and what packing rests on is tried out on a row as long
_TRIED = 64  # tokens of a sequence whose logits are compared, at most


def collect_activations(lm: LocalModel, texts: Sequence[str | Prompt], position: int = -1) -> Floats:
    """The residual stream at one token of each text, before every layer: float32 `[text, layer + 1, d_model]`.

    Index l is what enters layer l; the last is what enters the final norm, not yet normed.

    Args:
        lm: the model.
        texts: typed texts (in the chat template, if the model has one) or prompts.
        position: which token of the prompt; negative counts from its end.

    Raises:
        CourseError: no texts, or a position that some prompt does not have.

    >>> collect_activations(lm, ["Hi", "Hello there"]).shape
    (2, 31, 576)
    """
    prompts = prompts_of(lm, texts)
    # nothing after a token changes it, so what comes later is not run, and like beginnings are run once
    sequences, at = [prompt.input_ids[0, : prompt.place(position) + 1].tolist() for prompt in prompts], -1
    if disturbed(lm.model):  # but for an edit that counts from the end
        sequences, at = [prompt.input_ids[0].tolist() for prompt in prompts], position
    return last_residuals(lm, sequences, at).float().numpy()


@torch.no_grad()
def last_residuals(lm: LocalModel, sequences: Sequence[Sequence[int]], at: int = -1) -> Tensor:
    """The residual stream at the last token of sequences of ids, in the model's type: `[sequence, layer + 1, d_model]`.

    Beside an edit that may go by position each has a row of its own, so it can be had `at` another token.

    >>> last_residuals(lm, [[1, 2, 3], [1, 2]]).shape
    torch.Size([2, 31, 576])
    """
    distinct = sorted({tuple(sequence) for sequence in sequences})
    sites = [("residual", layer) for layer in range(lm.n_layers + 1)]
    run = lm.model if has_unknown_hooks((lm.model,)) else getattr(lm.model, "base_model", lm.model)  # no unembedding
    found: dict[tuple[int, ...], Tensor] = {}
    with ExitStack() as shown:
        bar, begun = None, time.perf_counter()
        for batch in passes(lm, distinct):
            wanted = batch if at == -1 else batch._replace(tokens=torch.full_like(batch.tokens, at))
            seen: dict[Site, Tensor] = {}
            with edit(lm, {site: _keep(lm, seen, site, wanted) for site in sites}):
                run(**batch.inputs)
            residuals = torch.stack([seen[site] for site in sites], dim=1)  # [sequence, layer + 1, d_model]
            found.update(zip(batch.sequences, residuals, strict=True))
            if bar is None:  # the first batch tells how long all will take
                seconds = (time.perf_counter() - begun) * len(distinct) / len(found)
                bar = shown.enter_context(progress(len(distinct), "activations", seconds=seconds, unit="text"))
            bar.update(len(batch.sequences))
    return torch.stack([found[tuple(sequence)] for sequence in sequences])


@torch.no_grad()
def score_last(lm: LocalModel, sequences: Sequence[Sequence[int]], score: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the logits `[sequence, vocabulary]` at the last token of each sequence of ids: `[sequence, ...]`.

    >>> score_last(lm, [[1, 2, 3], [1, 2]], lambda logits: logits[:, 5]).shape
    torch.Size([2])
    """
    found: dict[tuple[int, ...], Tensor] = {}
    for batch in passes(lm, sorted({tuple(sequence) for sequence in sequences})):
        logits = check_finite(lm, logits_at(lm, batch.rows, batch.tokens, **batch.inputs))  # [sequence, vocabulary]
        found.update(zip(batch.sequences, score(precise(logits)).cpu(), strict=True))
    return torch.stack([found[tuple(sequence)] for sequence in sequences])


def next_logits(lm: LocalModel, texts: Sequence[str | Prompt]) -> Tensor:
    """The logits of the first reply token to each of several typed texts or prompts, `[text, vocabulary]`.

    >>> next_logits(lm, ["Hi", "Hello there"]).shape
    torch.Size([2, 49152])
    """
    return score_last(lm, [prompt.input_ids[0].tolist() for prompt in prompts_of(lm, texts)], lambda logits: logits)


class Pass(NamedTuple):
    """Some sequences as one input of the model, and where in it their last tokens stand."""

    sequences: list[tuple[int, ...]]
    inputs: dict[str, Any]
    rows: Tensor  # int64 [sequence]
    tokens: Tensor  # int64 [sequence]


def passes(lm: LocalModel, sequences: list[tuple[int, ...]]) -> Iterator[Pass]:
    """Divide sequences into passes: packed where the model allows it, else those of one length together, unpadded.

    >>> [batch.inputs["input_ids"].tolist() for batch in passes(lm, [(5, 6, 7), (5, 6, 8)])]
    [[[5, 6, 7, 8]]]
    """
    check_model(lm)
    lm.check_length(max(map(len, sequences), default=0))
    rows = list(_of_batch_size(sequences))
    if can_pack(lm, max(2 * max(map(len, sequences)), *(n_tokens for _, n_tokens in rows))):
        for some, _ in rows:
            packed = pack(some, lm.device)
            tokens = torch.tensor([places[-1] for places in packed.places])
            yield Pass(some, packed.inputs(lm.model.dtype), torch.zeros_like(tokens), tokens)
        return
    for length, same in groupby(sorted(sequences, key=len), key=len):
        alike, most = list(same), max(1, ROW_TOKENS // length) if can_batch(lm) else 1
        for some in (alike[i : i + most] for i in range(0, len(alike), most)):
            inputs = {"input_ids": torch.tensor(some, device=lm.device), "use_cache": False}
            yield Pass(some, inputs, torch.arange(len(some)), torch.full((len(some),), length - 1))


def can_pack(lm: LocalModel, length: int) -> bool:
    """Whether sequences of up to half a length, packed into a row of that length, give what each gives alone."""
    return not disturbed(lm.model) and holds(lm, "packing", _packs, length)


def _packs(lm: LocalModel, length: int) -> bool:
    """Whether some do; short ones are drawn several times: what hangs on a choice among tokens shows only in some."""
    draws = range(min(4, max(1, 2 * _TRIED // length)))
    return all(_packs_these(lm, random_ids(lm, length, seed).tolist()) for seed in draws)


def _packs_these(lm: LocalModel, ids: list[int]) -> bool:
    """Whether a row does: one sequence of half of it, a short one at its end that begins alike, and one that does not.

    What stands between them is the rest of the row, so that all see as far as anything in a row of that length does.
    """
    length = len(ids)
    half, short = length // 2, length // 16 or 1
    between = ids[:short] + ids[half : length - 3 * short]
    first, alike, other = ids[:half], ids[:short] + ids[-3 * short : -short], ids[-short:]
    packed = pack([first, between, alike, other], lm.device)
    end = torch.tensor([-1])
    some = torch.cat([torch.arange(0, half, max(1, half // _TRIED)), end])  # places in the longest, and its end
    tokens, each = [], []
    for i, one, wanted in ((0, first, some), (2, alike, end), (3, other, end)):
        row = torch.tensor([one], device=lm.device)
        tokens.append(torch.tensor(packed.places[i])[wanted])
        each.append(logits_at(lm, torch.zeros_like(wanted), wanted, input_ids=row, use_cache=False))
    places = torch.cat(tokens)
    together = logits_at(lm, torch.zeros_like(places), places, **packed.inputs(lm.model.dtype))
    return close(together, torch.cat(each))


def _of_batch_size(sequences: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], int]]:
    """Sequences divided into batches, each with the length of its row when it is packed."""
    some: list[tuple[int, ...]] = []
    size = 0
    for sequence in sequences:
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(some[-1] if some else (), sequence, strict=False))
        new = len(sequence) - len(list(shared))
        if some and size + new > ROW_TOKENS:
            yield some, size
            some, size, new = [], 0, len(sequence)
        some, size = [*some, sequence], size + new
    yield some, size


def _keep(lm: LocalModel, seen: dict[Site, Tensor], site: Site, batch: Pass) -> Edit:
    def keep(stream: Tensor) -> None:
        if stream.shape != (*batch.inputs["input_ids"].shape, lm.d_model):
            raise CourseError(
                f"Expected one vector of {lm.d_model} numbers for each token in the residual stream, got "
                f"{list(stream.shape)}; {type(lm.model).__name__} has more streams than one, which is not supported."
            )
        seen[site] = check_finite(lm, stream[batch.rows, batch.tokens]).cpu()

    return keep


def prompts_of(lm: LocalModel, texts: Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts as they are, and typed texts in the chat template, if the model has one.

    Raises:
        CourseError: no list of at least one.

    >>> len(prompts_of(lm, ["Hi", prompt]))
    2
    """
    if isinstance(texts, (str, Prompt)) or not len(texts):
        raise CourseError(f"Expected a list of at least one text or prompt, got {texts!r}; put texts in a list.")
    typed = lm.chat if lm.is_chat else lm.prompt
    prompts = [text if isinstance(text, Prompt) else typed(text) for text in texts]
    for prompt in prompts:
        lm.check_prompt(prompt)
    return prompts
