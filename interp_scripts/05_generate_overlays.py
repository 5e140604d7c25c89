"""Step 5: draw where in its pictures each selected feature is active."""

from front_door import script

if __name__ == "__main__":
    script("overlays")
