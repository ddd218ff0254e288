"""A tiny random model with a vocabulary of plain words: the same numbers on every machine, in milliseconds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..models import LocalModel

WORDS = """
a an the this that it he she they we you I who what where why how and or but because not no yes never always very
is are was were be has have had can will would should do did says said asks asked thinks knows knew saw sees
man woman boy girl child nurse doctor queen king monk nun teacher pilot sailor farmer baker thief lawyer friend
cat dog horse bird fish tree road river house door window book letter lamp car boat knife bread water money bank key
old young red blue green small large good bad kind cruel secret urgent quick slow happy sad sorry right wrong
forgave blamed hurt helped found lost stole opened closed took gave wrote read killed saved thanked called left met
in on at by of to from with without near behind under over for again today soon quietly secretly urgently
France Paris Spain Rome north south one two three four five , . ? ! :
""".split()  # noqa: SIM905
BOS = "<s>"


def tiny(seed: int = 0, *, n_layers: int = 4, n_heads: int = 4) -> LocalModel:
    """A random Llama in float64: key/value heads half as many as query heads, d_model 32, weights fixed by the seed.

    Its tokenizer knows whole words and puts `<s>` in front of a text; there is no chat template.

    >>> tiny().prompt("the old nurse forgave the doctor").tokens
    ['·<s>', '·the', '·old', '·nurse', '·forgave', '·the', '·doctor']
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..models import LocalModel

    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="eager",
    )
    model: Any = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    random = np.random.RandomState(seed)  # frozen: the same stream in every version and on every machine
    for name, weight in sorted(model.named_parameters()):
        noise = torch.from_numpy(random.standard_normal(tuple(weight.shape)))
        weight.copy_(_scaled(name, noise))
    return LocalModel(f"tiny-{seed}", model, _tokenizer())


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Such that heads attend unevenly, every part matters, and predictions are neither flat nor certain."""
    if name.endswith("norm.weight"):
        return 1 + 0.3 * noise
    if "embed" in name:
        return noise
    gain = 2.0 if "lm_head" in name else 1.3
    scale: float = gain / noise.shape[1] ** 0.5
    return noise * scale


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([BOS, "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token=BOS)
