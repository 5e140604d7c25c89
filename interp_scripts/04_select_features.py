"""Step 4: select the most interpretable features by CLIP coherence."""

from front_door import script

if __name__ == "__main__":
    script("select")
