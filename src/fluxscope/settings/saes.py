"""Settings of the SAEs: which there are, and which one the run is about."""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.errors import ConfigError
from fluxscope.fields import Checked, setting
from fluxscope.settings.places import DEVICE


@dataclass(frozen=True)
class Saes(Checked):
    """The SAEs, and where they listen."""

    layer5_sae_path: str | None = setting(None, "SAE checkpoint for block 5. None: the model's bundled one.")
    layer15_sae_path: str | None = setting(
        None, "SAE checkpoint for block 15. None: the model's bundled one."
    )
    active_layer: int = setting(15, "Block that the run is about: 5 or 15.", choices=(5, 15))
    site_pattern: str = setting(
        "double.{layer}.ff", "Where in a block the SAEs listen; {layer} stands for its number.", least=1
    )
    compare_layers: bool = setting(True, "Collect the other layer in the same pass, for step 9.")
    sae_device: str = setting(
        "auto", "Device of the SAEs: auto (the model's), cpu, cuda or cuda:N.", form=DEVICE
    )
    token_chunk_size: int = setting(256, "Tokens encoded at a time.", low=1, high=1_000_000)

    @property
    def sae_paths(self) -> dict[int, str]:
        """The configured checkpoint of each layer that has one."""
        paths = {5: self.layer5_sae_path, 15: self.layer15_sae_path}
        return {layer: path for layer, path in paths.items() if path}

    @property
    def sae_ckpt_path(self) -> str:
        """The active layer's checkpoint.

        Raises:
            ConfigError: none is configured.
        """
        return self.sae_path(self.active_layer)

    def sae_path(self, layer: int) -> str:
        """A layer's checkpoint.

        Raises:
            ConfigError: none is configured.
        """
        if layer not in self.sae_paths:
            raise ConfigError(
                f"no SAE checkpoint is set for layer {layer}",
                f"Set layer{layer}_sae_path, or train one with fluxscope train.",
            )
        return self.sae_paths[layer]

    @property
    def layers(self) -> tuple[int, ...]:
        """The active layer and, where it is to be compared and has an SAE, the other one."""
        others = [layer for layer in self.sae_paths if layer != self.active_layer]
        return (self.active_layer, *(others if self.compare_layers else ()))

    def site_of(self, layer: int) -> str:
        """The name of the site that the SAE of `layer` listens at."""
        return self.site_pattern.replace("{layer}", str(layer))
