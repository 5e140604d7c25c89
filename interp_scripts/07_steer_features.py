"""Step 7: steer the selected features."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("steer", Config)
