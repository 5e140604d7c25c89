"""Sparse codes: which features are active on which token, and how strongly.

An SAE's code has thousands of coordinates of which a few dozen are above zero. `SparseCodes` keeps those
alone, in compressed sparse rows (CSR) over tokens: it is what capture hands on, what the store writes and
what the training kernels work with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """The codes of `n_tokens` tokens over `n_features` features; only values above zero are kept.

    The entries of token i are those from `indptr[i]` up to `indptr[i + 1]`; within a token, features ascend.

    Args:
        indptr: int64 (t + 1), from 0 to the number of entries.
        feature: int32 (nnz), the feature of each entry.
        value: float32 (nnz), its code, above zero.
        n_features: width of the code.
    """

    indptr: Int64[Tensor, " t_plus_1"]
    feature: Int32[Tensor, " nnz"]
    value: Float32[Tensor, " nnz"]
    n_features: int

    @property
    def n_tokens(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def from_dense(cls, code: Float[Tensor, "*tokens f"]) -> SparseCodes:
        """Keep the entries above zero of a dense code; leading dimensions are flattened, row-major."""
        code = code.reshape(-1, code.shape[-1])  # (t, f)
        token, feature = (code > 0).nonzero(as_tuple=True)  # row-major: features ascend within a token
        return cls(
            _indptr(token, code.shape[0]),
            feature.to(torch.int32),
            code[token, feature].float(),
            code.shape[-1],
        )

    @classmethod
    def from_topk(
        cls, indices: Int64[Tensor, "*tokens k"], values: Float[Tensor, "*tokens k"], n_features: int
    ) -> SparseCodes:
        """Keep the entries above zero among k candidates a token, in any order, each feature once a token."""
        k = indices.shape[-1]
        feature, order = indices.reshape(-1, k).sort(dim=1)  # (t, k)
        value = values.reshape(-1, k).gather(1, order)  # (t, k)
        token, column = (value > 0).nonzero(as_tuple=True)
        return cls(
            _indptr(token, value.shape[0]),
            feature[token, column].to(torch.int32),
            value[token, column].float(),
            n_features,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """The tokens of all parts, in order. At least one part; all of one width."""
        widths = {part.n_features for part in parts}
        assert len(widths) == 1, f"codes of different widths: {sorted(widths)}"
        counts = torch.cat([part.counts() for part in parts])
        return cls(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.cat([part.feature for part in parts]),
            torch.cat([part.value for part in parts]),
            widths.pop(),
        )

    @classmethod
    def from_numpy(
        cls, indptr: np.ndarray, feature: np.ndarray, value: np.ndarray, n_features: int
    ) -> SparseCodes:
        return cls(
            torch.from_numpy(np.ascontiguousarray(indptr, dtype=np.int64)),
            torch.from_numpy(np.ascontiguousarray(feature, dtype=np.int32)),
            torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)),
            n_features,
        )

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indptr int64, feature int32, value float32) as NumPy arrays."""
        return tuple(part.detach().cpu().numpy() for part in (self.indptr, self.feature, self.value))  # type: ignore[return-value]

    def to(self, device: torch.device | str) -> SparseCodes:
        return SparseCodes(
            self.indptr.to(device), self.feature.to(device), self.value.to(device), self.n_features
        )

    def counts(self) -> Int64[Tensor, " t"]:
        """Number of active features of each token."""
        return self.indptr.diff()

    def l0(self) -> float:
        """Mean number of active features a token; 0 when there is no token."""
        return len(self.feature) / max(self.n_tokens, 1)

    def token(self) -> Int64[Tensor, " nnz"]:
        """The token of each entry."""
        return torch.arange(self.n_tokens, device=self.indptr.device).repeat_interleave(self.counts())

    def to_dense(self) -> Float32[Tensor, "t f"]:
        dense = self.value.new_zeros(self.n_tokens, self.n_features)
        dense[self.token(), self.feature.long()] = self.value
        return dense

    def rows(self, tokens: slice) -> SparseCodes:
        """The codes of a contiguous run of tokens."""
        start, stop, step = tokens.indices(self.n_tokens)
        assert step == 1, "only contiguous runs of tokens can be cut out"
        indptr = self.indptr[start : max(start, stop) + 1]
        first, last = int(indptr[0]), int(indptr[-1])
        return SparseCodes(indptr - first, self.feature[first:last], self.value[first:last], self.n_features)

    def column(self, feature_id: int) -> Float32[Tensor, " t"]:
        """One feature's code at every token, dense."""
        here = self.feature == feature_id
        dense = self.value.new_zeros(self.n_tokens)
        dense[self.token()[here]] = self.value[here]
        return dense

    def max_over_tokens(self, groups: Int64[Tensor, " t"] | int) -> Float32[Tensor, "n f"]:
        """Each feature's largest code over the tokens of each group (an image, say); 0 where it is silent.

        Args:
            groups: the group of each token, from 0 upwards; or the number of tokens a group, when
                consecutive tokens form groups of equal size.
        """
        if isinstance(groups, int):
            assert groups > 0, "a group holds at least one token"
            assert self.n_tokens % groups == 0, f"{self.n_tokens} tokens are no groups of {groups}"
            groups = torch.arange(self.n_tokens, device=self.indptr.device) // groups
        n_groups = int(groups.max()) + 1 if len(groups) else 0
        place = groups[self.token()] * self.n_features + self.feature.long()
        largest = self.value.new_zeros(n_groups * self.n_features)
        largest.scatter_reduce_(0, place, self.value, "amax")
        return largest.view(n_groups, self.n_features)


def _indptr(token: Int64[Tensor, " nnz"], n_tokens: int) -> Int64[Tensor, " t_plus_1"]:
    counts = torch.bincount(token, minlength=n_tokens)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
