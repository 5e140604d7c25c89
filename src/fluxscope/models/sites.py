"""Named places in a FLUX transformer, and how to reach the activation that passes there.

    double.L              image tokens leaving double block L: the residual stream
    double.L.ff           image tokens leaving its feed-forward, before the gate
    double.L.attn         image tokens leaving its attention, before the gate
    double.L.context      text tokens leaving double block L
    double.L.ff_context   text tokens leaving its text feed-forward, before the gate
    double.L.attn_context text tokens leaving its attention, before the gate
    single.L              image tokens leaving single block L
    single.L.context      text tokens leaving single block L

A module's output is a tensor or a tuple, and the tuples of attention and blocks run in opposite orders
(FLUX in diffusers): each kind of site therefore says where in the output its tensor lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fluxscope.errors import ConfigError


@dataclass(frozen=True)
class SiteKind:
    """A kind of site: the module that carries it, and the place of its tensor in the module's output.

    Attributes:
        pattern: the site's name with L for the block's number.
        blocks: the transformer's list of blocks.
        submodule: path from the block to the module that is listened at; empty for the block itself.
        item: index in the module's output tuple; None where the output is the tensor itself.
        stream: "image" or "text": which tokens these are.
    """

    pattern: str
    blocks: str
    submodule: str
    item: int | None
    stream: str


SITES = (
    SiteKind("double.L", "transformer_blocks", "", 1, "image"),
    SiteKind("double.L.ff", "transformer_blocks", "ff", None, "image"),
    SiteKind("double.L.attn", "transformer_blocks", "attn", 0, "image"),
    SiteKind("double.L.context", "transformer_blocks", "", 0, "text"),
    SiteKind("double.L.ff_context", "transformer_blocks", "ff_context", None, "text"),
    SiteKind("double.L.attn_context", "transformer_blocks", "attn", 1, "text"),
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
        blocks = getattr(transformer, self.kind.blocks)
        sizes = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)  # type: ignore[arg-type]
        if self.layer >= len(blocks):
            raise ConfigError(f"the model has no site {self.name}", f"It has {sites_in_words(*sizes)}.")
        block = blocks[self.layer]
        return block.get_submodule(self.kind.submodule) if self.kind.submodule else block

    def get(self, output: Any) -> Float[Tensor, "b t d"]:
        """This site's tensor in the module's output."""
        return output if self.kind.item is None else output[self.kind.item]

    def put(self, output: Any, tensor: Float[Tensor, "b t d"]) -> Any:
        """The module's output with this site's tensor replaced."""
        if self.kind.item is None:
            return tensor
        return (*output[: self.kind.item], tensor, *output[self.kind.item + 1 :])


def parse_site(name: str) -> Site:
    """The site of a name such as `double.15.ff`.

    Raises:
        ConfigError: there is no such kind of site.
    """
    match = re.fullmatch(r"(double|single)\.(\d+)(\.\w+)?", name)
    if match:
        pattern = f"{match[1]}.L{match[3] or ''}"
        for kind in SITES:
            if kind.pattern == pattern:
                return Site(name, kind, int(match[2]))
    known = ", ".join(kind.pattern for kind in SITES)
    raise ConfigError(f"unknown site: {name}", f"Sites are, L being the block's number: {known}.")


def sites_in_words(n_double: int, n_single: int) -> str:
    """The sites of a model with so many blocks."""
    names = [kind.pattern for kind in SITES if kind.blocks == "transformer_blocks"]
    words = f"{', '.join(names)} for L from 0 to {n_double - 1}"
    if n_single:
        words += f"; single.L and single.L.context for L from 0 to {n_single - 1}"
    return words
