"""Scoring one detector against the truth: what `fluxscope truth` says of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64
from scipy.sparse import csr_array

from fluxscope.measures.causal import absorption, exact_pairs, pair_scores
from fluxscope.measures.certainty import (
    INTERVAL,
    Bootstrap,
    bootstrap_f1,
    dci,
    holm,
    permutation_p,
    permuted_pictures,
)
from fluxscope.measures.detection import Detectors, Parts, best_single_f1, f1_of, fired
from fluxscope.measures.readout import Verdicts, best_coalitions
from fluxscope.run.truth import Truth
from fluxscope.run.truth_records import DetectorScores, FeatureDetails, PairResults, TruthScores
from fluxscope.shapes.concepts import ATTRIBUTES, CONCEPTS, FIXED, OF_PICTURES, PAIRS, TOKENS

LEAST = 5
"""A concept is scored when it is on so many pictures of each part, on half as many of those to tune on."""

COVERED = 0.8
"""An attribute's value is covered by a detector of such an F1."""

CHANCE_ROUNDS = 3
"""How often pictures are permuted to see what the best feature reaches by chance."""


@dataclass(frozen=True)
class Bench:
    """What detectors are held against, on tokens or on whole pictures.

    Attributes:
        concepts, rare: those scored, and those on too few pictures.
        truth: (r, c), picture after picture.
        tokens: rows a picture.
        pictures: the parts, as pictures.
        families: of each picture.
        pairs: (q, 2), exact pairs among the pictures to report on.
        seed: of all draws.
    """

    concepts: tuple[str, ...]
    rare: tuple[str, ...]
    truth: Bool[np.ndarray, "r c"]
    tokens: int
    pictures: Parts
    families: Int[np.ndarray, " n"]
    pairs: Int64[np.ndarray, "q 2"]
    seed: int

    @cached_property
    def parts(self) -> Parts:
        return self.pictures.of_tokens(self.tokens)

    @cached_property
    def facts(self) -> Bool[np.ndarray, "r c"]:
        """The truth of the rows that are reported."""
        return np.asarray(self.truth[self.parts.report])

    @cached_property
    def attributes(self) -> list[int]:
        """The columns of the 23 values."""
        return [i for i, concept in enumerate(self.concepts) if concept in ATTRIBUTES]

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """The columns of each kind of concept."""
        kinds: dict[str, list[int]] = {}
        for i, concept in enumerate(self.concepts):
            kinds.setdefault(kind_of(concept), []).append(i)
        return kinds

    @cached_property
    def row_families(self) -> Int[np.ndarray, " r"]:
        return np.asarray(np.repeat(self.families, self.tokens)[self.parts.report])


def kind_of(concept: str) -> str:
    return concept.split(":")[0]


def bench_of(truth: Truth, seed: int, of_tokens: bool) -> Bench:
    """The concepts that are on enough pictures, and what is known of them."""
    names = CONCEPTS if of_tokens else OF_PICTURES
    pictures, there = truth.parts(seed), truth.on_pictures(names)
    enough = np.ones(len(names), bool)
    for rows, least in ((pictures.choose, LEAST), (pictures.tune, LEAST // 2), (pictures.report, LEAST)):
        enough &= there[rows].sum(0) >= least
    scored = tuple(name for name, kept in zip(names, enough, strict=True) if kept)
    return Bench(
        scored,
        tuple(name for name in names if name not in scored),
        truth.on_tokens(scored) if of_tokens else truth.on_pictures(scored),
        TOKENS if of_tokens else 1,
        pictures,
        truth.families,
        reported_pairs(truth, pictures),
        seed,
    )


def reported_pairs(truth: Truth, pictures: Parts) -> Int64[np.ndarray, "q 2"]:
    """The pairs to report on in which the oracle sees the wished difference and no other."""
    reported = set(pictures.report.tolist())
    twins = [
        (question.twin_of, i, question.changed)
        for i, question in enumerate(truth.asked)
        if question.twin_of is not None and question.changed is not None and i in reported
    ]
    pairs = np.array([(base, twin) for base, twin, _ in twins], np.int64).reshape(-1, 2)
    kinds = [kind_of(concept) for concept in ATTRIBUTES]
    return exact_pairs(pairs, truth.on_pictures(ATTRIBUTES), kinds, [changed for *_, changed in twins])


@dataclass(frozen=True)
class Scored:
    """A detector's scores, and the draws behind its coalitions' mean, to compare it with others."""

    record: DetectorScores
    draws: Float64[np.ndarray, " b"]


def score_verdicts(name: str, verdicts: Verdicts, bench: Bench) -> Scored:
    """Score what has no features: a probe, a direction a concept."""
    scores, bootstrap = scores_of(verdicts, bench)
    return Scored(DetectorScores(name=name, readout=scores), _mean_draws(bootstrap, bench))


def score_features(name: str, codes: csr_array, bench: Bench, checkpoint: str | None = None) -> Scored:
    """Score features: the best single one, and coalitions.

    Args:
        codes: (r, f), never negative, of the bench's rows.
        checkpoint: of the SAE that they belong to.
    """
    columns = codes.tocsc()
    single = best_single_f1(columns, bench.truth, bench.parts)
    fires = fired(columns[bench.parts.report], single.feature, single.threshold)
    together = best_coalitions(columns, bench.truth, bench.parts)
    of_16, bootstrap = scores_of(together.up_to[16].verdicts, bench)
    disentanglement, completeness = dci(together.weight[:, bench.attributes])
    chance_chosen, chance = by_chance(codes, bench)
    details = FeatureDetails(
        features=[feature if feature >= 0 else None for feature in single.feature.tolist()],
        thresholds=[value if np.isfinite(value) else None for value in single.threshold.tolist()],
        distinct=len(set(single.feature[bench.attributes].tolist())),
        p=corrected_p(fires, bench),
        chance_chosen=chance_chosen,
        chance=chance,
        needed=together.needed.tolist(),
        disentanglement=disentanglement,
        completeness=completeness,
        absorption=absorption_by_kind(fires, bench),
        on_pairs=on_pairs(codes, single, bench),
    )
    record = DetectorScores(
        name=name,
        checkpoint=checkpoint,
        n_features=codes.shape[1],
        l0=codes.nnz / codes.shape[0],
        single=scores_of(Verdicts(fires, single.auprc), bench)[0],
        coalition_4=scores_of(together.up_to[4].verdicts, bench)[0],
        coalition_16=of_16,
        details=details,
    )
    return Scored(record, _mean_draws(bootstrap, bench))


def scores_of(verdicts: Verdicts, bench: Bench) -> tuple[TruthScores, Bootstrap]:
    """F1 and what follows from it, with intervals by prompt."""
    f1 = f1_of(verdicts.fires, bench.facts)
    bootstrap = bootstrap_f1(verdicts.fires, bench.facts, bench.row_families, bench.seed)
    low, high = bootstrap.interval()
    mean_low, mean_high = bootstrap.mean_interval(bench.attributes)
    own = f1[bench.attributes]
    return TruthScores(
        f1=f1.tolist(),
        f1_low=low.tolist(),
        f1_high=high.tolist(),
        iou=(f1 / (2 - f1)).tolist(),
        auprc=verdicts.auprc.tolist(),
        mean=float(own.mean()),
        mean_low=mean_low,
        mean_high=mean_high,
        mean_iou=float((own / (2 - own)).mean()),
        mean_auprc=float(verdicts.auprc[bench.attributes].mean()),
        by_kind={kind: float(f1[columns].mean()) for kind, columns in bench.kinds.items()},
        coverage=float((own >= COVERED).mean()),
    ), bootstrap


def by_chance(codes: csr_array, bench: Bench) -> tuple[float, float]:
    """Mean F1 of the best features with pictures permuted: where they are chosen, and where reported."""
    pictures = [bench.pictures.choose, bench.pictures.tune, bench.pictures.report]
    chosen, reported = [], []
    for seed in range(CHANCE_ROUNDS):
        truth = permuted_pictures(bench.truth[:, bench.attributes], pictures, bench.tokens, seed)
        found = best_single_f1(codes, truth, bench.parts)
        chosen.append(found.chosen_f1.mean())
        reported.append(found.f1.mean())
    return float(np.mean(chosen)), float(np.mean(reported))


def corrected_p(fires: Bool[np.ndarray, "r c"], bench: Bench) -> list[float]:
    """Against permuted pictures, one of each prompt; places of the picture, which never move, stay at 1."""
    _, first = np.unique(bench.families[bench.pictures.report], return_index=True)
    shape = (-1, bench.tokens, len(bench.concepts))
    p = permutation_p(fires.reshape(shape)[first], bench.facts.reshape(shape)[first], bench.seed)
    moving = np.array([concept not in FIXED for concept in bench.concepts])
    p[moving] = holm(p[moving])
    return [float(each) for each in p]


def absorption_by_kind(fires: Bool[np.ndarray, "r c"], bench: Bench) -> dict[str, float]:
    """How many of the pairs of a colour, or of a shape, its detector leaves out."""
    pairs = [i for i, concept in enumerate(bench.concepts) if concept in PAIRS]
    words = [bench.concepts[i].removeprefix("pair: ").split() for i in pairs]
    found = {}
    for kind in ("color", "shape"):
        columns = bench.kinds.get(kind, [])
        values = [bench.concepts[c].removeprefix(f"{kind}: ") for c in columns]
        kinds = [[j for j, pair in enumerate(words) if value in pair] for value in values]
        left_out = absorption(fires[:, columns], bench.facts[:, columns], kinds, bench.facts[:, pairs])
        if np.isfinite(left_out).any():
            found[kind] = float(np.nanmean(left_out))
    return found


def on_pairs(codes: csr_array, single: Detectors, bench: Bench) -> dict[str, PairResults]:
    """What the best single features of the attributes' values do when one word changes."""
    has = np.asarray(bench.truth.reshape(-1, bench.tokens, len(bench.concepts)).any(1))
    strength = np.zeros(has.shape, np.float32)
    columns = codes.tocsc()
    for c in bench.attributes:
        if single.feature[c] >= 0:
            column = columns[:, [int(single.feature[c])]].toarray()
            strength[:, c] = column.reshape(-1, bench.tokens).max(1)
    found = pair_scores(bench.pairs, strength, single.threshold, has)
    return {
        kind: PairResults(
            pairs=int(found.own[columns_].sum()),
            follows=_mean(found.follows[columns_]),
            leakage=_mean(found.leakage[columns_]),
            selectivity=_mean(found.selectivity[columns_]),
        )
        for kind, columns_ in bench.kinds.items()
        if set(columns_) <= set(bench.attributes)
    }


def above(scored: Scored, other: Scored) -> list[float]:
    """How much better coalitions of up to 16 detect than another's: the mean, and its 95% interval."""
    own, others = scored.record.coalition_16, other.record.coalition_16
    assert own is not None and others is not None
    low, high = np.percentile(scored.draws - other.draws, INTERVAL)
    return [float(own.mean) - float(others.mean), float(low), float(high)]


def pooled(codes: csr_array, tokens: int) -> csr_array:
    """(n, f): the largest code of each feature on each picture."""
    entries = codes.tocoo()
    n, f = codes.shape[0] // tokens, codes.shape[1]
    place = (entries.row.astype(np.int64) // tokens) * f + entries.col
    order = np.argsort(place, kind="stable")
    place, value = place[order], entries.data[order]
    starts = np.flatnonzero(np.append(True, place[1:] != place[:-1])[: len(place)])
    largest = np.maximum.reduceat(value, starts) if len(starts) else value
    return csr_array((largest, divmod(place[starts], f)), shape=(n, f))


def _mean(values: Float64[np.ndarray, " k"]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _mean_draws(bootstrap: Bootstrap, bench: Bench) -> Float64[np.ndarray, " b"]:
    return np.asarray(bootstrap.f1[:, bench.attributes].mean(1))
