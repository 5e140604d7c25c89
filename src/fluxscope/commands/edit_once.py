"""`fluxscope edit`: a picture changed as a prompt says, beside its baseline and control; `steer --recipe`.

The recipe is found first and written beside the picture that it made: replayed, it makes that picture again.
The control does as much that has nothing to do with the wish: random live features of equal norm, or a mask
of equal area elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fluxscope.draw.difference import difference_legend, difference_map
from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.errors import ConfigError
from fluxscope.files import save_image
from fluxscope.measures.distance import pixel_change
from fluxscope.models.cells import Window
from fluxscope.models.editing import edited
from fluxscope.models.edits import box_to_tokens
from fluxscope.models.methods.control import control_of
from fluxscope.progress import Reporter
from fluxscope.run.context import open_model_of, picture_spec
from fluxscope.run.recipe_making import Maker, Wish
from fluxscope.run.recipe_records import Recipe, Region
from fluxscope.run.recipes import method_of, read_recipe, region_record
from fluxscope.run.rundir import RunDir
from fluxscope.run.sae_shelf import SaeShelf
from fluxscope.settings.config import Config


@dataclass(frozen=True)
class EditRequest:
    """What is asked for on the command line.

    Attributes:
        method: transport, shift, learned or detector.
        features: where the change shall be: features of the site that the run is about.
        region: or x0,y0,x1,y1 in pixels.
        k: how many features may be moved; None for all.
        dose: how much of the edit; 1 is natural.
        window: the noise levels between which to act; None for the method's own.
        sites: whose features are moved; none for the usual ones.
    """

    prompt: str
    target: str
    seed: int
    method: str
    features: tuple[int, ...] = ()
    region: tuple[int, int, int, int] | None = None
    k: int | None = 16
    dose: float = 1.0
    window: Window | None = None
    sites: tuple[str, ...] = ()


def edit_once(config: Config, request: EditRequest, report: Reporter) -> Path:
    """Find the recipe, make the picture, its baseline and its control; returns the recipe's path.

    Raises:
        ConfigError: a feature, region or site that there is not, or nothing that is wished for.
    """
    wish = Wish(request.prompt, request.target, request.seed, request.window, _region(config, request))
    model, spec = open_model_of(config, report), picture_spec(config)
    shelf = SaeShelf(config, model.spec, config.sae_device)
    prompts = model.encode([request.prompt, request.target], config.max_sequence_length)
    for warning in prompts.warnings:
        report.say(f"warning: {warning}")
    maker = Maker(model, prompts, spec, shelf)
    recipe = MAKERS[request.method](maker, wish, request, config)
    method = method_of(recipe, config.model_id, model.spec, spec, shelf)
    control = control_of(method, maker.live, request.seed)
    pictures = edited(
        model, prompts, spec, request.prompt, request.seed, [[method], [control]], at_once=_rows(config)
    ).numpy()
    files = RunDir.of(config)
    path = files.steering / "edits" / _name(recipe, request.prompt, request.seed)
    how = f"{request.method} · seed {request.seed} · {in_words(recipe)}"
    labels = ["as it was", "edited", CONTROL_WORDS[recipe.method]]
    _write(path, pictures, labels, f"{request.prompt}  →  {request.target}", how, config, report)
    recipe_path = path.with_name(f"{path.name}.recipe.json")
    recipe.write(recipe_path)
    report.say(f"{recipe_path}")
    return recipe_path


CONTROL_WORDS = {
    "push": "control: other features",
    "transport": "control: other features",
    "detector": "control: elsewhere",
}


def _transport(maker: Maker, wish: Wish, request: EditRequest, config: Config) -> Recipe:
    return maker.transport(wish, request.sites or maker.shelf.sites, request.k, request.dose)


def _detector(maker: Maker, wish: Wish, request: EditRequest, config: Config) -> Recipe:
    if not request.features and request.region is None:
        raise ConfigError(
            "a detector needs to know where", "Add --where feature:123, or --region x0,y0,x1,y1 in pixels."
        )
    return maker.detector(wish, RunDir.of(config).site, request.features, request.dose)


def _shift(maker: Maker, wish: Wish, request: EditRequest, config: Config) -> Recipe:
    return maker.shift(wish, request.sites or maker.shelf.sites, request.k, request.dose)


def _learned(maker: Maker, wish: Wish, request: EditRequest, config: Config) -> Recipe:
    return maker.learned(wish, request.sites or maker.shelf.sites, request.k, request.dose)


MAKERS = {"transport": _transport, "shift": _shift, "learned": _learned, "detector": _detector}


def replay(config: Config, recipes: Sequence[Path], prompt: str, seed: int, report: Reporter) -> Path:
    """One picture with one or several recipes, beside its baseline; returns the sheet's path.

    Args:
        prompt: empty for the one that the first recipe was made for.

    Raises:
        FluxscopeError: a recipe is damaged, or for another model, SAE, site or size of picture.
    """
    found = [read_recipe(path) for path in recipes]
    prompt = prompt or found[0].source or ""
    if not prompt:
        raise ConfigError("no prompt is given, and the recipe names none", 'Add --prompt "...".')
    model, spec = open_model_of(config, report), picture_spec(config)
    shelf = SaeShelf(config, model.spec, config.sae_device)
    methods = [method_of(each, config.model_id, model.spec, spec, shelf) for each in found]
    texts = [prompt, *(text for method in methods for text in (*method.donors, *method.followers))]
    prompts = model.encode(texts, config.max_sequence_length)
    pictures = edited(model, prompts, spec, prompt, seed, [methods], at_once=_rows(config)).numpy()
    path = RunDir.of(config).steering / "edits" / _name(found, prompt, seed)
    how = f"seed {seed} · " + " · then ".join(each.name for each in found)
    _write(path, pictures, ["as it was", "edited"], prompt, how, config, report)
    return path.with_name(f"{path.name}.png")


def in_words(recipe: Recipe) -> str:
    """What a recipe changes, in a few words."""
    high, low = recipe.window
    sites = recipe.sites or []
    n = sum(len(moves.features or []) for moves in sites)
    where = f"{n} features of {len(sites)} sites" if n else f"all that passes {len(sites)} sites"
    if recipe.method == "detector":
        where = f"where {n} features of {sites[0].site} fire" if sites else "within the region"
    elif recipe.region:
        where += ", within the region"
    return f"{where} · noise {high:g} to {low:g}"


def _region(config: Config, request: EditRequest) -> Region | None:
    if request.region is None:
        return None
    assert config.height and config.width
    tokens = box_to_tokens(request.region, config.height, config.width, config.patch_size)
    return region_record(tokens, picture_spec(config).grid)


def _rows(config: Config) -> int:
    return max(config.batch_size or 1, 4)


def _name(made: Recipe | Sequence[Recipe], prompt: str, seed: int) -> str:
    """A name that tells one edit from another."""
    recipes = [made] if isinstance(made, Recipe) else list(made)
    key = json.dumps([[each.to_json() for each in recipes], prompt, seed], sort_keys=True)
    return f"{'_'.join(each.method for each in recipes)[:60]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _write(
    path: Path,
    pictures: np.ndarray,
    labels: Sequence[str],
    title: str,
    how: str,
    config: Config,
    report: Reporter,
) -> None:
    """The pictures, and a sheet of all of them with what changed below."""
    baseline, *others = pictures
    words = ("baseline", "edited", "control")
    for pixels, word in zip(pictures, words, strict=False):
        save_image(path.with_name(f"{path.name}_{word}.png"), Image.fromarray(pixels))
    maps = [difference_map(each, baseline) for each in others]
    changes = [f"mean change {pixel_change(each, baseline).mean():.1%}" for each in others]
    sheet = labelled_grid(
        [GridRow(list(pictures), "", ["", *changes]), GridRow([None, *maps], "what changed")],
        labels,
        title=title,
        subtitle=how,
        footer=f"{config.model_id} · {difference_legend()}",
        baseline=0,
        tile=224,
    )
    save_image(path.with_name(f"{path.name}.png"), sheet)
    for label, change in zip(labels[1:], changes, strict=True):
        report.say(f"{label}: {change}")
    report.say(f"{path.with_name(f'{path.name}.png')}")
