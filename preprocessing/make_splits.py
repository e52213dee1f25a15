"""Decide which patients train, validate and test: `python -m preprocessing.make_splits DATASET`."""

from kdml_med.program import run
from kdml_med.programs.make_splits import command

if __name__ == "__main__":
    run(command)
