"""Step 9: compare the features of two layers."""

from front_door import script

if __name__ == "__main__":
    script("compare-layers")
