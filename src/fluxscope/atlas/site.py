"""One site of a run, written as shards: a table of all features, the features, and the pictures' tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fluxscope.atlas.features import (
    correlations,
    enriched,
    histogram,
    nearest,
    prompt_words,
    strip_places,
    word_bar,
)
from fluxscope.atlas.material import SiteMaterial
from fluxscope.atlas.shards import packed, rounded, shown, write_shard
from fluxscope.measures.clip import open_picture
from fluxscope.run.by_feature import in_image
from fluxscope.run.context import Context

PER_SHARD = 64
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
        for shard, features in enumerate(feature_records(folder, site, others, ids, largest)):
            write_shard(folder, f"s{number}_f{shard}", features)
            tables += [each["row"] for each in features]
            advance(len(features))
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
        "columns": {name: [row[name] for row in tables] for name in (tables[0] if tables else ())},
    }


def feature_records(
    folder: Path, site: SiteMaterial, others: list[SiteMaterial], ids: np.ndarray, largest: np.ndarray
) -> Iterator[list[dict[str, Any]]]:
    """The records of all features, a shard at a time."""
    fires = np.asarray(site.s[:, ids] > site.eps)
    on_prompts = np.zeros((len(site.manifest.prompts), len(ids)), bool)
    np.logical_or.at(on_prompts, site.manifest.prompt_of, fires)
    words, has = prompt_words(site.manifest.prompts)
    elsewhere = [(each, each.chosen(0)) for each in others]
    fires_elsewhere = [(each, own, (each.s[:, own] > each.eps).astype(np.float32)) for each, own in elsewhere]
    as_numbers = fires.astype(np.float32)
    directions = site.directions
    for first in range(0, len(ids), PER_SHARD):
        block = slice(first, first + PER_SHARD)
        here = ids[block]
        columns = site.store.columns(here.tolist()) if site.store is not None else {}
        s = np.asarray(site.s[:, here])
        together = correlations(as_numbers[:, block], as_numbers)
        cosines = None if directions is None else directions[here] @ directions[ids].T
        across = [
            (each.files.site, own, correlations(as_numbers[:, block], on))
            for each, own, on in fires_elsewhere
        ]
        inside, outside, z = enriched(on_prompts[:, block], has)
        found = []
        for place, feature in enumerate(here.tolist()):
            best = np.argsort(-z[place], kind="stable")[:MOST_WORDS_SHOWN]
            spoken = [
                [
                    words[w],
                    rounded(inside[place, w], 3),
                    rounded(outside[place, w], 3),
                    rounded(z[place, w], 3),
                ]
                for w in best
                if z[place, w] >= word_bar(len(words))
            ]
            record = shown_parts(site, feature, s[:, place], columns.get(feature), float(largest[feature]))
            record["words"] = spoken
            record["cofiring"] = nearest(together[place], ids, feature)
            record["decoder"] = None if cosines is None else nearest(cosines[place], ids, feature)
            record["sites"] = [[name, nearest(r[place], own, None, 3)] for name, own, r in across]
            record["effects"] = effects(folder, site, feature)
            record["row"] = row_of(site, feature, record, [word for word, *_ in spoken])
            found.append(record)
        yield found


def shown_parts(
    site: SiteMaterial, feature: int, column: np.ndarray, codes: tuple[Any, Any] | None, largest: float
) -> dict[str, Any]:
    """Pictures with their heatmaps, and what is known of where the feature fires."""
    rank = site.ranked
    top = [int(place) for place in rank.image[feature] if place >= 0]
    maps = heatmaps(site, codes, largest)

    def pictures(places: list[int]) -> list[list[Any]]:
        return [[place, rounded(column[place]), maps(place)] for place in places]

    record: dict[str, Any] = {
        "id": feature,
        "max": rounded(largest),
        "top": pictures(top),
        "strips": [[name, pictures(found)] for name, found in strip_places(column, site.eps, feature)],
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
        record["position"] = packed(np.round(255 * count / max(count.max(), 1)).astype(np.uint8))
        record["positionMax"] = rounded(count.max() / len(column))
    return record


def heatmaps(site: SiteMaterial, codes: tuple[Any, Any] | None, largest: float) -> Any:
    """A function from a picture's place to the feature's codes on its tokens: packed (token uint16, share of
    the largest code uint8) triples; empty where there are none."""
    if codes is None or site.store is None:
        return lambda place: ""
    rows, values = np.asarray(codes[0]), np.asarray(codes[1])
    n_tokens = site.store.n_tokens

    def of(place: int) -> str:
        tokens, own = in_image(rows, values, place, n_tokens)
        entries = np.zeros(len(tokens), np.dtype([("token", "<u2"), ("share", "u1")]))
        entries["token"] = tokens
        share = np.clip(own / max(largest, 1e-9), 0, 1)
        entries["share"] = np.maximum(np.round(255 * share), 1)
        return packed(entries.view(np.uint8)) if len(entries) else ""

    return of


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
        share = np.maximum(np.round(255 * np.clip(value / np.maximum(largest[feature], 1e-9), 0, 1)), 1)
        bounds = np.searchsorted(token, np.arange(0, codes.n_tokens + 1, n_tokens))
        pictures = [
            [
                packed(np.bincount(token[a:b] - n_tokens * picture, minlength=n_tokens).astype(np.uint8)),
                packed(line[feature[a:b]].astype(np.uint16 if len(ids) < 65536 else np.uint32)),
                packed(share[a:b].astype(np.uint8)),
            ]
            for picture, (a, b) in enumerate(pairwise(bounds))
        ]
        write_shard(folder, f"s{number}_p{shard}", {"first": first, "pictures": pictures})
