"""What is known of a site's donor score: of the run's own site map, or of what ships for flux-shapes.

Steps that steer, or that select features to be steered, warn where it is near zero: no edit of natural size
can do there what not even the true activations of another picture do.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxscope.measures.donor_scores import DEAD
from fluxscope.run.context import Context
from fluxscope.run.rundir import RunDir
from fluxscope.run.site_map_records import DonorTable, Share, SiteMap
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import DONOR_SCORES, FLUX_SHAPES, resolve


def table_of(found: SiteMap) -> DonorTable:
    """The scores of single sites, over all of denoising, of a map."""
    best = {name: place for place, name in enumerate(found.ranked)}
    alone = [each for each in found.cells if each.control == "donor" and each.name in best]
    alone = [each for each in alone if len(each.sites) == 1 and each.score is not None]
    alone.sort(key=lambda each: best[each.name])
    return DonorTable(
        model_id=found.model_id,
        measure=found.measure,
        made_with=found.made_with,
        sites={each.sites[0]: each.score for each in alone if each.score is not None},
    )


def donor_table(config: Config, files: RunDir) -> DonorTable | None:
    """The donor scores of the model in use, best site first; None where none were measured.

    Raises:
        RecordError: the folder's site_map.json is none.
    """
    if files.site_map.is_file():
        found = SiteMap.read(files.site_map)
        if found.model_id == config.model_id:
            return table_of(found)
    if resolve(config.model_id) == resolve(FLUX_SHAPES) and DONOR_SCORES.is_file():
        return DonorTable.read(DONOR_SCORES)
    return None


@dataclass(frozen=True)
class DonorScore:
    """A site's score and what to say of it.

    Attributes:
        share: None where it was not measured.
    """

    site: str
    share: Share | None
    better: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Why an edit can do next to nothing there; empty where it can, or where nothing is known."""
        if self.share is None or self.share.share >= DEAD:
            return ""
        words = (
            f"the donor score of {self.site} is {self.share.share:.0%} ({self.share.hits} of {self.share.n}, "
            f"at most {self.share.high:.0%}): not even another picture's true activations, copied in there, "
            "bring about what its prompt asks for, so no edit of natural size can."
        )
        return words + (f" More is decided at {' and '.join(self.better)}." if self.better else "")


def verdict(share: Share | None) -> str:
    """What a title adds where features cannot act; empty where they can, or where nothing is known."""
    return "" if share is None or share.share >= DEAD else " (cannot act here)"


def in_words(share: Share | None) -> str:
    """What stands beside an effect: the donor score of its site."""
    return "" if share is None else f" · donor score {share.share:.0%}"


def donor_score(context: Context, site: str) -> DonorScore:
    """What is known of a site."""
    table = donor_table(context.config, context.files)
    if table is None or site not in table.sites:
        return DonorScore(site, None)
    return DonorScore(site, table.sites[site], better_sites(table))


def better_sites(table: DonorTable) -> tuple[str, ...]:
    """The best site of the image tokens and the best of the text's, where they are alive."""
    found: dict[str, str] = {}
    for name, share in table.sites.items():
        if share.share >= DEAD:
            stream = "text" if name.endswith("context") else "image"
            found.setdefault(stream, f"{name} ({share.share:.0%})")
    return tuple(found[stream] for stream in ("image", "text") if stream in found)


def tell_donor_score(context: Context, *sites: str) -> Share | None:
    """Warn of every site where next to nothing is decided; returns what is known of the first."""
    scores = [donor_score(context, site) for site in dict.fromkeys(sites)]
    for score in scores:
        if score.warning:
            context.report.say(f"     warning: {score.warning}")
    return scores[0].share
