"""The wheel, see tests/wheel.py; `make wheel-test` runs the same."""

import pytest

from tests import wheel


@pytest.mark.slow
def test_the_wheel_alone_does_everything_from_an_empty_folder() -> None:
    wheel.main()
