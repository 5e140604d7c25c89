"""openai/sparse_autoencoder: a state dict, read.

pre_bias (d), encoder.weight (f, d), latent_bias (f), decoder.weight (d, f); `activation` names TopK or ReLU
and `activation_state_dict` holds k. Its GPT-2 SAEs were trained on activations normalised per token to mean
zero and norm one, which the file doesn't say: feed them such activations.
"""

from __future__ import annotations

import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae.config_values import positive_integer
from fluxscope.sae.formats.format import Format, Imported, keep_topk
from fluxscope.sae.formats.layout import linear
from fluxscope.sae.formats.weight_files import Candidate
from fluxscope.sae.relu import SparseAutoencoder
from fluxscope.sae.topk import TopKSparseAutoencoder

_LAYOUT = linear("pre_bias", bias="latent_bias")


def recognise(candidate: Candidate) -> bool:
    return "latent_bias" in candidate.state


def read(candidate: Candidate) -> Imported:
    """Read a TopK or ReLU autoencoder.

    Raises:
        CheckpointError: the activation is another one, or TopK's k is missing.
    """
    state, path = candidate.state, candidate.path
    parts = _LAYOUT.parts(state, path)
    f, d = parts.encoder.shape
    activation = state.get("activation", "ReLU")
    if activation == "ReLU":
        return parts.imported(SparseAutoencoder(d, f), {}, torch.relu)
    if activation == "TopK":
        k = positive_integer(state.get("activation_state_dict", {}).get("k"), "k", path)
        return parts.imported(TopKSparseAutoencoder(d, f, k), {}, keep_topk(k))
    raise CheckpointError(f"{path} uses the activation '{activation}'", "Known are ReLU and TopK.")


FORMAT = Format("openai", recognise, read)
