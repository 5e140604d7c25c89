"""Raw activations on disk: shards of whole pictures, kept by `collect --sites` and by `train` alike.

    meta.json            what the activations are of, width, tokens_per_image, images_per_shard, dtype
    shard_000000.npy     (images_per_shard, tokens_per_image, width); the last one may be shorter

Pictures are on the disk, whole, when `append` returns: a shard that grows is written anew beside its place
and renamed. bfloat16 has no NumPy type: its bits are kept as uint16. (float16, which an earlier version kept,
overflows above 65,504.)
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxscope import files
from fluxscope.errors import FluxscopeError, MachineError, MissingInputError, RunDirError
from fluxscope.models.spec import PictureSpec

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
KEPT_AS = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
SHARD_BYTES = 1 << 25
SHARD_IMAGES = 64
WIDTHS = ("width", "tokens_per_image", "images_per_shard")


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


def identity_of(
    model_id: str,
    model_dtype: torch.dtype,
    spec: PictureSpec,
    max_sequence_length: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """What decides the activations of a site and step, as meta.json keeps it.

    Args:
        prompts, seeds: one a picture.
    """
    return {
        "model_id": model_id,
        "model_dtype": str(model_dtype).removeprefix("torch."),
        "picture_size": [spec.height, spec.width],
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "max_sequence_length": max_sequence_length,
        "n_images": len(seeds),
        "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "seeds_sha256": hashlib.sha256("\n".join(map(str, seeds)).encode()).hexdigest(),
    }


class ActivationStore:
    """The activations of one site at one step.

    Args:
        folder: where the shards lie.

    Raises:
        MissingInputError: nothing is stored there.
        RunDirError: a shard is missing or damaged, or it is a store of an earlier version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            _refuse_float16(self.folder)
            raise MissingInputError(f"no activations in {folder}", "Collect some first.")
        self.meta = _read_meta(self.folder / "meta.json")
        self.width: int = self.meta["width"]
        self.tokens_per_image: int = self.meta["tokens_per_image"]
        self.images_per_shard: int = self.meta["images_per_shard"]
        self.dtype = DTYPES[self.meta["dtype"]]
        self._counts = [len(self._map(number)) for number in range(self._count_shards())]
        for number, count in enumerate(self._counts[:-1]):
            if count != self.images_per_shard:
                raise self._damaged(self._shard(number), f"holds {count} pictures of {self.images_per_shard}")

    @classmethod
    def create(
        cls,
        folder: Path | str,
        width: int,
        tokens_per_image: int,
        dtype: str = "bfloat16",
        images_per_shard: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ActivationStore:
        """Make an empty store, or open the one that is there and was made with the same settings.

        Args:
            images_per_shard: None: as many as make a shard of 32 MiB, at most 64.
            extra: further plain entries of meta.json (site, step, and `identity_of`), compared like the rest.

        Raises:
            RunDirError: the folder holds activations of other settings, or damaged ones.
        """
        if images_per_shard is None:
            images = SHARD_BYTES // planned_bytes(1, tokens_per_image, width, dtype)
            images_per_shard = max(1, min(SHARD_IMAGES, images))
        meta = dict(extra or {}) | {
            "width": width,
            "tokens_per_image": tokens_per_image,
            "images_per_shard": images_per_shard,
            "dtype": dtype,
        }
        path = Path(folder) / "meta.json"
        if not path.is_file():
            _refuse_float16(Path(folder))
            files.write_json(path, meta)
        store = cls(folder)
        if store.meta != meta:
            differing = sorted(k for k in meta | store.meta if meta.get(k) != store.meta.get(k))
            raise RunDirError(
                f"{folder} holds activations of other settings ({', '.join(differing)} differ)",
                "Choose another folder, or delete this one.",
            )
        return store

    @property
    def n_images(self) -> int:
        """Pictures on disk: where an interrupted run goes on."""
        return sum(self._counts)

    def append(self, activations: Float[Tensor, "n t d"]) -> None:
        """Add pictures; they are on the disk when it returns. Numbers are rounded to the dtype."""
        _, tokens, width = activations.shape
        assert (tokens, width) == (self.tokens_per_image, self.width), "pictures of another size"
        rows = _to_numpy(activations.detach().to("cpu", self.dtype))
        while len(rows):
            short = bool(self._counts) and self._counts[-1] < self.images_per_shard
            number = len(self._counts) - short
            there = [np.array(self._map(number))] if short else []
            room = self.images_per_shard - sum(map(len, there))
            self._write(number, np.concatenate([*there, rows[:room]]))
            rows = rows[room:]

    def truncate(self, n_images: int) -> None:
        """Keep the first `n_images` at most."""
        while self.n_images > n_images:
            last = len(self._counts) - 1
            kept = n_images - last * self.images_per_shard
            if kept > 0:
                self._write(last, np.array(self._map(last)[:kept]))
            else:
                self._shard(last).unlink()
                self._counts.pop()

    def read(self, images: Sequence[int]) -> Float[Tensor, "n t d"]:
        """The activations of pictures, in the order asked.

        Raises:
            MissingInputError: one of them is not stored.
        """
        absent = [image for image in images if not 0 <= image < self.n_images]
        if absent:
            raise MissingInputError(
                f"picture {absent[0]} is not among the {self.n_images} of {self.folder}",
                "Run the command that collects them to its end.",
            )
        found = torch.empty(len(images), self.tokens_per_image, self.width, dtype=self.dtype)
        by_shard: dict[int, list[int]] = {}
        for place, image in enumerate(images):
            by_shard.setdefault(image // self.images_per_shard, []).append(place)
        for shard, places in by_shard.items():  # one file open at a time
            pictures = self._map(shard)
            for place in places:
                found[place] = _to_tensor(pictures[images[place] % self.images_per_shard], self.dtype)
        return found

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard_{number:06d}.npy"

    def _count_shards(self) -> int:
        """How many shards there are; they are numbered without gaps."""
        there = {path.name for path in self.folder.glob("shard_*.npy")}
        for number in range(len(there)):
            if self._shard(number).name not in there:
                raise self._damaged(self._shard(number), "is missing")
        return len(there)

    def _write(self, number: int, pictures: np.ndarray) -> None:
        files.save_npy(self._shard(number), pictures)
        self._counts[number:] = [len(pictures)]

    def _map(self, number: int) -> np.ndarray:
        path = self._shard(number)
        try:
            pictures = files.load_npy(path, mmap=True)
        except MachineError:
            raise
        except FluxscopeError as error:
            raise self._damaged(path, "is damaged or cut short") from error
        fits = pictures.ndim == 3 and pictures.shape[1:] == (self.tokens_per_image, self.width)
        if not fits or not 0 < len(pictures) <= self.images_per_shard:
            raise self._damaged(path, f"holds an array of shape {pictures.shape}")
        if str(pictures.dtype) != KEPT_AS[self.meta["dtype"]]:
            raise self._damaged(path, f"holds {pictures.dtype}")
        return pictures

    def _damaged(self, path: Path, what: str) -> RunDirError:
        return RunDirError(
            f"{path} {what}", f"Delete the folder {self.folder} and run the same command again."
        )


def _read_meta(path: Path) -> dict[str, Any]:
    """What meta.json says, checked where the shards' shape depends on it."""
    meta = files.read_json(path)
    if isinstance(meta, dict) and meta.get("dtype") in DTYPES:
        sizes = [meta.get(name) for name in WIDTHS]
        if all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            return meta
    raise RunDirError(
        f"{path} does not say what shape and type its shards have", f"Delete the folder {path.parent}."
    )


def _refuse_float16(folder: Path) -> None:
    """Say where the activations of an earlier version's run are: activations.zarr beside activations."""
    if len(folder.parents) > 1:
        root = folder.parents[1]
        old = root.with_name(f"{root.name}.zarr") / folder.parent.name / folder.name
        if (old / "zarr.json").is_file():
            raise RunDirError(
                f"{old} holds activations of an earlier version, in float16, which overflows above 65,504",
                "Collect them anew (--force, or another --out-dir), or delete that folder to add them here.",
            )


def _to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
