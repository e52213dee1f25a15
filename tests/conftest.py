"""What holds for all tests: the same random numbers in each, whichever ran before it."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import settings

from tests.examples import PROFILE

settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed before the fixtures of a test: networks that it builds start with the same weights every time."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
