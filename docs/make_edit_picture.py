"""Draw docs/images/edits.png: pictures of flux-shapes, edited, beside their controls.

    python docs/make_edit_picture.py

One of two objects is changed where features fire; the left one of two equal ones within a region, which no
prompt can ask for; and an object's shape by codes carried over from another prompt's run. The controls are
the same mask elsewhere, and as far a move along the directions of other features.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fluxscope.draw.grid import GridRow, labelled_grid
from fluxscope.draw.heatmap import outline_heatmap, overlay_heatmap, token_map_to_heatmap
from fluxscope.files import save_image
from fluxscope.models.capture import Capture
from fluxscope.models.editing import Method, edited
from fluxscope.models.edits import box_to_tokens
from fluxscope.models.methods.choice import differences, natural_sizes
from fluxscope.models.methods.control import control_of
from fluxscope.models.methods.detector import Blended, Seen
from fluxscope.models.methods.transport import Carried, Transported
from fluxscope.models.model import Model, open_model
from fluxscope.models.sites import parse_site
from fluxscope.sae.formats import load
from fluxscope.shapes.shipped import FLUX_SHAPES, OWN_SITE, STEERING_SAES

TARGET = Path(__file__).with_name("images") / "edits.png"
GRID = (8, 8)


def features_of(model: Model, method: Blended, prompt: str, seed: int) -> torch.Tensor:
    """A detector's map of the unchanged picture, in the middle of denoising."""
    assert isinstance(method.where, Seen)
    heard: list[torch.Tensor] = []
    capture = Capture([method.where.site], [10], lambda site, step, x: heard.append(x[0].clone()))
    model.sample([prompt], [seed], capture, stop_after=10)
    return method.where.map(heard[0])


def row(
    model: Model, label: str, prompt: str, seed: int, method: Method, where: torch.Tensor | None
) -> GridRow:
    """As it was, edited, the control; and where."""
    texts = [prompt, *method.donors, *method.followers]
    control = control_of(method, {}, seed)
    made = edited(model, model.encode(texts), model.defaults, prompt, seed, [[method], [control]]).numpy()
    beside = None
    if where is not None:
        heat = token_map_to_heatmap(where.float().numpy(), 128, 128, GRID)
        beside = outline_heatmap(overlay_heatmap(made[0], heat), heat)
    return GridRow(list(made), label, beside=beside)


def with_features(model: Model, prompt: str, target: str, seed: int, features: tuple[int, ...]) -> Blended:
    sae = load(STEERING_SAES[OWN_SITE])[0]
    sizes = natural_sizes(model, model.encode([prompt])[prompt], seed, model.defaults, OWN_SITE, sae)
    naturals = tuple(float(sizes[f]) for f in features)
    return Blended(target, Seen(parse_site(OWN_SITE), sae, features, naturals, GRID), GRID)


def transported(model: Model, prompt: str, target: str, seed: int, k: int) -> Transported:
    saes = {site: load(path)[0] for site, path in STEERING_SAES.items()}
    embedded = model.encode([prompt, target])
    far = differences(model, embedded[prompt], embedded[target], seed, model.defaults, saes)
    return Transported(target, tuple(Carried(parse_site(s), saes[s], fs) for s, fs in far.top(k).items()))


def main() -> None:
    model = open_model(FLUX_SHAPES, "cpu", "float32")
    red = "a large red circle to the left of a small green square on a white background"
    stars = "a large yellow star to the left of a large yellow star on a navy background"
    heart = "a large purple heart on a beige background"
    by_features = with_features(model, red, red.replace("red", "blue"), 3, (1010, 87, 811, 203))
    left = box_to_tokens((0, 0, 64, 128), 128, 128)
    by_region = Blended(stars.replace("yellow", "pink"), left, GRID)
    by_codes = transported(model, heart, heart.replace("heart", "square"), 5, 64)
    seen = features_of(model, by_features, red, 3)
    rows = [
        row(
            model, "one of two: red becomes blue, where four features of red fire", red, 3, by_features, seen
        ),
        row(
            model, "the left one of two equal stars becomes pink, within a region", stars, 2, by_region, left
        ),
        row(model, "a heart becomes a square, by 64 features of six sites", heart, 5, by_codes, None),
    ]
    sheet = labelled_grid(
        rows,
        ["as it was", "edited", "control"],
        title="Edits in natural size",
        subtitle="flux-shapes · made by fluxscope edit's methods · the control: the same mask elsewhere, "
        "or other features as far",
        baseline=0,
        beside_label="where it acts",
        tile=160,
    )
    save_image(TARGET, sheet)
    print(TARGET)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
