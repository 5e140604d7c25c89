"""What step 1 stored of a site, read for step 9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array, vstack

from fluxscope.errors import MissingInputError, RunDirError
from fluxscope.measures.compare import sparse_S
from fluxscope.measures.profiles import Profiles
from fluxscope.measures.ranking import SMatrix
from fluxscope.measures.stats import FeatureStats, feature_stats
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.manifest import Manifest, ManifestRow
from fluxscope.run.matrices import load_s
from fluxscope.run.rundir import RunDir
from fluxscope.sae.base import LinearSae
from fluxscope.sae.formats import load


@dataclass(frozen=True)
class Layer:
    """One site's results, read once.

    Attributes:
        s: a memory map.
    """

    files: RunDir
    s: SMatrix
    stats: FeatureStats
    store: CodeStore
    sae: LinearSae

    @property
    def name(self) -> str:
        return self.files.name

    def profiles(self) -> Profiles:
        """What its features are compared by."""
        return Profiles(sparse_S(self.s), self.token_rows(), self.directions())

    def token_blocks(self) -> Iterator[csr_array]:
        """The codes of all tokens, (images x tokens, features), a block of images at a time."""
        for _, codes in self.store.blocks():
            indptr, feature, value = codes.numpy()
            yield csr_array((value, feature, indptr), shape=(codes.n_tokens, codes.n_features))

    def token_rows(self) -> csr_array:
        """The codes of all tokens of all images, (images x tokens, features)."""
        return vstack(list(self.token_blocks()), format="csr")

    def tokens_l0(self) -> Int64[np.ndarray, " t"]:
        """How many features are active on each token of each image."""
        return np.concatenate([np.diff(codes.indptr) for codes in self.token_blocks()])

    def directions(self) -> Float32[np.ndarray, "f d"]:
        """The decoder directions."""
        return self.sae.decoder.weight.T.numpy()

    def reconstructions(self) -> Iterator[Float32[np.ndarray, "t d"]]:
        """What the SAE makes of all tokens, a block of images at a time; dense codes are never made."""
        directions, bias = self.directions(), self.sae.pre_bias.numpy()
        for codes in self.token_blocks():
            yield codes @ directions + bias


def open_layer(context: Context, site: str, top_images: int) -> Layer:
    """Read a site's results.

    Args:
        top_images: how many top images to find for each feature.

    Raises:
        ConfigError: no SAE is set for it.
        MissingInputError: it was not collected.
    """
    config, files = context.config, RunDir.of(context.config, site)
    path = config.sae_path(site)
    if not files.s_matrix.is_file():
        raise MissingInputError(
            f"{files.name} was not collected: {files.s_matrix} is not there",
            "Run step 1 for both sites.",
            redo="collect --compare-layers",
        )
    s = load_s(files)
    store = CodeStore(files.codes, site, config.target_step_index)
    stats = feature_stats(s, config.eps_alive, top_images)
    return Layer(files, s, stats, store, load(path)[0])


def same_images(early: Layer, late: Layer) -> Manifest:
    """The manifest, after a look whether both sites list the same images.

    Raises:
        RunDirError: they do not.
    """
    manifest, other = (Manifest.read(each.files.manifest, each.files.root) for each in (early, late))
    if [picture_of(row) for row in manifest.rows] != [picture_of(row) for row in other.rows]:
        raise RunDirError(
            f"{early.name} and {late.name} list different images",
            "Collect both in one run.",
            redo="collect --force",
        )
    return manifest


def picture_of(row: ManifestRow) -> tuple[int, int, str]:
    """What says which picture a line of the manifest is about."""
    return row.image_id, row.seed, row.prompt
