"""What a vision-language model says of crops of pictures, and which words it says more than elsewhere.

Any model that transformers opens for image and text and that captions a picture without being asked, such as
BLIP (Li et al. 2022) or GIT (Wang et al. 2022), by Hub id or folder. None ships, and nothing needs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from fluxscope.errors import CheckpointError, FluxscopeError, clear_memory_errors, machine_fault
from fluxscope.files.quiet import quiet_libraries
from fluxscope.measures.clip import Box, crops_of, in_batches
from fluxscope.measures.names import enriched, terms_of

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 20
"""Tokens of a caption: a sentence on one crop."""
WORDS = 3
"""Words of a feature that are kept."""


@dataclass(frozen=True)
class Captioner:
    """A vision-language model and its processor."""

    name: str
    model: Any
    processor: Any


def load_captioner(name: str | Path, device: str = "cpu") -> Captioner:
    """Open a vision-language model, in single precision, from a folder or a Hub id.

    Weights are read from safetensors only, and no code that lies beside them is run.

    Raises:
        CheckpointError: the model is not there, is of another kind, is damaged, or needs a library.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        with quiet_libraries():
            processor: Any = AutoProcessor.from_pretrained(str(name), trust_remote_code=False)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                str(name), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except Exception as error:  # OSError, ValueError, ImportError of a library, SafetensorError, ...
        if fault := machine_fault(error, name, "read"):
            raise fault from error
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise CheckpointError(
            f"no vision-language model could be loaded from {name} ({reason})",
            "Give --vlm a Hub id such as Salesforce/blip-image-captioning-base, or a folder with its "
            "config.json, model.safetensors, processor and tokenizer; install what it asks for.",
        ) from error
    return Captioner(str(name), model.to(device).eval(), processor)


@clear_memory_errors("captioning pictures")
def caption(
    captioner: Captioner, images: Iterable[Image | Path | str], crops: Iterable[Box], batch_size: int = 32
) -> list[str]:
    """What the model says of each crop, word by word the likeliest; the same words at every run.

    Raises:
        FluxscopeError: a file is missing or no picture, or the model says nothing of a picture alone.
    """
    import torch

    model, processor = captioner.model, captioner.processor
    found: list[str] = []
    for batch in in_batches(crops_of(images, crops), batch_size):
        try:
            inputs = processor(images=list(batch), return_tensors="pt").to(model.device)
            with torch.inference_mode():
                said = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, num_beams=1)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise FluxscopeError(
                f"{captioner.name} says nothing of a picture that it is given without words ({error})",
                "Give --vlm a model that captions, such as BLIP or GIT.",
            ) from error
        found += [text.strip() for text in processor.batch_decode(said, skip_special_tokens=True)]
    return found


def said_more(captions: Sequence[str], owner: Int[np.ndarray, " c"], features: int) -> list[list[str]]:
    """The words that captions of each feature's crops share, and those of random crops don't.

    The test is that of prompts (`names.enriched`), with crops in the place of prompts: a feature's own are
    the strong ones, those of nobody the others.

    Args:
        owner: of each caption, the feature's row; -1 for crops at random places.
    """
    try:
        terms = terms_of(captions)
    except FluxscopeError:  # no word is in some of them, and not in all
        return [[] for _ in range(features)]
    own = (owner[:, None] == np.arange(features)).astype(float)  # c f
    has = terms.present.astype(float)
    both, elsewhere = own.T @ has, has[owner < 0].sum(0)
    crops = own.sum(0)
    found = enriched(both, crops, both + elsewhere, crops[:, None] + (owner < 0).sum())
    order = np.argsort(-np.where(found.holds, found.z, -np.inf), axis=1, kind="stable")[:, :WORDS]
    return [[terms.words[at] for at in row if found.holds[f, at]] for f, row in enumerate(order)]
