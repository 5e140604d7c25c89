"""One site of a run, written as shards: a table of all features, the features, and the pictures' tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.atlas.features import (
    enriched,
    heat_texts,
    histogram,
    level_text,
    prompt_words,
    strip_places,
    word_bar,
)
from fluxscope.atlas.material import SiteMaterial
from fluxscope.atlas.neighbours import correlations, cosines, firing, nearest, plane, quantised
from fluxscope.atlas.shards import rounded, shown, write_shard
from fluxscope.measures.clip import open_picture
from fluxscope.measures.ranking import release_pages
from fluxscope.run.context import Context

PER_SHARD, BLOCK = 64, 512
"""Features of a file, and features measured together."""
PICTURES_PER_SHARD = 64
TOKEN_BYTES = 9_000_000
"""What the tokens of a site's pictures may take; where they are too many, each keeps its strongest codes."""
MOST_WORDS_SHOWN = 6
EFFECT_WIDTH = 1600


def write_site(
    context: Context, folder: Path, number: int, site: SiteMaterial, others: list[SiteMaterial], most: int
) -> dict[str, Any]:
    """Write all of a site.

    Args:
        number: of the site, in the names of its files.
        most: how many features the page has at most; 0: all that are alive.

    Returns:
        its table, as the page has it.
    """
    ids = site.chosen(most)
    largest = np.zeros(site.s.shape[1], np.float32)
    largest[:] = site.ranked.score.max(1, initial=0) if site.ranked.score.size else 0
    tables: list[dict[str, Any]] = []
    with context.report.progress(f"features of {site.files.site}", len(ids), "features") as advance:
        records = feature_records(folder, site, others, ids, largest)
        for shard in range(-(-len(ids) // PER_SHARD)):
            features = list(islice(records, PER_SHARD))
            tables += [each.pop("row") for each in features]
            write_shard(folder, f"s{number}_f{shard}", features)
            advance(len(features))
    columns = {name: [row[name] for row in tables] for name in (tables[0] if tables else ())}
    if len(ids) > 2:
        columns["x"], columns["y"] = map_of(site, ids).T.tolist()
    if site.store is not None:
        write_tokens(folder, number, site, ids, largest)
    return {
        "site": site.files.site,
        "step": site.step,
        "features": int(site.s.shape[1]),
        "grid": site.grid,
        "codes": site.store is not None,
        "wordBar": round(word_bar(len(prompt_words(site.manifest.prompts)[0])), 2),
        "perShard": PER_SHARD,
        "picturesPerShard": PICTURES_PER_SHARD,
        "mapOf": "when features are active" if site.directions is None else "decoder directions",
        "columns": columns,
    }


def map_of(site: SiteMaterial, ids: np.ndarray) -> np.ndarray:
    """Where features lie on the map, (f, 2): by decoder directions, or else by the pictures they fire on."""
    if site.directions is not None:
        return plane(*quantised(site.directions[ids]))
    fires = firing(site.s, ids, site.eps)
    return plane(fires, 1 / fires.sum(1).clamp_min(1) ** 0.5)


def feature_records(
    folder: Path, site: SiteMaterial, others: list[SiteMaterial], ids: np.ndarray, largest: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The records of all features, in order; they are measured a block at a time."""
    fires = firing(site.s, ids, site.eps)
    words, has = prompt_words(site.manifest.prompts)
    elsewhere = [(each, each.chosen(0)) for each in others]
    fires_elsewhere = [(each.files.site, own, firing(each.s, own, each.eps)) for each, own in elsewhere]
    directions = None if site.directions is None else quantised(site.directions[ids])
    for first in range(0, len(ids), BLOCK):
        block = slice(first, first + BLOCK)
        here = ids[block]
        columns = site.store.columns(here.tolist()) if site.store is not None else {}
        s = np.asarray(site.s[:, here])
        release_pages(site.s)
        together = nearest(correlations(fires[block], fires), ids, here)
        cosine = None if directions is None else nearest(cosines(block, *directions), ids, here)
        across = [
            (name, nearest(correlations(fires[block], on), own, None, 3)) for name, own, on in fires_elsewhere
        ]
        spoken = words_of(fires[block].numpy() > 0, site.manifest.prompt_of, words, has)
        for place, feature in enumerate(here.tolist()):
            record = shown_parts(site, feature, s[:, place], columns.get(feature), float(largest[feature]))
            record["words"] = spoken[place]
            record["cofiring"] = together[place]
            record["decoder"] = None if cosine is None else cosine[place]
            record["sites"] = [[name, found[place]] for name, found in across]
            record["effects"] = effects(folder, site, feature)
            record["row"] = row_of(site, feature, record, [word for word, *_ in spoken[place]])
            yield record


def words_of(
    fires: np.ndarray, prompt_of: np.ndarray, words: list[str], has: np.ndarray
) -> list[list[list[Any]]]:
    """The words that stand out in each feature's prompts: word, share there, share elsewhere, z.

    Args:
        fires: bool (f, n).
    """
    on_prompts = np.zeros((len(has), len(fires)), bool)
    np.logical_or.at(on_prompts, prompt_of, fires.T)
    inside, outside, z = enriched(on_prompts, has)
    bar, found = word_bar(len(words)), []
    for row in range(len(fires)):
        out = np.flatnonzero(z[row] >= bar)
        best = out[np.argsort(-z[row, out], kind="stable")][:MOST_WORDS_SHOWN]
        found.append([[words[w], *(rounded(each[row, w], 3) for each in (inside, outside, z))] for w in best])
    return found


def shown_parts(
    site: SiteMaterial, feature: int, column: np.ndarray, codes: tuple[Any, Any] | None, largest: float
) -> dict[str, Any]:
    """Pictures with their heatmaps, and what is known of where the feature fires."""
    top = [int(place) for place in site.ranked.image[feature] if place >= 0]
    strips = strip_places(column, site.eps, feature)
    wanted = [*top, *(place for _, found in strips for place in found)]
    heat = [""] * len(wanted)
    if codes is not None and site.store is not None:
        heat = heat_texts(*codes, wanted, site.store.n_tokens, largest)
    shown_pictures = [
        [place, rounded(column[place], 3), own] for place, own in zip(wanted, heat, strict=True)
    ]
    bounds = np.cumsum([len(top), *(len(found) for _, found in strips)])
    record: dict[str, Any] = {
        "id": feature,
        "max": rounded(largest),
        "top": shown_pictures[: len(top)],
        "strips": [
            [name, shown_pictures[begin:end]]
            for (name, _), (begin, end) in zip(strips, pairwise(bounds), strict=True)
        ],
        "steps": site.steps.get(feature),
        "truth": site.truth.get(feature, []),
        "truthMeasured": bool(site.truth),
        "histogram": None,
        "position": None,
    }
    if codes is not None and site.store is not None:
        rows, values = codes
        n_tokens = site.store.n_tokens
        record["histogram"] = histogram(np.asarray(values), largest)
        record["tokens"] = rounded(len(values) / (n_tokens * len(column)))
        count = np.bincount(np.asarray(rows) % n_tokens, minlength=n_tokens)
        record["position"] = level_text(count / max(count.max(), 1))
        record["positionMax"] = rounded(count.max() / len(column))
    return record


def row_of(site: SiteMaterial, feature: int, record: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """A feature's line of the table: what is searched, sorted and shown on cards."""
    scores = {name: rounded(values[feature]) for name, values in site.scores.items()}
    named = site.names.get(feature)
    evidence = {"z": named.z, "held_out_r": named.held_out_r, "clip_z": named.clip_z} if named else {}
    best = max((each["f1"] for each in record["truth"]), default=None)
    return {
        "id": feature,
        "name": shown(named.name) if named and named.name else None,
        "evidence": {key: rounded(value) for key, value in evidence.items() if value is not None},
        "unnamed": shown(named.reason) if named and not named.name else None,
        "top": [picture[0] for picture in record["top"]],
        "peak": record["top"][0][2] if record["top"] else "",
        "max": record["max"],
        "pictures": rounded(site.ranked.frequency[feature]),
        "tokens": record.get("tokens"),
        "coverage": int(site.ranked.coverage[feature]),
        "score": scores.get("shown_score", scores.get("clip_held_out")),
        "scorePictures": scores.get("shown_pictures"),
        "q": scores.get("q_value"),
        "truth": best,
        "steers": bool(record["effects"]),
        "words": [shown(word) for word in words],
    }


def effects(folder: Path, site: SiteMaterial, feature: int) -> list[dict[str, Any]]:
    """The strips that step 7 made, beside a random direction of the same norm, with the distances."""
    found = []
    for each in site.effects.get(feature, [])[:4]:
        path = each.strength_grid_path or each.grid_path
        picture = open_picture(site.files.root / path)
        picture.thumbnail((EFFECT_WIDTH, 4 * EFFECT_WIDTH))
        name = f"pictures/effect_{site.files.site}_{feature}_{each.image_id}.webp"
        picture.save(folder / name, format="WEBP", quality=80)
        pairs = {
            key: [[rounded(effect.value), rounded(effect.distance)] for effect in effects or []]
            for key, effects in (("feature", each.added), ("random", each.random_direction))
        }
        found.append({"file": name, "prompt": shown(each.prompt), "seed": each.seed, **pairs})
        found[-1]["strangers"] = rounded(each.distance_of_strangers)
    return found


def write_tokens(folder: Path, number: int, site: SiteMaterial, ids: np.ndarray, largest: np.ndarray) -> None:
    """Which features are active on each token of each picture, strongest first, by shards of pictures."""
    assert site.store is not None
    n_tokens = site.store.n_tokens
    most = int(np.clip(TOKEN_BYTES // (4 * len(site.s) * n_tokens), 1, 16))
    line = np.full(site.s.shape[1], -1)
    line[ids] = np.arange(len(ids))
    for shard, (first, codes) in enumerate(site.store.blocks(PICTURES_PER_SHARD)):
        indptr, feature, value = codes.numpy()
        token = np.repeat(np.arange(codes.n_tokens), np.diff(indptr))
        kept = line[feature] >= 0
        token, feature, value = token[kept], feature[kept], value[kept]
        order = np.lexsort((-value, token))
        token, feature, value = token[order], feature[order], value[order]
        starts = np.searchsorted(token, np.arange(codes.n_tokens))
        strong = np.arange(len(token)) - starts[token] < most
        token, feature, value = token[strong], feature[strong], value[strong]
        levels = level_text(value / np.maximum(largest[feature], 1e-9))
        bounds = np.searchsorted(token, np.arange(0, codes.n_tokens + 1, n_tokens))
        pictures = [
            [
                np.bincount(token[a:b] - n_tokens * picture, minlength=n_tokens).tolist(),
                line[feature[a:b]].tolist(),
                levels[a:b],
            ]
            for picture, (a, b) in enumerate(pairwise(bounds))
        ]
        write_shard(folder, f"s{number}_p{shard}", {"first": first, "pictures": pictures})
