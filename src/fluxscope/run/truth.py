"""The material of the truth benchmark: pictures of flux-shapes, what is true of them, their activations.

    truth = make_truth(model, Path("truth"), 400, [parse_site("double.5.attn")], [13], Reporter())
    x = truth.activations("double.5.attn", 13)                          # (n, t, d)
    codes = codes_of(sae, x)                                            # (n t, f), sparse
    scores = best_single_f1(codes, truth.on_tokens(ATTRIBUTES), truth.parts().of_tokens(TOKENS))
    scores.f1.mean()

The pictures and captions are always the same ones (`shapes.questions`), so that more of them, other sites and
other steps are added to what a folder holds: only what is missing is made.

    material.json               which model made the pictures, and how
    pictures/000000.png
    truth.npz                   which tokens have which concept, read from the pictures
    activations/SITE/step_N/    stores, as those of training
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.sparse import csr_array
from torch import Tensor

from fluxscope import files
from fluxscope.errors import ConfigError, RunDirError
from fluxscope.measures.clip import open_picture
from fluxscope.measures.detection import Parts, split_by_group
from fluxscope.models.capture import Activations, Capture
from fluxscope.models.model import Model
from fluxscope.models.sites import Site, parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.progress import Reporter
from fluxscope.run.activations import ActivationStore, planned_bytes, require_space
from fluxscope.run.lock import lock_folders
from fluxscope.sae.base import LinearSae, encode_sparse
from fluxscope.shapes import oracle
from fluxscope.shapes.concepts import CONCEPTS, TOKENS, columns, token_truth
from fluxscope.shapes.questions import Question, questions, require_truth
from fluxscope.shapes.world import RESOLUTION

PICTURES, QUICK = 2000, 400
BATCH = 20
"""Pictures are made in whole batches, always the same ones: so they have the same bits however they grew."""


@dataclass(frozen=True)
class Truth:
    """What a folder holds.

    Attributes:
        folder: where.
        asked: the pictures' captions and seeds, in order.
        tokens: (n, t, c), which tokens have which of CONCEPTS.
    """

    folder: Path
    asked: list[Question]
    tokens: Bool[np.ndarray, "n t c"]

    @cached_property
    def families(self) -> np.ndarray:
        """The family of each picture: what is split and drawn as one."""
        return np.array([question.family for question in self.asked])

    def parts(self, seed: int = 0) -> Parts:
        """The three parts, as pictures."""
        return split_by_group(self.families, seed)

    def on_tokens(self, concepts: tuple[str, ...] = CONCEPTS) -> Bool[np.ndarray, "r c"]:
        """Which token, picture after picture, has which concept."""
        return self.tokens.reshape(-1, len(CONCEPTS))[:, columns(concepts)]

    def on_pictures(self, concepts: tuple[str, ...]) -> Bool[np.ndarray, "n c"]:
        """Which picture has which concept somewhere."""
        return np.asarray(self.tokens[:, :, columns(concepts)].any(1))

    def activations(self, site: str, step: int) -> Float[Tensor, "n t d"]:
        """What passed a site at a step, counted from 0.

        Raises:
            MissingInputError: it was not kept, or not of all these pictures.
        """
        return ActivationStore(_store_folder(self.folder, site, step)).read(range(len(self.asked)))

    def picture(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        return np.asarray(open_picture(_picture(self.folder, number)))


def codes_of(sae: LinearSae, activations: Float[Tensor, "n t d"]) -> csr_array:
    """(n t, f): the SAE's code of every token."""
    codes = encode_sparse(sae, activations, chunk=2048)
    indptr, feature, value = codes.numpy()
    return csr_array((value, feature, indptr), shape=(codes.n_tokens, codes.n_features))


def make_truth(
    model: Model,
    folder: Path,
    count: int,
    sites: Sequence[Site],
    steps: Sequence[int],
    report: Reporter,
    spec: PictureSpec | None = None,
) -> Truth:
    """Make what is missing of `count` pictures, rounded up to whole batches, and of their activations.

    Args:
        steps: counted from 0.
        spec: how the pictures are made; None for the model's own.

    Raises:
        ConfigError: the model has no truth, or lacks a site; a site has no image tokens.
        RunDirError: the folder holds pictures that were made otherwise, or another process works on it.
    """
    spec = spec or model.defaults
    check_sites(model, sites, steps, spec)
    asked = questions(-(-count // BATCH) * BATCH)
    with lock_folders([folder], report):
        _claim(folder, identity_of(model, spec))
        stores = _open_stores(folder, model, sites, steps, spec)
        _make_pictures(model, folder, asked, stores, spec, report)
        return Truth(folder, asked, _read_all(folder, len(asked), report))


def check_sites(model: Model, sites: Sequence[Site], steps: Sequence[int], spec: PictureSpec) -> None:
    """Refuse what truth cannot be measured at. Raises ConfigError."""
    require_truth(model.model_id)
    if (spec.height, spec.width) != (RESOLUTION, RESOLUTION):
        raise ConfigError(
            f"pictures of {spec.width} x {spec.height} cannot be read by the oracle",
            f"Leave height and width at {RESOLUTION}.",
        )
    for site in sites:
        model.spec.check_site(site)
        if site.kind.stream != "image":
            raise ConfigError(
                f"{site.name} carries text tokens, which lie nowhere in the picture",
                "Choose a site of image tokens, such as double.5.attn.",
            )
    late = [step for step in steps if not 0 <= step < spec.steps]
    if late:
        raise ConfigError(
            f"there is no denoising step {late[0] + 1}: pictures take {spec.steps}", "Choose an earlier one."
        )


def identity_of(model: Model, spec: PictureSpec) -> dict[str, Any]:
    """What decides the pictures and activations, but for their number."""
    return {
        "model_id": model.model_id,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "picture_size": [spec.height, spec.width],
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "first_captions": [question.caption for question in questions(BATCH)],
    }


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write down whose pictures these are, or see that it is us."""
    path = folder / "material.json"
    if not path.is_file():
        files.write_json(path, identity)
    found = files.read_json(path)
    if found != identity:
        known = found if isinstance(found, dict) else {}
        differing = sorted(key for key in identity | known if identity.get(key) != known.get(key))
        raise RunDirError(
            f"{folder} holds pictures that were made otherwise ({', '.join(differing)} differ)",
            "Choose another folder, or delete this one.",
        )


def _open_stores(
    folder: Path, model: Model, sites: Sequence[Site], steps: Sequence[int], spec: PictureSpec
) -> dict[tuple[str, int], ActivationStore]:
    identity = identity_of(model, spec)
    return {
        (site.name, step): ActivationStore.create(
            _store_folder(folder, site.name, step),
            model.spec.width,
            TOKENS,
            extra={"site": site.name, "step": step, **identity},
        )
        for site in sites
        for step in steps
    }


def _make_pictures(
    model: Model,
    folder: Path,
    asked: list[Question],
    stores: dict[tuple[str, int], ActivationStore],
    spec: PictureSpec,
    report: Reporter,
) -> None:
    """Denoise the batches of which a picture or an activation is missing."""
    for store in stores.values():
        store.truncate(store.n_images // BATCH * BATCH)
    needed = sum(
        planned_bytes(max(0, len(asked) - store.n_images), TOKENS, store.width) for store in stores.values()
    )
    require_space(folder, needed)
    embedded = model.encode([question.caption for question in asked])
    missing = [
        first
        for first in range(0, len(asked), BATCH)
        if not _drawn(folder, first) or any(store.n_images <= first for store in stores.values())
    ]
    done = len(asked) - BATCH * len(missing)
    with report.progress("pictures with truth", len(asked), "images", done) as advance:
        for first in missing:
            batch, drawn = asked[first : first + BATCH], _drawn(folder, first)
            lacking = {place: store for place, store in stores.items() if store.n_images <= first}
            heard: Activations = {}
            latents = model.sample(
                [embedded[question.caption] for question in batch],
                [question.seed for question in batch],
                *([_listener(lacking, heard)] if lacking else []),
                spec=spec,
                stop_after=max(step for _, step in lacking) if drawn else None,
            )
            for place, store in lacking.items():
                store.append(heard[place])
            if not drawn:
                for i, pixels in enumerate(model.decode(latents, spec).numpy()):
                    files.save_image(_picture(folder, first + i), Image.fromarray(pixels))
            advance(BATCH)


def _drawn(folder: Path, first: int) -> bool:
    """Whether all pictures of a batch are there."""
    return all(_picture(folder, first + i).is_file() for i in range(BATCH))


def _listener(stores: dict[tuple[str, int], ActivationStore], heard: Activations) -> Capture:
    def receive(site: Site, step: int, x: Tensor) -> None:
        if (site.name, step) in stores:
            heard[site.name, step] = x.to("cpu", torch.float32)

    names, steps = {name for name, _ in stores}, {step for _, step in stores}
    return Capture([parse_site(name) for name in sorted(names)], sorted(steps), receive)


def _read_all(folder: Path, count: int, report: Reporter) -> Bool[np.ndarray, "n t c"]:
    """What is true of the first `count` pictures; read by the oracle where that is not on the disk."""
    kept = _read_kept(folder / "truth.npz")
    if len(kept) < count:
        read = [kept]
        with report.progress("read by the oracle", count, "images", len(kept)) as advance:
            for number in range(len(kept), count):
                pixels = np.asarray(open_picture(_picture(folder, number)))
                read.append(token_truth(oracle.read(pixels))[None])
                advance()
        kept = np.concatenate(read)
        files.save_npz(folder / "truth.npz", concepts=np.array(CONCEPTS), tokens=np.packbits(kept))
    return kept[:count]


def _read_kept(path: Path) -> Bool[np.ndarray, "n t c"]:
    """The truth on the disk; nothing where there is none, or one of other concepts."""
    nothing = np.zeros((0, TOKENS, len(CONCEPTS)), bool)
    if not path.is_file():
        return nothing
    try:
        found = files.load_npz(path)
        concepts, packed = found["concepts"].tolist(), found["tokens"]
    except KeyError:
        return nothing
    size = TOKENS * len(CONCEPTS)
    if concepts != list(CONCEPTS) or packed.ndim != 1 or packed.dtype != np.uint8 or len(packed) * 8 % size:
        return nothing
    return np.unpackbits(packed).astype(bool).reshape(-1, TOKENS, len(CONCEPTS))


def _picture(folder: Path, number: int) -> Path:
    return folder / "pictures" / f"{number:06d}.png"


def _store_folder(folder: Path, site: str, step: int) -> Path:
    return folder / "activations" / site / f"step_{step}"
