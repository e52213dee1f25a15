"""Net benefit, by hand and by its properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.metrics.decision import decision_curve
from tests.examples import examples

answers = st.lists(st.tuples(st.booleans(), st.integers(0, 8).map(lambda level: level / 8)), min_size=1, max_size=25)


def test_net_benefit_by_hand() -> None:
    # Ten patients, three of them positive. From 0.25 on, two true and one false positive are treated, the false one
    # at the odds 1/3; from 0.5 on one of each, at the odds 1.
    labels = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    values = [0.9, 0.3, 0.1, 0.6, 0, 0, 0, 0, 0, 0]
    found = decision_curve(labels, values, thresholds=[0.05, 0.25, 0.5])
    np.testing.assert_allclose(found.model, [0.3 - 0.1 / 19, 0.2 - 0.1 / 3, 0.1 - 0.1], atol=1e-12)
    np.testing.assert_allclose(found.treat_all, [0.3 - 0.7 / 19, 0.3 - 0.7 / 3, 0.3 - 0.7], atol=1e-12)


@settings(max_examples=examples(50))
@given(answers)
def test_net_benefit_counts_patients_one_by_one(pairs: list[tuple[bool, float]]) -> None:
    found = decision_curve(*zip(*pairs, strict=True))
    np.testing.assert_allclose(found.thresholds, np.linspace(0.01, 0.99, 99), atol=1e-12)
    for threshold, model, everybody in zip(found.thresholds, found.model, found.treat_all, strict=True):
        worth = [1.0 if label else -threshold / (1 - threshold) for label, _ in pairs]
        treated = [one for one, (_, value) in zip(worth, pairs, strict=True) if value >= threshold]
        assert model == pytest.approx(sum(treated) / len(pairs), abs=1e-9)
        assert everybody == pytest.approx(sum(worth) / len(pairs), abs=1e-9)


def test_calling_everybody_positive_is_to_treat_all_and_a_perfect_model_has_the_prevalence() -> None:
    labels = [1, 0, 0, 1]
    certain = decision_curve(labels, [1, 1, 1, 1])
    np.testing.assert_allclose(certain.model, certain.treat_all, atol=1e-12)
    np.testing.assert_allclose(decision_curve(labels, [1, 0, 0, 1]).model, 0.5, atol=1e-12)


def test_what_is_not_defined_is_nan() -> None:
    assert np.isnan(decision_curve([], []).model).all()
    lost = decision_curve([0, 1], [0.5, math.nan])
    assert np.isnan(lost.model).all()
    assert not np.isnan(lost.treat_all).any()


@pytest.mark.parametrize("thresholds", [[0.0, 0.5], [0.5, 1.0], [math.nan], [[0.5]]])
def test_thresholds_without_odds_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        decision_curve([0, 1], [0.1, 0.9], thresholds=thresholds)


@pytest.mark.parametrize(("positives", "limit"), [(10, 0.5), (90, 0.9), (1, 1 / 11), (0, 1.0)])
def test_a_curve_is_drawn_to_where_one_false_positive_weighs_a_tenth_of_all_positives(
    positives: int, limit: float
) -> None:
    labels = [1] * positives + [0] * 20
    found = decision_curve(labels, [0.5] * len(labels))
    assert found.limit == pytest.approx(limit, abs=1e-12)
    if positives:
        assert found.limit / (1 - found.limit) / len(labels) == pytest.approx(0.1 * positives / len(labels), abs=1e-12)
