"""Step 6: lay the selected features and their pictures out on one sheet."""

from config import Config
from fluxscope.commands.main import script

if __name__ == "__main__":
    script("contact-sheet", Config)
