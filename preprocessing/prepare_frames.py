"""Turn images and videos into a dataset: `python -m preprocessing.prepare_frames INPUT… --out DIR`."""

from kdml_med.program import run
from kdml_med.programs.prepare_frames import main

if __name__ == "__main__":
    run(main)
