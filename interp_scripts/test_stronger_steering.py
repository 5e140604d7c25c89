"""A small bench: one feature on one prompt, at several strengths over several ranges of steps."""

from front_door import script

if __name__ == "__main__":
    script("steer-bench")
