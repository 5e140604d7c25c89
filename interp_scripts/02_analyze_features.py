"""Step 2: find alive, dead, rare and common features."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("analyze", Config)
