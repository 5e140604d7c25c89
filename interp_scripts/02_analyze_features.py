"""Step 2: find alive, dead, rare and common features."""

from front_door import script

if __name__ == "__main__":
    script("analyze")
