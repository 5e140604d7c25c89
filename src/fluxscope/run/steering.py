"""What the steering steps share: features and pictures asked for, strengths, the loaded model, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxscope.draw.heatmap import outline_heatmap, overlay_heatmap, token_map_to_heatmap
from fluxscope.errors import ConfigError, MissingInputError
from fluxscope.measures.clip import load_clip, open_picture
from fluxscope.measures.distance import Distance, clip_distance, find_alex_distance
from fluxscope.progress import Reporter
from fluxscope.run.context import Context, picture_spec
from fluxscope.run.manifest import Manifest
from fluxscope.run.records import RunLog, SelectedFeature, Selection
from fluxscope.run.steering_records import Unit
from fluxscope.settings.config import Config
from fluxscope.settings.saes import block_of
from fluxscope.settings.steering import parse_denoise_steps

if TYPE_CHECKING:
    import torch

    from fluxscope.models.edits import Change, Scope
    from fluxscope.models.model import Model
    from fluxscope.models.steering import Steerer
    from fluxscope.run.codes import CodeStore

UNIT_PERCENTILE = 99.0
"""A strength of 1 is this percentile of the feature's own activations, over the tokens where it is active."""

UNRELATED_PAIRS = 24
"""Pairs of pictures of different prompts that tell how far apart two pictures are that share nothing."""


def load_steerer(
    config: Config,
    model: Model,
    site: str,
    prompts: Sequence[str],
    features: Sequence[int] = (),
    report: Reporter | None = None,
) -> Steerer:
    """The site's SAE beside the model, which is told of the prompts.

    Args:
        report: where to say what the user should know of them; None where step 1 has said it.

    Raises:
        ConfigError: the SAE lacks one of the features; found before the model's weights are loaded.
    """
    from fluxscope.models.edits import check_feature
    from fluxscope.models.placement import pick_device
    from fluxscope.models.sites import parse_site
    from fluxscope.models.steering import Steerer
    from fluxscope.run.collection import load_sae_for
    from fluxscope.run.recorders import used_elsewhere

    sae_device = pick_device(config.sae_device, fallback=str(model.device))
    sae, info = load_sae_for(config, site, model.spec, sae_device)
    for feature in features:
        check_feature(sae, feature)
    embeddings = model.encode(prompts, config.max_sequence_length)
    for warning in (used_elsewhere(config, parse_site(site), info), *embeddings.warnings):
        if report and warning:
            report.say(f"warning: {warning}")
    spec = picture_spec(config)
    return Steerer(model, sae, spec, embeddings, max(config.batch_size or 1, 2), config.exact)


def scope_of(config: Config, site: str, kind: str = "add", region: torch.Tensor | None = None) -> Scope:
    """Where and when the settings let changes act.

    Codes are changed where the SAE listens; strengths are added there too, or at `steer_site`.
    """
    from fluxscope.models.edits import Scope, schedule
    from fluxscope.models.sites import parse_site

    elsewhere = config.steer_site.replace("{layer}", str(block_of(site))) if config.steer_site else site
    assert config.steer_steps is not None
    steps = parse_denoise_steps(config.steer_steps, picture_spec(config).steps)
    return Scope(
        parse_site(elsewhere if kind == "add" else site),
        steps,
        schedule(config.steer_schedule, steps),
        region,
        config.steer_only_active,
    )


def settings_of_run(context: Context) -> dict[str, Any]:
    """What steered pictures depend on, beside the features, prompts and seeds themselves.

    Of run_log.json the hash and identity alone are asked for, which say what the pictures and codes came of:
    those are what a step declares that it reads.
    """
    config, log = context.config, RunLog.read(context.files.run_log)
    names = (
        *("model_id", "dtype", "height", "width", "num_inference_steps", "guidance_scale"),
        *("max_sequence_length", "target_step_number", "steer_site", "steer_steps", "steer_schedule"),
        *("steer_only_active", "strength_unit", "exact"),
    )
    values = {name: getattr(config, name) for name in names}
    site, sae = context.files.site, log.sae_sha256 or ""
    return {**values, "site": site, "sae_sha256": sae, "run": log.identity}


def selected(context: Context) -> list[SelectedFeature]:
    """The records of the features to steer, best first; none where none is selected."""
    return Selection.read(context.files.selected_features).features[: context.config.steer_features]


@dataclass
class SteeringSetup:
    """A run's pictures and codes beside the loaded model: what a steering step works at.

    Attributes:
        manifest: the run's pictures.
        unit: how much a strength of 1 is, for each feature that has been asked for.
    """

    context: Context
    steerer: Steerer
    distance: Distance
    manifest: Manifest
    store: CodeStore
    units: dict[int, float]

    @classmethod
    def of(
        cls, context: Context, features: Sequence[int], image_ids: Sequence[int], distance: Distance
    ) -> SteeringSetup:
        """Set everything up for these features and the pictures of these images."""
        from fluxscope.run.codes import CodeStore

        config, files = context.config, context.files
        scopes = [scope_of(config, files.site, kind) for kind in ("add", "scale")]
        manifest = Manifest.read(files.manifest, files.root)
        store = CodeStore(files.codes, files.site, config.target_step_index)
        prompts = [manifest.row(image_id).prompt for image_id in image_ids]
        for scope in scopes:
            context.model.spec.check_site(scope.site)
        steerer = load_steerer(config, context.model, files.site, prompts)
        units = strength_units(config, store, features)
        return cls(context, steerer, distance, manifest, store, units)

    def check(self, feature: int) -> None:
        """Raise for a feature that cannot be steered, and warn of one that was never active."""
        from fluxscope.models.edits import check_feature

        check_feature(self.steerer.sae, feature)
        if not self.units.get(feature):
            self.context.report.say(f"     warning: feature {feature} was never active in this run")
        unit_of(self.context.config, self.units, feature)

    def unit(self, feature: int) -> tuple[Unit, float]:
        """The name of the feature's unit of strength, and how much 1 is."""
        return unit_of(self.context.config, self.units, feature)

    def change(self, strength: float, feature: int, direction: torch.Tensor | None = None) -> Change:
        """Adding a strength, in the feature's unit, along the feature or a direction beside it."""
        from fluxscope.models.edits import Change

        amount = strength * self.unit(feature)[1]
        return Change("add", amount, None if direction is not None else feature, direction)

    def token_map(self, feature: int, image_id: int) -> np.ndarray:
        """The feature's code at every token of a picture, at the target step."""
        return self.store.image(self.manifest.place[image_id]).column(feature).numpy()

    def overlay(self, feature: int, image_id: int, picture: np.ndarray) -> np.ndarray:
        """A picture with the feature's heatmap over it."""
        return heat_over(self.context.config, picture, self.token_map(feature, image_id))

    def distance_of_unrelated(self) -> float:
        """The median distance between the run's pictures of different prompts."""
        rng = np.random.default_rng(0)
        rows = self.manifest.rows
        drawn = [rng.choice(len(rows), 2, replace=False) for _ in range(UNRELATED_PAIRS)]
        pairs = [(a, b) for a, b in drawn if rows[a].prompt != rows[b].prompt]
        if not pairs:
            raise MissingInputError(
                "the run has pictures of one prompt only, so no distance can be called large",
                "Collect pictures of several prompts.",
            )
        left, right = (
            [np.asarray(open_picture(self.manifest.picture(rows[pair[side]]))) for pair in pairs]
            for side in (0, 1)
        )
        return float(np.median(self.distance(left, right)))


def load_distance(config: Config) -> Distance:
    """The perceptual distance of the settings.

    Raises:
        ConfigError: LPIPS is asked for, but it or AlexNet's weights are not here.
    """
    from fluxscope.models.placement import pick_device
    from fluxscope.shapes.shipped import resolve

    assert config.clip_model_id is not None
    device = str(pick_device(config.clip_device, fallback=str(pick_device(config.device))))
    lpips = find_alex_distance(device) if config.distance != "clip" else None
    if lpips is not None:
        return lpips
    if config.distance == "lpips":
        raise ConfigError(
            "LPIPS is not installed, or AlexNet's weights are not here",
            "pip install 'fluxscope[lpips]', or leave --distance at auto.",
        )
    return clip_distance(*load_clip(resolve(config.clip_model_id), device), config.clip_model_id)


def heat_of(config: Config, shape: tuple[int, ...], token_map: np.ndarray) -> np.ndarray:
    """A feature's heatmap over a picture of (height, width, ...) pixels, 0 to 1."""
    return token_map_to_heatmap(
        token_map, shape[1], shape[0], config.image_token_grid, clip_percentile=config.clip_percentile
    )


def heat_over(config: Config, picture: np.ndarray, token_map: np.ndarray) -> np.ndarray:
    """A picture with a feature's heatmap over it."""
    heat = heat_of(config, picture.shape, token_map)
    return outline_heatmap(overlay_heatmap(picture, heat, config.alpha_scale), heat)


def unit_of(config: Config, activations: Mapping[int, float], feature: int) -> tuple[Unit, float]:
    """The unit of a feature's strengths, `activation` or `absolute`, and how much a strength of 1 is.

    Args:
        activations: the features' 99th-percentile activations, 0 or missing where none is known.

    Raises:
        ConfigError: the settings want the activation, and none is known.
    """
    activation = activations.get(feature, 0.0)
    if activation and config.strength_unit != "absolute":
        return "activation", activation
    if config.strength_unit == "activation":
        raise ConfigError(
            f"feature {feature} was never active in {config.out_dir}: its activation cannot be the unit",
            "Give --strength-unit absolute, or choose another feature.",
        )
    return "absolute", 1.0


def strength_units(config: Config, store: CodeStore, features: Sequence[int]) -> dict[int, float]:
    """Each feature's 99th-percentile activation over the tokens where it is active; 0 where it never is.

    Features that the SAE lacks are left out.
    """
    columns = store.columns([f for f in dict.fromkeys(features) if 0 <= f < store.n_features])
    return {
        f: float(np.percentile(values, UNIT_PERCENTILE)) if len(values) else 0.0
        for f, (_, values) in columns.items()
    }


def random_direction(width: int, seed: int) -> torch.Tensor:
    """A direction drawn evenly from all: the control that has nothing to do with the feature."""
    import torch

    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def unit_in_words(name: str, amount: float) -> str:
    """A feature's unit of strength, for the head of a grid."""
    if name == "absolute":
        return "strengths along the unit decoder direction"
    return f"strength 1 is {amount:.3g}, the feature's 99th-percentile activation"


def signed(number: float) -> str:
    """A strength as labels show it."""
    return "0" if number == 0 else f"{number:+g}"


def when_and_where(config: Config, scope: Scope) -> str:
    """The scope in words, for the foot of a grid."""
    first, last = scope.steps[0], scope.steps[-1]
    words = f"{scope.site.name}, steps {first}-{last} of 0-{picture_spec(config).steps - 1}"
    if config.steer_schedule != "constant":
        words += f", {config.steer_schedule.replace('_', ' ')}"
    return words + (", only where the feature is active" if scope.only_active else "")
