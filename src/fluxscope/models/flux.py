"""A FLUX model in two parts, each loaded when it is needed: text encoders, and what makes pictures.

Encoding the prompts first and dropping the text encoders halves the memory that FLUX.1-dev takes
(T5 8.9 GiB, transformer 22.2 GiB in bfloat16).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from fluxscope.quiet import quiet_libraries

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
) -> tuple[dict[str, PromptEmbedding], list[str]]:
    """Embed each distinct prompt once; the text encoders leave the device afterwards.

    Returns:
        The embedding of each prompt, on the CPU, and warnings for the user: words that the model does not
        know, prompts that were cut.
    """
    pipe = _load(model_id, dtype, transformer=None, vae=None).to(device)
    _check_sequence_length(pipe, max_sequence_length)
    distinct = list(dict.fromkeys(prompts))
    embeddings: dict[str, PromptEmbedding] = {}
    with torch.inference_mode(), quiet_libraries():
        for first in range(0, len(distinct), PROMPTS_AT_A_TIME):
            batch = distinct[first : first + PROMPTS_AT_A_TIME]
            tokens, pooled, _ = pipe.encode_prompt(
                prompt=batch, prompt_2=None, max_sequence_length=max_sequence_length, device=device
            )
            for prompt, t, p in zip(batch, tokens.cpu(), pooled.cpu(), strict=True):
                embeddings[prompt] = PromptEmbedding(t.clone(), p.clone())
    tokenizer = pipe.tokenizer_2
    warnings = [*unknown_words(tokenizer, distinct), *cut_prompts(tokenizer, distinct, max_sequence_length)]
    del pipe
    free_memory(device)
    return embeddings, warnings


def unknown_words(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """A warning that lists the words a tokenizer reads as unknown, and those it knows if they are few."""
    words = dict.fromkeys(word.strip(".,;:!?\"'()") for prompt in prompts for word in prompt.lower().split())
    unk = tokenizer.unk_token_id
    unknown = [
        word for word in words if word and unk in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    if not unknown:
        return []
    warning = f"words the model does not know: {', '.join(unknown)}"
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < SMALL_VOCABULARY:
        known = sorted(word for piece in vocabulary if (word := piece.strip("▁")).isalpha())
        warning += f". It knows: {', '.join(known)}"
    return [warning]


def cut_prompts(tokenizer: Any, prompts: Sequence[str], max_sequence_length: int) -> list[str]:
    """A warning that counts the prompts longer than the model is told to read."""
    with quiet_libraries():
        lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    longer = sum(length > max_sequence_length for length in lengths)
    return [f"{longer} prompts were cut after {max_sequence_length} text tokens"] if longer else []


def _check_sequence_length(pipe: FluxPipeline, length: int) -> None:
    longest = pipe.tokenizer_2.model_max_length
    if length > min(longest, 512):
        raise ConfigError(
            f"max_sequence_length is {length}, but this model reads at most {min(longest, 512)} text tokens",
            "Lower max_sequence_length, or leave it unset.",
        )


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
        with quiet_libraries():
            pipe = FluxPipeline.from_pretrained(place, dtype=dtype, **without)
    except (OSError, ValueError, RuntimeError) as error:
        raise FluxscopeError(
            f"the model {model_id} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Check model_id; models of the Hub need their licence accepted and `hf auth login`.",
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
