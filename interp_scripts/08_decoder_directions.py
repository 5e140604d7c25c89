"""Step 8: show the selected features' encoder and decoder directions."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("decoder", Config)
