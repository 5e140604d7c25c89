"""Wrong versions of the steps, and whether a test notices each: python -m tests.mutants [words of a name].

Every mutant is a small change that leaves all files whole and all names right, and shows something untrue.
The tests of shown values run against a copy of the package with that one change; a mutant that they let pass
is listed, and the exit code is 1. Takes about half a minute a mutant; `test_mutants.py` checks that each
still is a change of what stands in the source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
HALVES = "tests/steps/test_chosen_and_shown.py"
SHOWN, STEERED = "tests/steps/test_shown_values.py", "tests/steps/test_steered_values.py"
EDITED, CHOSEN = "tests/models/test_editing.py", "tests/models/test_methods_choice.py"
DRAWN, COMPARED = "tests/draw", "tests/steps/test_compare_layers.py"


@dataclass(frozen=True)
class Mutant:
    """One wrong version: in a module of the package, `old` is replaced by `new`."""

    name: str
    module: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        return Path("src/fluxscope") / self.module


def _of(module: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutant, ...]:
    """Mutants of one module: name, old and new text of each."""
    return tuple(Mutant(name, module, old, new, tests) for name, old, new in changes)


MUTANTS = (
    *_of(
        "fields.py",
        "tests/test_fields.py",
        ("one step too many", "range(begin, end + 1)", "range(begin, end + 2)"),
    ),
    *_of(
        "measures/stats.py",
        SHOWN,
        ("means over all pictures", "seen = np.maximum(count, 1)", "seen = np.full_like(count, n)"),
        ("variance for deviation", "std=np.sqrt(np.maximum(", "std=(np.maximum("),
        ("frequency of silence", "frequency=(count / n)", "frequency=(1 - count / n)"),
    ),
    *_of(
        "steps/analyze.py",
        SHOWN,
        ("top pictures in reverse", "top_idx=stats.top_idx,", "top_idx=stats.top_idx[::-1].copy(),"),
        ("the mean as maximum", "max=stats.maximum", "max=stats.mean"),
        (
            "dead features as alive",
            "(files.alive_features, stats.alive)",
            "(files.alive_features, stats.alive[::2])",
        ),
    ),
    *_of(
        "steps/clip_embed.py",
        SHOWN,
        (
            "embeddings in reverse",
            "(files.clip_embeddings, embeddings)",
            "(files.clip_embeddings, embeddings[::-1])",
        ),
        ("tiles in columns", "tile_boxes(picture.size, side))", "tile_boxes(picture.size, side)[::-1])"),
        ("ids for seeds", "[row.seed for row in rows]", "[row.image_id for row in rows]"),
        ("ids for prompts", "[row.prompt_idx for row in rows]", "[row.image_id for row in rows]"),
    ),
    *_of(
        "measures/selection.py",
        SHOWN,
        (
            "z against sets of another size",
            "(value - mean[n_top]) / deviation[n_top]",
            "(value - mean[2]) / deviation[2]",
        ),
        ("coherence as z", "coherence_z=((value - mean[n_top]) / deviation[n_top])", "coherence_z=(value)"),
        (
            "coherence of crops is that of pictures",
            "crop_coherence=crops",
            "crop_coherence=scores.clip_coherence",
        ),
        (
            "frequency is coverage",
            "frequency=ranked.frequency,",
            "frequency=ranked.coverage.astype(np.float32),",
        ),
        ("the worst first", "np.argsort(-value[eligible]", "np.argsort(value[eligible]"),
        (
            "the weakest examples",
            "(unique and i in used)][:top_examples]",
            "(unique and i in used)][-top_examples:]",
        ),
        ("pictures shown twice", "used.update(examples)", "used.update(examples[:0])"),
    ),
    *_of(
        "measures/selection.py",
        HALVES,
        (
            "halves swapped",
            "_dealt(first, second, halves.by_first), _dealt(second, first",
            "_dealt(second, first, halves.by_first), _dealt(first, second",
        ),
        (
            "taught and tested on one half",
            "taught_on_test_on(views, one, ~one)",
            "taught_on_test_on(views, one, one)",
        ),
        (
            "p of the other half",
            "np.where(halves.by_first, p_two, p_one)",
            "np.where(halves.by_first, p_one, p_two)",
        ),
        ("p as q", "q[alive] = false_discovery(p[alive])", "q[alive] = p[alive]"),
        (
            "q over dead features too",
            "q[alive] = false_discovery(p[alive])",
            "q[:] = false_discovery(np.where(alive, p, 1))",
        ),
        (
            "the score that chose, shown as another",
            "shown = self.showing.by(rank_by)",
            "shown = self.choosing.by(rank_by)",
        ),
        (
            "ranked by what is shown",
            "chosen = self.choosing.by(rank_by)",
            "chosen = self.showing.by(rank_by)",
        ),
        ("features alike shown twice", "pattern @ other > most_alike", "pattern @ other > 2 + most_alike"),
    ),
    *_of(
        "measures/top_images.py",
        SHOWN,
        (
            "coverage counts pictures",
            "coverage += count_rows(best > eps)",
            "coverage += count_rows(rows > eps)",
        ),
    ),
    *_of(
        "measures/top_images.py",
        "tests/measures/test_selection.py",
        ("coverage of one half", "first.coverage + second.coverage", "first.coverage"),
        ("top pictures of one half", "[first.image, second.image]", "[first.image, first.image]"),
    ),
    *_of(
        "measures/held_out.py",
        "tests/measures/test_held_out.py",
        ("a prompt teaches itself", "(x[i].T @ s[i])", "(x[i].T @ s[i] * 0)"),
        ("no deals: z as if all were normal", "np.abs(skew) < 1e-3", "np.abs(skew) < 1e9"),
        ("variance of other deals", "(d**2).sum((1, 2)) / (p - 1)", "(d**2).sum((1, 2)) / p**2"),
        ("surer than there are deals", "np.maximum(chance, np.exp(-deals))", "chance"),
        ("places count", "less: np.ndarray = x - x.mean(0)", "less: np.ndarray = x - x.mean((0, 1))"),
    ),
    *_of(
        "measures/certainty.py",
        "tests/measures/test_held_out.py",
        ("every discovery true", "len(p) / np.arange(1, len(p) + 1)", "1 / np.arange(1, len(p) + 1)"),
    ),
    *_of(
        "steps/select.py",
        SHOWN,
        ("crops around another picture's peak", "codes = store.image(image)", "codes = store.image(0)"),
        ("crops of another feature's peak", "codes.column(int(feature))", "codes.column(int(features[0]))"),
    ),
    *_of(
        "steps/select.py",
        HALVES,
        (
            "tiles of the first picture",
            "store.image(image).max_over_tokens",
            "store.image(0).max_over_tokens",
        ),
        (
            "examples of the half that chose",
            "sides.showing.ranked, manifest",
            "sides.choosing.ranked, manifest",
        ),
    ),
    *_of(
        "measures/clip.py",
        SHOWN,
        ("crops around the weakest token", "int(np.argmax(token_map))", "int(np.argmin(token_map))"),
        ("crops transposed", "_span((column + 0.5) / columns, size[0]", "_span((row + 0.5) / rows, size[0]"),
    ),
    *_of(
        "steps/overlays.py",
        SHOWN,
        ("picture 0's codes", "store.image(manifest.place[row.image_id])", "store.image(0)"),
        ("the first feature's codes", ".column(feature).numpy()", ".column(features[0].feature_id).numpy()"),
        ("a sum as maximum", "activation_max=float(tokenmap.max())", "activation_max=float(tokenmap.sum())"),
        ("half of the colour", "heatmap, config.alpha_scale)", "heatmap, config.alpha_scale / 2)"),
        ("another percentile", "clip_percentile=config.clip_percentile\n", "clip_percentile=50.0\n"),
        ("the next seed", "seed=row.seed", "seed=row.seed + 1"),
    ),
    *_of(
        "draw/heatmap.py",
        SHOWN,
        ("heat transposed", "0, 1).reshape(rows, columns)", "0, 1).reshape(columns, rows).T"),
        ("heat upside down", "0, 1).reshape(rows, columns)", "0, 1).reshape(rows, columns)[::-1]"),
        ("light where it is silent", "fade = (1 - np.clip(heatmap, 0, 1))", "fade = np.clip(heatmap, 0, 1)"),
        ("heat is cold", "alpha = np.clip(heatmap, 0, 1)", "alpha = 1 - np.clip(heatmap, 0, 1)"),
    ),
    *_of(
        "steps/contact_sheet.py",
        SHOWN,
        (
            "bare pictures as overlays",
            "open_picture(root / item.overlay_path)",
            "open_picture(root / item.base_image_path)",
        ),
        ("the first prompt below all", "caption=item.prompt", "caption=own[0].prompt"),
        ("light on the next map", "root / item.tokenmap_path", "root / overlays.items[0].tokenmap_path"),
        ("the mean as maximum on the sheet", "{item.activation_max:.2f}", "{item.activation_mean:.2f}"),
        (
            "all features have the first one's pictures",
            "item.feature_id == record.feature_id]",
            "item.feature_id == items[0].feature_id]",
        ),
    ),
    *_of(
        "draw/sheet.py",
        f"{SHOWN} {DRAWN}",
        ("z's label over crops", '"coherence_z": ("z against chance"', '"coherence_z": ("crop coherence"'),
        ("a share of one for a percentage", '("frequency", "{:.1%}")', '("frequency", "{:.1f}%")'),
        (
            "the first example in every place",
            "(x, top + PAD), example, layout)",
            "(x, top + PAD), card.examples[0], layout)",
        ),
        (
            "cards in reverse",
            "for number, card in enumerate(cards):",
            "for number, card in enumerate(cards[::-1]):",
        ),
        (
            "bare and overlaid picture swapped",
            "[example.original, example.overlay]",
            "[example.overlay, example.original]",
        ),
        (
            "another feature's number in the head",
            "str(card.feature_id), INK",
            "str(card.feature_id + 1), INK",
        ),
    ),
    *_of(
        "steps/decoder.py",
        SHOWN,
        (
            "the least similar as nearest",
            "others.topk(min(NEAREST, len(others) - 1))",
            "others.neg().topk(min(NEAREST, len(others) - 1))",
        ),
        (
            "encoder and decoder swapped",
            "decoder_norm=float(decoder[row].norm())",
            "decoder_norm=float(encoder[row].norm())",
        ),
        (
            "cosines of unscaled columns",
            "normalize(sae.decoder.weight, dim=0)",
            "normalize(sae.decoder.weight, dim=1)",
        ),
        ("similarities of the wrong pair", "float(cosines[i, b])", "float(cosines[i, a])"),
    ),
    *_of(
        "steps/steer.py",
        STEERED,
        (
            "the control is the feature itself",
            "random_direction(setup.steerer.sae.input_dim, feature)",
            "setup.steerer.sae.decoder.weight[:, feature]",
        ),
        ("inside and outside swapped", "inside=inside, outside=outside", "inside=outside, outside=inside"),
        (
            "the control's numbers are the feature's",
            "nonzero(setup), controls)",
            "nonzero(setup), strengths)",
        ),
        (
            "scales in another order",
            "for scale in config.steer_scales]\n    return",
            "for scale in config.steer_scales[::-1]]\n    return",
        ),
        (
            "pictures under another strength's name",
            "for s in nonzero(setup)]\n    pictures",
            "for s in nonzero(setup)[::-1]]\n    pictures",
        ),
        (
            "the control's pictures are the feature's",
            "pictures, words = list(made.pictures.numpy()), notes",
            "pictures, words = list(own.pictures.numpy()), notes",
        ),
        (
            "labels in reverse",
            "labels = [signed(s) for s in strengths]",
            "labels = [signed(s) for s in strengths[::-1]]",
        ),
    ),
    *_of(
        "run/steering.py",
        STEERED,
        ("the median as unit", "np.percentile(values, UNIT_PERCENTILE)", "np.percentile(values, 50)"),
        (
            "a push without its sign",
            "amount = strength * self.unit(feature)[1]",
            "amount = abs(strength) * self.unit(feature)[1]",
        ),
        (
            "unrelated pictures of one prompt",
            "if rows[a].prompt != rows[b].prompt]",
            "if rows[a].prompt == rows[b].prompt]",
        ),
        (
            "another picture's token map",
            "self.store.image(self.manifest.place[image_id])",
            "self.store.image(0)",
        ),
        (
            "the largest distance of unrelated pictures",
            "float(np.median(self.distance(left, right)))",
            "float(np.max(self.distance(left, right)))",
        ),
    ),
    *_of(
        "models/edits.py",
        STEERED,
        ("scale 1 doubles", "amount, z: (amount - 1) * z", "amount, z: amount * z"),
        (
            "pushes of the raw direction",
            'nn.functional.normalize(column, dim=0) if change.kind == "add" else column',
            "column * 2",
        ),
    ),
    *_of(
        "models/edits.py",
        EDITED,
        ("an edit: norms grow", "changed * (old / new.", "changed * (new / old."),
    ),
    *_of(
        "models/editing.py",
        EDITED,
        ("an edit: followers go their own way", "if follow:  #", "if False:  #"),
    ),
    *_of(
        "models/methods/push.py",
        EDITED,
        ("an edit: natural sizes of unit directions", "unit *= float(", "unit *= 1 + 0 * float("),
        ("an edit: half a factor from 0", 'at_rest = 1.0 if self.kind == "scale" else 0.0', "at_rest = 0.0"),
    ),
    *_of(
        "models/methods/transport.py",
        EDITED,
        (
            "an edit: the donor's codes on top",
            "(theirs - mine) @ directions[:, list(self.features)]",
            "theirs @ directions[:, list(self.features)]",
        ),
        ("an edit: controls of any length", "delta = other * (far /", "delta = other * (1 /"),
        (
            "an edit: columns of other features",
            "column = place[codes.feature.long()]",
            "column = place[codes.feature.long()].flip(0)",
        ),
    ),
    *_of(
        "models/methods/detector.py",
        EDITED,
        ("an edit: masks of the edited picture", "where.mask(x[0])", "where.mask(x[self._into])"),
        (
            "an edit: maps without natural sizes",
            "(codes / torch.tensor(self.naturals, device=codes.device))",
            "codes",
        ),
        (
            "an edit: both halves of a weight",
            "own + self._what.weight * mask * (other - own)",
            "own + mask * (other - own)",
        ),
    ),
    *_of(
        "models/methods/control.py",
        CHOSEN,
        ("an edit: controls of the same features", "set(live) - set(taken)", "set(live)"),
        ("an edit: controls as they come", "natural=p.natural * ratio", "natural=p.natural"),
    ),
    *_of(
        "models/methods/choice.py",
        CHOSEN,
        ("an edit: sums that cancel", "(theirs - mine).abs().sum(0)", "(theirs - mine).sum(0).abs()"),
    ),
    *_of(
        "measures/distance.py",
        STEERED,
        (
            "locality reversed",
            "return mean(heatmap), mean(1 - heatmap)",
            "return mean(1 - heatmap), mean(heatmap)",
        ),
    ),
    *_of(
        "steps/find_demos.py",
        STEERED,
        (
            "the worst screened go on",
            "screened.sort(key=worth_of_demo, reverse=True)",
            "screened.sort(key=worth_of_demo)",
        ),
        (
            "the worst finals are kept",
            "finals.sort(key=lambda final: worth_of_demo(final.demo), reverse=True)",
            "finals.sort(key=lambda final: worth_of_demo(final.demo))",
        ),
        ("up and down swapped", "distances[::2], distances[1::2]", "distances[1::2], distances[::2]"),
        (
            "whole ones are broken",
            "broken=max(positive, negative) >= unrelated",
            "broken=max(positive, negative) < unrelated",
        ),
        (
            "another picture's activation",
            "activations=[float(column[i]) for i in sample]",
            "activations=[float(column[i]) for i in sample[::-1]]",
        ),
        ("the weakest try is the best", "best = max(tries, key=worth)", "best = min(tries, key=worth)"),
        (
            "demos under another strength",
            "zip(tried.strengths, tried.made.pictures.numpy()",
            "zip(tried.strengths[::-1], tried.made.pictures.numpy()",
        ),
    ),
    *_of(
        "measures/effect.py",
        f"{STEERED} tests/measures/test_effect.py",
        ("a score without consistency", "* (0.5 + 0.5 * consistency)", "* (0.5 + 0.5)"),
    ),
    *_of(
        "steps/assemble_grids.py",
        f"{STEERED} tests/steps/test_steering.py",
        (
            "the strip from up to down",
            "create_feature_grid(list(row.pictures)",
            "create_feature_grid(list(row.pictures)[::-1]",
        ),
    ),
    *_of(
        "steps/compare_layers.py",
        COMPARED,
        (
            "blocks swapped",
            'f"alive_only_in_{names[0]}": len(first - second)',
            'f"alive_only_in_{names[0]}": len(second - first)',
        ),
        (
            "deviation of tokens for pictures",
            "std_l0=float(per_image.std())",
            "std_l0=float(per_image.var())",
        ),
        ("persist and vanish swapped", "persist=shared.persist.tolist()", "persist=shared.vanish.tolist()"),
    ),
)


def survives(mutant: Mutant) -> bool:
    """Whether the mutant's tests pass all the same."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__"))
        changed = Path(folder) / mutant.path
        changed.write_text(changed.read_text().replace(mutant.old, mutant.new))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(Path(folder) / "src")},
            capture_output=True,
        )
    return run.returncode == 0


def main(words: str) -> int:
    chosen = [mutant for mutant in MUTANTS if words in mutant.name]
    for tests in sorted({mutant.tests for mutant in chosen}):
        if not survives(Mutant("nothing changed", "__init__.py", "", "", tests)):
            print(f"{tests}: fails where nothing is wrong")
            return 2
    alive = []
    for mutant in chosen:
        lives = survives(mutant)
        alive += [mutant.name] * lives
        print(f"{'SURVIVES' if lives else 'noticed ':8}  {mutant.name}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} wrong versions are noticed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
