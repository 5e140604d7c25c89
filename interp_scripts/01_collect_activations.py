"""Step 1: generate the pictures and collect SAE feature activations."""

from front_door import script

if __name__ == "__main__":
    script("collect")
