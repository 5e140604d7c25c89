"""What a model is, how a picture is made and what goes into it: no weights are needed to know them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fluxscope.models.sites import Site, no_such_site

PATCH = 16
"""Pixels along a side of an image token: the autoencoder's factor 8, then patches of 2 x 2 latents."""


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a FLUX transformer.

    Attributes:
        width: d, width of the residual stream.
        n_double, n_single: numbers of double-stream and single-stream blocks.
        text_width: width of a text token's embedding.
        pooled_width: width of the prompt's pooled embedding; 0 where the family has none.
        latent_channels: channels of a packed image token.
        guidance_embedded: whether guidance is distilled into the model.
        parameters: of the transformer, counted from its shape; small biases and norms are left out.
    """

    width: int
    n_double: int
    n_single: int
    text_width: int
    pooled_width: int
    latent_channels: int
    guidance_embedded: bool
    parameters: int

    def check_site(self, site: Site) -> None:
        """Raise ConfigError when the model has no such site."""
        blocks = self.n_double if site.kind.blocks == "transformer_blocks" else self.n_single
        if site.layer >= blocks:
            raise no_such_site(site.name, self.n_double, self.n_single)


@dataclass(frozen=True)
class PictureSpec:
    """How a picture is made, but for its prompt and seed.

    Attributes:
        height, width: pixels.
        steps: denoising steps.
        guidance: strength of the guidance.
    """

    height: int
    width: int
    steps: int
    guidance: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // PATCH, self.width // PATCH


@dataclass(frozen=True)
class Embedding:
    """What the transformer is told of one prompt.

    Attributes:
        tokens: the text encoder's output, one vector a text token, pads included.
        pooled: the pooled vector of the families that have one.
    """

    tokens: Float[Tensor, "t e"]
    pooled: Float[Tensor, " p"] | None = None


@dataclass(frozen=True)
class ResumePoint:
    """Pictures on their way: packed latents, as they are before a denoising step is taken.

    Attributes:
        latents: one row a picture.
        step: the next step, counted from 0.
    """

    latents: Float[Tensor, "b t c"]
    step: int

    def repeat(self, rows: int) -> ResumePoint:
        """One picture's latents for every row of a batch."""
        return ResumePoint(self.latents.expand(rows, -1, -1).contiguous(), self.step)
