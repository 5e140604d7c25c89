"""Write docs/explanation/truth.md and docs/images/truth.png from what `fluxscope truth` measured.

fluxscope truth
python docs/make_truth.py truth
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from fluxscope.commands.truth_words import name_of, table
from fluxscope.run.truth_records import DetectorScores, SiteScores, TruthLevel, TruthReport
from fluxscope.shapes.concepts import ATTRIBUTES

DOCS = Path(__file__).parent
TARGET = DOCS / "explanation" / "truth.md"
PICTURE = DOCS / "images" / "truth.png"

HEAD = """\
# What the features know

Made by `fluxscope truth` and `python docs/make_truth.py`; do not edit.

Of flux-shapes' pictures everything is known: what shapes, colours, sizes and backgrounds are there, and
on which tokens. So one can ask of any feature what it stands for, and how well, and of any SAE whether it
does better than what costs nothing.
"""

METHOD = """\
## How it is measured

- **Pictures**: {pictures}, of captions that are kept from all training, three in ten of them twins of
  others: the same seed, and a caption in which one word is another. The oracle reads each picture, not
  its caption. A token is an object's when the object covers a quarter of it, the background's otherwise.
- **Three parts, by prompt**: {choose} pictures choose the feature and its threshold, {tune} how large a
  coalition is and where it is cut, {report} are reported on. A picture and its twin are never parted.
- **Best single**: of all features the one with the largest F1. *By chance* is what the best feature
  reaches when pictures are permuted. IoU is that of the same detector; AUPRC needs no threshold.
- **Of 4, of 16**: up to so many features, taken greedily and weighed by least squares. *Above untrained*
  is the coalition of 16 less that of an SAE of the same size and L0 that was never trained; *of the
  probe* its share of what a linear readout of all dimensions reaches.
- **Controls**: neurons, PCA, ICA and NMF have two sides a direction; the frozen decoder is random, its
  encoder trained for a short while on the pictures to choose on; difference of means and probe are told
  the concepts.
- Intervals are of 95%, prompts drawn anew. `p` is against permuted pictures, corrected by Holm over all
  concepts.

`at 0.8` is the share of the 23 values that some feature detects with an F1 of 0.8. Sizes are features /
L0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of truth.json")
    folder = parser.parse_args().folder
    found = TruthReport.read(folder / "truth.json")
    TARGET.write_text("\n".join(page(found)) + "\n")
    shutil.copyfile(folder / "truth.png", PICTURE)


def page(found: TruthReport) -> Iterator[str]:
    yield HEAD
    yield "![Concepts by detectors: F1 of the best single feature](../images/truth.png)\n"
    for number, place in enumerate(found.on_tokens.sites):
        yield f"## {place.site}, step {place.step + 1}: on tokens\n"
        yield from table(found.on_tokens, number)
        yield ""
        yield from what_features_do(found.on_tokens, place)
        yield f"\n### {place.site}, step {place.step + 1}: on whole pictures\n"
        yield from table(found.on_pictures, number)
        yield ""
    if found.missing:
        yield f"Without scikit-learn {' and '.join(found.missing)} were left out.\n"
    yield METHOD.format(pictures=found.pictures, **found.parts).rstrip()
    yield rare(found)


def rare(found: TruthReport) -> str:
    """What was on too few pictures to be scored."""
    names = ", ".join(name.removeprefix("pair: ") for name in found.on_tokens.rare)
    return f"\nOn too few pictures to be scored: {names}." if names else ""


def what_features_do(level: TruthLevel, place: SiteScores) -> Iterator[str]:
    """Of everything that has features: how concepts are spread over them, and what they do on pairs."""
    yield (
        "| detector | different features for the 23 values | features needed | disentangled | complete | "
        "colours absorbed | shapes absorbed | follows | leaks | selective | p < 0.05 |"
    )
    yield "|---" * 11 + "|"
    for each in place.detectors:
        if each.details:
            yield f"| {name_of(each)} | {' | '.join(details(level, each))} |"


def details(level: TruthLevel, each: DetectorScores) -> Iterator[str]:
    found = each.details
    assert found is not None
    attributes = [i for i, concept in enumerate(level.concepts) if concept in ATTRIBUTES]
    yield str(found.distinct)
    yield f"{sum(found.needed[i] for i in attributes) / len(attributes):.1f}"
    yield f"{found.disentanglement:.2f}"
    yield f"{found.completeness:.2f}"
    for kind in ("color", "shape"):
        yield f"{found.absorption[kind]:.0%}" if kind in found.absorption else ""
    pairs = [result for result in found.on_pairs.values() if result.pairs]
    for name in ("follows", "leakage", "selectivity"):
        values = [value for result in pairs if (value := getattr(result, name)) is not None]
        yield f"{sum(values) / len(values):.2f}" if values else ""
    yield f"{sum(found.p[i] < 0.05 for i in attributes)} of {len(attributes)}"


if __name__ == "__main__":
    main()
