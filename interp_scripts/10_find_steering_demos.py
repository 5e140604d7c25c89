"""Step 10: find the steering demos that change the picture most."""

from front_door import script

if __name__ == "__main__":
    script("find-demos")
