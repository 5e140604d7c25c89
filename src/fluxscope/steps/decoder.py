"""Step 8: the selected features' encoder and decoder directions, and which features point the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fluxscope.draw.plots import decoder_directions, similarity_matrix
from fluxscope.errors import ConfigError
from fluxscope.files import save_image
from fluxscope.run.context import Context
from fluxscope.run.records import DecoderStats, Directions, Neighbour, Pair, Selection
from fluxscope.steps.step import Step

if TYPE_CHECKING:
    from torch import Tensor

STEP = Step(
    number=8,
    name="decoder",
    module=__name__,
    summary="Show the features' encoder and decoder directions.",
    reads=("selected_features",),
    makes=("decoder_stats", "decoder_directions", "decoder_similarity_matrix"),
    settings=("saes", "layer5_sae_path", "layer15_sae_path", "site_pattern"),
)

NEAREST = 5
"""How many of a feature's nearest features are listed."""


def run(context: Context) -> str:
    from torch.nn.functional import normalize

    files, sae = context.files, context.sae
    ids = [record.feature_id for record in Selection.read(files.selected_features).features]
    if not ids:
        return nothing_to_show(context)
    if max(ids) >= sae.hidden_dim:
        raise ConfigError(
            f"feature {max(ids)} was selected, but the SAE has {sae.hidden_dim} features",
            "The selection is of another SAE: set the SAE it came from, or run step 4 again.",
            redo="select",
        )
    decoder, encoder = sae.decoder.weight.T[ids], sae.encoder.weight[ids]  # (m, d) each
    unit = normalize(sae.decoder.weight, dim=0)  # (d, f)
    cosines = unit[:, ids].T @ unit  # (m, f)
    DecoderStats(
        layer_index=files.layer,
        features=direction_stats(ids, decoder, encoder, cosines),
        pairwise_similarities=[
            Pair(feature_1=a, feature_2=b, cosine_similarity=float(cosines[i, b]))
            for i, a in enumerate(ids)
            for b in ids[i + 1 :]
        ],
    ).write(files.decoder_stats)
    save_image(files.decoder_directions, decoder_directions(np.array(ids), encoder.numpy(), decoder.numpy()))
    save_image(files.decoder_similarity_matrix, similarity_matrix(cosines[:, ids].numpy(), ids))
    return f"directions of {len(ids)} features in {sae.input_dim} dimensions"


def nothing_to_show(context: Context) -> str:
    """List no features, and clear an earlier selection's pictures away."""
    files = context.files
    DecoderStats(layer_index=files.layer, features=[], pairwise_similarities=[]).write(files.decoder_stats)
    for picture in (files.decoder_directions, files.decoder_similarity_matrix):
        picture.unlink(missing_ok=True)
    return "nothing is selected, so there are no directions to show"


def direction_stats(
    ids: list[int],
    decoder: Float[Tensor, "m d"],
    encoder: Float[Tensor, "m d"],
    cosines: Float[Tensor, "m f"],
) -> list[Directions]:
    """Norms, cosines and spread of each feature's directions, and its nearest other features."""
    from torch.nn.functional import cosine_similarity

    agreement = cosine_similarity(decoder, encoder, dim=1)
    records = []
    for row, feature in enumerate(ids):
        others = cosines[row].clone()
        others[feature] = -np.inf
        nearest = others.topk(min(NEAREST, len(others) - 1))
        records.append(
            Directions(
                feature_id=feature,
                decoder_norm=float(decoder[row].norm()),
                encoder_norm=float(encoder[row].norm()),
                encoder_decoder_cosine=float(agreement[row]),
                decoder_mean=float(decoder[row].mean()),
                decoder_std=float(decoder[row].std(unbiased=False)),
                decoder_max=float(decoder[row].max()),
                decoder_min=float(decoder[row].min()),
                nearest_features=[
                    Neighbour(feature_id=int(other), cosine_similarity=float(value))
                    for value, other in zip(*nearest, strict=True)
                ],
            )
        )
    return records
