"""One door to every local model: the built-in one, a hub id, a folder, a GGUF file, or an Ollama model."""

from __future__ import annotations

import json
import os
import re
import struct
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from .errors import CourseError, first_line
from .loading.smollm2 import check_hub, offline, quiet_transformers, smollm2_folder
from .prompts import Prompt, covering, encode, render_chat, token_strings

DEFAULT = "smollm2"
ADAPTER_CONFIG = "adapter_config.json"
_PLAIN = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "target_modules"}
DTYPES = ("float32", "bfloat16", "float16")
SUSPECTS = ("model-a", "model-b", "model-c")
ADAPTERS = Path(__file__).parent / "organisms" / "adapters"  # a folder for each of them
EXPECTED = (
    f'"{DEFAULT}", "{SUSPECTS[0]}" (or b, c), a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", a folder, '
    'a .gguf file, or "ollama:NAME"'
)


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A causal language model with its tokenizer, ready to be looked into.

    Attributes:
        name: what `load_model` was asked for.
        model: the transformers model, in evaluation mode, without gradients for its weights.
        tokenizer: the transformers tokenizer.

    >>> lm = load_model()
    >>> lm.n_layers, lm.n_heads, lm.d_model
    (30, 9, 576)
    """

    name: str
    model: Any
    tokenizer: Any

    @property
    def config(self) -> Any:
        """The configuration of the language model (of its text part, where it has several)."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        return int(self.config.num_attention_heads)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def context(self) -> int | None:
        """The longest input in tokens, where the model names one."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.get_input_embeddings().weight.device)

    @property
    def is_chat(self) -> bool:
        """Whether the model comes with a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def chat(self, text: str, *, system: str | None = None) -> Prompt:
        r"""What the user typed, in the model's chat template, ready for the reply.

        Without `system` the template decides: SmolLM2's puts in a system prompt that nobody typed.

        Raises:
            CourseError: nothing typed, no chat template, or longer than the model's context.

        >>> lm.chat("Hi").text  # doctest: +ELLIPSIS
        '<|im_start|>system\n...<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        """
        _check_text(text)
        if not self.is_chat:
            raise CourseError(
                f"{self.name} has no chat template, so it is no chat model; "
                "use lm.prompt(text), which takes the text as it stands."
            )
        rendered, start, end = render_chat(self.tokenizer, text, system)
        return self._prompt(rendered, start, end, special=False)

    def prompt(self, text: str) -> Prompt:
        """The text as it stands, without a chat template (a beginning-of-text token if the model uses one).

        Raises:
            CourseError: no text, or longer than the model's context.

        >>> lm.prompt("Once upon a time").tokens
        ['Once', '·upon', '·a', '·time']
        """
        _check_text(text)
        return self._prompt(text, 0, len(text), special=True)

    def _prompt(self, text: str, start: int, end: int, *, special: bool) -> Prompt:
        ids, offsets = encode(self.tokenizer, text, special=special)
        self.check_length(len(ids))
        return Prompt(
            text=text,
            input_ids=torch.tensor([ids], device=self.device),  # [1, token]
            tokens=token_strings(self.tokenizer, ids),
            user=covering(offsets, start, end),
            offsets=offsets,
            typed=(start, end),
        )

    def check_length(self, n_tokens: int) -> None:
        """Raise if an input of so many tokens is longer than the model's context."""
        if self.context is not None and n_tokens > self.context:
            raise CourseError(
                f"Expected at most {self.context:,} tokens, the context of {self.name}, and got {n_tokens:,}; "
                "shorten the text."
            )

    def continuation(self, prompt: Prompt, text: str) -> list[int]:
        """The token ids of a text as they come right after a prompt (tokenised together with it, not alone).

        Raises:
            CourseError: the text is empty, or its first characters merge with the prompt's last token.

        >>> lm.tokenizer.convert_ids_to_tokens(lm.continuation(lm.chat("Hi"), "Sure"))
        ['Sure']
        """
        before = prompt.input_ids[0].tolist()
        plain, _ = encode(self.tokenizer, prompt.text, special=False)
        ids, _ = encode(self.tokenizer, prompt.text + text, special=plain != before)
        if ids[: len(before)] != before:
            raise CourseError(
                f"Expected text that starts a new token after the prompt, got {text!r}, whose first characters merge "
                "with the prompt's last token; start it with a space."
            )
        if len(ids) == len(before):
            raise CourseError(f"Expected text of at least one token, got {text!r}, which encodes to none.")
        return ids[len(before) :]

    @torch.no_grad()
    def generate(self, prompt: Prompt, n_tokens: int = 40) -> Tensor:
        """The ids of the model's greedy reply, `[token]`, at most `n_tokens` of them; it ends with the end token.

        >>> lm.tokenizer.decode(lm.generate(lm.chat("What is the capital of France?"), 7))
        'The capital of France is Paris.'
        """
        ids = prompt.input_ids
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, pad_token_id=pad, **settings
        )
        reply: Tensor = output[0, ids.shape[1] :]
        return reply

    def reply(self, prompt: Prompt, n_tokens: int = 40) -> str:
        """The model's greedy reply as text, without its end token.

        >>> lm.reply(lm.chat("What is the capital of France?"))
        'The capital of France is Paris.'
        """
        return str(self.tokenizer.decode(self.generate(prompt, n_tokens), skip_special_tokens=True))

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"{self.name}: {type(self.model).__name__}, {size:,.0f} M parameters, "
            f"{self.n_layers} layers x {self.n_heads} heads, d_model {self.d_model}"
        )


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder or hub id, the GGUF file in it if that holds the weights, an adapter."""

    place: str
    gguf_file: str | None = None
    on_hub: bool = False
    adapter: str | None = None


def load_model(
    name: str | os.PathLike[str] = DEFAULT, *, device: str | None = None, dtype: str | None = None
) -> LocalModel:
    """Load a local model for looking into, from wherever it is kept.

    Args:
        name: "smollm2" (always there), a suspect ("model-a", "model-b", "model-c"), a hub id, a folder (of a model, or
            of a LoRA adapter, which is merged into its base), a `.gguf` file, or "ollama:NAME[:TAG]".
        device: "cuda", "mps", "cpu" or "auto" (spread over all there is); by default the fastest that there is.
        dtype: "float32", "bfloat16" or "float16"; by default float32 where it fits in memory, else bfloat16.

    Raises:
        CourseError: no such model, or it cannot be read, fetched, or held in memory.

    >>> load_model("smollm2")
    smollm2: LlamaForCausalLM, 135 M parameters, 30 layers x 9 heads, d_model 576
    """
    if dtype not in (None, *DTYPES):
        raise CourseError(f"Expected dtype to be one of {', '.join(DTYPES)}, got {dtype!r}.")
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    source = find(name)
    device = device or best_device()
    _check_device(device)
    if not source.on_hub:
        return _load(name, source, device, dtype, local_only=True)
    try:  # what is in the hub's cache is never asked of the network again
        return _load(name, source, device, dtype, local_only=True)
    except CourseError as error:
        if error.__cause__ is None:  # the files are whole, but of no use here
            raise
        _ask_hub(name)
        return _load(name, source, device, dtype, local_only=False)


def best_device() -> str:
    """The fastest device that torch can use here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        usable = torch.empty(1, device=device).device.type != "meta"
        reason = "holds no numbers"
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
        usable, reason = False, first_line(error)
    if not usable:
        here = f'a device that torch can use here, such as "{best_device()}", or "auto"'
        raise CourseError(f"Expected {here}, got {device!r} ({reason}).")


def find(name: str) -> Source:
    """Where the files of a model are, from any of the names that `load_model` takes.

    >>> find("Qwen/Qwen2.5-0.5B-Instruct").on_hub
    True
    """
    if not isinstance(name, str):
        raise CourseError(f"Expected {EXPECTED}, got {name!r}, which is no text.")
    if name == DEFAULT:
        return Source(str(smollm2_folder()))
    if name in SUSPECTS:
        return _adapter_source(ADAPTERS / name)
    if name.startswith("ollama:"):
        return _in_ollama(name.removeprefix("ollama:"))
    try:
        path = Path(name or "nothing").expanduser()
        if path.is_file():
            return _gguf_source(path)
        if path.is_dir():
            return _folder_source(path)
    except (OSError, RuntimeError) as error:  # too long a name, no permission, no such user's home
        raise CourseError(f"Expected {EXPECTED}, got {name!r} ({first_line(error)}).") from error
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and path.suffix != ".gguf":
        return Source(name, on_hub=True)
    raise CourseError(f"Expected {EXPECTED}, got {name!r}: no such file or folder.")


def _gguf_source(path: Path) -> Source:
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise CourseError(f"Expected a GGUF file, got {path}, which begins with {magic!r}; give {EXPECTED}.")
    return Source(str(path.parent), gguf_file=path.name)


def _folder_source(folder: Path) -> Source:
    if (folder / "config.json").is_file():
        return Source(str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_source(folder)
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return _gguf_source(found[0])
    raise CourseError(
        f"Expected a folder with a config.json or exactly one .gguf file, got {folder} with {len(found)} .gguf files; "
        "give the file itself."
    )


def _adapter_source(folder: Path) -> Source:
    """The base model that an adapter names, with the adapter."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str) or (Path(base) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"it names {base!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"Expected {folder / ADAPTER_CONFIG} to name the model it was trained on ({first_line(error)}); "
            "export the adapter again."
        ) from error
    return replace(find(base), adapter=str(folder))


def _in_ollama(name: str) -> Source:
    """Follow Ollama's own manifest, manifests/HOST/NAMESPACE/NAME/TAG, to the blob that holds the weights."""
    model, _, tag = name.partition(":")
    stored = {_ollama_name(path): path for path in _ollama_manifests()}
    manifest = stored.get(f"{model}:{tag or 'latest'}")
    if manifest is None:
        raise CourseError(
            f"Expected the name of a model that Ollama has pulled ({', '.join(sorted(stored)) or 'it has none here'}), "
            f"got {name!r}; run `ollama pull {name}`, or set OLLAMA_MODELS if its models are kept elsewhere."
        )
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"].endswith("image.model")]
        return _gguf_source(manifest.parents[4] / "blobs" / digests[0].replace(":", "-"))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CourseError(
            f"Expected Ollama's manifest {manifest} to name the weights of {name} ({first_line(error)}); "
            f"run `ollama pull {name}` again."
        ) from error


def _ollama_manifests() -> list[Path]:
    """Every HOST/NAMESPACE/NAME/TAG under the Ollama folders, those of the folder that counts most last."""
    return [p for root in reversed(_ollama_roots()) for p in sorted(root.glob("manifests/*/*/*/*")) if p.is_file()]


def _ollama_name(manifest: Path) -> str:
    """What `ollama list` calls the model: without Ollama's own registry and its library."""
    host, namespace, name, tag = manifest.parts[-4:]
    parts = [*([] if host.startswith("registry.") else [host]), namespace, name]
    return "/".join(parts[1:] if parts[0] == "library" else parts) + f":{tag}"


def _ollama_roots() -> list[Path]:
    roots = [os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    return [Path(root).expanduser() for root in roots if root]


def _ask_hub(name: str) -> None:
    try:
        check_hub()
    except OSError as error:
        raise CourseError(
            f"Expected {EXPECTED}, got {name!r}: no such file or folder, not in the hub's cache here, "
            f"and {first_line(error)}."
        ) from error


def _load(name: str, source: Source, device: str, dtype: str | None, *, local_only: bool) -> LocalModel:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    broken = (SafetensorError, StrictDataclassError, struct.error)
    where = {"gguf_file": source.gguf_file, "local_files_only": local_only}
    try:
        with (
            quiet_transformers() if name == DEFAULT or source.adapter else nullcontext(),
            offline() if local_only else nullcontext(),
        ):
            config = AutoConfig.from_pretrained(source.place, **where)
            precision = getattr(torch, dtype) if dtype else fitting_dtype(config, device)
            tokenizer = AutoTokenizer.from_pretrained(source.place, **where)
            model = AutoModelForCausalLM.from_pretrained(source.place, dtype=precision, device_map=device, **where)
            if source.adapter:
                model = _merged(model, source.adapter)
    except CourseError:
        raise
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError, *broken) as error:
        raise CourseError(
            f"Could not load {name} ({first_line(error)}); expected {EXPECTED}, whole and of a kind transformers reads."
        ) from error
    if not tokenizer.is_fast:
        raise CourseError(
            f"{name} has no fast tokenizer, so tokens cannot be placed in the text; choose another model."
        )
    return LocalModel(name, model.eval().requires_grad_(False), tokenizer)


def _merged(model: Any, adapter: str) -> Any:
    """The model with a LoRA adapter added into its weights: W + scale x B A (Hu 2021).

    Weights that the adapter leaves alone stay mapped from the base model's file, and all models here share them.
    """
    told = json.loads((Path(adapter) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if set(told) == _PLAIN and told["peft_type"] == "LORA":  # as ours are: no need of a library that takes a second
        return _with_products(model, Path(adapter) / "adapter_model.safetensors", told["r"], told["lora_alpha"])
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@torch.no_grad()
def _with_products(model: Any, weights: Path, rank: int, alpha: float) -> Any:
    from safetensors.torch import load_file

    parts = load_file(weights, device=str(model.device))
    for name, a in parts.items():  # [rank, in]
        if name.endswith(".lora_A.weight"):
            if len(a) != rank:
                raise ValueError(f"expected an adapter of rank {rank}, got one of {len(a)}")
            b = parts[name.replace(".lora_A.", ".lora_B.")]  # [out, rank]
            weight = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")).weight
            weight.data = weight + (alpha / rank * (b.float() @ a.float())).to(weight)
    return model


def free_memory(device: str) -> int:
    """Free bytes where a model on a device would live: the graphics card's, or the machine's.

    >>> free_memory("cpu") > 0
    True
    """
    return int(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available)


def fitting_dtype(config: Any, device: str) -> torch.dtype:
    """float32 where the weights take at most 60 % of the free memory (exact arithmetic is worth it), else bfloat16.

    Raises:
        CourseError: not even bfloat16 fits.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    free = free_memory(device)
    if 4 * parameters <= 0.6 * free:
        return torch.float32
    if 2 * parameters <= 0.9 * free:
        return torch.bfloat16
    raise CourseError(
        f"The model has {parameters / 1e9:.1f} billion parameters and needs {2 * parameters / 1e9:.0f} GB in bfloat16; "
        f'{free / 1e9:.0f} GB are free on {device}. Choose a smaller model, or device="auto" to spread it.'
    )


def _check_text(text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise CourseError(f"Expected some text, got {text!r}; type at least one word.")
