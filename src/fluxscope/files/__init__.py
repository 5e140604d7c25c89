"""Writing that never leaves half a file, and reading that never runs code."""

from fluxscope.files.arrays import (
    check_torch_file,
    load_npy,
    load_npz,
    more_than_tensors,
    read_torch_checkpoint,
    save_npy,
    save_npz,
)
from fluxscope.files.json_files import (
    append_jsonl,
    numbered_jsonl,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from fluxscope.files.writing import (
    atomic_write,
    explain_os_error,
    inside,
    link_or_copy,
    note_written,
    refuse_links,
    save_image,
    sync_folder,
    write_bytes,
    write_text,
    written_files,
)

__all__ = [
    "append_jsonl",
    "atomic_write",
    "check_torch_file",
    "explain_os_error",
    "inside",
    "link_or_copy",
    "load_npy",
    "load_npz",
    "more_than_tensors",
    "note_written",
    "numbered_jsonl",
    "read_json",
    "read_jsonl",
    "read_torch_checkpoint",
    "refuse_links",
    "save_image",
    "save_npy",
    "save_npz",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_text",
    "written_files",
]
