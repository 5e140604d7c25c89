"""Small readers and writers for the files of a result folder, by the names that existing scripts use."""

import front_door as _front_door  # noqa: F401 -- finds fluxscope
from fluxscope.run.manifest import *  # noqa: F403 -- its __all__ lists those names
