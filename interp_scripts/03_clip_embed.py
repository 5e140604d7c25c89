"""Step 3: embed the pictures with CLIP."""

from front_door import script

if __name__ == "__main__":
    script("clip-embed")
