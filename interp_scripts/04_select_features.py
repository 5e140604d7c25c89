"""Step 4: select the most interpretable features by CLIP coherence."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("select", Config)
