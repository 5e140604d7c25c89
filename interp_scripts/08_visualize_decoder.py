"""Step 8: show the selected features' encoder and decoder directions."""

from front_door import script

if __name__ == "__main__":
    script("decoder")
