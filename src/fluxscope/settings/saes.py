"""Settings of the SAEs: where each listens, which one the run is about, and which two are compared."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxscope.errors import ConfigError, brief
from fluxscope.fields import Checked, setting
from fluxscope.settings.places import DEVICE

NUMBERED_BLOCKS = (5, 15)
"""Blocks whose SAEs have settings, folders and keys of their own, by which older scripts know them."""

BUNDLED = "bundled"
"""In the place of a path: the SAE that ships with the model for that site."""


def block_of(site: str) -> int:
    """The number of the block that a site, such as double.7.attn, is in.

    Raises:
        ConfigError: the name is not of this form. Which sites a model has is its own to say.
    """
    found = re.fullmatch(r"[a-z]{1,20}\.([0-9]{1,4})(\.[a-z_]{1,20})?", site)
    if not found:
        raise ConfigError(f"unknown site: {brief(site)}", "Give a site such as double.15.ff or single.1.")
    return int(found[1])


@dataclass(frozen=True)
class Saes(Checked):
    """The SAEs, and where they listen."""

    saes: dict[str, str] | None = setting(
        None,
        "SAEs by site, such as double.7.attn=path/to/sae_best.pt, or =bundled for the model's own; the first "
        "is the one that the run is about. None: those of blocks 5 and 15, and of the model's own site.",
    )
    active_site: str | None = setting(
        None, "Site that the run is about. None: the one in active_layer, or the model's own."
    )
    layer5_sae_path: str | None = setting(None, "SAE checkpoint for block 5. None: the model's bundled one.")
    layer15_sae_path: str | None = setting(
        None, "SAE checkpoint for block 15. None: the model's bundled one."
    )
    active_layer: int | None = setting(
        None,
        "Block that the run is about. None: that of the first of saes, of the model's own site (flux-shapes: "
        "double.5.attn), or 15.",
        low=0,
        high=9999,
    )
    site_pattern: str = setting(
        "double.{layer}.ff",
        "Where in blocks 5 and 15 their SAEs listen; {layer} stands for the number.",
        least=1,
    )
    compare_layers: bool = setting(True, "Collect the codes of all SAEs in the same pass, not only one's.")
    compare: tuple[str, ...] = setting(
        (),
        "Two sites whose SAEs step 9 compares, such as double.5.ff,double.7.attn. None: the first two, or "
        "those of blocks 5 and 15.",
    )
    sae_device: str = setting(
        "auto", "Device of the SAEs: auto (the model's), cpu, cuda or cuda:N.", form=DEVICE
    )
    token_chunk_size: int = setting(256, "Tokens encoded at a time.", low=1, high=1_000_000)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a settings file say `saes: dict[str, str] = {...}`, which dataclasses refuse as a default."""
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("saes")
        if isinstance(own, dict):
            cls.saes = dataclasses.field(default_factory=own.copy)

    def __post_init__(self) -> None:
        super().__post_init__()
        for site in (*(self.saes or ()), *self.compare, *([self.active_site] if self.active_site else ())):
            block_of(site)

    def choose_site(self) -> None:
        """Settle which site the run is about, once the SAEs are known that ship with the model.

        Raises:
            ConfigError: it has no SAE, or two; or one of those to be compared has none.
        """
        self._refuse_two_saes_at_a_site()
        if self.active_layer is None or self.active_site:
            site = self.active_site or next(iter(self.saes or ()), None)
            object.__setattr__(self, "active_layer", block_of(site) if site else NUMBERED_BLOCKS[-1])
        self._check_choice()

    def _first_site(self) -> str:
        return self.active_site or next(iter(self.saes or ()), self.numbered_site(NUMBERED_BLOCKS[-1]))

    def _refuse_two_saes_at_a_site(self) -> None:
        for block, path in self._numbered_paths().items():
            site = self.numbered_site(block)
            other = (self.saes or {}).get(site, path)
            if path and other != path:
                raise ConfigError(
                    f"two SAEs are set for {site}: {brief(other)} and {brief(path)}",
                    f"Leave out layer{block}_sae_path, or the entry in saes.",
                )

    def _check_choice(self) -> None:
        """The run is about a site that has an SAE, and so are the two that are compared."""
        if (
            self.compare_layers
            and "{layer}" not in self.site_pattern
            and all(self._numbered_paths().values())
        ):
            raise ConfigError(
                f"both layers' SAEs would listen at {brief(self.site_pattern)[1:-1]}",
                "Write {layer} where the block's number stands in site_pattern, or name the sites in saes.",
            )
        known = self.sae_paths
        words = f"SAEs are set for {', '.join(known)}."
        if known and self.active_site and self.active_site not in known:
            raise ConfigError(f"active_site cannot be {self.active_site}: it has no SAE", words)
        blocks = {*map(block_of, known)} if self.saes else {*NUMBERED_BLOCKS, *map(block_of, known)}
        if not self.active_site and self.active_layer not in blocks:
            raise ConfigError(
                f"active_layer cannot be {self.active_layer}: no SAE is set for that block",
                f"Choose one of: {', '.join(map(str, sorted(blocks)))}; or set saes.",
            )
        if self.compare and (len(self.compare) != 2 or len(set(self.compare)) != 2):
            raise ConfigError(f"compare cannot be {','.join(self.compare)}", "Give two sites with a comma.")
        missing = [site for site in self.compare if known and site not in known]
        if missing:
            raise ConfigError(f"compare names {missing[0]}, which has no SAE", words)

    @property
    def says_nothing_of_saes(self) -> bool:
        """Whether it is left to the model which SAEs there are and which one the run is about."""
        said = (self.saes, self.active_site, self.active_layer, self.layer5_sae_path, self.layer15_sae_path)
        pattern = type(self).__dataclass_fields__["site_pattern"].default
        return all(value is None for value in said) and self.site_pattern == pattern

    def numbered_site(self, block: int) -> str:
        """Where the SAE of block 5 or 15 listens."""
        return self.site_pattern.replace("{layer}", str(block))

    def number_of(self, site: str) -> int | None:
        """5 or 15 where this is the site that older scripts know by that number; else None."""
        return next((block for block in NUMBERED_BLOCKS if site == self.numbered_site(block)), None)

    def _numbered_paths(self) -> dict[int, str | None]:
        return {5: self.layer5_sae_path, 15: self.layer15_sae_path}

    @property
    def sae_paths(self) -> dict[str, str]:
        """The checkpoint of every site that has one: those of `saes` in their order, then blocks 5 and 15."""
        paths = dict(self.saes or {})
        for block, path in self._numbered_paths().items():
            if path and ("{layer}" in self.site_pattern or block == self.active_layer):
                paths.setdefault(self.numbered_site(block), path)
        return paths

    @property
    def site(self) -> str:
        """The site that the run is about."""
        if self.active_site or self.active_layer is None:
            return self._first_site()
        here = (site for site in self.sae_paths if block_of(site) == self.active_layer)
        return next(here, self.numbered_site(self.active_layer))

    @property
    def sae_ckpt_path(self) -> str:
        """The checkpoint of the site that the run is about.

        Raises:
            ConfigError: none is set.
        """
        return self.sae_path(self.site)

    def sae_path(self, site: str) -> str:
        """A site's checkpoint.

        Raises:
            ConfigError: none is set.
        """
        if site not in self.sae_paths:
            block = self.number_of(site)
            raise ConfigError(
                f"no SAE checkpoint is set for {'layer ' + str(block) if block else site}",
                f"Set {f'layer{block}_sae_path' if block else 'saes'}, or train one with fluxscope train.",
            )
        return self.sae_paths[site]

    @property
    def collected_sites(self) -> tuple[str, ...]:
        """The site that the run is about and, unless they are to be left out, all others that have an SAE."""
        others = [site for site in self.sae_paths if site != self.site]
        return (self.site, *(others if self.compare_layers else ()))

    @property
    def compared_sites(self) -> tuple[str, ...]:
        """The sites that step 9 compares: two, or fewer where there are not as many SAEs."""
        return self.compare or tuple(self.sae_paths)[:2]


def with_bundled(saes: Mapping[str, str], bundled: Mapping[str, str], model_id: str) -> dict[str, str]:
    """The SAEs with the paths of those that ship with the model.

    Raises:
        ConfigError: none ships for a site.
    """
    missing = [site for site, path in saes.items() if path == BUNDLED and site not in bundled]
    if missing:
        words = f"It ships some for {', '.join(bundled)}." if bundled else "It ships none: give its path."
        raise ConfigError(f"{brief(model_id)} ships no SAE for {brief(missing[0])}", words)
    return {site: bundled[site] if path == BUNDLED else path for site, path in saes.items()}
