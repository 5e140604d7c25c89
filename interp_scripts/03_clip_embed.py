"""Step 3: embed the pictures with CLIP."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("clip-embed", Config)
