"""A FLUX model, held: opened once in a process, and the one way by which pictures are made.

    model = open_model("flux-shapes")
    pictures = model.pictures(["a large red circle on a white background"], seeds=[1])   # (1, 128, 128, 3)

    heard = {}
    site = parse_site("double.15.ff")
    capture = Capture([site], [13], lambda site, step, x: heard.update({step: x.clone()}))
    latents = model.sample(["a small blue star on a gray background"], [2], capture)

    sae, _ = load_sae(shipped_sae(15))
    push = Edit(sae, [[], [Change("add", 100.0, feature=900)]], Scope(site, steps=range(20)))
    steered = model.pictures(["a large red circle on a white background"] * 2, [1, 1], push)

Weights are loaded when they are first needed: those that embed prompts, then those that make pictures. What
is special to a family of models its file in `families` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fluxscope.errors import clear_memory_errors
from fluxscope.models.families import FAMILIES, DenoisingRun, Family, family_of
from fluxscope.models.hooks import Clock, Hook
from fluxscope.models.placement import PicturePart, Placement, pick_device, pick_dtype
from fluxscope.models.prompts import Prompts, TextPart, stack
from fluxscope.models.spec import Embedding, ModelSpec, PictureSpec, ResumePoint
from fluxscope.shapes.shipped import resolve


def open_model(
    model_id: str,
    device: str = "auto",
    dtype: str = "auto",
    placement: str = "auto",
    prompt_folder: Path | str | None = None,
) -> Model:
    """Open a model; no weights are loaded yet.

    Args:
        model_id: flux-shapes, a Hub name such as black-forest-labs/FLUX.1-dev, or a diffusers folder.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto (bfloat16 on GPUs, float32 on CPUs), float32 or bfloat16.
        placement: auto, apart, resident or offload: see `Placement`.
        prompt_folder: where embeddings of prompts are kept; None: as long as the model is held.

    Raises:
        FluxscopeError: there is no such model or device, or the model is of no known family.
        ValueError: there is no such placement.
    """
    where = pick_device(device)
    family, pipeline = family_of(model_id)
    spec, precision = family.read_spec(model_id), pick_dtype(dtype, where)
    return Model(model_id, family, pipeline, spec, where, precision, Placement(placement), prompt_folder)


@final
class Model:
    """A model of some family on a device. Use `open_model`, or `around` for a pipeline that is there already.

    Attributes:
        model_id, family, device, dtype: what it is and where.
        pipeline: the class of its diffusers pipeline.
        spec: the transformer's shape: width, blocks, sites.
        defaults: how a picture is made where nothing else is said.
        text_length: text tokens of a prompt where nothing else is said.
    """

    def __init__(
        self,
        model_id: str,
        family: Family,
        pipeline: str,
        spec: ModelSpec,
        device: torch.device,
        dtype: torch.dtype,
        placement: Placement = Placement.AUTO,
        prompt_folder: Path | str | None = None,
    ) -> None:
        self.model_id, self.family, self.pipeline, self.spec = model_id, family, pipeline, spec
        self.device, self.dtype = device, dtype
        own = family.default_settings(model_id)
        size = own["height"], own["width"]
        self.defaults = PictureSpec(*size, own["num_inference_steps"], own["guidance_scale"])
        self.text_length: int = own["max_sequence_length"]
        parts = (family, resolve(model_id), pipeline, device, dtype)
        self._pictures = PicturePart(*parts, placement, weights=spec.parameters * dtype.itemsize)
        make_room = None if placement is Placement.RESIDENT else self._pictures.make_room
        self._text = TextPart(*parts, prompt_folder, make_room)

    @classmethod
    def around(cls, pipe: Any) -> Model:
        """A model around a diffusers pipeline that is loaded already; prompts are given as embeddings."""
        name = type(pipe).__name__
        family = next(family for family in FAMILIES if name in family.pipelines)
        spec, where = family.spec(pipe.transformer.config), pipe.transformer.device
        model = cls(name, family, name, spec, where, pipe.transformer.dtype)
        model._pictures.hold(pipe)
        return model

    def encode(self, prompts: Sequence[str], length: int | None = None) -> Prompts:
        """Embed each distinct prompt once, or find it on the disk; the text encoders leave memory afterwards.

        Args:
            length: text tokens of a prompt, pads included; None for the model's own.
        """
        with clear_memory_errors("embedding prompts"):
            return self._text.embed(prompts, length or self.text_length)

    @property
    def pipe(self) -> Any:
        """The part of the diffusers pipeline that makes pictures, on the device."""
        return self._pictures.pipe

    @property
    def placement(self) -> Placement:
        """Where its parts wait; `auto` is decided when what makes pictures is loaded."""
        return self._pictures.placement

    @property
    def transformer(self) -> nn.Module:
        return cast(nn.Module, self.pipe.transformer)

    @property
    def can_resume(self) -> bool:
        """Whether denoising gone on with from the middle ends in the same bits."""
        return self.family.can_resume(self.pipe.scheduler)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str] | Sequence[Embedding],
        seeds: Sequence[int],
        *hooks: Hook,
        spec: PictureSpec | None = None,
        start: ResumePoint | None = None,
        stop_after: int | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Denoise one batch, a row for each prompt and seed, and return the packed latents.

        Each picture's noise is of its own seed, whatever the batch it is made in and the device.

        Args:
            hooks: what listens or acts meanwhile, in this order.
            spec: size, steps and guidance; None for the model's own.
            start: go on from here, with the bits of an uninterrupted run; only where `can_resume`.
            stop_after: the last step to take, counted from 0, for who only listens; latents are then noisy.

        Raises:
            FluxscopeError: memory ran out, or a hook did not act as planned.
        """
        spec = spec or self.defaults
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        embedded = self.encode(texts) if texts else {}
        rows = [embedded[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        pipe, first = self.pipe, start.step if start else 0
        assert first < spec.steps and (first == 0 or self.can_resume)
        clock = Clock(first, len(rows[0].tokens))

        nothing = None
        if self.family.needs_nothing(pipe, spec.guidance):
            empty = self.encode([""], clock.text_tokens)[""]
            nothing = stack([empty] * len(rows), self.device, self.dtype)

        def on_step(taken: int) -> bool:
            clock.step = first + taken + 1
            return first + taken == stop_after

        told = stack(rows, self.device, self.dtype)
        latents = start.latents.to(self.device, self.dtype) if start else None
        run = DenoisingRun(told, nothing, seeds, spec, on_step, first=first, latents=latents)
        with clear_memory_errors("making pictures"), ExitStack() as attached:
            for hook in hooks:
                attached.enter_context(hook.attached(pipe.transformer, clock))
            return self.family.denoise(pipe, run)

    @torch.inference_mode()
    def decode(
        self, latents: Float[Tensor, "b t c"], spec: PictureSpec | None = None
    ) -> UInt8[Tensor, "b h w 3"]:
        """Turn packed latents into RGB pictures, on the CPU."""
        with clear_memory_errors("decoding pictures"):
            pixels = self.family.decode(self.pipe, latents, spec or self.defaults)
        pixels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().contiguous()  # b c h w -> b h w c

    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], *hooks: Hook, spec: PictureSpec | None = None
    ) -> UInt8[Tensor, "b h w 3"]:
        """Pictures of prompts, one for each prompt and seed."""
        return self.decode(self.sample(prompts, seeds, *hooks, spec=spec), spec)
