"""Recipes found for a wish: a prompt as it is, and what it shall become.

Each maker runs the model, looks at what features do, and writes down what to change; the recipe alone then
makes the picture, so that what is shown is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fluxscope.errors import ConfigError
from fluxscope.run.recipe_records import VERSION, FeatureMove, Recipe, Region, SiteMoves
from fluxscope.run.recipes import region_of, region_record

if TYPE_CHECKING:
    from fluxscope.models.cells import Window
    from fluxscope.models.methods.learned import Fitting
    from fluxscope.models.methods.push import SiteEdit
    from fluxscope.models.model import Model
    from fluxscope.models.spec import Embedding, PictureSpec
    from fluxscope.run.sae_shelf import SaeShelf


SEEDS = 8
"""Pairs of runs that mean codes are taken from."""


@dataclass(frozen=True)
class Wish:
    """What is wished for.

    Attributes:
        source, target: the prompt, and the one that says what shall become of it.
        seed: of the picture.
        window: the noise levels between which to act; None for the method's own.
        region: the tokens that may change.
    """

    source: str
    target: str
    seed: int
    window: Window | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        if self.source.split() == self.target.split():
            raise ConfigError(
                "the target prompt is equal to the source: nothing is wished for",
                'Give another one with --to "...".',
            )


@dataclass
class Maker:
    """What makers work with.

    Attributes:
        shelf: the SAEs.
        live: the features that were active in the runs, by site: what controls are drawn from.
        fitting: how amounts are learned; None for the usual.
    """

    model: Model
    prompts: Mapping[str, Embedding]
    spec: PictureSpec
    shelf: SaeShelf
    live: dict[str, list[int]] = field(default_factory=dict)
    fitting: Fitting | None = None

    def transport(self, wish: Wish, sites: Sequence[str], k: int | None, share: float = 1.0) -> Recipe:
        """Carry over the k features that differ most; None for all."""
        from fluxscope.models.cells import WHOLE
        from fluxscope.models.methods.choice import differences

        saes = {site: self.shelf(site)[0] for site in sites}
        window = wish.window or WHOLE
        own, donor = self.prompts[wish.source], self.prompts[wish.target]
        found = differences(self.model, own, donor, wish.seed, self.spec, saes, window)
        self.live = {site: live.nonzero().flatten().tolist() for site, live in found.live.items()}
        chosen = dict.fromkeys(sites) if k is None else found.top(k)
        moves = [
            SiteMoves(
                site=site,
                sae_sha256=self.shelf(site)[1],
                features=None if features is None else [FeatureMove(feature=f) for f in features],
            )
            for site, features in chosen.items()
        ]
        return replace(self._recipe(wish, window, share), method="transport", sites=moves)

    def shift(self, wish: Wish, sites: Sequence[str], k: int | None, dose: float = 1.0) -> Recipe:
        """Push the k features whose mean codes differ most between the prompts; None for all."""
        from fluxscope.models.cells import WHOLE
        from fluxscope.models.methods.shift import shift

        saes = {site: self.shelf(site)[0] for site in sites}
        window = wish.window or WHOLE
        own, wished = self.prompts[wish.source], self.prompts[wish.target]
        seeds = range(wish.seed + 1, wish.seed + 1 + SEEDS)
        found = shift(self.model, own, wished, seeds, self.spec, saes, window)
        self.live = found.live
        moves = [self._pushes(edit, dose) for edit in found.edits(k)]
        return replace(self._recipe(wish, window, 1.0), method="push", found_by="shift", sites=moves)

    def learned(self, wish: Wish, sites: Sequence[str], k: int | None, dose: float = 1.0) -> Recipe:
        """Push k features by amounts that are fitted for this picture; None for all."""
        from fluxscope.models.cells import WHOLE
        from fluxscope.models.methods.learned import learn

        saes = {site: self.shelf(site)[0] for site in sites}
        window = wish.window or WHOLE
        own, wished = self.prompts[wish.source], self.prompts[wish.target]
        region = region_of(wish.region, self.spec)
        found = learn(self.model, own, wished, wish.seed, self.spec, saes, window, k, region, self.fitting)
        self.live = found.live
        recipe = self._recipe(wish, window, 1.0)
        return replace(
            recipe,
            method="push",
            found_by="learned",
            sites=[self._pushes(edit, dose) for edit in found.edits],
            region=region_record(found.region, self.spec.grid),
            keep_norm=True,
            made_with={"largest_amount": found.largest, "loss_left": found.left},
        )

    def _pushes(self, edit: SiteEdit, dose: float) -> SiteMoves:
        return SiteMoves(
            site=edit.site.name,
            sae_sha256=self.shelf(edit.site.name)[1],
            window=[edit.window.high, edit.window.low],
            features=[
                FeatureMove(feature=push.feature, amount=dose * push.amount, natural=push.natural)
                for push in edit.pushes
            ],
        )

    def detector(self, wish: Wish, site: str, features: Sequence[int], weight: float = 1.0) -> Recipe:
        """Mix in the target's velocity where features fire, or in the wish's region where none is named."""
        from fluxscope.models.methods.detector import DECIDED, LEVEL

        window = wish.window or DECIDED
        recipe = replace(self._recipe(wish, window, weight), method="detector")
        if not features:
            return recipe
        naturals = self._naturals(wish, site, features, window)
        moves = [FeatureMove(feature=f, natural=n) for f, n in zip(features, naturals, strict=True)]
        where = SiteMoves(site=site, sae_sha256=self.shelf(site)[1], features=moves)
        return replace(recipe, sites=[where], level=LEVEL)

    def _naturals(self, wish: Wish, site: str, features: Sequence[int], window: Window) -> list[float]:
        """The features' mean codes where they are active on the unchanged picture.

        Raises:
            ConfigError: one is active nowhere on it.
        """
        from fluxscope.models.edits import check_feature
        from fluxscope.models.methods.choice import natural_sizes

        for feature in features:
            check_feature(self.shelf(site)[0], feature)
        own = self.prompts[wish.source]
        sizes = natural_sizes(self.model, own, wish.seed, self.spec, site, self.shelf(site)[0], window)
        for feature in features:
            if not sizes[feature] > 0:
                raise ConfigError(
                    f"feature {feature} of {site} is active nowhere on this picture: it says not where",
                    "Name a feature that is, or give --region x0,y0,x1,y1.",
                )
        return [float(sizes[feature]) for feature in features]

    def _recipe(self, wish: Wish, window: Window, weight: float) -> Recipe:
        return Recipe(
            fluxscope_recipe=VERSION,
            name=f"{wish.source} -> {wish.target}",
            method="push",
            model=self.model.model_id,
            source=wish.source,
            target=wish.target,
            window=[window.high, window.low],
            region=wish.region,
            weight=weight,
        )
