"""One labelled sheet of all the steering grids that step 11 made."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("steering-sheet", Config)
