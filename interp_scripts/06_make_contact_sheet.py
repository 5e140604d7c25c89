"""Step 6: lay the selected features and their pictures out on one sheet."""

from front_door import script

if __name__ == "__main__":
    script("contact-sheet")
