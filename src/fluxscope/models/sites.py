"""Named places in a FLUX transformer, and how to reach the activation that passes there.

    double.L              image tokens leaving double block L: the residual stream
    double.L.ff           image tokens leaving its feed-forward, before the gate
    double.L.attn         image tokens leaving its attention, before the gate
    double.L.context      text tokens leaving double block L
    double.L.ff_context   text tokens leaving its text feed-forward, before the gate
    double.L.attn_context text tokens leaving its attention, before the gate
    double.L.k_context    keys that its attention makes of the text tokens, before their norm and rotation
    double.L.v_context    values that it makes of them
    single.L              image tokens leaving single block L
    single.L.context      text tokens leaving single block L

A module's output is a tensor or a tuple, and the tuples of attention and blocks run in opposite orders
(FLUX in diffusers): each kind of site therefore says where in the output its tensor lies. A block that
gives one tensor where others give two (the single blocks of FLUX.2 and of older diffusers) has both streams
in it, the text first. A new kind of site is one line in SITES.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.errors import ConfigError

Stream = Literal["image", "text"]


@dataclass(frozen=True)
class SiteKind:
    """A kind of site: the module that carries it, and the place of its tensor in the module's output.

    Attributes:
        pattern: the site's name with L for the block's number.
        blocks: the transformer's list of blocks; empty for the transformer itself.
        submodule: path from the block to the module that is listened at; empty for the block itself.
        item: index in the module's output tuple; None where the output is one tensor of one stream.
        stream: which tokens these are.
    """

    pattern: str
    blocks: str
    submodule: str
    item: int | None
    stream: Stream


SITES = (
    SiteKind("double.L", "transformer_blocks", "", 1, "image"),
    SiteKind("double.L.ff", "transformer_blocks", "ff", None, "image"),
    SiteKind("double.L.attn", "transformer_blocks", "attn", 0, "image"),
    SiteKind("double.L.context", "transformer_blocks", "", 0, "text"),
    SiteKind("double.L.ff_context", "transformer_blocks", "ff_context", None, "text"),
    SiteKind("double.L.attn_context", "transformer_blocks", "attn", 1, "text"),
    SiteKind("double.L.k_context", "transformer_blocks", "attn.add_k_proj", None, "text"),
    SiteKind("double.L.v_context", "transformer_blocks", "attn.add_v_proj", None, "text"),
    SiteKind("single.L", "single_transformer_blocks", "", 1, "image"),
    SiteKind("single.L.context", "single_transformer_blocks", "", 0, "text"),
)


@dataclass(frozen=True)
class Site:
    """A place in a model: a kind of site in one block."""

    name: str
    kind: SiteKind
    layer: int

    def module(self, transformer: nn.Module) -> nn.Module:
        """The module whose output passes this site.

        Raises:
            ConfigError: the model has no such block.
        """
        if not self.kind.blocks:
            return transformer
        blocks = getattr(transformer, self.kind.blocks)
        if self.layer >= len(blocks):
            raise no_such_site(
                self.name,
                len(cast(nn.ModuleList, transformer.transformer_blocks)),
                len(cast(nn.ModuleList, transformer.single_transformer_blocks)),
            )
        block: nn.Module = blocks[self.layer]
        return block.get_submodule(self.kind.submodule)

    def get(self, output: Any, text_tokens: int) -> Float[Tensor, "b t d"]:
        """This site's tensor in the module's output.

        Args:
            text_tokens: how many text tokens a joint sequence begins with.
        """
        tensor: Tensor = output
        if self.kind.item is None:
            return tensor
        if isinstance(output, tuple):
            tensor = output[self.kind.item]
            return tensor
        return tensor[:, text_tokens:] if self.kind.stream == "image" else tensor[:, :text_tokens]

    def put(self, output: Any, tensor: Float[Tensor, "b t d"], text_tokens: int) -> Any:
        """The module's output with this site's tensor replaced."""
        item = self.kind.item
        if item is None:
            return tensor
        if isinstance(output, tuple):
            return (*output[:item], tensor, *output[item + 1 :])
        text, image = output[:, :text_tokens], output[:, text_tokens:]
        return torch.cat([text, tensor] if self.kind.stream == "image" else [tensor, image], dim=1)


VELOCITY = Site("velocity", SiteKind("velocity", "", "", 0, "image"), 0)
"""What the whole transformer gives in a step: the direction in which the latents move."""


def parse_site(name: str) -> Site:
    """The site of a name such as `double.15.ff`.

    Raises:
        ConfigError: there is no such kind of site.
    """
    match = re.fullmatch(r"(double|single)\.([0-9]{1,4})(\.\w+)?", name)
    if match:
        pattern = f"{match[1]}.L{match[3] or ''}"
        for kind in SITES:
            if kind.pattern == pattern:
                return Site(name, kind, int(match[2]))
    known = ", ".join(kind.pattern for kind in SITES)
    raise ConfigError(f"unknown site: {name}", f"Sites are, L being the block's number: {known}.")


def no_such_site(name: str, n_double: int, n_single: int) -> ConfigError:
    """The error for a block that a model with so many blocks does not have, naming its sites."""
    doubles = [kind.pattern for kind in SITES if kind.blocks == "transformer_blocks"]
    singles = [kind.pattern for kind in SITES if kind.blocks == "single_transformer_blocks"]
    words = f"{', '.join(doubles)} for L from 0 to {n_double - 1}"
    if n_single:
        words += f"; {' and '.join(singles)} for L from 0 to {n_single - 1}"
    return ConfigError(f"the model has no site {name}", f"It has {words}.")
