"""Is an SAE as sparse as its config says? A file that was read as what it is not, is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAR = 4.0
"""An L0 is odd where it is more than so many times k, or as far below it."""
MOST_FEATURES = 10**9


def odd_sparsity(l0: float, config: Mapping[str, Any], tokens: str) -> tuple[str, ...]:
    """A caution where far more features are active, or far fewer, than a checkpoint's config says.

    Args:
        l0: active features a token.
        tokens: which tokens, in words.
    """
    said = _declared_k(config)
    if said is None or said / FAR <= l0 <= said * FAR:
        return ()
    return (
        f"on {tokens} {l0:.1f} features are active, its config says k = {said}: was it read as what it is, "
        "and trained on such activations?",
    )


def _declared_k(config: Mapping[str, Any]) -> int | None:
    """The k that a config names, at whichever place a library keeps it."""
    source = config.get("source_config")
    beside = source if isinstance(source, Mapping) else {}
    inner = [beside.get(name) for name in ("trainer", "activation_fn_kwargs")]
    for place in (config, beside, *inner):
        for name in ("topk_k", "k"):
            value = place.get(name) if isinstance(place, Mapping) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
                return int(min(value, MOST_FEATURES))
    return None
