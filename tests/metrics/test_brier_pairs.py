"""Brier scores of two ways to train, compared in pairs, against scikit-learn and a loop over all exchanges."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from kdml_med.metrics import BrierScores, ClassificationScores, compare
from tests.examples import examples

LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 1])
UNITS = np.array([0, 1, 2, 3, 4, 5, 5, 0, 1, 2, 3, 4])


def network(seed: int, skill: float = 1.0) -> BrierScores:
    values = np.random.default_rng(seed).normal(skill * LABELS)
    return BrierScores.of(np.arange(12), LABELS, 1 / (1 + np.exp(-values)), units=UNITS)


@settings(max_examples=examples(30))
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(any))
def test_the_value_is_that_of_scikit_learn_with_each_sample_counted_as_often_as_said(seed, weights):
    scores = network(seed)
    found = scores.value(np.array([weights, [1] * 12]))
    expected = [brier_score_loss(LABELS, scores.probabilities, sample_weight=own) for own in (weights, [1] * 12)]
    assert found.tolist() == pytest.approx(expected)


def test_without_samples_there_is_no_value_and_a_nan_makes_every_value_one():
    assert math.isnan(network(0).value(np.zeros((1, 12), np.int64))[0])
    broken = BrierScores.of(np.arange(2), [0, 1], [0.5, math.nan])
    assert math.isnan(broken.value(np.ones((1, 2), np.int64))[0])


def test_the_p_value_is_that_of_a_loop_in_which_patients_change_networks_as_they_are():
    a, b = [[network(seed, 2.0)] for seed in (1, 2)], [[network(seed, 0.5)] for seed in (3, 4)]
    found = compare(a, b, resamples=0, permutations=64)
    slow = []
    for swapped in product([False, True], repeat=6):
        exchanged = np.array(swapped)[UNITS]
        differences = [
            brier_score_loss(LABELS, np.where(exchanged, other.probabilities, one.probabilities))
            - brier_score_loss(LABELS, np.where(exchanged, one.probabilities, other.probabilities))
            for (one,), (other,) in zip(a, b, strict=True)
        ]
        slow.append(np.mean(differences))
    assert found.difference == pytest.approx(slow[0])
    assert found.p_value == np.mean(np.abs(slow) >= abs(slow[0]) - 1e-12)
    assert found.exact


def test_calibration_counts_where_the_order_is_the_same():
    plain = network(1)
    sharp = BrierScores.of(np.arange(12), LABELS, plain.probabilities**5, units=UNITS)
    assert compare([[plain]], [[sharp]], resamples=0).difference != 0
    auroc = [ClassificationScores.of(np.arange(12), LABELS, one.probabilities) for one in (plain, sharp)]
    assert compare([[auroc[0]]], [[auroc[1]]], resamples=0).difference == 0


def test_brier_scores_and_areas_are_not_compared():
    area = ClassificationScores.of(np.arange(12), LABELS, network(1).probabilities, units=UNITS)
    with pytest.raises(ValueError, match="the statistics brier and auroc cannot be compared"):
        compare([[network(1)]], [[area]], resamples=0)


def test_the_spread_over_seeds_is_that_of_their_differences():
    a, b = [[network(seed)] for seed in (1, 2, 3)], [[network(seed)] for seed in (4, 5, 6)]
    once = np.ones((1, 12), np.int64)
    own = [one.value(once)[0] - other.value(once)[0] for (one,), (other,) in zip(a, b, strict=True)]
    assert compare(a, b, resamples=0).seed_sd == pytest.approx(np.std(own, ddof=1))
    assert math.isnan(compare(a[:1], b[:1], resamples=0).seed_sd)


def test_differences_that_are_equal_but_for_rounding_have_no_spread():
    ids, labels, once = np.arange(4), np.array([0, 1, 0, 1]), np.ones((1, 4), dtype=np.int64)
    first, second = (
        [[BrierScores.of(ids, labels, np.where(labels, positive, negative))] for negative in (0.1, 0.2, 0.3)]
        for positive in (0.5, 0.3)
    )
    values = [float((a.value(once) - b.value(once))[0]) for (a,), (b,) in zip(first, second, strict=True)]
    assert len(set(values)) > 1  # by rounding alone
    assert compare(first, second, resamples=0, permutations=0).seed_sd == 0
