"""What a run holds of one site, read for the page; what is not there is None."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fluxscope.errors import FluxscopeError, RunDirError
from fluxscope.files import load_npz
from fluxscope.measures.top_images import RankedImages, rank_images
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.manifest import Manifest
from fluxscope.run.matrices import load_s
from fluxscope.run.name_records import FeatureName, names_of
from fluxscope.run.records import RunLog, StepsProfile
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering_records import SteeringSummary
from fluxscope.run.step_log import StepLog
from fluxscope.run.truth_records import TruthReport

TOP = 16
SCORES = ("clip_held_out", "shown_score", "q_value", "coverage", "shown_pictures")


@dataclass(frozen=True)
class SiteMaterial:
    """One site of a run.

    Attributes:
        s: (n, f), a memory map: the largest code of each picture.
        step: the denoising step that was looked at, from 0.
        store: the codes of all tokens.
        eps: a feature is active on a picture where S exceeds this.
    """

    context: Context
    files: RunDir
    manifest: Manifest
    s: np.ndarray
    step: int
    store: CodeStore | None
    eps: float

    @cached_property
    def ranked(self) -> RankedImages:
        """The top pictures of distinct prompts."""
        top = min(TOP, len(self.manifest.prompts))
        return rank_images(self.s, self.manifest.prompt_of, self.eps, top)

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of image tokens; None where there are no codes, or they are no grid."""
        if self.store is None:
            return None
        row = self.manifest.rows[0]
        rows = round((self.store.n_tokens * row.height / max(row.width, 1)) ** 0.5)
        columns = self.store.n_tokens // max(rows, 1)
        return (rows, columns) if rows * columns == self.store.n_tokens else None

    @cached_property
    def directions(self) -> np.ndarray | None:
        """(f, d): the unit decoder directions; None where the SAE is not there or is another."""
        try:
            weight = self.context.sae.decoder.weight.detach().float().numpy().T
        except FluxscopeError:
            return None
        if len(weight) != self.s.shape[1]:
            return None
        norm = np.linalg.norm(weight, axis=1, keepdims=True)
        unit: np.ndarray = weight / np.maximum(norm, 1e-9)
        return unit

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """The measures of step 4 by name, one value a feature."""
        if not self.files.feature_scores.is_file():
            return {}
        found = load_npz(self.files.feature_scores)
        return {
            name: found[name] for name in SCORES if name in found and found[name].shape == self.s.shape[1:]
        }

    @cached_property
    def names(self) -> dict[int, FeatureName]:
        """What features could be called; none where they were not named, or by another S."""
        return names_of(self.files, StepLog.open(self.files.step_log))

    @cached_property
    def steps(self) -> dict[int, dict[str, Any]]:
        """When along denoising a feature is active, where `steps-profile` looked."""
        if not self.files.steps_profile.is_file():
            return {}
        profile = StepsProfile.read(self.files.steps_profile)
        return {
            each.feature_id: {"steps": profile.steps, "mean": each.mean_max_activation}
            for each in profile.features
        }

    @cached_property
    def effects(self) -> dict[int, list[Any]]:
        """What steering by a feature did in step 7, by feature."""
        if not self.files.steering_summary.is_file():
            return {}
        found: dict[int, list[Any]] = {}
        for each in SteeringSummary.read(self.files.steering_summary, self.files.root).experiments:
            found.setdefault(each.feature_id, []).append(each)
        return found

    @cached_property
    def truth(self) -> dict[int, list[dict[str, Any]]]:
        """Which concepts of flux-shapes a feature detects best, where truth.json is of such an SAE."""
        path = self.files.root / "truth.json"
        if not path.is_file():
            return {}
        level = TruthReport.read(path).on_tokens
        found: dict[int, list[dict[str, Any]]] = {}
        here = [s for s in level.sites if (s.site, s.step) == (self.files.site, self.step)]
        for detectors in (each.detectors for each in here):
            untrained = [d.single.f1 for d in detectors if d.name == "untrained" and d.single]
            for d in detectors:
                known = d.name == "sae" and d.n_features == self.s.shape[1] and d.single and d.details
                for i, feature in enumerate(d.details.features if known and d.details else []):
                    if feature is not None and d.single:
                        low, high = d.single.f1_low[i], d.single.f1_high[i]
                        control = untrained[0][i] if untrained else None
                        found.setdefault(feature, []).append(
                            {"concept": level.concepts[i], "f1": d.single.f1[i], "low": low, "high": high}
                            | {"untrained": control, "base": level.base[i]}
                        )
        return found

    def chosen(self, most: int) -> np.ndarray:
        """The features that the page has: those alive, or the best of them where there are too many."""
        alive = np.flatnonzero(self.ranked.frequency > 0)
        if not most or len(alive) <= most:
            return alive
        score = self.scores.get("shown_score", self.ranked.coverage.astype(np.float32))[alive]
        return np.sort(alive[np.argsort(-np.nan_to_num(score, nan=-1), kind="stable")[:most]])


def sites_of(context: Context) -> Iterator[SiteMaterial]:
    """Every site of the run that was collected, the first one first.

    Raises:
        MissingInputError: nothing was collected.
        RunDirError: files contradict each other.
    """
    config = context.config
    first = RunDir.of(config)
    logs = [
        RunLog.read(home / "run_log.json") for home in first.homes[1:] if (home / "run_log.json").is_file()
    ]
    others = [log.site for log in logs if log.site]
    for site in dict.fromkeys([first.first_site, *others]):
        files = RunDir.of(config, site)
        if site != first.first_site and not files.s_matrix.is_file():
            continue
        manifest = Manifest.read(files.manifest, files.root)
        s = load_s(files, len(manifest.rows))
        step = manifest.rows[0].step
        step = config.target_step_index if step is None else step
        has_codes = (files.codes / site / f"step_{step}" / "zarr.json").is_file()
        store = CodeStore(files.codes, site, step) if has_codes else None
        if store is not None and (store.n_images, store.n_features) != s.shape:
            raise RunDirError(
                f"{store.path} is not of the same pictures as S", "Run step 1 again.", redo="collect"
            )
        yield SiteMaterial(replace(context, files=files), files, manifest, s, step, store, config.eps_alive)
