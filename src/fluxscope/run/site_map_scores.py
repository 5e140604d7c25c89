"""From what copies did to single pictures to a score of every cell, a ranked list and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxscope.measures.donor_scores import DEAD, NEARER, WEAK, mean_closed, mean_of, rate
from fluxscope.models.cells import KINDS, WHOLE, Cell
from fluxscope.models.spec import ModelSpec
from fluxscope.run.site_map import ITSELF
from fluxscope.run.site_map_records import CellScore, Control, Measure, Outcome, Share
from fluxscope.shapes.pairs import ATTRIBUTES, Wish

ByPair = Mapping[int, Sequence[Outcome]]
"""The outcomes of each pair, by its number."""

CONTROLS: tuple[Control, ...] = ("donor", "unrelated", "noise")


def cell_scores(
    cells: Sequence[Cell], sigmas: Sequence[float], outcomes: ByPair, wishes: Sequence[Wish | None]
) -> list[CellScore]:
    """A score of every cell and control that was measured."""
    return [
        cell_score(cell, control, sigmas, found, wishes)
        for cell in cells
        for control in CONTROLS
        if (found := _of(outcomes, cell.name, control))
    ]


def donors_score(sigmas: Sequence[float], outcomes: ByPair, wishes: Sequence[Wish | None]) -> CellScore:
    """The donors' own pictures, scored as if they were copies."""
    return _score(
        ITSELF, ITSELF, (0, 0), [], (0, len(sigmas) - 1), "donor", _of(outcomes, ITSELF, "donor"), wishes
    )


def measure_of(wishes: Sequence[Wish | None]) -> Measure:
    """The oracle, where it knows of any pair what to look for."""
    return "oracle" if any(wishes) else "distance"


def _of(outcomes: ByPair, cell: str, control: Control) -> dict[int, Outcome]:
    """The outcomes of one cell, by pair."""
    return {
        pair: outcome
        for pair, found in outcomes.items()
        for outcome in found
        if (outcome.cell, outcome.control) == (cell, control)
    }


def cell_score(
    cell: Cell,
    control: Control,
    sigmas: Sequence[float],
    found: Mapping[int, Outcome],
    wishes: Sequence[Wish | None],
) -> CellScore:
    steps = cell.window.steps(sigmas)
    return _score(
        cell.name,
        cell.kind.name,
        cell.blocks,
        [site.name for site in cell.sites],
        (steps[0], steps[-1]),
        control,
        found,
        wishes,
        window=(cell.window.high, cell.window.low),
    )


def _score(
    name: str,
    kind: str,
    blocks: tuple[int, int],
    sites: list[str],
    steps: tuple[int, int],
    control: Control,
    found: Mapping[int, Outcome],
    wishes: Sequence[Wish | None],
    window: tuple[float, float] = (WHOLE.high, WHOLE.low),
) -> CellScore:
    every = list(found.values())
    nearer = share([each.closed >= NEARER for each in every if each.closed is not None])
    became = share([each.became for each in every if each.became is not None])
    return CellScore(
        name=name,
        kind=kind,
        blocks=list(blocks),
        window=list(window),
        steps=list(steps),
        sites=sites,
        control=control,
        score=became if measure_of(wishes) == "oracle" else nearer,
        clean=share([each.clean for each in every if each.clean is not None]),
        by_attribute=by_attribute(found, wishes),
        nearer=nearer,
        closed=mean_closed([each.closed for each in every]),
        clip=mean_closed([each.clip for each in every]),
        inside=mean_closed([each.inside for each in every]),
        outside=mean_of([each.outside for each in every]),
    )


def by_attribute(found: Mapping[int, Outcome], wishes: Sequence[Wish | None]) -> dict[str, Share] | None:
    """How often clean changes came about, by what was to change."""
    clean: dict[str, list[bool]] = {}
    for pair, outcome in found.items():
        wish = wishes[pair]
        if wish is not None and outcome.clean is not None:
            clean.setdefault(wish.attribute, []).append(outcome.clean)
    shares = {name: share(clean[name]) for name in ATTRIBUTES if name in clean}
    return {name: value for name, value in shares.items() if value is not None} or None


def share(happened: Sequence[bool]) -> Share | None:
    found = rate(happened)
    return None if found is None else Share(**vars(found))


def places(scores: Sequence[CellScore], spec: ModelSpec) -> list[CellScore]:
    """Single blocks over all of denoising: where an edit could be put, best first.

    The image stream behind the last block is left out: it is all but the model's output.
    """
    last = ("single", spec.n_single - 1) if spec.n_single else ("image", spec.n_double - 1)
    alone = [
        each
        for each in scores
        if each.control == "donor"
        and each.score is not None
        and is_alone(each)
        and (each.kind, each.blocks[0]) != last
    ]
    return sorted(alone, key=_worth, reverse=True)


def is_alone(score: CellScore) -> bool:
    """Whether it is of one block, over all of denoising."""
    return score.blocks[0] == score.blocks[1] and score.window == [WHOLE.high, WHOLE.low]


def _worth(score: CellScore) -> tuple[float, float, float]:
    found, clean = score.score, score.clean
    return (found.share if found else 0.0, clean.share if clean else 0.0, float(score.closed or 0.0))


def in_words(ranked: Sequence[CellScore], scores: Sequence[CellScore]) -> str:
    """Where to steer and where not, in one sentence.

    Args:
        ranked: of `places`.
    """
    if not ranked:
        return "No single block was measured over all of denoising: nothing can be said of where to steer."
    good, tried = [], []
    for stream in ("image", "text"):
        own = [each for each in ranked if (stream == "text") == each.kind.endswith(("text", "text_kv"))]
        good += [f"{_site(own[0])} ({stream}, {_percent(own[0])})"] if own and not is_dead(own[0]) else []
    for kind in KINDS:
        own = [each for each in ranked if each.kind == kind.name]
        if own and is_weak(own):
            tried.append(f"the {kind.words} of any one block (best: {_site(own[0])}, {_percent(own[0])})")
    steer = f"Steer at {' or '.join(good)}" if good else "No single block is a place to steer"
    together = [each for each in scores if each.control == "donor" and each.blocks[0] < each.blocks[1]]
    best = max(together, key=_worth, default=None)
    if not good and best is not None and not is_dead(best):
        steer += f"; together blocks do it: {best.name} ({_percent(best)})"
    return f"{steer}; not at {', nor at '.join(tried)}." if tried else f"{steer}."


def is_dead(score: CellScore) -> bool:
    """Whether next to no change came about there."""
    return score.score is None or score.score.share < DEAD


def is_weak(scores: Sequence[CellScore]) -> bool:
    """Whether a kind of site is no place to steer: next to dead on average, and nowhere much better."""
    shares = [_worth(each)[0] for each in scores]
    return max(shares) < WEAK and sum(shares) / len(shares) < DEAD


def _site(score: CellScore) -> str:
    return " and ".join(score.sites)


def _percent(score: CellScore) -> str:
    found = score.score
    return f"{found.share:.0%} of {found.n}" if found else "not measured"
