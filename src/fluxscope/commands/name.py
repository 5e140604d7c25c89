"""What features could be called: `fluxscope name`, from the words of prompts and what CLIP sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from fluxscope.errors import ConfigError
from fluxscope.measures.captions import caption, load_captioner, said_more
from fluxscope.measures.clip import Box, embed_images, embed_texts, peak_box
from fluxscope.measures.names import (
    LEAST_PROMPTS,
    SEEN,
    Named,
    Terms,
    halves,
    name_features,
    seen_more,
    terms_of,
    vocabulary,
)
from fluxscope.run.by_feature import in_image
from fluxscope.run.codes import CodeStore
from fluxscope.run.context import Context, clip_device, clip_of
from fluxscope.run.freshness import Work
from fluxscope.run.inputs import digest_of, values_of
from fluxscope.run.manifest import Manifest
from fluxscope.run.matrices import load_s
from fluxscope.run.name_records import FeatureName, Names, in_words
from fluxscope.run.records import Selection
from fluxscope.run.step_log import StepLog
from fluxscope.shapes.shipped import resolve

PEAKS = 12
"""Crops around the peaks of a feature's strongest pictures, of distinct prompts of the naming half."""
RANDOMS = 96
"""Crops at random places of random pictures, the same ones for all features."""
AT_ONCE = 256
"""Features whose codes are read together: without an index, each reading goes through all codes."""
LOOKS = 3
TEMPLATE = "a picture of {}"


@dataclass(frozen=True)
class Material:
    """What names are made from.

    Attributes:
        features: whose names are looked for.
        strength: (n f), S of these features.
        prompt_idx: (n), the prompt of each picture, from 0.
    """

    features: tuple[int, ...]
    manifest: Manifest
    strength: Float32[np.ndarray, "n f"]
    prompt_idx: np.ndarray
    terms: Terms
    naming: np.ndarray


READS = ("s_matrix", "manifest", "codes", "pictures", "selected_features")


def name_features_of(
    context: Context,
    wanted: Sequence[int] | None,
    every: bool,
    settings: Iterable[str],
    vlm: str | None = None,
) -> str:
    """Name features, unless that is done; returns a line for the user.

    Args:
        wanted: these features; None for the selected ones.
        every: all that are alive.
        settings: those that names depend on.
        vlm: a vision-language model, by Hub id or folder, that captions what features fire on.

    Raises:
        FluxscopeError: steps 1 to 4 have not been run, a feature is not there, the prompts share no words, or
            the vision-language model cannot be opened.
    """
    config, files = context.config, context.files
    log = StepLog.open(files.step_log)
    key = values_of(config, settings, (files.site,), log)
    key |= {name: digest_of(name, context, log) for name in READS}
    key["features"] = "all" if every else list(wanted) if wanted else "selected"
    if vlm is not None:
        key["vlm"] = vlm
    home = "" if files.home == files.root else f"{files.relative(files.home)}/"
    work = Work(log, f"{home}name", key, context.force)
    if not work.reason:
        return f"up to date: {files.names}"
    with work.doing():
        return make(context, wanted, every, log, vlm)


def make(context: Context, wanted: Sequence[int] | None, every: bool, log: StepLog, vlm: str | None) -> str:
    """Name features, write names.json and say them; returns a line for the user."""
    files, report = context.files, context.report
    material = gather(context, wanted, every)
    named = name_features(by_prompt(material), material.terms, material.naming)
    crops = crops_of(context, material)
    said = words_said(context, crops, len(material.features), vlm)
    seen, looks = look(context, material, crops, named)
    records = [
        replace(record_of(material, named, row, seen[row], looks[row]), said=said[row] if said else None)
        for row in range(len(material.features))
    ]
    assert context.config.clip_model_id is not None
    Names(
        s_sha256=log.digest(files.s_matrix.absolute()) or "",
        num_prompts=len(material.naming),
        clip_model_id=context.config.clip_model_id,
        features=records,
    ).write(files.names)
    for each in [] if every else records:
        words = f"; captions say {', '.join(each.said)}" if each.said else ""
        reason = f": {each.reason}" if each.reason else ""
        report.say(f"{each.feature_id:>6}  {in_words(each)}{reason}{words}")
    count = sum(each.name is not None for each in records)
    return f"{count} of {len(records)} features have a name: {files.names}"


def gather(context: Context, wanted: Sequence[int] | None, every: bool) -> Material:
    """The strengths and prompts of the features that are asked for."""
    config, files = context.config, context.files
    manifest = Manifest.read(files.manifest, files.root)
    s = load_s(files, len(manifest.rows))
    if every:
        features = tuple(int(f) for f in np.flatnonzero(s.max(0) > config.eps_alive))
    elif wanted is not None:
        features = tuple(dict.fromkeys(wanted))
    else:
        features = tuple(each.feature_id for each in Selection.read(files.selected_features).features)
    for feature in features:
        if not 0 <= feature < s.shape[1]:
            raise ConfigError(f"there is no feature {feature}", f"Features are 0 to {s.shape[1] - 1}.")
    strength = np.asarray(s[:, list(features)], np.float32)
    prompts = manifest.prompts
    return Material(features, manifest, strength, manifest.prompt_of, terms_of(prompts), halves(len(prompts)))


def by_prompt(material: Material) -> Float[np.ndarray, "p f"]:
    """The mean strength of each prompt's pictures."""
    sums = np.zeros((len(material.naming), material.strength.shape[1]))
    np.add.at(sums, material.prompt_idx, material.strength)
    means: np.ndarray = sums / np.bincount(material.prompt_idx)[:, None]
    return means


@dataclass(frozen=True)
class Crops:
    """Crops around the features' peaks, and then some at random places.

    Attributes:
        owner: of each crop, the row of its feature; -1: nobody's.
        pictures: from which each is cut.
    """

    owner: np.ndarray
    pictures: list[Path]
    boxes: list[Box]


def crops_of(context: Context, material: Material) -> Crops:
    """All crops that CLIP, and a vision-language model, are shown."""
    config, line = context.config, material.manifest.rows[0]
    store = CodeStore(context.files.codes, context.files.site, config.target_step_index)
    drawn = random_crops(material, (line.width, line.height))
    found = [*peaks_of(material, store, config.image_token_grid), *drawn]
    return Crops(
        np.array([row for row, _, _ in found]),
        [material.manifest.picture(material.manifest.rows[at]) for _, at, _ in found],
        [box for _, _, box in found],
    )


def words_said(context: Context, crops: Crops, features: int, vlm: str | None) -> list[list[str]] | None:
    """The words that a vision-language model says more of each feature's crops than of random ones."""
    if vlm is None:
        return None
    config = context.config
    captioner = load_captioner(vlm, clip_device(config))
    context.report.say(f"     {len(crops.boxes)} crops are captioned by {vlm}")
    captions = caption(captioner, crops.pictures, crops.boxes, config.clip_batch_size)
    return said_more(captions, crops.owner, features)


def look(
    context: Context, material: Material, crops: Crops, named: Named
) -> tuple[list[float], list[list[str]]]:
    """What CLIP sees where each feature fires: its term, in standard errors, and words of the vocabulary."""
    config = context.config
    model, processor = clip_of(config)
    assert config.clip_model_id is not None
    known = vocabulary()
    words = tuple(dict.fromkeys((*material.terms.words, *known)))
    texts = [TEMPLATE.format(word) for word in words]
    embedded = embed_texts(model, resolve(config.clip_model_id), texts)
    context.report.say(f"     {len(crops.boxes)} crops are embedded with {config.clip_model_id}")
    seen = embed_images(model, processor, crops.pictures, config.clip_batch_size, crops=crops.boxes)
    randoms = seen[crops.owner < 0]
    scores, looks = [], []
    shipped = np.isin(words, known)
    for row, term in enumerate(named.term):
        z = seen_more(seen[crops.owner == row], randoms, embedded)
        scores.append(float(z[term]) if term >= 0 else float("nan"))
        order = np.argsort(-np.where(shipped, np.nan_to_num(z, nan=-np.inf), -np.inf), kind="stable")
        looks.append([words[at] for at in order[:LOOKS] if np.isfinite(z[at]) and z[at] > SEEN])
    return scores, looks


Crop = tuple[int, int, Box]
"""Whose crop it is (-1: nobody's), the picture's place in the manifest, and the box."""


def peaks_of(material: Material, store: CodeStore, grid: tuple[int, int]) -> Iterator[Crop]:
    """Crops around each feature's peaks, in the strongest picture of each of its strongest naming prompts."""
    line = material.manifest.rows[0]
    for begin in range(0, len(material.features), AT_ONCE):
        part = material.features[begin : begin + AT_ONCE]
        columns = store.columns(part)
        for row, feature in enumerate(part, start=begin):
            for at in strongest(material, row):
                tokens, codes = in_image(*columns[feature], at, store.n_tokens)
                token_map = np.zeros(store.n_tokens, np.float32)
                token_map[tokens] = codes
                yield row, at, peak_box(token_map, grid, (line.width, line.height))


def strongest(material: Material, row: int) -> list[int]:
    """The strongest picture of each of a feature's strongest naming prompts, by place in the manifest."""
    strength = np.where(material.naming[material.prompt_idx], material.strength[:, row], 0)
    chosen: dict[int, int] = {}
    for at in np.argsort(-strength, kind="stable"):
        if strength[at] <= 0 or len(chosen) == PEAKS:
            break
        chosen.setdefault(int(material.prompt_idx[at]), int(at))
    return list(chosen.values())


def random_crops(material: Material, size: tuple[int, int], seed: int = 0) -> list[Crop]:
    """Crops of the same size at random places of random pictures of the naming half."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(material.naming[material.prompt_idx])
    width, height = size[0] // 2, size[1] // 2
    crops: list[Crop] = []
    for _ in range(RANDOMS):
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        crops.append((-1, int(rng.choice(rows)), (left, top, left + width, top + height)))
    return crops


def record_of(material: Material, named: Named, row: int, seen: float, looks: list[str]) -> FeatureName:
    """A feature's entry: a name where every test is passed, else the reason why not."""
    term = int(named.term[row])
    reason = ""
    if named.strong[row] < LEAST_PROMPTS:
        reason = f"strong for {named.strong[row]} prompts of the naming half: too few"
    elif term < 0:
        reason = "no words are shared by its strong prompts more than chance would have it"
    elif not seen > SEEN:
        reason = f"CLIP does not see {material.terms.words[term]!r} where it fires (z {seen:.1f})"

    def number(value: float) -> float | None:
        return float(value) if term >= 0 and np.isfinite(value) else None

    words = material.terms.words[term] if term >= 0 else None
    return FeatureName(
        feature_id=material.features[row],
        name=None if reason else words,
        reason=reason,
        term=words,
        z=number(named.z[row]),
        shared=number(named.shared[row]),
        strong_prompts=int(named.strong[row]),
        clip_z=number(seen),
        held_out_r=number(named.held_out[row]),
        looks_like=looks,
    )
