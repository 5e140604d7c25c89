"""Checkpoints by their Hub names: hf://owner/name/file, or a folder in place of the file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fluxscope.errors import CheckpointError

PREFIX = "hf://"


def resolve(path: Path | str, fetch: bool = True) -> Path:
    """A local path for `path`: itself, or what was fetched from the Hub (once: its cache keeps it).

    Args:
        fetch: false: look in the cache alone.

    Raises:
        CheckpointError: the name is no hf://owner/name/file, or could not be fetched.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    parts = PurePosixPath(str(path).removeprefix(PREFIX)).parts
    if len(parts) < 3 or ".." in parts:
        raise CheckpointError(
            f"{path} names no file", "Write hf://owner/name/file, or a folder for the file."
        )
    repo, inside = "/".join(parts[:2]), PurePosixPath(*parts[2:])
    return _fetch(repo, inside, fetch)


def _fetch(repo: str, inside: PurePosixPath, fetch: bool) -> Path:
    """Fetch a file with the config that lies beside it, or a folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    folder = inside.parent if inside.suffix else inside
    wanted = [str(inside)] if inside.suffix else [f"{folder}/*"]
    beside = ("cfg.json", "config.json", f"{inside.stem}_cfg.json", "activation_scaler.json")
    wanted += [str(folder / name) for name in beside]
    if not fetch:
        try:
            return Path(snapshot_download(repo, local_files_only=True)) / inside
        except (HFValidationError, LocalEntryNotFoundError, OSError):
            what = str(inside) if inside.suffix else f'--include "{folder}/*"'
            raise CheckpointError(
                f"{PREFIX}{repo}/{inside} is not here", f"hf download {repo} {what}"
            ) from None
    try:
        root = snapshot_download(repo, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{PREFIX}{repo}/{inside} could not be fetched ({str(error).splitlines()[0]})",
            "Check the name and the network; for gated models, log in with `hf auth login`.",
        ) from error
    return Path(root) / inside
