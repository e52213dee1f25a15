"""Make a dataset of tiles that exist: `python -m preprocessing.import_tiles SOURCE --out DIR`."""

from kdml_med.program import run
from kdml_med.programs.import_tiles import import_tiles

if __name__ == "__main__":
    run(import_tiles)
