"""Forward hooks under the names that existing scripts import. See fluxscope.models.script_hooks."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope.models.script_hooks import (
    EncodeDecodeSteeringHook,
    FeatureSteeringHook,
    MultiFeatureSteeringHook,
    StepActivationCatcher,
)

__all__ = [
    "EncodeDecodeSteeringHook",
    "FeatureSteeringHook",
    "MultiFeatureSteeringHook",
    "StepActivationCatcher",
]
