"""A run folder made into `atlas/`: `index.html`, and one folder with all that it shows.

The folder is named by what it was made from. It is written whole, then `index.html` is replaced in one step
to point to it, then the one of before goes: whoever opens the page at any moment, a kill included, sees a
whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from fluxscope.atlas.material import SiteMaterial, sites_of
from fluxscope.atlas.shards import shown, write_shard
from fluxscope.atlas.site import write_site
from fluxscope.errors import RunDirError
from fluxscope.files import write_text
from fluxscope.measures.clip import open_picture
from fluxscope.run.context import Context
from fluxscope.run.step_log import StepLog
from fluxscope.shapes.shipped import VERSION

SCRIPTS = ("data.js", "pictures.js", "search.js", "feature.js", "map.js", "main.js")
"""The page's one script, in parts."""
OURS = re.compile(r"atlas-[0-9a-f]{16}")
MARK = '<meta name="generator" content="fluxscope atlas">'
PICTURE_SIZE = 160
QUALITY = 76


def build(context: Context, target: Path, most: int = 0) -> str:
    """Make the page, unless it is up to date; returns a line for the user.

    Args:
        target: the folder of the page.
        most: how many features of each site it has at most; 0: all that are alive.

    Raises:
        MissingInputError: nothing was collected.
        RunDirError: files contradict each other, or the target holds another page.
    """
    index = target / "index.html"
    check_target(target, index)
    sites = list(sites_of(context))
    name = f"atlas-{key_of(context, sites, most)}"
    folder = target / name
    if not context.force and index.is_file() and name in index.read_text("utf-8", errors="replace"):
        return f"{index} is up to date"
    if folder.exists():
        shutil.rmtree(folder)  # of a build that was killed, or is to be made anew
    (folder / "pictures").mkdir(parents=True)
    tables = write_all(context, folder, sites, most)
    write_text(index, page_part("index.html").replace("ATLAS", name))
    for old in target.iterdir():
        if OURS.fullmatch(old.name) and old.name != name and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    counts = ", ".join(f"{len(each['columns'].get('id', []))} features of {each['site']}" for each in tables)
    return f"{counts}; {size:.1f} MB: {index}"


def check_target(target: Path, index: Path) -> None:
    """Raise RunDirError where a link, or a page that is not ours, lies in the way."""
    if target.is_symlink() or index.is_symlink():
        raise RunDirError(f"{target} holds a link where the page goes", "Choose another folder with --dest.")
    if index.is_file() and MARK not in index.read_text("utf-8", errors="replace")[:4000]:
        raise RunDirError(f"{index} is a page of something else", "Choose another folder with --dest.")


def key_of(context: Context, sites: list[SiteMaterial], most: int) -> str:
    """What the page depends on, as 16 hexadecimal digits. The codes go with S: step 1 writes both."""
    log = StepLog.open(context.files.step_log)
    parts: list[Any] = [VERSION, most, [page_part(each) for each in ("index.html", "atlas.css", *SCRIPTS)]]
    for site in sites:
        files = site.files
        read = [
            files.s_matrix,
            files.manifest,
            files.feature_scores,
            files.steps_profile,
            files.steering_summary,
        ]
        read += [files.root / "truth.json", files.names]
        parts += [files.site, site.eps, site.store is not None, site.directions is not None]
        parts += [log.digest(path.absolute()) if path.is_file() else None for path in read]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def page_part(name: str) -> str:
    """A file of the page, as it ships."""
    return (resources.files("fluxscope.atlas") / "page" / name).read_text("utf-8")


def write_all(context: Context, folder: Path, sites: list[SiteMaterial], most: int) -> list[dict[str, Any]]:
    """Write pictures, shards, style and script."""
    first = sites[0]
    with context.report.progress("pictures", len(first.manifest.rows), "pictures") as advance:
        paths = [first.manifest.picture(row) for row in first.manifest.rows]
        names = [folder / "pictures" / f"{place}.webp" for place in range(len(paths))]
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            for _ in workers.map(thumbnail, paths, names):
                advance(1)
    tables = []
    for number, site in enumerate(sites):
        others = [each for each in sites if each is not site and len(each.s) == len(site.s)]
        tables.append(write_site(context, folder, number, site, others, most))
    rows = first.manifest.rows
    write_shard(
        folder,
        "index",
        {
            "version": VERSION,
            "run": shown(context.files.root.absolute().name),
            "model": shown(Path(str(context.config.model_id)).name),
            "prompts": [shown(prompt) for prompt in first.manifest.prompts],
            "pictures": [
                [int(prompt), row.seed, row.image_id]
                for prompt, row in zip(first.manifest.prompt_of, rows, strict=True)
            ],
            "size": [rows[0].width, rows[0].height],
            "sites": [{name: each[name] for name in each if name != "columns"} for each in tables],
        },
    )
    for number, table in enumerate(tables):
        write_shard(folder, f"s{number}_table", table["columns"])
    (folder / "atlas.css").write_text(page_part("atlas.css"), "utf-8")
    script = "\n".join(page_part(each) for each in SCRIPTS)
    (folder / "atlas.js").write_text(f'(() => {{\n"use strict";\n{script}\n}})();\n', "utf-8")
    return tables


def thumbnail(source: Path, target: Path) -> None:
    """Write a picture small, as the page shows it."""
    picture = open_picture(source)
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    picture.save(target, format="WEBP", quality=QUALITY)
