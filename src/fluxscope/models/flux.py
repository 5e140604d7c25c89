"""A FLUX model in two parts, each loaded when it is needed: text encoders, and what makes pictures.

Encoding the prompts first and dropping the text encoders halves the memory that FLUX.1-dev takes
(T5 8.9 GiB, transformer 22.2 GiB in bfloat16).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from jaxtyping import Float
from torch import Tensor

from fluxscope.embedded import resolve
from fluxscope.errors import CheckpointError, ConfigError, FluxscopeError
from fluxscope.models.placement import free_memory

PROMPTS_AT_A_TIME = 16
SMALL_VOCABULARY = 500


@dataclass(frozen=True)
class PromptEmbedding:
    """What the transformer is told of one prompt.

    Attributes:
        tokens: T5's output, one vector a text token, pads included.
        pooled: CLIP's pooled vector.
    """

    tokens: Float[Tensor, "t e"]
    pooled: Float[Tensor, " p"]


def encode_prompts(
    model_id: str, prompts: Sequence[str], max_sequence_length: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, PromptEmbedding], str]:
    """Embed each distinct prompt once; the text encoders leave the device afterwards.

    Returns:
        The embedding of each prompt, on the CPU, and one line about words that the model does not know
        (empty when it knows them all).
    """
    pipe = _load(model_id, dtype, transformer=None, vae=None).to(device)
    _check_sequence_length(pipe, max_sequence_length)
    distinct = list(dict.fromkeys(prompts))
    embeddings: dict[str, PromptEmbedding] = {}
    with torch.inference_mode(), _quiet_truncation():
        for first in range(0, len(distinct), PROMPTS_AT_A_TIME):
            batch = distinct[first : first + PROMPTS_AT_A_TIME]
            tokens, pooled, _ = pipe.encode_prompt(
                prompt=batch, prompt_2=None, max_sequence_length=max_sequence_length, device=device
            )
            for prompt, t, p in zip(batch, tokens.cpu(), pooled.cpu(), strict=True):
                embeddings[prompt] = PromptEmbedding(t.clone(), p.clone())
    warning = warn_of_unknown_words(pipe.tokenizer_2, distinct)
    del pipe
    free_memory(device)
    return embeddings, warning


def warn_of_unknown_words(tokenizer: Any, prompts: Sequence[str]) -> str:
    """One line that lists the words a tokenizer reads as unknown, and those it knows if they are few."""
    words = dict.fromkeys(word.strip(".,;:!?\"'()") for prompt in prompts for word in prompt.lower().split())
    unk = tokenizer.unk_token_id
    unknown = [
        word for word in words if word and unk in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    if not unknown:
        return ""
    line = f"words the model does not know: {', '.join(unknown)}"
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < SMALL_VOCABULARY:
        known = sorted(word for piece in vocabulary if (word := piece.strip("▁")).isalpha())
        line += f". It knows: {', '.join(known)}"
    return line


def _check_sequence_length(pipe: FluxPipeline, length: int) -> None:
    longest = pipe.tokenizer_2.model_max_length
    if length > min(longest, 512):
        raise ConfigError(
            f"max_sequence_length is {length}, but this model reads at most {min(longest, 512)} text tokens",
            "Lower max_sequence_length, or leave it unset.",
        )


@contextlib.contextmanager
def _quiet_truncation() -> Iterator[None]:
    """Long prompts are cut, as FLUX does; we say so once, not once a prompt and tokenizer."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_denoiser(model_id: str, device: torch.device, dtype: torch.dtype) -> FluxPipeline:
    """The transformer, scheduler and VAE of a model, on their device, without its text encoders."""
    pipe = _load(model_id, dtype, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    pipe.transformer.eval()
    pipe.vae.eval()
    return pipe.to(device)


def _load(model_id: str, dtype: torch.dtype, **without: None) -> FluxPipeline:
    place = resolve(model_id)
    if Path(place).is_dir():
        check_weights(Path(place))
    try:
        with _no_progress_bars():
            pipe = FluxPipeline.from_pretrained(place, torch_dtype=dtype, **without)
    except (OSError, ValueError, RuntimeError) as error:
        raise FluxscopeError(
            f"the model {model_id} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Check model_id; models of the Hub need their licence accepted and `hf auth login`.",
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def check_weights(folder: Path) -> None:
    """Open the header of every weights file of a model's folder.

    Raises:
        CheckpointError: one is cut short or is no safetensors file; the error names it.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({error})", "Copy or download the model again."
            ) from None
