"""Raw activations on disk: shards of whole pictures, written once, read in any order.

    meta.json            width, tokens_per_image, images_per_shard, dtype, and what the caller adds
    shard_000000.npy     (images_per_shard, tokens_per_image, width); the last one may be shorter

A shard appears whole or not at all, so the shards that are there say how far an interrupted run came.
bfloat16 has no NumPy type: its bits are kept as uint16.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope import files
from fluxscope.errors import FluxscopeError, MissingInputError
from fluxscope.sae.data import finite_rows, first_held_out

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def planned_bytes(n_images: int, tokens_per_image: int, width: int, dtype: str = "bfloat16") -> int:
    """Size of a store on disk, but for a few hundred bytes a shard."""
    return n_images * tokens_per_image * width * DTYPES[dtype].itemsize


def require_space(folder: Path, needed: int) -> None:
    """Raises FluxscopeError when the disk that holds `folder` has less than `needed` bytes left."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise FluxscopeError(
            f"the activations take {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB left",
            "Store fewer pictures, sites or steps, choose another disk, or train without storing.",
        )


class ActivationStore:
    """The activations of one site at one step.

    Args:
        folder: where the shards lie.

    Raises:
        MissingInputError: nothing is stored there.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise MissingInputError(f"no activations in {folder}", "Collect some first.")
        self.meta: dict[str, Any] = files.read_json(self.folder / "meta.json")
        self.width: int = self.meta["width"]
        self.tokens_per_image: int = self.meta["tokens_per_image"]
        self.images_per_shard: int = self.meta["images_per_shard"]
        self.dtype = DTYPES[self.meta["dtype"]]
        self._waiting: list[Tensor] = []
        self._maps: dict[int, np.ndarray] = {}

    @classmethod
    def create(
        cls,
        folder: Path | str,
        width: int,
        tokens_per_image: int,
        dtype: str = "bfloat16",
        images_per_shard: int = 64,
        extra: Mapping[str, Any] | None = None,
    ) -> ActivationStore:
        """Make an empty store, or open the one that is there and was made with the same settings.

        Args:
            extra: further plain entries of meta.json (site, step, model, ...), compared like the rest.

        Raises:
            FluxscopeError: the folder holds activations of other settings.
        """
        meta = dict(extra or {}) | {
            "width": width,
            "tokens_per_image": tokens_per_image,
            "images_per_shard": images_per_shard,
            "dtype": dtype,
        }
        path = Path(folder) / "meta.json"
        if not path.is_file():
            files.write_json(path, meta)
        store = cls(folder)
        if store.meta != meta:
            differing = sorted(k for k in meta | store.meta if meta.get(k) != store.meta.get(k))
            raise FluxscopeError(
                f"{folder} holds activations of other settings ({', '.join(differing)} differ)",
                "Choose another folder, or delete this one.",
            )
        return store

    @property
    def n_images(self) -> int:
        """Pictures on disk: where an interrupted run goes on."""
        shards = self._shards()
        if not shards:
            return 0
        return (len(shards) - 1) * self.images_per_shard + len(self._map(len(shards) - 1))

    def append(self, activations: Float[Tensor, "n t d"]) -> None:
        """Add pictures; they are on disk as soon as they fill a shard. Numbers are rounded to the dtype."""
        _, tokens, width = activations.shape
        assert (tokens, width) == (self.tokens_per_image, self.width), "pictures of another size"
        self._waiting.extend(activations.detach().to("cpu", self.dtype).unbind(0))
        while len(self._waiting) >= self.images_per_shard:
            self._write(self.images_per_shard)

    def finish(self) -> None:
        """Write the pictures that wait for a full shard."""
        if self._waiting:
            self._write(len(self._waiting))

    def read(self, images: Sequence[int]) -> Float[Tensor, "n t d"]:
        """The activations of pictures, in the order asked."""
        parts = []
        for image in images:
            shard, place = divmod(image, self.images_per_shard)
            parts.append(_to_tensor(self._map(shard)[place], self.dtype))
        return torch.stack(parts)

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard_*.npy"))

    def _write(self, n_images: int) -> None:
        shards = self._shards()
        whole = not shards or len(self._map(len(shards) - 1)) == self.images_per_shard
        assert whole, "a short shard ends a store: nothing can follow it"
        batch = torch.stack(self._waiting[:n_images])
        del self._waiting[:n_images]
        files.save_npy(self.folder / f"shard_{len(shards):06d}.npy", _to_numpy(batch))

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = files.load_npy(self.folder / f"shard_{shard:06d}.npy", mmap=True)
        return self._maps[shard]


def held_out_batches(store: ActivationStore, batch_size: int) -> list[Tensor]:
    """The tokens that are kept from training, those with NaN or infinity left out.

    Raises:
        FluxscopeError: there are none, or more than 1% are bad.
    """
    tokens = store.read(range(first_held_out(store.n_images), store.n_images)).float().flatten(0, 1)
    return list(tokens[finite_rows(tokens)].split(batch_size))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
