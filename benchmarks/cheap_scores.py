"""Which cheap score tells the truth? Scores that need no labels, against what features of flux-shapes know.

    fluxscope truth                                     # makes the pictures
    python benchmarks/cheap_scores.py truth             # docs/studies/cheap-scores.md and its picture

Scores are taken on some pictures, as a run would take them; what each feature stands for is found on the
same part and measured on pictures of other prompts: its F1 on tokens and on whole pictures, and how
selectively it moves on exact pairs of pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import spearmanr

from fluxscope.commands.truth_scores import pooled, reported_pairs
from fluxscope.draw.truth_plot import scores_and_truth
from fluxscope.files import load_npy, read_json, save_image, save_npy, write_text
from fluxscope.measures.causal import pair_scores
from fluxscope.measures.clip import embed_images, load_clip
from fluxscope.measures.detection import best_f1, f1_of, fired, thresholds
from fluxscope.measures.held_out import clip_held_out
from fluxscope.measures.selection import rank_images, score_features
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.sae.features import load_sae
from fluxscope.shapes.concepts import ATTRIBUTES, TOKENS
from fluxscope.shapes.shipped import CLIP_SHAPES, resolve, shipped_sae

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PICTURE = DOCS / "studies" / "cheap-scores.md", DOCS / "images" / "cheap_scores.png"
STEP, EPS, TOP_M = 13, 1e-4, 20
SIZES = (40, 150, 400)
"""Prompts that a run has; what comes of chance is evened out over draws of them."""
DRAWS = 5
TRUE, BEYOND = 0.6, 1.5
"""A feature is true when its F1 is above this on tokens; or on pictures, and so many times what saying yes
to every picture has."""
NAMES = ("clip_coherence", "coherence_z", "clip_held_out", "coverage", "frequency", "largest code", "chance")


@dataclass(frozen=True)
class Known:
    """What the features of an SAE know, measured on pictures that chose nothing.

    Attributes:
        tokens, pictures: F1 of each feature on its best concept.
        true: whether one of them says that it stands for it.
        concept: the best one on tokens.
        selectivity: how much of its movement on exact pairs is due to its own concept; NaN without a pair.
    """

    tokens: np.ndarray
    pictures: np.ndarray
    true: np.ndarray
    concept: np.ndarray
    selectivity: np.ndarray


def known(truth: Truth, codes: csr_array, S: np.ndarray) -> Known:
    parts = truth.parts()
    learn = np.sort(np.concatenate([parts.choose, parts.tune]))
    on_tokens, of_tokens = truth.on_tokens(ATTRIBUTES), truth.on_pictures(ATTRIBUTES)
    rows = (learn[:, None] * TOKENS + np.arange(TOKENS)).reshape(-1)
    tokens, concept, _ = held_out_f1(codes, on_tokens, rows, parts.of_tokens(TOKENS).report)
    base = of_tokens[learn].mean(0)
    always = 2 * base / (1 + base)
    pictures, on_picture, threshold = held_out_f1(csr_array(S), of_tokens, learn, parts.report, always)
    pairs = pair_scores(reported_pairs(truth, parts), S, threshold, of_tokens[:, on_picture])
    true = (tokens > TRUE) | ((pictures > TRUE) & (pictures > BEYOND * always[on_picture]))
    return Known(tokens, pictures, true, concept, pairs.selectivity)


def held_out_f1(
    codes: csr_array, facts: np.ndarray, learn: np.ndarray, report: np.ndarray, less: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each feature's F1 on the concept that suits it best where it is learned; concept; threshold."""
    columns = codes.tocsc()
    concept = (best_f1(columns[learn], facts[learn]) - less).argmax(1)
    features = np.arange(len(concept))
    cut = thresholds(columns[learn], facts[learn], features, concept)
    fires = fired(columns[report], features, cut)
    f1 = np.concatenate(
        [
            f1_of(fires[:, part], facts[report][:, concept[part]])
            for part in np.array_split(features, max(1, len(features) // 256))
        ]
    )
    return f1, concept, cut


def cheap(S: np.ndarray, embeddings: np.ndarray, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """The scores, as a run of these pictures has them; NaN for features that are not eligible."""
    scores = score_features(rank_images(S, prompts, EPS, TOP_M), embeddings, prompts)
    found = {
        "clip_coherence": scores.clip_coherence,
        "coherence_z": scores.coherence_z,
        "clip_held_out": clip_held_out(S, embeddings, prompts).r,
        "coverage": scores.coverage,
        "frequency": scores.frequency,
        "largest code": S.max(0),
        "chance": np.random.default_rng(len(S) + int(prompts[0])).random(S.shape[1]),
    }
    out = ~np.isfinite(scores.clip_coherence)
    return {name: np.where(out, np.nan, found[name].astype(np.float64)) for name in NAMES}


def embedded(truth: Truth) -> np.ndarray:
    """CLIP's view of the pictures, kept beside them."""
    path = truth.folder / "clip_embeddings.npy"
    if not path.is_file() or len(load_npy(path)) != len(truth.asked):
        clip, processor = load_clip(resolve(CLIP_SHAPES), "cpu")
        pictures = [truth.folder / "pictures" / f"{i:06d}.png" for i in range(len(truth.asked))]
        save_npy(path, embed_images(clip, processor, pictures, 32))
    return load_npy(path)


def rows_of(score: np.ndarray, facts: Known, best: int) -> tuple[float, int]:
    """Among the best features by a score: the share of true ones, and how many concepts these have."""
    usable = np.flatnonzero(np.isfinite(score))
    top = usable[np.argsort(-score[usable], kind="stable")][:best]
    return float(facts.true[top].mean()), len(set(facts.concept[top][facts.true[top]].tolist()))


def correlation(score: np.ndarray, fact: np.ndarray) -> float:
    both = np.isfinite(score) & np.isfinite(fact)
    return float(spearmanr(score[both], fact[both])[0])


def study(site: str, truth: Truth, facts: Known, S: np.ndarray, embeddings: np.ndarray) -> Iterator[str]:
    """The table of a site."""
    parts = truth.parts()
    learn = np.sort(np.concatenate([parts.choose, parts.tune]))
    families = np.unique(truth.families[learn])
    yield f"## {site}: {facts.true.sum()} of {len(facts.true)} features are true\n"
    yield "| score | prompts | F1, tokens | F1, pictures | pairs | true of 10 | concepts | true of 100 |"
    yield "|---|---|---|---|---|---|---|---|"
    for size in SIZES:
        if size > len(families):
            continue
        found: dict[str, list[list[float]]] = {name: [] for name in NAMES}
        for draw in range(DRAWS):
            some = np.random.default_rng(draw).permutation(families)[:size]
            rows = learn[np.isin(truth.families[learn], some)]
            scores = cheap(np.ascontiguousarray(S[rows]), embeddings[rows], truth.families[rows])
            for name, score in scores.items():
                ten, hundred = rows_of(score, facts, 10), rows_of(score, facts, 100)
                told = [correlation(score, f) for f in (facts.tokens, facts.pictures, facts.selectivity)]
                found[name].append([*told, ten[0], ten[1], hundred[0]])
        for name, values in found.items():
            a, b, c, ten_true, concepts, hundred_true = np.mean(values, axis=0)
            yield (
                f"| {name} | {size} | {a:+.2f} | {b:+.2f} | {c:+.2f} | {ten_true:.0%} | {concepts:.1f} | "
                f"{hundred_true:.0%} |"
            )
    yield ""


HEAD = f"""\
# Which cheap score tells the truth?

Made by `python benchmarks/cheap_scores.py`; do not edit.

Features are ranked by scores that need no labels. Of flux-shapes' features one knows what they stand for:
here each score is held against it. Scores are taken on runs of some prompts ({DRAWS} draws each); what a
feature stands for is measured on pictures of other prompts.

- **F1, tokens** and **F1, pictures**: Spearman's correlation of the score with the feature's F1 on its
  best of 23 concepts; **pairs**: with its selectivity on exact pairs, whose prompts differ in one word.
- **true of 10**: of the ten best by the score, those with an F1 above {TRUE} on tokens, or on pictures
  when that is {BEYOND} times what saying yes to every picture has; **concepts**: how many different ones
  these stand for.

`clip_held_out` learns from one half of the prompts what the pictures of a feature look like, and is its
correlation with the feature's strength on the other half (`measures/held_out.py`).

![One dot a feature: each score against F1](../images/cheap_scores.png)

"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of fluxscope truth, with its pictures")
    folder = parser.parse_args(arguments).folder
    count = read_json(folder / "truth.json")["pictures"]
    truth = make_truth(open_model("flux-shapes", "cpu", "float32"), folder, count, [], [], Reporter())
    embeddings, lines, panels = embedded(truth), [HEAD], {}
    for block in (5, 15):
        sae, _ = load_sae(shipped_sae(block))
        codes = codes_of(sae, truth.activations(f"double.{block}.ff", STEP))
        S = pooled(codes, TOKENS).toarray()
        facts = known(truth, codes, S)
        lines += study(f"double.{block}.ff", truth, facts, S, embeddings)
        parts = truth.parts()
        learn = np.sort(np.concatenate([parts.choose, parts.tune]))
        scores = cheap(np.ascontiguousarray(S[learn]), embeddings[learn], truth.families[learn])
        panels[f"double.{block}.ff"] = (scores, facts.tokens, facts.true)
    write_text(PAGE, "\n".join(lines))
    save_image(PICTURE, scores_and_truth(panels))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
