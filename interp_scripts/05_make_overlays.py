"""Step 5: draw where in its pictures each selected feature is active."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("overlays", Config)
