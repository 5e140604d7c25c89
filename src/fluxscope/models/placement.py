"""Where a model runs and in which precision."""

from __future__ import annotations

import gc

import torch

from fluxscope.errors import ConfigError


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


def free_memory(device: torch.device) -> None:
    """Give memory of dropped models back to the device."""
    gc.collect()  # a pipeline that was called holds itself in a cycle
    if device.type == "cuda":
        torch.cuda.empty_cache()
