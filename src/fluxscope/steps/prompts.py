"""The prompts file, and the pictures that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fluxscope.config import Config
from fluxscope.errors import MissingInputError


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    image_id: int
    prompt_idx: int
    rep_idx: int
    seed: int
    prompt: str


def read_prompts(path: Path | str) -> list[str]:
    """Read prompts, one a line; blank lines are skipped.

    Raises:
        MissingInputError: the file is missing, holds no prompt, or is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"prompts file not found: {path}", "Set prompts_path to a file, one prompt a line."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise MissingInputError(
            f"{path} is not UTF-8 text", "Save the prompts as plain UTF-8 text."
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise MissingInputError(f"{path} holds no prompts", "Write at least one prompt, one a line.")
    return prompts


def plan_jobs(config: Config) -> list[Job]:
    """Every picture of the run, in manifest order; seed = base_seed + reps_per_prompt x prompt + rep."""
    assert config.prompts_path is not None
    prompts = read_prompts(config.prompts_path)
    if config.max_prompts:
        prompts = prompts[: config.max_prompts]
    reps = config.reps_per_prompt
    return [
        Job(p * reps + r, p, r, config.base_seed + reps * p + r, prompt)
        for p, prompt in enumerate(prompts)
        for r in range(reps)
    ]
