"""SAEs held against what is true of flux-shapes' pictures: `fluxscope sweep --truth`, and the shipped recipe.

Explained variance does not tell whether a feature stands for anything. Here every SAE of a sweep is scored by
its best single features for the 23 values that a caption can ask for, on pictures and prompts that neither
trained it nor chose the features, beside random directions of the same number and L0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from fluxscope.measures.detection import Detectors, best_single_f1
from fluxscope.models.model import Model
from fluxscope.models.sites import Site
from fluxscope.models.spec import PictureSpec
from fluxscope.models.splice import random_twin
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.sae.base import LinearSae
from fluxscope.shapes.concepts import ATTRIBUTES, TOKENS


@dataclass(frozen=True)
class TruthOfSae:
    """How much single features know, on the part of the pictures that chose nothing.

    Attributes:
        pictures: of the material, all three parts.
        f1, iou: means over the 23 values, of the best feature of each.
        untrained_f1: the same of random directions.
        by_kind: F1 by kind of value: shape, color, size, background.
        features: how many features it takes: one that is best for two values counts once.
        best: by value, the feature and its F1.
    """

    pictures: int
    f1: float
    iou: float
    untrained_f1: float
    by_kind: Mapping[str, float]
    features: int
    best: Mapping[str, tuple[int, float]]

    def in_words(self) -> str:
        kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in self.by_kind.items())
        words = f"best features' F1 {self.f1:.3f} ({kinds}), IoU {self.iou:.3f}"
        return f"{words}; random directions {self.untrained_f1:.3f}; {self.pictures} pictures"

    def record(self) -> dict[str, object]:
        """As sweep.json has it."""
        return asdict(self) | {"best": {value: list(found) for value, found in self.best.items()}}


@dataclass(frozen=True)
class TruthMaterial:
    """Where the pictures with truth are kept, and how many there are to be; both grow as asked."""

    folder: Path
    pictures: int

    def make(
        self, model: Model, sites: Sequence[Site], steps: Sequence[int], spec: PictureSpec, report: Reporter
    ) -> Truth:
        """Make what is missing.

        Raises:
            ConfigError: the model has no truth, or a site has no image tokens.
        """
        return make_truth(model, self.folder, self.pictures, sites, steps, report, spec)


def score_sae(truth: Truth, site: str, step: int, sae: LinearSae, l0: float) -> TruthOfSae:
    """Score one SAE by its best single features.

    Args:
        l0: how many features are active on a token: as many of the random directions are.
    """
    x = truth.activations(site, step)
    found = _best_features(truth, codes_of(sae, x))
    random = _best_features(truth, codes_of(random_twin(sae, round(l0)), x))
    f1 = found.f1
    kinds = [value.split(":")[0] for value in ATTRIBUTES]
    return TruthOfSae(
        pictures=len(truth.asked),
        f1=float(f1.mean()),
        iou=float(found.iou.mean()),
        untrained_f1=float(random.f1.mean()),
        by_kind={k: float(f1[[kind == k for kind in kinds]].mean()) for k in dict.fromkeys(kinds)},
        features=len(np.unique(found.feature[found.feature >= 0])),
        best={
            value: (int(feature), float(score))
            for value, feature, score in zip(ATTRIBUTES, found.feature, f1, strict=True)
        },
    )


def _best_features(truth: Truth, codes: csr_array) -> Detectors:
    return best_single_f1(codes, truth.on_tokens(ATTRIBUTES), truth.parts().of_tokens(TOKENS))
