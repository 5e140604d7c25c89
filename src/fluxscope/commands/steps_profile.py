"""When along denoising the selected features are active, and how well the SAE fits there.

Needs pictures' prompts and seeds, and a selection (steps 1 and 4). Some of the pictures are denoised again,
and at each wanted step the site's activations are encoded and scored: nothing is stored but the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope.draw.layer_plots import steps_profile as draw_profile
from fluxscope.errors import MissingInputError
from fluxscope.files import save_image
from fluxscope.models.capture import listen
from fluxscope.models.placement import pick_device
from fluxscope.models.sites import parse_site
from fluxscope.run.collection import load_sae_for
from fluxscope.run.context import Context, picture_spec
from fluxscope.run.manifest import Manifest, ManifestRow
from fluxscope.run.records import FeatureProfile, Selection, StepsProfile
from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.metrics import Evaluation


@dataclass
class StepRecord:
    """What is gathered at one step: the SAE's fit, and the selected features' maxima on each picture."""

    fit: Evaluation
    maxima: list[Tensor]


def profile_steps(context: Context, pictures: int) -> str:
    """Profile the site over `capture_steps` (all steps when there are none)."""
    config, files = context.config, context.files
    rows = Manifest.read(files.manifest, files.root).rows
    if not files.selected_features.is_file():
        raise MissingInputError(f"{files.selected_features} is not there", "Run step 4 first.", redo="select")
    features = [each.feature_id for each in Selection.read(files.selected_features).features]
    if not features:
        return "no feature is selected, so there is none to profile"
    n_steps = picture_spec(config).steps
    numbers = config.capture_steps or tuple(range(1, n_steps + 1))
    steps = sorted({number - 1 for number in numbers})
    gathered = gather(context, rows[:pictures], features, steps)
    activity = np.stack([torch.cat(gathered[step].maxima).mean(0).numpy() for step in steps], axis=1)  # m s
    explained = np.array([gathered[step].fit.scores().explained_variance for step in steps])
    record_of(context, features, steps, activity, gathered).write(files.steps_profile)
    picture = draw_profile(
        np.array(steps) + 1,
        activity.astype(float),
        features,
        explained,
        n_steps,
        config.target_step_index + 1,
    )
    save_image(files.steps_profile.with_suffix(".png"), picture)
    best = steps[int(explained.argmax())]
    return (
        f"{len(features)} features over {len(steps)} steps; the SAE fits step {best + 1} best "
        f"(explained variance {explained.max():.3f}): {files.steps_profile.with_suffix('.png')}"
    )


def gather(
    context: Context, records: Sequence[ManifestRow], features: Sequence[int], steps: Sequence[int]
) -> dict[int, StepRecord]:
    """Denoise the pictures and score the site's activations at each step."""
    config, files, model = context.config, context.files, context.model
    sae_device = pick_device(config.sae_device, fallback=str(model.device))
    sae, _ = load_sae_for(config, files.site, model.spec, sae_device)
    gathered = {step: StepRecord(Evaluation(sae.input_dim, sae.hidden_dim), []) for step in steps}
    texts = [record.prompt for record in records]
    prompts = model.encode(texts, config.max_sequence_length)
    spec = picture_spec(config)
    site, size = parse_site(files.site), config.batch_size or 1
    seeds = [record.seed for record in records]
    with context.report.progress("pictures", len(records), "images") as advance:
        for first, heard in listen(model, prompts, texts, seeds, spec, [site], steps, size):
            for (_, step), x in heard.items():
                note(gathered[step], sae, x, features, config.token_chunk_size)
            advance(len(seeds[first : first + size]))
    return gathered


def note(
    record: StepRecord, sae: LinearSae, x: Float[Tensor, "b t d"], features: Sequence[int], chunk: int
) -> None:
    """Score one batch of activations, so many tokens at a time."""
    tokens = x.flatten(0, 1).to(sae.pre_bias)  # (b t, d)
    parts = [(part, encode_sparse(sae, part, chunk)) for part in tokens.split(chunk)]
    for part, codes in parts:
        record.fit.update(part, sae.decode(codes.to_dense()), codes)
    codes = SparseCodes.concatenate([codes for _, codes in parts])
    record.maxima.append(codes.max_over_tokens(x.shape[1])[:, list(features)].cpu())


def record_of(
    context: Context,
    features: Sequence[int],
    steps: Sequence[int],
    activity: np.ndarray,
    gathered: dict[int, StepRecord],
) -> StepsProfile:
    """steps_profile.json.

    Args:
        activity: (features, steps), the mean over pictures of each feature's largest code.
    """
    scores = [gathered[step].fit.scores() for step in steps]
    maxima = [torch.cat(gathered[step].maxima) for step in steps]
    return StepsProfile(
        layer_index=context.files.layer,
        site=context.files.site,
        num_images=len(maxima[0]),
        steps=list(steps),
        explained_variance=[score.explained_variance for score in scores],
        l0=[score.l0 for score in scores],
        features=[
            FeatureProfile(
                feature_id=feature,
                mean_max_activation=activity[row].tolist(),
                frequency=[float((found[:, row] > 0).float().mean()) for found in maxima],
            )
            for row, feature in enumerate(features)
        ],
    )
