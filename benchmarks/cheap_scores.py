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
from scipy.sparse import csc_array, csr_array
from scipy.stats import spearmanr

from fluxscope.commands.truth_scores import pooled, reported_pairs
from fluxscope.draw.truth_plot import scores_and_truth
from fluxscope.files import load_npy, read_json, save_image, save_npy, write_text
from fluxscope.measures.causal import pair_scores
from fluxscope.measures.clip import embed_images, load_clip, tile_boxes, tile_of_tokens
from fluxscope.measures.detection import best_f1, f1_of, fired, thresholds
from fluxscope.measures.halves import part_prompts
from fluxscope.measures.held_out import Views, pictures_to_see, views_of
from fluxscope.measures.selection import apart, score_features
from fluxscope.measures.top_images import rank_images
from fluxscope.models.model import open_model
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.sae.features import load_sae
from fluxscope.shapes.concepts import ATTRIBUTES, GRID, TOKENS
from fluxscope.shapes.shipped import CLIP_SHAPES, SHIPPED_SAES, resolve
from fluxscope.shapes.world import RESOLUTION

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PICTURE = DOCS / "studies" / "cheap-scores.md", DOCS / "images" / "cheap_scores.png"
STEP, EPS, TOP_M = 13, 1e-4, 20
COLUMNS = (
    *("score", "prompts", "F1, tokens", "F1, pictures", "pairs", "true of 10", "concepts", "of 10 unlike"),
    *("concepts", "true of 100"),
)
SIZES = (40, 150, 400)
"""Prompts that a run has; what comes of chance is evened out over draws of them."""
DRAWS = 5
TRUE, BEYOND = 0.6, 1.5
"""A feature is true when its F1 is above this on tokens; or on pictures, and so many times what saying yes
to every picture has."""
TILES, MOST_ALIKE = 4, 0.4
"""As runs have them by default."""
NAMES = (
    *("clip_coherence", "coherence_z", "clip_held_out", "... of pictures", "coverage"),
    *("frequency", "largest code", "chance"),
)


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


@dataclass(frozen=True)
class Pictures:
    """Some pictures, as a run of them has them.

    Attributes:
        S, tiles: each feature's largest code in whole pictures (n, f), and in their tiles (n tiles, f).
        whole, parts: CLIP's view of them (n, e), and of their tiles (n, tiles, e).
        prompts: of each picture.
    """

    S: np.ndarray
    tiles: csr_array
    whole: np.ndarray
    parts: np.ndarray
    prompts: np.ndarray

    def some(self, rows: np.ndarray) -> Pictures:
        own = (rows[:, None] * TILES**2 + np.arange(TILES**2)).reshape(-1)
        S = np.ascontiguousarray(self.S[rows])
        return Pictures(S, self.tiles[own], self.whole[rows], self.parts[rows], self.prompts[rows])

    def views(self, of_tiles: bool) -> Views:
        pictures = pictures_to_see(self.prompts)
        rows = pictures.reshape(-1)
        if not of_tiles:
            return views_of(pictures, self.prompts, csr_array(self.S[rows]), self.whole[:, None])
        own = (rows[:, None] * TILES**2 + np.arange(TILES**2)).reshape(-1)
        return views_of(pictures, self.prompts, self.tiles[own], self.parts)


def cheap(seen: Pictures) -> dict[str, np.ndarray]:
    """The scores by which a run of these pictures chooses; NaN for features that are not eligible.

    Each feature's is of the half of the prompts that chooses it, as in step 4.
    """
    S, prompts = seen.S, seen.prompts
    halves = part_prompts(prompts, S.shape[1])
    assert halves is not None
    one = np.isin(prompts, halves.prompts)
    scored = [
        score_features(rank_images(S, prompts, EPS, TOP_M, some=half), seen.whole, prompts, 3, half)
        for half in (one, ~one)
    ]
    overall = score_features(rank_images(S, prompts, EPS, TOP_M), seen.whole, prompts)
    whole, tiles = (apart(overall, *scored, seen.views(of_tiles), halves) for of_tiles in (False, True))
    found = {
        "clip_coherence": tiles.choosing.clip_coherence,
        "coherence_z": tiles.choosing.coherence_z,
        "clip_held_out": tiles.choosing.clip_held_out,
        "... of pictures": whole.choosing.clip_held_out,
        "coverage": tiles.choosing.coverage,
        "frequency": tiles.choosing.frequency,
        "largest code": np.where(halves.by_first, S[one].max(0), S[~one].max(0)),
        "chance": np.random.default_rng(len(S) + int(prompts[0])).random(S.shape[1]),
    }
    out = ~np.isfinite(overall.clip_coherence)
    return {name: np.where(out, np.nan, found[name].astype(np.float64)) for name in NAMES}


def tile_strengths(codes: csr_array) -> csr_array:
    """Each feature's largest code in every tile of every picture."""
    tile = tile_of_tokens((GRID, GRID), TILES)
    members = np.argsort(tile, kind="stable").reshape(TILES**2, -1)  # the tokens of each tile
    first = np.arange(codes.shape[0] // TOKENS)[:, None] * TOKENS
    turns = [codes[(first + members[:, turn]).reshape(-1)] for turn in range(members.shape[1])]
    largest = turns[0]
    for turn in turns[1:]:
        largest = largest.maximum(turn)
    return csr_array(largest)


def embedded(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """CLIP's view of the pictures and of their tiles, kept beside them."""
    paths = truth.folder / "clip_embeddings.npy", truth.folder / "clip_tiles.npy"
    if not all(path.is_file() and len(load_npy(path)) == len(truth.asked) for path in paths):
        clip, processor = load_clip(resolve(CLIP_SHAPES), "cpu")
        pictures = [truth.folder / "pictures" / f"{i:06d}.png" for i in range(len(truth.asked))]
        save_npy(paths[0], embed_images(clip, processor, pictures, 32))
        boxes = tile_boxes((RESOLUTION, RESOLUTION), TILES)
        each = [picture for picture in pictures for _ in boxes]
        rows = embed_images(clip, processor, each, 64, boxes * len(pictures))
        save_npy(paths[1], rows.reshape(len(pictures), len(boxes), -1))
    return load_npy(paths[0]), load_npy(paths[1])


def rows_of(score: np.ndarray, facts: Known, best: int, unlike: csc_array | None) -> tuple[float, int]:
    """Among the best features by a score: the share of true ones, and how many concepts these have.

    Args:
        unlike: where features fire; those that fire like a better one are passed over, as in step 4.
    """
    usable = np.flatnonzero(np.isfinite(score))
    order = usable[np.argsort(-score[usable], kind="stable")]
    top = order[:best] if unlike is None else unlike_ones(unlike, order, best)
    return float(facts.true[top].mean()), len(set(facts.concept[top][facts.true[top]].tolist()))


def unlike_ones(patterns: csc_array, order: np.ndarray, best: int) -> np.ndarray:
    """The first features that don't fire alike."""
    kept: list[int] = []
    unit: list[np.ndarray] = []
    for feature in order.tolist():
        own = patterns[:, [feature]].toarray()[:, 0].astype(np.float64)
        own = (own - own.mean()) / max(float(own.std()) * len(own) ** 0.5, 1e-12)
        if all(own @ other <= MOST_ALIKE for other in unit):
            kept.append(feature)
            unit.append(own)
        if len(kept) == best:
            break
    return np.array(kept)


def correlation(score: np.ndarray, fact: np.ndarray) -> float:
    both = np.isfinite(score) & np.isfinite(fact)
    return float(spearmanr(score[both], fact[both])[0])


def study(site: str, truth: Truth, facts: Known, seen: Pictures) -> Iterator[str]:
    """The table of a site."""
    parts = truth.parts()
    learn = np.sort(np.concatenate([parts.choose, parts.tune]))
    families = np.unique(truth.families[learn])
    yield f"## {site}: {facts.true.sum()} of {len(facts.true)} features are true\n"
    yield f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
    for size in SIZES:
        if size > len(families):
            continue
        found: dict[str, list[list[float]]] = {name: [] for name in NAMES}
        for draw in range(DRAWS):
            some = np.random.default_rng(draw).permutation(families)[:size]
            drawn = seen.some(learn[np.isin(truth.families[learn], some)])
            patterns = drawn.tiles.tocsc()
            for name, score in cheap(drawn).items():
                ten, hundred = rows_of(score, facts, 10, None), rows_of(score, facts, 100, None)
                told = [correlation(score, f) for f in (facts.tokens, facts.pictures, facts.selectivity)]
                found[name].append([*told, *ten, *rows_of(score, facts, 10, patterns), hundred[0]])
        for name, values in found.items():
            a, b, c, *shares, hundred_true = np.mean(values, axis=0)
            yield (
                f"| {name} | {size} | {a:+.2f} | {b:+.2f} | {c:+.2f} | {shares[0]:.0%} | {shares[1]:.1f} | "
                f"{shares[2]:.0%} | {shares[3]:.1f} | {hundred_true:.0%} |"
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
  these stand for; **of 10 unlike**: the same where features that fire like a better one (correlation over
  tiles above {MOST_ALIKE}) are passed over, as step 4 does.

Every score is taken on half of the prompts, as in step 4, where the other half shows the feature.
`clip_held_out` lets other prompts teach what the tiles of pictures look like on which a feature is strong,
and is the correlation of that with the feature's strength (`measures/held_out.py`); `of pictures`: with whole
pictures in the place of tiles.

What the tables say: with few prompts tiles tell more than whole pictures, and at `double.5.attn`, whose
features the sheet shows, more than any other score; on features of `double.15.ff`, of which few are true,
whole pictures (`--clip-tiles 1`) do better from 150 prompts on. Coverage and frequency go with F1 as most
features that hardly ever fire know nothing; the ten most frequent know nothing either.

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
    (whole, parts), lines, panels = embedded(truth), [HEAD], {}
    for site, checkpoint in SHIPPED_SAES.items():
        sae, _ = load_sae(checkpoint)
        codes = codes_of(sae, truth.activations(site, STEP))
        S = pooled(codes, TOKENS).toarray()
        facts, seen = known(truth, codes, S), Pictures(S, tile_strengths(codes), whole, parts, truth.families)
        lines += study(site, truth, facts, seen)
        learn = np.sort(np.concatenate([truth.parts().choose, truth.parts().tune]))
        panels[site] = (cheap(seen.some(learn)), facts.tokens, facts.true)
    write_text(PAGE, "\n".join(lines))
    save_image(PICTURE, scores_and_truth(panels))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
