"""From a recipe to what acts on the model: every check that a file made elsewhere needs, and the SAEs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fluxscope.errors import ConfigError, brief
from fluxscope.run.recipe_records import VERSION, FeatureMove, Recipe, Region, SiteMoves
from fluxscope.run.strict_json import Number

if TYPE_CHECKING:
    from torch import Tensor

    from fluxscope.models.cells import Window
    from fluxscope.models.editing import Method
    from fluxscope.models.methods.detector import Blended
    from fluxscope.models.methods.push import Pushed
    from fluxscope.models.methods.transport import Transported
    from fluxscope.models.spec import ModelSpec, PictureSpec
    from fluxscope.sae import LinearSae

LARGEST = 1e6
"""No code is moved farther than this: what a model makes of it would be no picture."""

Saes = Callable[[str], "tuple[LinearSae, str]"]
"""The SAE of a site and the hash of its contents; a ConfigError where none is set."""


def read_recipe(path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        FluxscopeError: it is missing, no recipe, of a later version, or contradicts itself.
    """
    recipe = Recipe.read(path)
    if recipe.fluxscope_recipe != VERSION:
        raise ConfigError(
            f"{path} is a recipe of version {recipe.fluxscope_recipe}, this fluxscope reads {VERSION}",
            "Update fluxscope.",
        )
    return recipe


def method_of(recipe: Recipe, model_id: str, spec: ModelSpec, picture: PictureSpec, saes: Saes) -> Method:
    """What a recipe does to a row of a batch.

    Args:
        model_id: the model that is open; a folder and a Hub name of one last part are one model.
        saes: where SAEs come from; asked once for each site that has one in the recipe.

    Raises:
        ConfigError: it was made for another model, SAE, site or grid, names features that there are not, or
            would change nothing.
    """
    if _last(recipe.model) != _last(model_id):
        raise ConfigError(
            f"the recipe {recipe.name!r} is for {recipe.model}, not for {model_id}",
            f"Give --model-id {recipe.model}.",
        )
    for moves in recipe.sites or []:
        site = _site(moves)
        spec.check_site(site)
        if recipe.region is not None and site.kind.stream != "image":
            raise ConfigError(
                f"a region of the picture means nothing at {site.name}, where text tokens pass",
                "Leave the region out, or name sites of the image stream.",
            )
    return MAKERS[recipe.method](recipe, picture, saes)


def push_of(recipe: Recipe, picture: PictureSpec, saes: Saes) -> Pushed:
    """A recipe of fixed amounts."""
    from fluxscope.models.methods.push import Pushed, SiteEdit

    found: dict[str, LinearSae] = {}
    edits = []
    for moves in _sites(recipe):
        found[moves.site] = _sae(recipe, moves, saes)
        pushes = tuple(_push(recipe, moves, move) for move in _once_each(recipe, moves))
        edits.append(SiteEdit(_site(moves), pushes, _window(recipe, moves)))
    if not any(edit.pushes for edit in edits):
        raise _changes_nothing(recipe)
    return Pushed(
        found,
        tuple(edits),
        region=region_of(recipe.region, picture),
        only_active=bool(recipe.only_active),
        keep_norm=bool(recipe.keep_norm),
    )


def transport_of(recipe: Recipe, picture: PictureSpec, saes: Saes) -> Transported:
    """A recipe with a donor."""
    from fluxscope.models.methods.transport import Carried, Transported

    carried = []
    for moves in _sites(recipe):
        named = moves.features is not None
        features = tuple(move.feature for move in _once_each(recipe, moves)) if named else None
        sae = _sae(recipe, moves, saes) if moves.sae_sha256 else None
        if sae is None and features is not None:
            raise ConfigError(
                f"the recipe {recipe.name!r} names features of {moves.site}, but not of which SAE",
                "State its sae_sha256.",
            )
        carried.append(Carried(_site(moves), sae, features, _window(recipe, moves)))
    region = region_of(recipe.region, picture)
    return Transported(_target(recipe), tuple(carried), _weight(recipe), region, bool(recipe.keep_norm))


def detector_of(recipe: Recipe, picture: PictureSpec, saes: Saes) -> Blended:
    """A recipe that mixes velocities where features fire, or within a region."""
    from fluxscope.models.methods.detector import LEVEL, Blended, Seen

    where: Any = region_of(recipe.region, picture)
    if recipe.sites:
        moves, *others = recipe.sites
        if others or where is not None:
            raise ConfigError(
                f"the recipe {recipe.name!r} says in two ways where", "Leave one site, or the region."
            )
        features = _once_each(recipe, moves)
        if not features:
            raise ConfigError(f"the recipe {recipe.name!r} names no feature to read", "Name one or more.")
        where = Seen(
            _site(moves),
            _sae(recipe, moves, saes),
            tuple(move.feature for move in features),
            tuple(_natural(recipe, move) for move in features),
            picture.grid,
            float(LEVEL if recipe.level is None else recipe.level),
        )
    if where is None:
        raise ConfigError(
            f"the recipe {recipe.name!r} says not where", "Give features of a site, or a region."
        )
    return Blended(_target(recipe), where, picture.grid, _weight(recipe), window_of(recipe, recipe.window))


MAKERS: Mapping[str, Callable[[Recipe, PictureSpec, Saes], Method]] = {
    "push": push_of,
    "transport": transport_of,
    "detector": detector_of,
}


def region_of(region: Region | None, picture: PictureSpec) -> Tensor | None:
    """A region's tokens, row-major (t).

    Raises:
        ConfigError: it is of another grid than the picture's, or not of its own.
    """
    import torch

    if region is None:
        return None
    rows, columns = picture.grid
    if region.grid != [rows, columns]:
        raise ConfigError(
            f"the region is of {' x '.join(map(str, region.grid))} tokens, the picture of {rows} x {columns}",
            "Make the picture in the size that the recipe was made for, or draw the region anew.",
        )
    if len(region.rows) != rows or any(len(row) != columns or set(row) - {"#", "."} for row in region.rows):
        raise ConfigError(
            f"the region's rows are no {rows} texts of {columns} letters # and .", "Mend the recipe."
        )
    tokens = torch.tensor([letter == "#" for row in region.rows for letter in row])
    if not tokens.any():
        raise ConfigError("the region holds no token", "Mark those that may change with #.")
    return tokens


def region_record(tokens: Tensor | None, grid: tuple[int, int]) -> Region | None:
    """A region as a recipe writes it."""
    if tokens is None:
        return None
    rows = tokens.view(grid).tolist()
    return Region(grid=list(grid), rows=["".join("#" if each else "." for each in row) for row in rows])


def window_of(recipe: Recipe, window: list[Number]) -> Window:
    """A window of noise levels.

    Raises:
        ConfigError: it is none.
    """
    from fluxscope.models.cells import Window

    if len(window) != 2 or not 1 >= window[0] > window[1] >= 0:
        raise ConfigError(
            f"the recipe {recipe.name!r} has the window {brief(window)}",
            "A window is two noise levels, such as [0.8, 0]: from 1, all noise, down to 0, none.",
        )
    return Window(float(window[0]), float(window[1]))


def _site(moves: SiteMoves) -> Any:
    from fluxscope.models.sites import parse_site

    return parse_site(moves.site)


def _window(recipe: Recipe, moves: SiteMoves) -> Window:
    return window_of(recipe, recipe.window if moves.window is None else moves.window)


def _sites(recipe: Recipe) -> list[SiteMoves]:
    if not recipe.sites:
        raise _changes_nothing(recipe)
    return recipe.sites


def _sae(recipe: Recipe, moves: SiteMoves, saes: Saes) -> LinearSae:
    sae, sha256 = saes(moves.site)
    if sha256 != moves.sae_sha256:
        raise ConfigError(
            f"the recipe {recipe.name!r} is for another SAE of {moves.site} than the one that is set",
            f"Give the one of contents {brief(moves.sae_sha256)} with --sae {moves.site}=PATH.",
        )
    return sae


def _once_each(recipe: Recipe, moves: SiteMoves) -> list[FeatureMove]:
    """A site's features, of which none may be named twice."""
    features = moves.features or []
    seen = [move.feature for move in features]
    twice = next((feature for feature in seen if seen.count(feature) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"the recipe {recipe.name!r} names feature {twice} of {moves.site} twice", "Name each once."
        )
    return features


def _push(recipe: Recipe, moves: SiteMoves, move: FeatureMove) -> Any:
    from fluxscope.models.methods.push import Push

    kind = move.kind or "add"
    if move.amount is None or (kind == "add" and move.amount == 0):
        raise ConfigError(
            f"the recipe {recipe.name!r} moves feature {move.feature} of {moves.site} by nothing",
            "Give an amount, or leave the feature out.",
        )
    natural = _natural(recipe, move)
    if abs(move.amount) * natural > LARGEST:
        raise ConfigError(
            f"the recipe {recipe.name!r} moves feature {move.feature} by {move.amount:g} times {natural:g}: "
            "too large",
            "Amounts of about 1 are natural.",
        )
    return Push(move.feature, float(move.amount), natural, kind)


def _natural(recipe: Recipe, move: FeatureMove) -> float:
    natural = 1.0 if move.natural is None else float(move.natural)
    if natural <= 0:
        raise ConfigError(
            f"the recipe {recipe.name!r} gives feature {move.feature} the natural size {natural:g}",
            "It is a number above 0.",
        )
    return natural


def _target(recipe: Recipe) -> str:
    if not recipe.target:
        raise ConfigError(
            f"the recipe {recipe.name!r} has no target prompt", f"A {recipe.method} needs one: state it."
        )
    if recipe.target == recipe.source:
        raise ConfigError(
            f"the target prompt of the recipe {recipe.name!r} is equal to the source", "Give another one."
        )
    return recipe.target


def _weight(recipe: Recipe) -> float:
    weight = 1.0 if recipe.weight is None else float(recipe.weight)
    if weight == 0:
        raise _changes_nothing(recipe)
    return weight


def _changes_nothing(recipe: Recipe) -> ConfigError:
    return ConfigError(f"the recipe {recipe.name!r} changes nothing", "Give it sites, features and amounts.")


def _last(model_id: str) -> str:
    """The last part of a model's name, by which a folder and a Hub name are known as one model."""
    return PurePath(model_id.rstrip("/\\")).name.lower()
