"""The SAEs that edits may use: those of the settings, and those that ship with the model for steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxscope.errors import ConfigError
from fluxscope.settings.config import Config
from fluxscope.shapes.shipped import FLUX_SHAPES, STEERING_SAES, TEXT_SAES, resolve

if TYPE_CHECKING:
    from fluxscope.models.spec import ModelSpec
    from fluxscope.sae import LinearSae


class SaeShelf:
    """SAEs by site, loaded when they are first asked for.

    Args:
        spec: the model's shape, which they must fit.
        device: auto (the model's), cpu, cuda or cuda:N.
    """

    def __init__(self, config: Config, spec: ModelSpec, device: str) -> None:
        self._config, self._spec, self._device = config, spec, device
        ours = resolve(config.model_id) == resolve(FLUX_SHAPES)
        shipped = {**STEERING_SAES, **TEXT_SAES} if ours else {}
        self.paths = {**{site: str(path) for site, path in shipped.items()}, **config.sae_paths}
        self._loaded: dict[str, tuple[LinearSae, str]] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Where edits act when nothing else is said: attention outputs, or all sites where none has an SAE.

        What a model draws is decided there (docs/explanation/site-map.md).
        """
        attention = tuple(site for site in self.paths if site.endswith(".attn"))
        return attention or tuple(self.paths)

    def __call__(self, site: str) -> tuple[LinearSae, str]:
        """A site's SAE and the hash of its contents.

        Raises:
            ConfigError: none is set for it, or the model lacks the site.
            CheckpointError: it is missing, damaged, or of another width.
        """
        if site not in self._loaded:
            if site not in self.paths:
                raise ConfigError(
                    f"no SAE is set for {site}",
                    f"Give --sae {site}=PATH. SAEs are set for {', '.join(self.paths) or 'no site'}.",
                )
            self._loaded[site] = self._load(site)
        return self._loaded[site]

    def _load(self, site: str) -> tuple[LinearSae, str]:
        from fluxscope.models.placement import pick_device
        from fluxscope.models.sites import parse_site
        from fluxscope.run.recorders import check_width
        from fluxscope.sae.formats import load

        self._spec.check_site(parse_site(site))
        sae, info = load(self.paths[site], pick_device(self._device, fallback="cpu"))
        check_width(self._config, site, self.paths[site], sae, self._spec)
        return sae, info.sha256()
