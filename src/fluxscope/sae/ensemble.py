"""Several SAEs of one site as one: their dictionaries side by side, their reconstructions averaged.

    x' = mean over m of x'_m,  z = the codes of all members, each feature's direction of unit norm

What one training splits or blurs, another finds whole: the union knows more than each member, and explains
more of the activations. Naive bagging of Gadgil, Lin and Lee 2025 (arXiv 2505.16077). Members are read by
their thresholds, so that every feature stands alone: the whole is a JumpReLU SAE, as any reader of those
takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fluxscope.sae.batch_topk import ThresholdedSae
from fluxscope.sae.jumprelu import JumpReLUSparseAutoencoder


@torch.no_grad()
def joined(members: Sequence[ThresholdedSae], threshold: float = 1.0) -> JumpReLUSparseAutoencoder:
    """One SAE out of several.

    Args:
        members: calibrated SAEs that read the same raw activations; decoder norms as they are.
        threshold: by what the members' thresholds are multiplied. Above 1 fewer features are active.
    """
    whole = JumpReLUSparseAutoencoder(members[0].input_dim, sum(m.hidden_dim for m in members))
    whole.requires_grad_(False)
    bias = torch.stack([m.pre_bias for m in members]).mean(0)
    whole.pre_bias.copy_(bias)
    first = 0
    for member in members:
        own = slice(first, first + member.hidden_dim)
        norms = member.decoder.weight.norm(dim=0)
        share = norms / len(members)  # a code of the whole in units of the member's
        whole.encoder.weight[own] = member.encoder.weight * share[:, None]
        whole.encoder.bias[own] = member.pre_activations(bias) * share
        whole.decoder.weight[:, own] = member.decoder.weight / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        whole.threshold[own] = member.threshold * share * threshold
        first = own.stop
    return whole.eval()
