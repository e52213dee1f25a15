"""How many examples hypothesis draws, and whether they are new ones each time."""

import os

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
"""``fixed`` draws the same examples every time, so that a test that passes goes on to pass until the code changes;
``random`` draws new ones, and more."""
FACTOR = {"fixed": 1, "random": 5}[PROFILE]

# No deadlines: how long an example takes depends on what else the machine does.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=100 * FACTOR, print_blob=True)


def examples(count: int) -> int:
    """Number of examples of a test that has ``count`` of them in ``make test``."""
    return count * FACTOR
