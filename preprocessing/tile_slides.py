"""Cut slides into tiles: `python -m preprocessing.tile_slides INPUT… --out DIR`."""

from kdml_med.program import run
from kdml_med.programs.tile_slides import main

if __name__ == "__main__":
    run(main)
