"""Step 7: steer the selected features."""

from front_door import script

if __name__ == "__main__":
    script("steer")
