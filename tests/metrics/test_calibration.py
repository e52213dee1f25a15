"""Reliability and temperature, against scikit-learn, statsmodels and scipy, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from statsmodels.discrete.discrete_model import Logit
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.proportion import proportion_confint

from kdml_med.metrics.calibration import (
    bins_for,
    calibration_intercept,
    calibration_slope,
    fit_temperature,
    reliability,
    scale_by_temperature,
)
from tests.examples import examples


def cohort(n: int, seed: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn at the probabilities σ(z), and the probabilities σ(sharpness · z) that a network says."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, n).clip(-3.5, 3.5)  # none so sure that its temperature would be cut
    return (generator.uniform(size=n) < expit(logits)).astype(int), expit(sharpness * logits)


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_bins_are_those_of_scikit_learn(bins: int) -> None:
    labels, values = cohort(200, 0, 2.0)
    found = reliability(labels, values, bins=bins)
    observed, predicted = calibration_curve(labels, values, n_bins=bins, strategy="quantile")
    np.testing.assert_allclose(found.observed, observed, atol=1e-9)
    np.testing.assert_allclose(found.predicted, predicted, atol=1e-9)
    assert (found.n == 200 / bins).all()
    successes = np.round(found.observed * found.n)
    low, high = proportion_confint(successes, found.n, method="wilson")
    np.testing.assert_allclose(found.low, low, atol=1e-9)
    np.testing.assert_allclose(found.high, high, atol=1e-9)


@pytest.mark.parametrize(("answers", "bins"), [(0, 2), (22, 2), (51, 5), (109, 10), (100_000, 10)])
def test_few_answers_have_few_bins(answers: int, bins: int) -> None:
    assert bins_for(answers) == bins


@settings(max_examples=examples(30), deadline=None)
@given(st.permutations(range(24)), st.integers(1, 12))
def test_equal_answers_are_in_one_bin_whatever_the_order_of_their_rows(rows: list[int], bins: int) -> None:
    values = np.repeat([0.0, 0.1, 0.5, 0.75], [2, 10, 9, 3])
    labels = np.arange(24) % 3 == 0
    whole, mixed = (reliability(labels[own], values[own], bins=bins) for own in (np.arange(24), rows))
    for name in ("predicted", "observed", "low", "high", "n"):
        np.testing.assert_allclose(getattr(mixed, name), getattr(whole, name))
    assert whole.n.sum() == 24
    assert len(whole.n) <= min(bins, 4)
    if bins == 12:  # a cut inside every value: each is a bin of its own
        np.testing.assert_allclose(whole.predicted, [0, 0.1, 0.5, 0.75])
        np.testing.assert_array_equal(whole.n, [2, 10, 9, 3])


def test_reliability_by_hand() -> None:
    found = reliability([0, 1, 0, 1, 1], [0.1, 0.9, 0.2, 0.6, 0.3], bins=2)
    np.testing.assert_allclose(found.predicted, [0.2, 0.75])
    np.testing.assert_allclose(found.observed, [1 / 3, 1.0])
    assert found.n.tolist() == [3, 2]
    assert reliability([0, 1], [0.1, 0.9], bins=10).n.tolist() == [1, 1]


@pytest.mark.parametrize(("labels", "values"), [([], []), ([0, 1], [0.5, math.nan])])
def test_there_are_no_bins_of_nothing(labels: list[int], values: list[float]) -> None:
    assert len(reliability(labels, values).n) == 0
    with pytest.raises(ValueError, match="at least 1"):
        reliability(labels, values, bins=0)


@settings(max_examples=examples(30))
@given(st.integers(0, 1000), st.integers(20, 200), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_temperature_is_the_inverse_slope_of_a_logistic_regression(seed: int, n: int, sharpness: float) -> None:
    labels, values = cohort(n, seed, sharpness)
    found = fit_temperature(labels, values)
    if math.isnan(found):
        wrong = (labels == 1) != (values > 0.5)
        logits = logit(values)
        assert not wrong.any() or (logits * (labels - 0.5)).sum() <= 0
        return
    fitted = Logit(labels, logit(values)[:, None]).fit(disp=0, method="newton", tol=1e-14, maxiter=200)
    assert 1 / found == pytest.approx(fitted.params[0], rel=1e-9)


def test_the_temperature_makes_the_labels_most_likely() -> None:
    labels, values = cohort(500, 3, 3.0)
    found = fit_temperature(labels, values)
    best = minimize_scalar(
        lambda t: log_loss(labels, scale_by_temperature(values, t)), bounds=(0.1, 20), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(best.x, abs=1e-4)  # where the loss is flat, its minimum is found to half the digits
    assert log_loss(labels, scale_by_temperature(values, found)) <= best.fun + 1e-12
    assert found == pytest.approx(3, rel=0.2)  # as it was made


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([0, 1], [0.2, 0.9]),  # the surer the better
        ([0, 1], [0.8, 0.3]),  # the less sure the better
        ([0, 1], [0.5, 0.5]),
        ([1, 1], [0.7, 0.9]),
        ([], []),
        ([0, 1], [0.2, math.nan]),
    ],
)
def test_no_temperature_is_best(labels: list[int], values: list[float]) -> None:
    assert math.isnan(fit_temperature(labels, values))


def test_certain_answers_have_a_temperature() -> None:
    # Right three times of four: at the logit of 1 − 1e-7 divided by T, the probability is to be 3/4.
    found = fit_temperature([1, 1, 1, 0], [1.0, 1.0, 1.0, 1.0])
    assert found == pytest.approx(logit(1 - 1e-7) / math.log(3), rel=1e-9)


@settings(max_examples=examples(40))
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.05, 50))
def test_scaling_keeps_the_order_and_the_decision_at_one_half(values: list[float], temperature: float) -> None:
    ordered = np.sort(values)
    scaled = scale_by_temperature(ordered, temperature)
    assert (np.diff(scaled) >= 0).all()
    assert ((scaled > 0.5) <= (ordered > 0.5)).all()
    assert ((scaled >= 0) & (scaled <= 1)).all()
    np.testing.assert_allclose(scale_by_temperature(ordered, 1.0), ordered, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="expected above 0"):
        scale_by_temperature([0.5], temperature)


@pytest.mark.parametrize(("n", "stretch", "shift"), [(30, 1.0, 0.0), (200, 0.5, 1.0), (2000, 1.2, -2.0)])
def test_intercept_and_slope_are_those_of_statsmodels(n: int, stretch: float, shift: float) -> None:
    generator = np.random.default_rng(n)
    logits = generator.normal(0, 2, n)
    labels = (generator.random(n) < expit(0.7 * logits)).astype(int)
    probabilities = expit(stretch * logits + shift)
    told = logit(probabilities)
    alone = GLM(labels, np.ones(n), family=Binomial(), offset=told).fit(tol=1e-14)
    line = GLM(labels, np.stack([np.ones(n), told], axis=1), family=Binomial()).fit(tol=1e-14)
    assert calibration_intercept(labels, probabilities) == pytest.approx(alone.params[0], abs=1e-9)
    assert calibration_slope(labels, probabilities) == pytest.approx(line.params[1], abs=1e-9)


def test_probabilities_that_are_right_have_intercept_0_and_slope_1() -> None:
    labels, probabilities = [1] * 3 + [0] + [1] + [0] * 3, [0.75] * 4 + [0.25] * 4
    assert calibration_intercept(labels, probabilities) == pytest.approx(0, abs=1e-12)
    assert calibration_slope(labels, probabilities) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "values", "intercept"),
    [
        ([], [], False),
        ([1, 1], [0.2, 0.9], False),
        ([0, 1], [0.2, math.nan], False),
        ([0, 0, 1], [0.2, 0.5, 0.5], True),
        ([0, 1, 1], [0.5, 0.5, 0.5], True),
        ([0, 1], [1.0, 0.0], True),
    ],
)
def test_without_a_best_line_there_is_no_slope(labels: list[int], values: list[float], intercept: bool) -> None:
    assert math.isnan(calibration_slope(labels, values))
    assert math.isfinite(calibration_intercept(labels, values)) == intercept
