"""Small questions one asks of an SAE: a token map, an image's maxima, a feature's directions.

Activations are those of one image, (t, d) or (1, t, d); with text tokens in the sequence, `n_image_tokens`
says how many belong to the picture. Everything is encoded in chunks of tokens, so memory stays bounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from fluxscope.errors import TOKEN_COUNT_REMEDY, FluxscopeError
from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.sae.codes import SparseCodes
from fluxscope.sae.formats import Stated, load
from fluxscope.sae.formats.weight_files import NOTHING_STATED


def load_sae(
    ckpt_path: Path | str, device: torch.device | str = "cpu", stated: Stated = NOTHING_STATED
) -> tuple[LinearSae, dict[str, Any]]:
    """(SAE in evaluation mode on `device`, the checkpoint's config).

    Args:
        stated: what another library's file leaves open, such as Stated(architecture="batch_topk").
    """
    sae, info = load(ckpt_path, device, stated=stated)
    return sae, info.config


def extract_image_tokens(
    activation: Float[Tensor, "*batch tokens d"], n_image_tokens: int, image_tokens_first: bool = True
) -> Float[Tensor, "*batch t d"]:
    """The image's part of a sequence that may also hold text tokens.

    Raises:
        FluxscopeError: the sequence is shorter than the image.
    """
    n_tokens = activation.shape[-2]
    if n_tokens < n_image_tokens:
        raise FluxscopeError(
            f"Token count doesn't match grid: {n_tokens} tokens were captured, "
            f"the image has {n_image_tokens}",
            TOKEN_COUNT_REMEDY,
        )
    start = 0 if image_tokens_first else n_tokens - n_image_tokens
    return activation[..., start : start + n_image_tokens, :]


def compute_feature_activations(
    activation: Float[Tensor, "*batch tokens d"],
    sae: LinearSae,
    n_image_tokens: int | None = None,
    token_chunk_size: int = 256,
) -> Float32[Tensor, " f"]:
    """Each feature's largest code over the image's tokens: one row of S."""
    codes = _codes(activation, sae, n_image_tokens, token_chunk_size)
    return codes.max_over_tokens(codes.n_tokens)[0].cpu()


def compute_feature_stats(
    activation: Float[Tensor, "*batch tokens d"],
    sae: LinearSae,
    n_image_tokens: int | None = None,
    token_chunk_size: int = 256,
) -> dict[str, Tensor]:
    """Statistics over the image's tokens.

    Returns:
        max, mean, std: (f), zeros counted; sparsity: (f), share of tokens where the feature is off;
        l0_per_token: (t), active features of each token.
    """
    codes = _codes(activation, sae, n_image_tokens, token_chunk_size)
    n, f, feature = codes.n_tokens, codes.n_features, codes.feature.long()
    total = codes.value.new_zeros(f).index_add_(0, feature, codes.value)
    squares = codes.value.new_zeros(f).index_add_(0, feature, codes.value**2)
    stats = {
        "max": codes.max_over_tokens(n)[0],
        "mean": total / n,
        "std": (squares / n - (total / n) ** 2).clamp_min(0).sqrt(),
        "sparsity": 1 - torch.bincount(feature, minlength=f) / n,
        "l0_per_token": codes.counts(),
    }
    return {name: value.cpu() for name, value in stats.items()}


def encode_to_feature_map(
    activation: Float[Tensor, "*batch tokens d"],
    sae: LinearSae,
    feature_id: int,
    n_image_tokens: int | None = None,
    token_chunk_size: int = 256,
) -> Float32[Tensor, " t"]:
    """One feature's code at every image token, row-major."""
    _check_feature(sae, feature_id)
    return _codes(activation, sae, n_image_tokens, token_chunk_size).column(feature_id).cpu()


def get_decoder_direction(sae: LinearSae, feature_id: int) -> Float32[np.ndarray, " d"]:
    """The direction that a feature writes: its decoder column."""
    _check_feature(sae, feature_id)
    return sae.decoder.weight[:, feature_id].detach().float().cpu().numpy().copy()


def get_encoder_direction(sae: LinearSae, feature_id: int) -> Float32[np.ndarray, " d"]:
    """The direction that a feature reads: its encoder row."""
    _check_feature(sae, feature_id)
    return sae.encoder.weight[feature_id].detach().float().cpu().numpy().copy()


def _codes(
    activation: Float[Tensor, "*batch tokens d"], sae: LinearSae, n_image_tokens: int | None, chunk: int
) -> SparseCodes:
    tokens = activation.reshape(-1, activation.shape[-1])  # (t, d), from (t, d) or (1, t, d)
    if tokens.shape[-1] != sae.input_dim:
        raise FluxscopeError(
            f"the activation is {tokens.shape[-1]} wide, the SAE reads {sae.input_dim}",
            "Use an SAE that was trained on this site of this model.",
        )
    if n_image_tokens is not None:
        tokens = extract_image_tokens(tokens, n_image_tokens)
    return encode_sparse(sae, tokens, chunk)


def _check_feature(sae: LinearSae, feature_id: int) -> None:
    if not 0 <= feature_id < sae.hidden_dim:
        raise FluxscopeError(
            f"there is no feature {feature_id}", f"This SAE's features are 0 to {sae.hidden_dim - 1}."
        )
