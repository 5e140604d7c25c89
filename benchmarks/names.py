"""How right are the names? `fluxscope name` on a run of flux-shapes whose pictures' truth is known.

    python benchmarks/names.py [--work training/names] [--pictures 600] [--sites double.5.attn,...]

The captions are those of the truth benchmark; one half of them names, and on the other half's pictures the
name is held against what is true: a name is right (top 3) where all its words are among the three values
that the feature tells best, by F1 of its strength on pictures, and (more strictly) of its codes on tokens.
The control names features of which the pictures are shuffled. Intervals: 200 bootstrap samples of the names.
Writes the table of docs/explanation/names.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csc_array

from fluxscope.commands.name import by_prompt, gather, name_features_of
from fluxscope.commands.reports import NAME_SETTINGS
from fluxscope.files import load_npy, write_text
from fluxscope.measures.clip import open_picture
from fluxscope.measures.detection import average_precision, best_f1
from fluxscope.measures.names import name_features
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context
from fluxscope.run.name_records import FeatureName, Names
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config
from fluxscope.shapes import oracle
from fluxscope.shapes.concepts import ATTRIBUTES, columns, token_truth
from fluxscope.shapes.questions import questions
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "names.md"
BEGIN, END = "<!-- made by benchmarks/names.py -->", "<!-- end -->"
HEAD = (
    "| site | alive | named | top 3 on pictures | top 3 on tokens | top 1 on pictures | held-out r | AUPRC "
    "| distinct names | shuffled: named |\n" + "|---" * 10 + "|"
)
VALUES = [concept.split(": ")[1] for concept in ATTRIBUTES]
WORDS = {"background": None, "left": "?", "right": "?", "above": "?", "below": "?"}
"""Words that are no value: one that says nothing of its own, and relations, of which no value is true."""


class Judge:
    """What is true of the pictures of the half that did not name."""

    def __init__(self, config, files: RunDir, naming: np.ndarray, prompt_idx: np.ndarray) -> None:
        rows = len(prompt_idx)
        self.held = np.flatnonzero(~naming[prompt_idx])
        pictures = sorted(files.images.glob("*.png"))
        assert len(pictures) == rows
        read = [token_truth(oracle.read(np.asarray(open_picture(path)))) for path in pictures]
        facts = np.stack(read)[:, :, columns(ATTRIBUTES)]
        self.on_tokens = facts[self.held].reshape(-1, len(ATTRIBUTES))
        self.on_pictures = facts[self.held].any(1)
        self.store = CodeStore(files.codes, files.site, config.target_step_index)
        self.s = load_npy(files.s_matrix)[self.held]

    def best_values(self, features: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(f, values) F1 of each feature for each value, at its best threshold: on pictures, on tokens."""
        t, columns = self.store.n_tokens, self.store.columns(features)
        place = np.full(self.store.n_images, -1)
        place[self.held] = np.arange(len(self.held))
        on_tokens = []
        for feature in features:
            rows, values = columns[feature]
            image = place[rows // t]
            kept = image >= 0
            at, value = image[kept] * t + rows[kept] % t, values[kept]
            shape = (len(self.held) * t, 1)
            column = csc_array((value, (at, np.zeros(len(at), int))), shape=shape)
            on_tokens.append(best_f1(column, self.on_tokens)[0])
        on_pictures = best_f1(csc_array(self.s[:, features]), self.on_pictures)
        return on_pictures, np.stack(on_tokens)


def is_right(name: str, f1: np.ndarray, top: int) -> bool:
    """Whether all words of a name that stand for a value are among the best; relations never are."""
    best = {VALUES[at] for at in np.argsort(-f1, kind="stable")[:top]}
    said = [WORDS.get(word, word) for word in name.split()]
    meant = [word for word in said if word is not None]
    return bool(meant) and all(word in best for word in meant)


def interval(right: list[bool], rng: np.random.Generator) -> str:
    values = np.array(right, float)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(200)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.0%} ({low:.0%}-{high:.0%})"


def row_of(work: Path, site: str, pictures: int, report: Reporter) -> str:
    captions = [question.caption for question in questions(pictures)]
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / "captions.txt", "\n".join(captions) + "\n")
    config = make_config(
        out_dir=str(work / site),
        prompts_path=str(work / "captions.txt"),
        reps_per_prompt=1,
        active_site=site,
        compare_layers=False,
    )
    run_pipeline(config, report, parse_pipeline_steps("1-4"))
    context = Context(config, RunDir.of(config), report)
    report.say(name_features_of(context, None, True, NAME_SETTINGS))
    names = Names.read(context.files.names)
    material = gather(context, None, True)
    named: list[FeatureName] = [each for each in names.features if each.name]
    judge = Judge(config, context.files, material.naming, material.prompt_idx)
    on_pictures, on_tokens = judge.best_values([each.feature_id for each in named])
    rng = np.random.default_rng(0)
    top3 = [is_right(each.name, f1, 3) for each, f1 in zip(named, on_pictures, strict=True)]
    strict = [is_right(each.name, f1, 3) for each, f1 in zip(named, on_tokens, strict=True)]
    top1 = [is_right(each.name, f1, 1) for each, f1 in zip(named, on_pictures, strict=True)]
    r = np.nanmean([np.nan if each.held_out_r is None else each.held_out_r for each in named])
    strength, held = by_prompt(material), ~material.naming
    word = {term: at for at, term in enumerate(material.terms.words)}
    place = {feature: at for at, feature in enumerate(material.features)}
    codes, has = csc_array(strength[held].astype(np.float32)), material.terms.present[held]
    pairs = np.array([(place[each.feature_id], word[each.name]) for each in named])
    auprc = average_precision(codes, has, pairs[:, 0], pairs[:, 1]).mean()
    shuffled = name_features(rng.permutation(strength), material.terms, material.naming)
    distinct = len(Counter(each.name for each in named))
    return (
        f"| `{site}` | {len(names.features):,} | {len(named):,} ({len(named) / len(names.features):.0%}) "
        f"| {interval(top3, rng)} | {interval(strict, rng)} | {interval(top1, rng)} | {r:.2f} | {auprc:.2f} "
        f"| {distinct} | {(shuffled.term >= 0).sum()} of {len(shuffled.term):,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("training/names"))
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--sites", default="double.5.attn,double.5.ff,double.15.ff")
    arguments = parser.parse_args()
    rows = [HEAD]
    for site in arguments.sites.split(","):
        rows.append(row_of(arguments.work, site, arguments.pictures, Reporter()))
        print(rows[-1], flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = "\n".join(rows)
    write_text(PAGE, f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
