"""What SAEs know of flux-shapes' pictures, beside what knows as much without them: `fluxscope truth`.

Pictures of captions that no SAE was trained on are made once and read by the oracle. Every SAE is scored with
its untrained twin, one whose decoder is frozen, and what needs no SAE: neurons, principal and independent
components, nonnegative factors, a direction a concept, a dense probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL.Image import Image
from scipy.sparse import csr_array
from torch import Tensor

from fluxscope import files
from fluxscope.commands.truth_scores import (
    Bench,
    Scored,
    above,
    bench_of,
    pooled,
    score_features,
    score_verdicts,
)
from fluxscope.draw.truth_plot import detectors_and_concepts
from fluxscope.errors import FluxscopeError
from fluxscope.measures import controls
from fluxscope.measures.readout import difference_of_means, linear_probe
from fluxscope.models.model import Model
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.models.splice import random_twin
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.run.truth_records import SiteScores, TruthLevel, TruthReport
from fluxscope.sae.base import LinearSae
from fluxscope.sae.features import load_sae
from fluxscope.sae.frozen import FrozenDecoder
from fluxscope.sae.topk import TopK
from fluxscope.sae.train import TrainConfig, train
from fluxscope.shapes.concepts import TOKENS

FROZEN_BATCH, FROZEN_STEPS = 1024, 600
"""How long the control with a frozen decoder learns: shorter than SAEs do, on the pictures to choose on."""


@dataclass(frozen=True)
class Wanted:
    """What is to be scored.

    Attributes:
        saes: sites and checkpoints; a site may come several times.
        steps: counted from 0.
        pictures: how many.
        folder: where the pictures are, and where truth.json and truth.png go.
        spec: how the pictures are made.
        seed: of the split and all draws.
        frozen_steps: how long the control with a frozen decoder learns; 0: it is left out.
    """

    saes: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    pictures: int
    folder: Path
    spec: PictureSpec
    seed: int = 0
    frozen_steps: int = FROZEN_STEPS


@dataclass(frozen=True)
class Detector:
    """Features to be scored: their codes on all tokens."""

    name: str
    codes: csr_array
    checkpoint: str | None = None


def benchmark(model: Model, wanted: Wanted, report: Reporter) -> TruthReport:
    """Make what is missing of the pictures, score everything, write truth.json and truth.png.

    Raises:
        FluxscopeError: the model has no truth, a site has no image tokens, an SAE does not fit its site.
    """
    saes = [(name, path, load_sae(path)[0]) for name, path in wanted.saes]
    for name, path, sae in saes:
        refuse_other_width(name, path, sae, model.spec.width)
    sites = [parse_site(name) for name in dict.fromkeys(name for name, _, _ in saes)]
    truth = make_truth(model, wanted.folder, wanted.pictures, sites, wanted.steps, report, wanted.spec)
    benches = [bench_of(truth, wanted.seed, of_tokens) for of_tokens in (True, False)]
    found: list[list[SiteScores]] = [[], []]
    for site in sites:
        here = [(path, sae) for name, path, sae in saes if name == site.name]
        for step in wanted.steps:
            report.say(f"scoring {site.name}, step {step + 1}")
            for level, scores in zip(
                found, score_site(truth, benches, site.name, step, here, wanted, report), strict=True
            ):
                level.append(scores)
    made = report_of(model, truth, benches, found, wanted)
    made.write(wanted.folder / "truth.json")
    files.save_image(wanted.folder / "truth.png", picture_of(made.on_tokens))
    return made


def refuse_other_width(site: str, path: str, sae: LinearSae, width: int) -> None:
    if sae.input_dim != width:
        raise FluxscopeError(
            f"{path} reads activations of width {sae.input_dim}, {site} has {width}",
            "Use an SAE that was trained on this model.",
        )


def score_site(
    truth: Truth,
    benches: Sequence[Bench],
    site: str,
    step: int,
    saes: Sequence[tuple[str, LinearSae]],
    wanted: Wanted,
    report: Reporter,
) -> list[SiteScores]:
    """Score everything at one site and step: on each bench."""
    x = truth.activations(site, step).float()
    flat = x.flatten(0, 1).numpy()
    chosen = benches[0].parts.choose
    makers = [*plain_controls(flat, chosen)]
    for path, sae in saes:
        makers += sae_and_twins(x, chosen, path, sae, wanted)
    scored: list[list[Scored]] = [[] for _ in benches]
    with report.progress("detectors", len(makers), "detectors") as advance:
        for make in makers:
            detector = make()
            for place, bench in zip(scored, benches, strict=True):
                codes = detector.codes if bench.tokens > 1 else pooled(detector.codes, TOKENS)
                place.append(score_features(detector.name, codes, bench, detector.checkpoint))
            advance()
    return [
        SiteScores(
            site=site,
            step=step,
            detectors=[each.record for each in with_comparisons(place, supervised(flat, bench))],
        )
        for place, bench in zip(scored, benches, strict=True)
    ]


def supervised(flat: Float32[np.ndarray, "r d"], bench: Bench) -> list[Scored]:
    """What is told the concepts: of a picture, the mean and the largest value of each dimension are read."""
    x = flat
    if bench.tokens == 1:
        by_picture = flat.reshape(-1, TOKENS, flat.shape[1])
        x = np.concatenate([by_picture.mean(1), by_picture.max(1)], axis=1)
    return [
        score_verdicts("difference of means", difference_of_means(x, bench.truth, bench.parts), bench),
        score_verdicts("probe", linear_probe(x, bench.truth, bench.parts), bench),
    ]


def plain_controls(flat: Float32[np.ndarray, "r d"], chosen: np.ndarray) -> list[Callable[[], Detector]]:
    """What has features without an SAE; ICA and NMF where scikit-learn is there."""
    makers: list[Callable[[], Detector]] = [
        lambda: Detector("neurons", controls.neurons(flat, chosen)),
        lambda: Detector("pca", controls.principal_components(flat, chosen)),
    ]
    if controls.has_sklearn():
        makers += [
            lambda: Detector("ica", controls.independent_components(flat, chosen)),
            lambda: Detector("nmf", controls.nonnegative_factors(flat, chosen)),
        ]
    return makers


def sae_and_twins(
    x: Tensor, chosen: np.ndarray, path: str, sae: LinearSae, wanted: Wanted
) -> list[Callable[[], Detector]]:
    """An SAE, one of its size that learned nothing, and one whose decoder learned nothing."""
    codes = codes_of(sae, x)
    k = max(1, round(codes.nnz / codes.shape[0]))
    rows = x.flatten(0, 1)

    def untrained() -> Detector:
        twin = random_twin(sae, k, rows[torch.from_numpy(chosen)].mean(0), wanted.seed)
        return Detector("untrained", codes_of(twin, x), path)

    def frozen() -> Detector:
        settings = TrainConfig(
            FrozenDecoder(TopK(k=k)),
            sae.hidden_dim,
            steps=wanted.frozen_steps,
            batch_size=FROZEN_BATCH,
            seed=wanted.seed,
        )
        twin, _ = train(rows[torch.from_numpy(chosen)], settings)
        return Detector("frozen decoder", codes_of(twin, x), path)

    return [lambda: Detector("sae", codes, path), untrained, *([frozen] if wanted.frozen_steps else [])]


def with_comparisons(features: Sequence[Scored], told: Sequence[Scored]) -> list[Scored]:
    """Say of everything that has features what share of the probe's F1 it reaches, and of SAEs how far they
    are above their untrained twins."""
    probe = next(each for each in told if each.record.name == "probe").record.readout
    twins = {each.record.checkpoint: each for each in features if each.record.name == "untrained"}
    done = []
    for each in features:
        own = each.record.coalition_16
        assert own is not None and probe is not None
        record = replace(each.record, share_of_probe=own.mean / probe.mean if probe.mean else None)
        if record.name in ("sae", "frozen decoder"):
            record = replace(record, above_untrained=above(each, twins[record.checkpoint]))
        done.append(Scored(record, each.draws))
    return [*done, *told]


def report_of(
    model: Model,
    truth: Truth,
    benches: Sequence[Bench],
    found: Sequence[list[SiteScores]],
    wanted: Wanted,
) -> TruthReport:
    pictures = benches[0].pictures
    levels = [
        TruthLevel(
            concepts=list(bench.concepts),
            rare=list(bench.rare),
            base=bench.truth.mean(0).tolist(),
            sites=sites,
        )
        for bench, sites in zip(benches, found, strict=True)
    ]
    return TruthReport(
        model_id=model.model_id,
        pictures=len(truth.asked),
        prompts=len(set(truth.families.tolist())),
        parts={
            "choose": len(pictures.choose),
            "tune": len(pictures.tune),
            "report": len(pictures.report),
        },
        exact_pairs=len(benches[0].pairs),
        seed=wanted.seed,
        missing=[] if controls.has_sklearn() else ["ica", "nmf"],
        on_tokens=levels[0],
        on_pictures=levels[1],
    )


def picture_of(level: TruthLevel) -> Image:
    """Concepts by detectors: the F1 of the best single feature, or of what is told the concepts."""
    columns = []
    for place in level.sites:
        for each in place.detectors:
            scores = each.single or each.readout
            assert scores is not None
            columns.append((f"{place.site}, step {place.step + 1}", each.name, [float(v) for v in scores.f1]))
    return detectors_and_concepts(level.concepts, columns)
