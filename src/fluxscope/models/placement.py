"""Where a model runs, in which precision, and where its parts wait meanwhile."""

from __future__ import annotations

import gc
from enum import StrEnum
from typing import Any

import torch

from fluxscope.errors import ConfigError, clear_memory_errors
from fluxscope.models.families.family import Family

ROOM_FOR_THE_REST = 1.25
"""A transformer fits a GPU whose free memory is so many times its weights: activations, SAEs, autoencoder."""


class Placement(StrEnum):
    """Where the parts of a model are. The numbers that come out are the same in each.

    `dtype` says in which precision the weights are, which does change them.
    """

    AUTO = "auto"
    """`apart`, or `offload` where the transformer does not fit what is free on the GPU."""
    APART = "apart"
    """The text encoders have the device to themselves, and are gone before the transformer comes."""
    RESIDENT = "resident"
    """All parts stay on the device once they are loaded: new prompts cost no loading."""
    OFFLOAD = "offload"
    """As `apart`, but the transformer's blocks wait in the CPU's memory, and come to the device in turn."""


def pick_device(wanted: str, fallback: str = "") -> torch.device:
    """The device of a setting; "auto" means `fallback`, or a GPU where there is one.

    Raises:
        ConfigError: the device is unknown or absent.
    """
    if wanted == "auto":
        wanted = fallback or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"unknown device: {wanted}", "Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {wanted} is not on this machine", "Use --device cpu, or auto.")
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The precision of a setting: "auto" is bfloat16 on GPUs and float32 on CPUs, never float16.

    In float16 FLUX's T5 gives NaN and pictures go black.
    """
    if wanted == "auto":
        wanted = "float32" if device.type == "cpu" else "bfloat16"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


def pick_placement(wanted: Placement, device: torch.device, weights: int) -> Placement:
    """The placement of a setting, `auto` decided.

    Args:
        weights: bytes of the transformer's.
    """
    if wanted is not Placement.AUTO:
        return wanted
    if device.type != "cuda":
        return Placement.APART
    return auto_placement(weights, torch.cuda.mem_get_info(device)[0])


def auto_placement(weights: int, free: int) -> Placement:
    """Whether a GPU with so many free bytes is given a transformer whole, or block by block."""
    return Placement.APART if weights * ROOM_FOR_THE_REST <= free else Placement.OFFLOAD


class PicturePart:
    """The part of a model that makes pictures: loaded when it is first needed, and placed.

    Args:
        place, pipeline: the folder or Hub name, and the class that its index names.
        weights: bytes of the transformer's.

    Attributes:
        placement: `auto` until the part is loaded, then what was chosen.
    """

    def __init__(
        self,
        family: Family,
        place: str,
        pipeline: str,
        device: torch.device,
        dtype: torch.dtype,
        placement: Placement,
        weights: int,
    ) -> None:
        self._family, self._place, self._pipeline = family, place, pipeline
        self._device, self._dtype, self._weights = device, dtype, weights
        self.placement = placement
        self._pipe: Any = None
        self._there = False

    def hold(self, pipe: Any) -> None:
        """Take a pipeline that is loaded already, where it is."""
        self._pipe, self._there = pipe, True

    @property
    def pipe(self) -> Any:
        """The part of the diffusers pipeline, on the device."""
        with clear_memory_errors("loading the model"), torch.inference_mode(False):
            if self._pipe is None:
                self._pipe = self._family.load_denoiser(self._place, self._dtype, self._pipeline)
                self.placement = pick_placement(self.placement, self._device, self._weights)
            if not self._there:
                self._put()
                self._there = True
            return self._pipe

    def _put(self) -> None:
        if self.placement is not Placement.OFFLOAD:
            self._pipe.to(self._device)
            return
        # diffusers' own group offloading: on a GPU the next block is copied while one computes.
        self._pipe.transformer.enable_group_offload(
            onload_device=self._device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=self._device.type == "cuda",
        )
        self._pipe.vae.to(self._device)

    def make_room(self) -> None:
        """Both parts of a large model have no room on a GPU: this one waits in the CPU's memory.

        Blocks that are offloaded wait there anyway.
        """
        if self._there and self._device.type != "cpu" and self.placement is Placement.APART:
            self._pipe.to("cpu")
            self._there = False
            free_memory(self._device)


def free_memory(device: torch.device) -> None:
    """Give memory of dropped models back to the device."""
    gc.collect()  # a pipeline that was called holds itself in a cycle
    if device.type == "cuda":
        torch.cuda.empty_cache()
