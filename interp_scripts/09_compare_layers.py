"""Step 9: compare the features of two layers."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("compare-layers", Config)
