"""The training of flux-shapes and clip-shapes from nothing: `python -m recipes.flux_shapes.recipe`.

Stages, in order; each goes on from its checkpoint in the work folder after any kill, and is skipped once
it is done:

    text         T5 on parsing captions, then frozen
    clip         CLIPModel on pictures and captions; its text half is frozen, too
    autoencoder  AutoencoderKL, encoder and decoder
    latents      pictures and captions encoded once
    shallow      the transformer with 6 double blocks and 1 single
    grown        19 + 2 blocks, with distilled guidance
    decoder      the autoencoder's decoder alone, on the frozen encoder's latents
    clip_vision  clip-shapes without its frozen text half, further
    export       the folders flux-shapes/ and clip-shapes/

Hyperparameters: `training/settings.py`. Loss curves, sample sheets and logs lie in the work folder.
`--minutes` ends a stage early, for trials: its learning rate then falls by the clock, and the result is
no longer a function of the seed alone.

About five hours on one core of an AMD EPYC with AVX512-BF16, reckoned from measured seconds a step: text
0.1, clip 0.3, autoencoder 0.5, latents 0.15, shallow 0.7, grown 3.1 (1.8 on two cores), decoder 0.4. Run
it with OMP_NUM_THREADS=1 beside other work; memory stays below 3 GB.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fluxscope.shapes import WEIGHTS
from recipes.flux_shapes.settings import RecipeSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor
    from transformers import CLIPModel, T5EncoderModel

    from recipes.flux_shapes.batches import Batches
    from recipes.flux_shapes.latents import Latents
    from recipes.flux_shapes.preview import Preview
    from recipes.flux_shapes.words import TextEncoders

STAGES = ("text", "clip", "autoencoder", "latents", "shallow", "grown", "decoder", "clip_vision", "export")


class Recipe:
    """The stages and what they hand on; each is run, or read back, when something asks for it.

    Args:
        work: folder of checkpoints, logs, curves and sheets.
        settings: every hyperparameter.
        out: where `export` writes its two folders.
        minutes: a cap on the one stage named `capped`.
    """

    def __init__(
        self,
        work: Path,
        settings: RecipeSettings,
        out: Path = WEIGHTS,
        capped: str | None = None,
        minutes: float | None = None,
    ) -> None:
        self.work, self.settings, self.out = work, settings, out
        self._caps = {capped: minutes} if capped else {}

    @cached_property
    def text(self) -> T5EncoderModel:
        from recipes.flux_shapes.text import train_text

        return train_text(self.work, self.settings, self._caps.get("text"))

    @cached_property
    def clip(self) -> CLIPModel:
        from recipes.flux_shapes.clip import train_clip

        return train_clip(self.work, self.settings, self._caps.get("clip"))

    @cached_property
    def clip_vision(self) -> CLIPModel:
        from recipes.flux_shapes.clip import train_clip_vision

        clip = copy.deepcopy(self.clip)
        return train_clip_vision(self.work, self.settings, clip, self._caps.get("clip_vision"))

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        from recipes.flux_shapes.autoencoder import train_autoencoder

        return train_autoencoder(self.work, self.settings, self._caps.get("autoencoder"))

    @cached_property
    def latents(self) -> Latents:
        from recipes.flux_shapes.latents import make_latents

        return make_latents(self.work, self.settings, self.autoencoder)

    @cached_property
    def shallow(self) -> dict[str, Tensor]:
        from recipes.flux_shapes.transformer import train_shallow

        look = self._look("shallow", guidance=2.5, classifier_free=True)
        return train_shallow(self.work, self.settings, self._batches, look, self._caps.get("shallow"))

    @cached_property
    def grown(self) -> dict[str, Tensor]:
        from recipes.flux_shapes.transformer import train_grown

        look = self._look("grown", guidance=3.5, classifier_free=False)
        cap = self._caps.get("grown")
        return train_grown(self.work, self.settings, self._batches, self.shallow, look, cap)

    @cached_property
    def decoder(self) -> AutoencoderKL:
        from recipes.flux_shapes.autoencoder import train_decoder

        vae = copy.deepcopy(self.autoencoder)
        return train_decoder(self.work, self.settings, vae, self._caps.get("decoder"))

    @cached_property
    def export(self) -> None:
        from recipes.flux_shapes.export import export_clip, export_flux, fold_normalisation
        from recipes.flux_shapes.transformer import build_transformer

        own = self.settings.transformer
        transformer = build_transformer(self.settings, own.double_blocks, own.single_blocks)
        transformer.load_state_dict(self.grown)
        vae = fold_normalisation(copy.deepcopy(self.decoder), self.latents.mean, self.latents.std)
        length = self.settings.sequence_length
        export_flux(self.out / "flux-shapes", transformer, vae, self.text, self.clip_vision, length)
        export_clip(self.out / "clip-shapes", self.clip_vision, length)

    @cached_property
    def _encoders(self) -> TextEncoders:
        from recipes.flux_shapes.words import TextEncoders

        return TextEncoders(self.text, self.clip.text_model)

    @cached_property
    def _batches(self) -> Batches:
        from recipes.flux_shapes.batches import Batches

        return Batches(self.latents, self._encoders, self.settings)

    @cached_property
    def _preview(self) -> Preview:
        from recipes.flux_shapes.export import fold_normalisation
        from recipes.flux_shapes.preview import Preview

        vae = fold_normalisation(copy.deepcopy(self.autoencoder), self.latents.mean, self.latents.std)
        return Preview(self.work, self.settings, self._encoders, vae)

    def _look(self, name: str, guidance: float, classifier_free: bool) -> Callable[[dict[str, Tensor]], None]:
        def look(weights: dict[str, Tensor]) -> None:
            self._preview.look(name, weights, guidance, classifier_free)

        return look


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train flux-shapes and clip-shapes from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, logs and sheets")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the exported folders go")
    parser.add_argument("--stage", choices=STAGES, help="run up to this stage; all by default")
    parser.add_argument("--minutes", type=float, help="end --stage after so long")
    chosen = parser.parse_args()
    if chosen.minutes and not chosen.stage:
        parser.error("--minutes needs --stage: it ends that one stage")
    recipe = Recipe(chosen.work, RecipeSettings(), chosen.out, chosen.stage, chosen.minutes)
    last = STAGES.index(chosen.stage) if chosen.stage else len(STAGES) - 1
    for stage in STAGES[: last + 1]:
        getattr(recipe, stage)


if __name__ == "__main__":
    main()
