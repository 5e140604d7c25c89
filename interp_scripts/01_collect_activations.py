"""Step 1: generate the pictures and collect SAE feature activations."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("collect", Config)
