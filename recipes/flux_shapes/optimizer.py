"""Muon for the weight matrices (convolutions flattened to matrices), AdamW for all else.

Muon (Jordan et al., 2024) steps along the orthogonalised momentum. On this transformer it needs a third
to a half of AdamW's samples, on this autoencoder about half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class MuonAdam:
    """Both optimisers behind one `step`, sharing one learning-rate factor.

    Args:
        parameters: (name, parameter) of everything to train.
        takes_muon: decides by name and parameter; only weights of two or more dimensions are asked.
        muon_lr, adam_lr: the learning rates at factor 1.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        takes_muon: Callable[[str, nn.Parameter], bool],
        muon_lr: float,
        adam_lr: float,
    ) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        self._matrices = [p for name, p in named if p.ndim >= 2 and takes_muon(name, p)]
        matrix_ids = {id(p) for p in self._matrices}
        rest = [p for _, p in named if id(p) not in matrix_ids]
        # Muon takes matrices alone: these share the memory of the weights and get a view of their gradients.
        self._flat = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self._matrices]
        self._muon = torch.optim.Muon(self._flat, lr=muon_lr, momentum=0.95, weight_decay=0.0)
        self._adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self._all = [p for _, p in named]
        self._lrs = (muon_lr, adam_lr)

    def set_rate(self, rate: float) -> None:
        """Set both learning rates to `rate` times the ones given."""
        for optimizer, lr in zip((self._muon, self._adam), self._lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate

    def descend(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One step down the loss's gradient, its norm clipped."""
        for p in self._all:
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._all, clip)
        for flat, p in zip(self._flat, self._matrices, strict=True):
            assert p.grad is not None, "a weight took no part in the loss"
            flat.grad = p.grad.view(flat.shape)
        self._muon.step()
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
