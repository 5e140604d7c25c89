"""Do the features on the contact sheet stand for something? Those that `make run` selects, against the truth.

    fluxscope truth                                     # makes the pictures
    python benchmarks/selected_truth.py truth           # docs/studies/selected.md

A run at default settings selects ten features on its 80 pictures. What each stands for, and above which code,
is learned on pictures of other prompts with truth, and reported on pictures of yet others: none of these
selected it, or led to the way of selecting. Beside it: features selected otherwise, any alive ones, and those
of an untrained dictionary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_array, csr_array

from cheap_scores import BEYOND, STEP, TRUE
from fluxscope.commands.truth_scores import pooled
from fluxscope.files import read_json, write_text
from fluxscope.measures.certainty import bootstrap_f1
from fluxscope.measures.detection import best_f1, f1_of, fired, thresholds
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.splice import random_twin
from fluxscope.progress import Reporter
from fluxscope.run.records import Selection
from fluxscope.run.rundir import RunDir
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import Config, make_config
from fluxscope.shapes import world
from fluxscope.shapes.concepts import ATTRIBUTES, TOKENS
from fluxscope.shapes.shipped import FLUX_SHAPES, OWN_SITE, SHIPPED_SAES
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "selected.md"
TEN, RANDOM = 10, 50
"""Features on the sheet; how often ten alive ones are drawn."""
INTERVAL = (2.5, 97.5)
SEEN = 1000
"""Pictures with truth on which tiles and likeness were chosen, and which teach what features stand for. Whole
families: what the pictures after them say is reported."""
OTHERS = 3
"""Runs of other prompts than those that `make run` has."""


@dataclass(frozen=True)
class Known:
    """What some features stand for, on pictures that neither selected nor taught them.

    Attributes:
        concept: of ATTRIBUTES, the best one on tokens.
        tokens, pictures: (f), F1 there, and of the best one on whole pictures.
        token_draws, picture_draws: (draws, f), the same with the prompts drawn anew.
        yes: (f), the F1 on pictures of saying yes to every one.
    """

    concept: np.ndarray
    tokens: np.ndarray
    pictures: np.ndarray
    token_draws: np.ndarray
    picture_draws: np.ndarray
    yes: np.ndarray

    def true(self, tokens: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        return np.asarray((tokens > TRUE) | ((pictures > TRUE) & (pictures > BEYOND * self.yes)))

    @property
    def are_true(self) -> np.ndarray:
        return self.true(self.tokens, self.pictures)

    @property
    def counts(self) -> np.ndarray:
        """How many are true, in every draw."""
        return np.asarray(self.true(self.token_draws, self.picture_draws).sum(1))


def known(truth: Truth, codes: csr_array, features: Sequence[int]) -> Known:
    """Concept and threshold are learned on the first pictures; F1 is of those after them."""
    learn, report = np.arange(SEEN), np.arange(SEEN, len(truth.asked))
    rows, reported = np.split(np.arange(len(truth.asked) * TOKENS), [SEEN * TOKENS])
    of_tokens, of_pictures = truth.on_tokens(ATTRIBUTES), truth.on_pictures(ATTRIBUTES)
    base = of_pictures[learn].mean(0)
    yes = 2 * base / (1 + base)
    own = codes.tocsc()[:, list(features)]
    pictures = csc_array(pooled(csr_array(own), TOKENS))
    on_tokens, concept = verdicts(own, of_tokens, rows, reported, 0.0)
    on_pictures, other = verdicts(pictures, of_pictures, learn, report, yes)
    families = truth.families[report]
    facts = of_tokens[reported][:, concept], of_pictures[report][:, other]
    return Known(
        concept,
        f1_of(on_tokens, facts[0]),
        f1_of(on_pictures, facts[1]),
        bootstrap_f1(on_tokens, facts[0], np.repeat(families, TOKENS)).f1,
        bootstrap_f1(on_pictures, facts[1], families).f1,
        yes[other],
    )


def verdicts(
    columns: csc_array, facts: np.ndarray, learn: np.ndarray, report: np.ndarray, less: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Where each feature says yes on the rows to report, and the concept that it is best at."""
    seen = columns[learn]
    concept = (best_f1(seen, facts[learn]) - less).argmax(1)
    features = np.arange(len(concept))
    return fired(columns[report], features, thresholds(seen, facts[learn], features, concept)), concept


def selected(config: Config) -> Selection:
    run_pipeline(config, Reporter(quiet=True), parse_pipeline_steps("1-4"))
    return Selection.read(RunDir.of(config).selected_features)


def others(truth: Truth, codes: csr_array, work: Path) -> str:
    """The default on runs of other prompts."""
    found = []
    for number in range(OTHERS):
        prompts, rng = work / f"prompts_{number}.txt", np.random.default_rng(number)
        captions = [world.caption(world.sample_scene(rng)) for _ in range(60)]
        write_text(prompts, "\n".join([*dict.fromkeys(captions)][:40]) + "\n")
        out, seed = str(work / f"other_{number}"), 1000 * (number + 1)
        run = selected(make_config(out_dir=out, prompts_path=str(prompts), base_seed=seed))
        found.append(known(truth, codes, [each.feature_id for each in run.features]))
    true, counts = [each.are_true for each in found], np.mean([each.counts for each in found], axis=0)
    low, high = np.percentile(counts, INTERVAL)
    concepts = np.mean([len(set(each.concept[each.are_true].tolist())) for each in found])
    return (
        f"| default, {OTHERS} runs of other prompts | {', '.join(str(each.sum()) for each in true)} of {TEN} "
        f"({low:.1f}-{high:.1f}) | {concepts:.1f} | {np.mean([each.tokens.mean() for each in found]):.2f} | "
        f"{np.mean([each.pictures.mean() for each in found]):.2f} |"
    )


def row(name: str, facts: Known) -> str:
    low, high = np.percentile(facts.counts, INTERVAL)
    concepts = len(set(facts.concept[facts.are_true].tolist()))
    return (
        f"| {name} | {facts.are_true.sum()} of {len(facts.tokens)} ({low:.0f}-{high:.0f}) | {concepts} | "
        f"{facts.tokens.mean():.2f} | {facts.pictures.mean():.2f} |"
    )


def of_random(truth: Truth, codes: csr_array, eligible: np.ndarray) -> str:
    """Any alive features, ten at a time."""
    rng = np.random.default_rng(0)
    every = known(truth, codes, eligible.tolist())
    drawn = np.stack([rng.choice(len(eligible), TEN, replace=False) for _ in range(RANDOM * 20)])
    counts, concepts = every.are_true[drawn].sum(1), []
    for some in drawn:
        concepts.append(len(set(every.concept[some][every.are_true[some]].tolist())))
    low, high = np.percentile(counts, INTERVAL)
    return (
        f"| ten random alive features | {counts.mean():.1f} of {TEN} ({low:.0f}-{high:.0f}) | "
        f"{np.mean(concepts):.1f} | {every.tokens.mean():.2f} | {every.pictures.mean():.2f} |"
    )


def twin_of(truth: Truth, path: Path) -> csr_array:
    """Save an untrained dictionary of equal width and L0, and give its codes."""
    sae, _ = load(SHIPPED_SAES[OWN_SITE])
    x = truth.activations(OWN_SITE, STEP)
    seen = codes_of(sae, x[:SEEN])
    twin = random_twin(sae, round(seen.nnz / seen.shape[0]))
    save(path, twin, {}, "fluxscope")
    return codes_of(twin, x)


def table_of(selection: Selection, facts: Known) -> Iterator[str]:
    yield "| feature | chosen on | shown on | q | stands for | F1, tokens | IoU | F1, pictures |"
    yield "|---" * 8 + "|"
    for i, each in enumerate(selection.features):
        low, high = np.percentile(facts.token_draws[:, i], INTERVAL)
        a, b = np.percentile(facts.picture_draws[:, i], INTERVAL)
        f1 = facts.tokens[i]
        yield (
            f"| {each.feature_id} | {each.chosen_score:.2f} | {each.shown_score:.2f} | {each.q_value:.1%} | "
            f"{ATTRIBUTES[facts.concept[i]]} | {f1:.2f} ({low:.2f}-{high:.2f}) | {f1 / (2 - f1):.2f} | "
            f"{facts.pictures[i]:.2f} ({a:.2f}-{b:.2f}) |"
        )


def report(truth: Truth, work: Path) -> Iterator[str]:
    yield HEAD.format(reported=len(truth.asked) - SEEN)
    codes = codes_of(load(SHIPPED_SAES[OWN_SITE])[0], truth.activations(OWN_SITE, STEP))
    config = make_config(out_dir=str(work / "run"))
    default = selected(config)
    ways: dict[str, dict[str, Any]] = {
        "**default**: clip_held_out, unlike features": {},
        "clip_held_out, like features too": {"most_alike": 1.0},
        "clip_coherence, unlike features": {"rank_by": "clip_coherence"},
        "clip_coherence, like features too": {"rank_by": "clip_coherence", "most_alike": 1.0},
    }
    rows = []
    for name, settings in ways.items():
        found = selected(make_config(out_dir=str(work / "run"), **settings))
        rows.append(row(name, known(truth, codes, [each.feature_id for each in found.features])))
        print(rows[-1], flush=True)
    rows.insert(1, others(truth, codes, work))
    scores = load_npz(RunDir.of(config).feature_scores)
    rows.append(of_random(truth, codes, np.flatnonzero(np.isfinite(scores))))
    path = work / "untrained" / "sae_best.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    blind = twin_of(truth, path)
    found = selected(make_config(out_dir=str(work / "run_untrained"), saes={OWN_SITE: str(path)}))
    rows.append(row("untrained, default", known(truth, blind, [e.feature_id for e in found.features])))
    beating = [f"{each.num_beating_chance} of {each.num_alive_features}" for each in (default, found)]
    yield "\n".join(rows)
    yield MIDDLE.format(trained=beating[0], untrained=beating[1])
    yield from table_of(default, known(truth, codes, [each.feature_id for each in default.features]))
    yield ""


def load_npz(path: Path) -> np.ndarray:
    """The coherence of every feature; NaN for those on too few prompts to be selected."""
    with np.load(path) as scores:
        return np.asarray(scores["clip_coherence"])


HEAD = f"""\
# Do the features on the contact sheet stand for something?

Made by `python benchmarks/selected_truth.py`; do not edit.

`make run` selects ten features of `{OWN_SITE}` on 80 pictures of 40 prompts. Here each is held against
the 23 shapes, colours, sizes and backgrounds on pictures with truth, of other prompts: what it stands for,
and above which code, is learned on {SEEN:,} of them, those on which the way of selecting was found; the F1
is of {{reported}} more. A feature is true when that is above {TRUE} on tokens; or on whole pictures, and
{BEYOND} times what saying yes to every picture has. Intervals: 95%, the prompts that are reported on drawn
anew; of random features, over draws of ten.

| ten features | true | concepts | mean F1, tokens | mean F1, pictures |
|---|---|---|---|---|"""

MIDDLE = """
"Like features too": those that fire like a better one (correlation over tiles above 0.4) are not passed
over, so that one thing is shown several times. Of the trained dictionary {trained} alive features beat chance
at 5% false discoveries, of the untrained one {untrained}: an untrained feature that answers to what one can
see is no false discovery, and to beat chance is less than to stand for one concept.

The ten of the default, in the order of the sheet:
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of fluxscope truth, with its pictures")
    parser.add_argument("--work", type=Path, default=Path("selected_truth"), help="where the runs are kept")
    given = parser.parse_args(arguments)
    count = read_json(given.folder / "truth.json")["pictures"]
    model = open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=given.folder / "prompt_embeddings")
    truth = make_truth(model, given.folder, count, [parse_site(OWN_SITE)], [STEP], Reporter())
    write_text(PAGE, "\n".join(report(truth, given.work)))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
