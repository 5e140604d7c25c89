"""The settings of a run: one frozen dataclass, checked when it is made.

A setting left at None takes the value that fits the model. Where settings come from: `load`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fluxscope.errors import ConfigError, brief
from fluxscope.fields import Declared, declared
from fluxscope.models.families import default_settings
from fluxscope.settings.features import Analysis, Drawing, Selection
from fluxscope.settings.pictures import Capture, Sampling, same_range, same_share
from fluxscope.settings.places import ModelChoice, Places
from fluxscope.settings.saes import Saes, block_of, with_bundled
from fluxscope.settings.steering import Demos, Steering


# A dataclass takes the fields of its bases from the last to the first: read the list from below.
@dataclass(frozen=True)
class Config(Demos, Steering, Drawing, Selection, Analysis, Capture, Sampling, Saes, ModelChoice, Places):
    """Every setting of a run. What needs one concern only takes that: a Config is a Sampling, a Steering, ...

    Raises:
        ConfigError: a setting is unknown, of the wrong type, or out of range.
    """

    def __post_init__(self) -> None:
        refuse_strays(type(self))
        super().__post_init__()
        self._take_what_fits_the_model()
        self.choose_site()
        assert self.num_inference_steps is not None
        self.check_steps(self.num_inference_steps)
        if self.patch_grid is None:
            object.__setattr__(self, "patch_grid", self.image_token_grid)
        elif self.patch_grid != self.image_token_grid:
            raise ConfigError(
                f"patch_grid {self.patch_grid} does not fit a picture of {self.height} x {self.width}",
                f"Leave it at None, or set it to {self.image_token_grid}.",
            )

    def _take_what_fits_the_model(self) -> None:
        """Fill in what is None. The model's own SAEs are left out where `saes` says which there are.

        A run of which nobody says what it is about is about the model's own site, if it has one.
        """
        defaults = dict(default_settings(self.model_id))
        own = defaults["num_inference_steps"]
        n_steps = own if self.num_inference_steps is None else self.num_inference_steps
        defaults["target_step_number"] = same_share(defaults["target_step_number"], own, n_steps)
        defaults["steer_steps"] = same_range(defaults["steer_steps"], own, n_steps)
        numbered = {f"double.{n}.ff": path for n in (5, 15) if (path := defaults.get(f"layer{n}_sae_path"))}
        its_own = defaults.pop("saes", {})
        if self.saes:
            object.__setattr__(self, "saes", with_bundled(self.saes, its_own | numbered, self.model_id))
            defaults = {**defaults, "layer5_sae_path": "", "layer15_sae_path": ""}
        elif self.active_site in its_own or (its_own and self.says_nothing_of_saes):
            site = self.active_site or next(iter(its_own))
            defaults |= {"saes": its_own, "active_site": site, "active_layer": block_of(site)}
            object.__setattr__(self, "compare", self.compare or tuple(numbered))
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


def settings_table() -> dict[str, Declared]:
    """Every setting by name, with its default, its meaning and its bounds."""
    return declared(Config)


def reject_unknown(names: Iterable[object]) -> None:
    """Raise ConfigError for the first name that is no setting, naming the nearest one."""
    for name in names:
        if name not in settings_table():
            near = difflib.get_close_matches(str(name), settings_table(), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else "docs/help.md lists the settings."
            raise ConfigError(f"unknown setting: {brief(name)[1:-1]}", hint)


def refuse_strays(kind: type[Config]) -> None:
    """Refuse what a settings file's Config class says in vain.

    Raises:
        ConfigError: it has a name that is no setting, a setting without its type, or no @dataclass.
    """
    for each in kind.__mro__[: kind.__mro__.index(Config)]:
        own = vars(each)
        typed = own.get("__annotations__", {})
        values = [name for name, value in own.items() if not name.startswith("_") and not _is_code(value)]
        reject_unknown([*typed, *values])
        untyped = next((name for name in values if name not in typed), None)
        if untyped:
            hint = f"Write its type beside it, as interp_scripts/config.py does: {untyped}: ... = ..."
            raise ConfigError(f"{untyped} has no type in class {each.__name__}, so it would be ignored", hint)
        if typed and "__dataclass_fields__" not in own:
            raise ConfigError(
                f"class {each.__name__} is no dataclass, so its settings would be ignored",
                "Write @dataclass(frozen=True) above it.",
            )


def _is_code(value: object) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def make_config(kind: type[Config] = Config, **overrides: Any) -> Config:
    """A Config with the given settings, an unknown one refused with the nearest name.

    A block given here wins over the site that `kind` says; where it has several SAEs, 5 and 15 mean those
    that scripts know by these numbers.
    """
    reject_unknown(overrides)
    site, layer = overrides.get("active_site"), overrides.get("active_layer")
    if isinstance(site, str) and layer is not None and block_of(site) != layer:
        raise ConfigError(f"active_site {site} is not in block {brief(layer)}", "Leave out active_layer.")
    if layer is not None:
        overrides.setdefault("active_site", None)
    config = kind(**overrides)
    if layer is None or site or config.number_of(config.site) is not None:
        return config
    numbered = config.numbered_site(layer)
    return replace(config, active_site=numbered) if numbered in config.sae_paths else config


def overridden(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Older settings overridden by newer ones. Site and block say the same thing: the newer one stays."""
    if not {"active_site", "active_layer"}.isdisjoint(newer):
        older = {name: value for name, value in older.items() if name not in ("active_site", "active_layer")}
    return {**older, **newer}
