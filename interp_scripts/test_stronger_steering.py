"""A small bench: one feature on one prompt, at several strengths over several ranges of steps."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("steer-bench", Config)
