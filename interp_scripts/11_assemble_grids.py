"""Step 11: assemble steering grids of the demos."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("assemble-grids", Config)
