"""Arithmetic on fields of generated pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.demo.fields import block_mean
from tests.examples import examples


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32])
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3, 8, 28, 224]), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(30))
def test_block_means_are_those_of_each_block(dtype: type, rows: int, columns: int, factor: int, seed: int) -> None:
    field = np.random.default_rng(seed).integers(0, 256, (rows * factor, columns * factor)).astype(dtype)
    found = block_mean(field, factor)
    expected = [
        [
            field[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].mean(dtype=np.float64)
            for c in range(columns)
        ]
        for r in range(rows)
    ]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(expected))
