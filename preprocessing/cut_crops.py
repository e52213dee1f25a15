"""Cut labelled crops from a dataset of frames: `python -m preprocessing.cut_crops FRAMES --out DIR`."""

from kdml_med.program import run
from kdml_med.programs.cut_crops import main

if __name__ == "__main__":
    run(main)
