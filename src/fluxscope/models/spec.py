"""What a model is, read from its configuration alone: sizes, blocks, parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxscope.embedded import resolve
from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.models.sites import Site, sites_in_words


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a FLUX transformer.

    Attributes:
        width: d, width of the residual stream.
        n_double, n_single: numbers of double-stream and single-stream blocks.
        text_width, pooled_width: widths of T5's and CLIP's output.
        latent_channels: channels of a packed image token.
        guidance_embedded: whether guidance is distilled into the model.
    """

    width: int
    n_double: int
    n_single: int
    text_width: int
    pooled_width: int
    latent_channels: int
    guidance_embedded: bool

    def check_site(self, site: Site) -> None:
        """Raise ConfigError when the model has no such site."""
        blocks = self.n_double if site.kind.blocks == "transformer_blocks" else self.n_single
        if site.layer >= blocks:
            raise ConfigError(
                f"the model has no site {site.name}",
                f"It has {sites_in_words(self.n_double, self.n_single)}.",
            )

    @property
    def parameters(self) -> int:
        """Parameters of the transformer, counted from its shape; small biases and norms left out.

        A double block has two streams with attention (4 d^2), feed-forward (8 d^2) and modulation
        (6 d^2) each; a single block has 3 + 4 + 5 d^2 and a modulation of 3 d^2.
        """
        d = self.width
        outside = (self.latent_channels * 2 + self.text_width + self.pooled_width + 5 * d + 512) * d
        return self.n_double * 36 * d * d + self.n_single * 15 * d * d + outside


def read_spec(model_id: str) -> ModelSpec:
    """Read a model's shape without its weights.

    Raises:
        FluxscopeError: there is no such model, or it is no FLUX.1.
    """
    config = _transformer_config(model_id)
    try:
        return ModelSpec(
            width=config["num_attention_heads"] * config["attention_head_dim"],
            n_double=config["num_layers"],
            n_single=config["num_single_layers"],
            text_width=config["joint_attention_dim"],
            pooled_width=config["pooled_projection_dim"],
            latent_channels=config["in_channels"],
            guidance_embedded=config["guidance_embeds"],
        )
    except KeyError as error:
        raise FluxscopeError(
            f"{model_id} is no FLUX.1 model (its transformer has no {error})", "Check model_id."
        ) from None


def _transformer_config(model_id: str) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    try:
        return dict(FluxTransformer2DModel.load_config(resolve(model_id), subfolder="transformer"))
    except (OSError, ValueError) as error:
        raise FluxscopeError(
            f"the model {model_id} was not found ({str(error).strip().splitlines()[0]})",
            "Give flux-shapes, a folder, or a Hub name that `hf auth login` gives access to.",
        ) from None
