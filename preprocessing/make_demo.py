"""Generate a cohort with known truth: `python -m preprocessing.make_demo --out DIR`."""

from kdml_med.program import run
from kdml_med.programs.make_demo import make_demo

if __name__ == "__main__":
    run(make_demo)
