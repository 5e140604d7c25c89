"""Run the pipeline: --steps 1,2,3, --all, --layer 5; settings are in config.py beside this file."""

from front_door import script

if __name__ == "__main__":
    script("run")
