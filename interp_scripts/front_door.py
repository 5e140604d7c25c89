"""What every file of this folder comes through: it finds fluxscope, and starts the command behind a script.

Where fluxscope isn't installed, it is taken from the clone's own src/. The folder that a script is started
from plays no part.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLONE = HERE.parent
NEEDED = ("torch", "diffusers", "transformers", "numpy", "scipy", "PIL", "zarr", "typer", "rich", "jaxtyping")

if importlib.util.find_spec("fluxscope") is None:
    sys.path.append(str(CLONE / "src"))


def script(command: str) -> None:
    """Run a command of fluxscope with the settings of config.py and the flags that were given."""
    missing = [name for name in ("fluxscope", *NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"error: not installed for {sys.executable}: {', '.join(missing)}\n"
            f"  Run `make setup` in {CLONE}, then the script with {CLONE / '.venv' / 'bin' / 'python'}."
        )
    from fluxscope.commands.stop import clear_stop

    with clear_stop():
        from fluxscope.commands.main import script as start

        start(command, HERE / "config.py")
