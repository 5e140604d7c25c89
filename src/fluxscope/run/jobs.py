"""The pictures that a run makes: every prompt, so many times, each with a seed of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fluxscope.errors import clean
from fluxscope.run.manifest import read_prompts
from fluxscope.settings.config import Config


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    image_id: int
    prompt_idx: int
    rep_idx: int
    seed: int
    prompt: str


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


def repeated_prompts(jobs: Sequence[Job]) -> str | None:
    """What the user should know where a prompt stands in the file more than once."""
    lines = {job.prompt_idx: job.prompt for job in jobs}
    often = Counter(lines.values())
    repeated = {prompt: count for prompt, count in often.items() if count > 1}
    if not repeated:
        return None
    shown = ", ".join(f"{clean(prompt, 40)!r} {count} times" for prompt, count in list(repeated.items())[:3])
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return (
        f"of {len(lines)} prompts {len(often)} are distinct ({shown}{more}); the same words count as "
        "one prompt wherever distinct ones are asked for"
    )
