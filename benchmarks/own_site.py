"""What the features of flux-shapes' own site know, beside controls: `python benchmarks/own_site.py`.

Scores the shipped SAEs, the SAEs that the one of double.5.attn was joined of, untrained dictionaries, neurons
and a linear probe on pictures with truth, and writes the table of docs/studies/sites.md between its marks.
Needs the folders that `fluxscope truth` and `recipes.flux_shapes.saes` leave; what the first lacks is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from fluxscope.files import write_text
from fluxscope.measures.certainty import bootstrap_f1
from fluxscope.measures.detection import best_single_f1, f1_of, fired
from fluxscope.measures.readout import best_coalitions, linear_probe
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.splice import random_twin
from fluxscope.progress import Reporter
from fluxscope.run.truth import Truth, codes_of, make_truth
from fluxscope.sae.base import LinearSae
from fluxscope.sae.batch_topk import ThresholdedSae
from fluxscope.sae.ensemble import joined
from fluxscope.sae.formats import load
from fluxscope.shapes.concepts import ATTRIBUTES, TOKENS
from fluxscope.shapes.shipped import FLUX_SHAPES, OWN_SITE, SHIPPED_SAES

STEP = 13
PAGE = Path(__file__).resolve().parents[1] / "docs" / "studies" / "sites.md"
BEGIN, END = "<!-- made by benchmarks/own_site.py -->", "<!-- end -->"
HEAD = "| detector | features, L0 | F1 | shape | color | size | background | IoU |\n" + "|---" * 8 + "|"
KINDS = tuple(value.split(":")[0] for value in ATTRIBUTES)


class Bench:
    """The 23 values on the tokens of pictures: chosen on some prompts, reported on others."""

    def __init__(self, truth: Truth) -> None:
        self.truth, pictures = truth, truth.parts()
        self.parts = pictures.of_tokens(TOKENS)
        self.facts = truth.on_tokens(ATTRIBUTES)
        self.groups = np.repeat(truth.families, TOKENS)[self.parts.report]

    def row(self, name: str, size: str, fires: np.ndarray) -> str:
        facts = self.facts[self.parts.report]
        f1 = f1_of(fires, facts)
        low, high = bootstrap_f1(fires, facts, self.groups).mean_interval(list(range(len(f1))))
        kinds = " | ".join(
            f"{f1[[kind == wanted for kind in KINDS]].mean():.2f}" for wanted in dict.fromkeys(KINDS)
        )
        iou = (f1 / (2 - f1)).mean()
        line = f"| {name} | {size} | {f1.mean():.3f} ({low:.3f}-{high:.3f}) | {kinds} | {iou:.3f} |"
        print(line, flush=True)
        return line

    def best(self, name: str, size: str, codes: csr_array) -> str:
        """The best single feature of each value."""
        found = best_single_f1(codes, self.facts, self.parts)
        return self.row(name, size, fired(codes.tocsc()[self.parts.report], found.feature, found.threshold))

    def sae(self, name: str, site: str, sae: LinearSae) -> Iterator[str]:
        """An SAE, and as many random directions of which as many are active."""
        x = self.truth.activations(site, STEP)
        codes = codes_of(sae, x)
        l0 = codes.nnz / codes.shape[0]
        size = f"{sae.hidden_dim:,}, {l0:.0f}"
        yield self.best(name, size, codes)
        yield self.best("... untrained", size, codes_of(random_twin(sae, round(l0)), x))


def rows(bench: Bench, work: Path) -> Iterator[str]:
    yield from bench.sae("**shipped, double.5.attn**", OWN_SITE, load(SHIPPED_SAES[OWN_SITE])[0])
    codes = codes_of(load(SHIPPED_SAES[OWN_SITE])[0], bench.truth.activations(OWN_SITE, STEP))
    for size, verdicts in best_coalitions(codes, bench.facts, bench.parts).up_to.items():
        yield bench.row(f"... coalitions of up to {size}", "", verdicts.verdicts.fires)
    folders = sorted(work.glob(f"sae_{OWN_SITE}_*_seed*"))
    members = [load(folder / "sae_best.pt")[0] for folder in folders]
    for number, member in enumerate(members):
        yield from list(bench.sae(f"one of its six, seed {number}", OWN_SITE, member))[
            : 2 if number == 0 else 1
        ]
    for half in (members[:3], members[3:]):
        whole = joined([each for each in half if isinstance(each, ThresholdedSae)])
        yield from list(bench.sae(f"{len(half)} of its six joined", OWN_SITE, whole))[:1]
    x = bench.truth.activations(OWN_SITE, STEP).float().flatten(0, 1).numpy()
    centred = x - x.mean(0)
    both_ways = np.concatenate([np.maximum(centred, 0), np.maximum(-centred, 0)], axis=1)
    yield bench.best("neurons, both signs", "256", csr_array(both_ways))
    yield bench.row("linear probe (labels)", "", linear_probe(x, bench.facts, bench.parts).fires)
    for site in ("double.5.ff", "double.15.ff"):
        yield from bench.sae(f"shipped, {site}", site, load(SHIPPED_SAES[site])[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", type=Path, default=Path("truth"), help="folder of pictures with truth")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path("training/saes"), help="folder of the recipe")
    arguments = parser.parse_args()
    model = open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=arguments.truth / "prompt_embeddings")
    sites = [parse_site(site) for site in SHIPPED_SAES]
    bench = Bench(make_truth(model, arguments.truth, arguments.pictures, sites, [STEP], Reporter()))
    table = "\n".join([HEAD, *rows(bench, arguments.work)])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(PAGE, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    main()
