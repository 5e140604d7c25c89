"""Step 10: find the steering demos that change the picture most."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("find-demos", Config)
