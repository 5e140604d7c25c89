"""Small readers and writers for the files of a result folder, by the names that existing scripts use."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope.run.manifest import (
    append_jsonl,
    count_manifest_rows,
    ensure_dir,
    load_manifest,
    read_json,
    read_jsonl,
    read_prompts,
    write_json,
)

__all__ = [
    "append_jsonl",
    "count_manifest_rows",
    "ensure_dir",
    "load_manifest",
    "read_json",
    "read_jsonl",
    "read_prompts",
    "write_json",
]
