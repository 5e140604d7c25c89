"""Step 11: assemble steering grids of the demos."""

from front_door import script

if __name__ == "__main__":
    script("assemble-grids")
