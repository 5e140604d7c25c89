"""truth.json in words: the table that the command prints and docs/explanation/truth.md shows."""

from __future__ import annotations

from collections.abc import Iterator

from fluxscope.run.truth_records import DetectorScores, TruthLevel, TruthReport, TruthScores


def in_words(found: TruthReport) -> Iterator[str]:
    """A few lines for the terminal: every detector's mean F1 on tokens."""
    parts = ", ".join(f"{count} to {part}" for part, count in found.parts.items())
    yield f"{found.pictures} pictures of {found.prompts} prompts ({parts}); mean F1 over the attributes:"
    for place in found.on_tokens.sites:
        for each in place.detectors:
            yield f"  {place.site} step {place.step + 1}: {name_of(each)}: {', '.join(_scores(each))}"
    if found.missing:
        yield f"{' and '.join(found.missing)} were left out: pip install 'fluxscope[truth]'"


def name_of(each: DetectorScores) -> str:
    """A detector's name, with what size it has."""
    if each.name in ("sae", "untrained", "frozen decoder"):
        return f"{each.name} {each.n_features}/{each.l0:.0f}"
    return each.name


def _scores(each: DetectorScores) -> Iterator[str]:
    if each.readout:
        yield interval(each.readout)
    if each.single and each.coalition_4 and each.coalition_16 and each.details:
        yield f"single {interval(each.single)} (by chance {each.details.chance:.2f})"
        yield f"of 4 {each.coalition_4.mean:.2f}"
        yield f"of 16 {each.coalition_16.mean:.2f}"


def interval(scores: TruthScores) -> str:
    return f"{scores.mean:.2f} [{scores.mean_low:.2f}, {scores.mean_high:.2f}]"


HEAD = (
    "detector",
    *("best single", "by chance", "IoU", "AUPRC"),
    *("shape", "color", "size", "background", "pair", "relation"),
    *("of 4", "of 16", "above untrained", "of the probe", "at 0.8"),
)


def table(level: TruthLevel, place: int) -> Iterator[str]:
    """The detectors of a site and step, as a Markdown table."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|---{'|---' * (len(HEAD) - 1)}|"
    for each in level.sites[place].detectors:
        yield f"| {' | '.join(_cells(each))} |"


def _cells(each: DetectorScores) -> Iterator[str]:
    main = each.single or each.readout
    assert main is not None
    kinds = ("shape", "color", "size", "background")
    yield name_of(each)
    yield interval(main)
    yield f"{each.details.chance:.2f}" if each.details else ""
    yield f"{main.mean_iou:.2f}"
    yield f"{main.mean_auprc:.2f}"
    for kind in (*kinds, "pair", "relation"):
        yield f"{main.by_kind[kind]:.2f}" if kind in main.by_kind else ""
    yield f"{each.coalition_4.mean:.2f}" if each.coalition_4 else ""
    yield interval(each.coalition_16) if each.coalition_16 else ""
    if each.above_untrained:
        mean, low, high = each.above_untrained
        yield f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    else:
        yield ""
    yield f"{each.share_of_probe:.0%}" if each.share_of_probe is not None else ""
    yield f"{main.coverage:.0%}"
