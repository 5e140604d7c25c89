"""One labelled sheet of all the steering grids that step 11 made."""

from front_door import script

if __name__ == "__main__":
    script("steering-sheet")
