"""What the steering study works with: a run's features and what they stand for, and pictures to steer.

Everything is made once and kept in material.json: which features detect which attribute's value best, which
of the selected ones stand for a value, their units of strength, and pictures of one object whose baseline
the oracle finds right in everything, with the object's box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy.sparse import csr_array, vstack
from scipy.stats import binom

from fluxscope.files import load_npy, read_json, save_image, write_json, write_text
from fluxscope.measures.clip import open_picture
from fluxscope.measures.compare import sparse_S
from fluxscope.measures.top_images import rank_images
from fluxscope.measures.truth import concept_matrix, concept_scores, token_iou, token_masks
from fluxscope.models.edits import box_to_tokens
from fluxscope.models.steering import Steerer
from fluxscope.progress import Reporter
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import open_model_of
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.run.steering import load_steerer, strength_units
from fluxscope.settings.config import Config, make_config
from fluxscope.shapes import oracle, world
from fluxscope.steps.pipeline import parse_pipeline_steps, run_pipeline

CAPTIONS = 160
"""Captions of the run that features are selected and understood on."""

CANDIDATES = 90
"""Captions of one object, of which those are steered whose baseline is right."""

SELECTED = 40
"""How many features step 4 selects: more than the default's ten, so that other attributes than backgrounds,
which CLIP coherence puts first, can be judged too."""

SEVERAL = 8
"""How many features are amplified, and how many suppressed, where several are steered at once."""

SHARED, TOP, CHANCE = 0.8, 10, 1e-4
"""A feature stands for a value when so many of its so many top images show it, and chance would do that
with this probability at most."""

COVERED = {"shape": 0.1, "color": 0.6, "size": 0.1, "background": 0.95}
"""A token belongs to a value when this share of its pixels does: a colour fills tokens, a shape has edges."""


@dataclass(frozen=True)
class Wish:
    """A feature and the attribute's value that it should bring about; its place in step 4's selection."""

    feature: int
    attribute: str
    value: str
    rank: int | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of one object, right in everything without steering."""

    prompt: str
    seed: int
    background: str
    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]

    def tokens_of(self, attribute: str) -> Bool[torch.Tensor, " t"]:
        """Where an attribute is: the tokens of the object's box, or those outside for the background."""
        inside = box_to_tokens(self.box, world.RESOLUTION, world.RESOLUTION)
        return ~inside if attribute == "background" else inside


@dataclass(frozen=True)
class Material:
    """What prepare() has found, by "attribute: value": detectors, the best first, and the mean code of the
    tokens that have the value."""

    run: str
    units: dict[int, float]
    live: list[int]
    detectors: dict[str, list[int]]
    means: dict[str, list[float]]
    wishes: list[Wish]
    selected: list[Wish]
    pictures: list[Picture]

    @classmethod
    def read(cls, path: Path) -> Material:
        found = read_json(path)
        return cls(
            run=found["run"],
            units={int(feature): unit for feature, unit in found["units"].items()},
            live=found["live"],
            detectors=found["detectors"],
            means=found["means"],
            wishes=[Wish(**wish) for wish in found["wishes"]],
            selected=[Wish(**wish) for wish in found["selected"]],
            pictures=[Picture(**{**one, "box": tuple(one["box"])}) for one in found["pictures"]],
        )

    def lacking(self, wish: Wish) -> list[Picture]:
        """The pictures that lack what is wished."""
        return [p for p in self.pictures if getattr(p, wish.attribute) != wish.value]


def config_of(out: Path) -> Config:
    """A run on captions drawn from the world, written into the folder."""
    prompts = out / "prompts.txt"
    if not prompts.is_file():
        rng = np.random.default_rng(5)
        captions = [world.caption(world.sample_scene(rng)) for _ in range(CAPTIONS)]
        write_text(prompts, "\n".join(dict.fromkeys(captions)) + "\n")
    return make_config(
        active_layer=15,
        out_dir=str(out / "run"),
        prompts_path=str(prompts),
        reps_per_prompt=1,
        top_m_per_feature=TOP,
        top_features=SELECTED,
        rank_by="clip_coherence",
        most_alike=1.0,
        top_examples_per_feature=1,
        compare_layers=False,
    )


def prepare(out: Path, per_attribute: int) -> Material:
    """Make the run, understand its features, draw the pictures; read what is there already.

    Args:
        per_attribute: wishes for each of colour, shape and background.
    """
    config, path = config_of(out), out / "material.json"
    run_pipeline(config, Reporter(), parse_pipeline_steps("1-4"))
    files = RunDir.of(config)
    run = str(read_json(files.run_log).get("identity"))
    if path.is_file():
        material = Material.read(path)
        if material.run != run:
            raise SystemExit(f"{path} was made from another run: give another --out")
        return material
    records, _ = load_manifest(files.manifest, files.root)
    seen = [oracle.read(np.asarray(open_picture(row["image_path"]))) for row in records]
    store = CodeStore(files.codes, files.site, config.target_step_index)
    detectors, scores, means = detectors_of(store, seen)
    material = Material(
        run,
        strength_units(config, store, range(store.n_features)),
        np.flatnonzero(load_npy(files.s_matrix).max(0) > config.eps_alive).tolist(),
        detectors,
        means,
        wishes_of(detectors, scores, per_attribute),
        selected_wishes(files, seen, [row["prompt_idx"] for row in records]),
        right_pictures(config, out / "baselines"),
    )
    write_json(path, asdict(material))
    return Material.read(path)


def detectors_of(
    store: CodeStore, seen: Sequence[oracle.Reading]
) -> tuple[dict[str, list[int]], dict[str, float], dict[str, list[float]]]:
    """For each value the features that are active where it is (intersection over union of tokens), the best
    first; the score of the best; and the mean code there."""
    codes = vstack([tokens_by_features(store, image) for image in range(store.n_images)]).tocsr()
    detectors, scores, means = {}, {}, {}
    for attribute, values in values_of_the_world().items():
        covered = np.concatenate([covered_tokens(one, attribute, values) for one in seen])
        iou = token_iou(csr_array(codes), covered)
        for column, value in enumerate(values):
            order = np.argsort(-iou[:, column], kind="stable")[:SEVERAL]
            detectors[f"{attribute}: {value}"] = [int(feature) for feature in order]
            scores[f"{attribute}: {value}"] = float(iou[order[0], column])
            means[f"{attribute}: {value}"] = np.asarray(codes[covered[:, column]].mean(0)).ravel().tolist()
    return detectors, scores, means


def tokens_by_features(store: CodeStore, image: int) -> csr_array:
    pointers, feature, value = store.image(image).numpy()
    return csr_array((value, feature, pointers), shape=(store.n_tokens, store.n_features))


def values_of_the_world() -> dict[str, list[str]]:
    return {
        "color": list(world.COLORS),
        "shape": list(world.SHAPES),
        "size": list(world.SIZES),
        "background": list(world.BACKGROUNDS),
    }


def covered_tokens(seen: oracle.Reading, attribute: str, values: Sequence[str]) -> Bool[np.ndarray, "t c"]:
    """Which tokens of a picture belong to which value."""
    masks = np.zeros((len(values), world.RESOLUTION, world.RESOLUTION), bool)
    anything = np.zeros_like(masks[0])
    for thing in seen.objects:
        anything |= thing.mask
        if attribute != "background":
            masks[values.index(getattr(thing, attribute))] |= thing.mask
    if attribute == "background":
        masks[values.index(seen.background)] = ~anything
    return token_masks(masks, (8, 8), COVERED[attribute])


def wishes_of(
    detectors: Mapping[str, list[int]], scores: Mapping[str, float], per_attribute: int
) -> list[Wish]:
    """Of colours, shapes and backgrounds the values with the best detectors, each with its best feature."""
    wishes = []
    for attribute, values in values_of_the_world().items():
        if attribute != "size":
            surest = sorted(values, key=lambda value: -scores[f"{attribute}: {value}"])[:per_attribute]
            wishes += [Wish(detectors[f"{attribute}: {v}"][0], attribute, v) for v in surest]
    return wishes


def selected_wishes(files: RunDir, seen: Sequence[oracle.Reading], prompts: Sequence[int]) -> list[Wish]:
    """The selected features whose top images share a value, in the selection's order."""
    attributes = [
        {name: [getattr(o, name) for o in one.objects] for name in ("shape", "color", "size")}
        | {"background": [one.background]}
        for one in seen
    ]
    concepts, present = concept_matrix(attributes)
    s = load_npy(files.s_matrix)
    scores = concept_scores(
        sparse_S(s), rank_images(s, np.array(prompts), 1e-4, TOP).image, concepts, present
    )
    wishes = []
    for rank, record in enumerate(read_json(files.selected_features)["features"]):
        share = scores.top_share[record["feature_id"]]
        by_chance = binom.sf(np.rint(share * TOP) - 1, TOP, scores.base)
        concept = int(by_chance.argmin())
        if share[concept] >= SHARED and by_chance[concept] <= CHANCE:
            attribute, value = concepts[concept].split(": ")
            wishes.append(Wish(record["feature_id"], attribute, value, rank))
    return wishes


def right_pictures(config: Config, folder: Path) -> list[Picture]:
    """Captions of one object, each with a seed of its own, whose pictures the oracle finds right; these are
    kept in the folder."""
    rng = np.random.default_rng(11)
    scenes = {world.caption(s): s for s in (world.sample_scene(rng, n_objects=1) for _ in range(CANDIDATES))}
    steerer = load_steerer(config, open_model_of(config), config.site, list(scenes))
    asked = [(prompt, 1000 + number) for number, prompt in enumerate(scenes)]
    right = []
    for first in range(0, len(asked), 16):
        batch = asked[first : first + 16]
        for (prompt, seed), pixels in zip(batch, plain_pictures(steerer, batch), strict=True):
            if oracle.judge(scenes[prompt], pixels).all_right:
                save_image(folder / f"{seed}.png", Image.fromarray(pixels))
                right.append(picture_of(prompt, seed, scenes[prompt], oracle.read(pixels)))
    return right


def plain_pictures(steerer: Steerer, asked: Sequence[tuple[str, int]]) -> UInt8[np.ndarray, "b h w 3"]:
    embeddings = [steerer.prompts[prompt] for prompt, _ in asked]
    latents = steerer.model.sample(embeddings, [seed for _, seed in asked], spec=steerer.spec)
    return steerer.model.decode(latents, steerer.spec).numpy()


def picture_of(prompt: str, seed: int, scene: world.Scene, seen: oracle.Reading) -> Picture:
    thing = scene.objects[0]
    return Picture(prompt, seed, scene.background, thing.shape, thing.color, thing.size, seen.objects[0].box)


def outcome(wish: Wish, before: Picture, pixels: UInt8[np.ndarray, "h w 3"]) -> dict[str, Any]:
    """What the oracle reads in a steered picture, the largest object counting.

    now: the attribute's value. changed, became: it is another one than before; it is the wished one. kept:
    the background is right, or, where it is the background that is steered, the object has its colour.
    whole: everything but the attribute is as before, and there is one object.
    """
    seen = oracle.read(pixels)
    after = {
        name: getattr(seen.objects[0], name) if seen.objects else None
        for name in COVERED
        if name != "background"
    }
    after["background"] = seen.background
    same = {name: value == getattr(before, name) for name, value in after.items()}
    now = after[wish.attribute]
    return {
        "now": now,
        "changed": now is not None and not same[wish.attribute],
        "became": now == wish.value,
        "kept": same["color" if wish.attribute == "background" else "background"],
        "whole": len(seen.objects) == 1 and all(v for name, v in same.items() if name != wish.attribute),
    }
