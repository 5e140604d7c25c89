"""Prompts as the transformer is told of them: embedded once, kept on the disk, read back when asked for.

A prompt's file is named by what decides its content (the prompt, the model, the text length, the precision
and kind of device), so that another process, or the same run gone on with, finds it; ten thousand prompts
never sit in memory. What is damaged is embedded anew. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxscope.errors import ConfigError, FluxscopeError, clean, machine_fault
from fluxscope.files import write_bytes, written_files
from fluxscope.files.quiet import quiet_libraries
from fluxscope.models.families.family import Family
from fluxscope.models.placement import free_memory
from fluxscope.models.spec import Embedding

PROMPTS_AT_A_TIME = 16
SMALL_VOCABULARY = 500
MOST_WORDS = 20
"""Unknown words that a warning lists."""


class PromptStore:
    """A folder of embeddings.

    Args:
        identity: what else decides an embedding: model, text length, precision, kind of device.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._identity = dict(identity)

    def path(self, prompt: str) -> Path:
        key = json.dumps({"prompt": prompt, **self._identity}, sort_keys=True)
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def write(self, prompt: str, embedding: Embedding) -> None:
        from safetensors.torch import save

        tensors = {"tokens": embedding.tokens.contiguous()}
        if embedding.pooled is not None:
            tensors["pooled"] = embedding.pooled.contiguous()
        with written_files():  # they may go at any time: no step counts them among what it made
            write_bytes(self.path(prompt), save(tensors))

    def holds(self, prompt: str) -> bool:
        """Whether the prompt's embedding is there and whole, as far as the file's header tells."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(prompt), framework="pt") as file:
                return "tokens" in file.keys()  # noqa: SIM118 -- it is no mapping
        except (OSError, SafetensorError):
            return False

    def read(self, prompt: str) -> Embedding | None:
        """The prompt's embedding; None where there is none, or a damaged one."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(self.path(prompt).read_bytes())
            return Embedding(tensors["tokens"], tensors.get("pooled"))
        except (OSError, SafetensorError, KeyError) as error:
            if fault := machine_fault(error, self.path(prompt), "read"):
                raise fault from error
            return None


class Prompts(Mapping[str, Embedding]):
    """The embeddings of some prompts, read from the disk as they are asked for, on the CPU.

    Attributes:
        warnings: what the user should know: words that the model does not know, prompts that were cut.
    """

    def __init__(self, store: PromptStore, prompts: Sequence[str], warnings: Sequence[str]) -> None:
        self._store = store
        self._prompts = dict.fromkeys(prompts)
        self.warnings = tuple(warnings)

    def __getitem__(self, prompt: str) -> Embedding:
        if prompt not in self._prompts:
            raise KeyError(prompt)
        found = self._store.read(prompt)
        assert found is not None, f"{self._store.path(prompt)} was taken away while it was needed"
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)


class TextPart:
    """The part of a model that embeds prompts: loaded when it has something to do, and then dropped or held.

    Args:
        place, pipeline: the folder or Hub name, and the class that its index names.
        folder: where embeddings are kept; None for a temporary folder of this object's lifetime.
        make_room: called before text encoders go to the device; None where they stay there.
    """

    def __init__(
        self,
        family: Family,
        place: str,
        pipeline: str,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path | str | None,
        make_room: Callable[[], None] | None,
    ) -> None:
        self._family, self._place, self._pipeline = family, place, pipeline
        self._device, self._dtype, self._make_room = device, dtype, make_room
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._resident: Any = None

    def embed(self, prompts: Sequence[str], length: int) -> Prompts:
        """Embed each distinct prompt that is not on the disk yet.

        Raises:
            ConfigError: the model reads fewer text tokens.
        """
        store, distinct = self._store(length), list(dict.fromkeys([*prompts, *self._family.always_embedded]))
        # Whole batches, so that embeddings don't depend on where an interrupted process stopped.
        batches = [distinct[i : i + PROMPTS_AT_A_TIME] for i in range(0, len(distinct), PROMPTS_AT_A_TIME)]
        missing = [batch for batch in batches if not all(map(store.holds, batch))]
        load = self._family.load_text if missing else self._family.load_tokenizers
        pipe = self._resident or load(self._place, self._dtype, self._pipeline)
        tokenizer = self._family.tokenizer(pipe)
        warnings = prompt_warnings(
            tokenizer, list(dict.fromkeys(prompts)), length, self._family.gist_tokenizer(pipe)
        )
        _check_length(length, tokenizer)
        if missing:
            if self._make_room:
                self._make_room()
            pipe.to(self._device)
            for batch in missing:
                with torch.inference_mode(), quiet_libraries():
                    embeddings = self._family.encode(pipe, batch, length, self._device)
                for prompt, embedding in zip(batch, embeddings, strict=True):
                    store.write(prompt, embedding)
            if self._make_room:
                del pipe
                free_memory(self._device)
            else:
                self._resident = pipe
        return Prompts(store, distinct, warnings)

    def _store(self, length: int) -> PromptStore:
        if self._folder is None and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fluxscope-", ignore_cleanup_errors=True)
        folder = Path(self._folder or (self._temporary.name if self._temporary else ""))
        identity = {"length": length, "dtype": str(self._dtype), "device": self._device.type}
        return PromptStore(folder, {"model": self._place, **identity})


def _check_length(length: int, tokenizer: Any) -> None:
    longest = min(tokenizer.model_max_length, 512)
    if length > longest:
        raise ConfigError(
            f"max_sequence_length is {length}, but this model reads at most {longest} text tokens",
            "Lower max_sequence_length, or leave it unset.",
        )


def stack(embeddings: Sequence[Embedding], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch's embeddings under the names that diffusers' pipelines take them by.

    Raises:
        FluxscopeError: they have different numbers of text tokens.
    """
    lengths = {len(e.tokens) for e in embeddings}
    if len(lengths) > 1:
        raise FluxscopeError(
            f"prompts of {' and '.join(map(str, sorted(lengths)))} text tokens can't be made in one batch",
            "Embed them with the same max_sequence_length.",
        )
    batch = {"prompt_embeds": torch.stack([e.tokens for e in embeddings]).to(device, dtype)}
    pooled = [e.pooled for e in embeddings if e.pooled is not None]
    if pooled:
        batch["pooled_prompt_embeds"] = torch.stack(pooled).to(device, dtype)
    return batch


def prompt_warnings(
    tokenizer: Any, prompts: Sequence[str], length: int, gist_tokenizer: Any = None
) -> list[str]:
    """What users should know of these prompts: words that the model doesn't know, prompts that are cut.

    Args:
        gist_tokenizer: that of a second text encoder, which reads as far as it can.
    """
    warnings = _unknown_words(tokenizer, prompts)
    cut = _cut_prompts(tokenizer, prompts, length)
    if cut:
        warnings.append(f"{len(cut)} prompts were cut after {length} text tokens: {_listed(cut)}")
    if gist_tokenizer is not None:
        reads = gist_tokenizer.model_max_length
        short = [prompt for prompt in _cut_prompts(gist_tokenizer, prompts, reads) if prompt not in cut]
        if short:
            warnings.append(
                f"{len(short)} prompts were cut after {reads} tokens by the encoder of their gist (CLIP), "
                f"but not by that of their words: {_listed(short)}"
            )
    return warnings


def _unknown_words(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """A warning that lists the words a tokenizer reads as unknown, and those it knows if they are few."""
    words = dict.fromkeys(word.strip(".,;:!?\"'()") for prompt in prompts for word in prompt.lower().split())
    unk = tokenizer.unk_token_id
    unknown = [
        word for word in words if word and unk in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    if unk is None or not unknown:
        return []
    warning = f"words the model does not know: {', '.join(clean(word, 40) for word in unknown[:MOST_WORDS])}"
    if len(unknown) > MOST_WORDS:
        warning += f" and {len(unknown) - MOST_WORDS} more"
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < SMALL_VOCABULARY:
        known = sorted(word for piece in vocabulary if (word := piece.strip("▁")).isalpha())
        warning += f". It knows: {', '.join(known)}"
    return [warning]


def _cut_prompts(tokenizer: Any, prompts: Sequence[str], length: int) -> list[str]:
    """The prompts that are longer than is read of them."""
    with quiet_libraries():
        return [prompt for prompt in prompts if len(tokenizer(prompt)["input_ids"]) > length]


def _listed(prompts: Sequence[str]) -> str:
    """The first few prompts, by their beginnings."""
    shown = ", ".join(repr(clean(prompt, 40)) for prompt in prompts[:3])
    return shown + (f" and {len(prompts) - 3} more" if len(prompts) > 3 else "")
