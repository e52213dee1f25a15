"""What a number of seeds could have shown, against published sizes and simulated trainings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from statsmodels.stats.power import TTestPower

from kdml_med.metrics import detectable_difference, pairs_needed
from kdml_med.metrics.power import power_of_pairs
from tests.examples import examples


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_pairs_for_small_medium_and_large_effects_are_those_of_cohen(effect, pairs):
    """Paired t-test, two-sided at 0.05, power 0.80: the sizes that G*Power and Cohen's tables give."""
    assert pairs_needed(effect, 1.0) == pairs
    assert pairs_needed(2 * effect, 2.0) == pairs
    assert detectable_difference(1.0, pairs) <= effect < detectable_difference(1.0, pairs - 1)


@pytest.mark.parametrize(("effect", "pairs", "alpha"), [(0.7, 8, 0.05), (1.5, 5, 0.01), (0.0, 6, 0.05)])
def test_the_chance_is_how_often_simulated_trainings_show_the_difference(effect, pairs, alpha):
    drawn = np.random.default_rng(0).normal(effect, 1.0, (20_000, pairs))
    often = (ttest_1samp(drawn, 0, axis=1).pvalue < alpha).mean()
    assert power_of_pairs(effect, 1.0, pairs, alpha=alpha) == pytest.approx(often, abs=0.012)


@pytest.mark.parametrize("pairs", [2, 3, 8, 20, 200])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8, 0.001])
def test_the_chance_is_that_of_statsmodels(pairs, alpha):
    for difference in np.array([0.0, 0.1, 0.5, 1.0, 2.0, 4.0]) / np.sqrt(pairs):
        expected = TTestPower().power(difference, pairs, alpha)
        assert power_of_pairs(difference, 1.0, pairs, alpha=alpha) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=examples(40))
@given(st.integers(2, 200), st.sampled_from([0.05, 0.05 / 8, 0.001]))
def test_the_chance_grows_with_the_difference_up_to_one(pairs, alpha):
    chances = [power_of_pairs(difference, 1.0, pairs, alpha=alpha) for difference in np.geomspace(1e-3, 1e6, 60)]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(chances))
    assert chances[-1] == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=examples(40))
@given(st.integers(2, 200), st.floats(1e-5, 10), st.sampled_from([0.05, 0.05 / 8]), st.sampled_from([0.5, 0.8, 0.95]))
def test_what_is_detectable_is_found_with_that_chance_and_needs_as_many_pairs(pairs, sd, alpha, power):
    difference = detectable_difference(sd, pairs, alpha=alpha, power=power)
    assert power_of_pairs(difference, sd, pairs, alpha=alpha) == pytest.approx(power, abs=1e-6)
    assert power_of_pairs(-difference, sd, pairs, alpha=alpha) == pytest.approx(power, abs=1e-6)
    needed = pairs_needed(1.0001 * difference, sd, alpha=alpha, power=power)
    assert needed is not None
    assert needed <= pairs
    assert needed == 2 or power_of_pairs(1.0001 * difference, sd, needed - 1, alpha=alpha) < power


def test_where_nothing_is_known_nothing_is_said():
    assert math.isnan(detectable_difference(0.1, 1))
    assert math.isnan(detectable_difference(math.nan, 5))
    assert math.isnan(power_of_pairs(0.1, 0.0, 5))
    assert pairs_needed(0.002, math.nan) is None
    assert pairs_needed(0.002, 10.0) is None
    assert detectable_difference(0.0, 5) == 0
    assert pairs_needed(0.002, 0.0) == 2
    assert power_of_pairs(1.0, 1e-6, 10) == pytest.approx(1)
