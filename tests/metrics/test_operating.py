"""Figures at one threshold, against statsmodels, scikit-learn, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student
from sklearn import metrics as reference
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from kdml_med.metrics.operating import Confusion, Proportion, figures_at, youden_threshold
from tests.examples import examples

answers = st.lists(st.tuples(st.booleans(), st.integers(0, 8).map(lambda level: level / 8)), min_size=1, max_size=25)


@settings(max_examples=examples(100))
@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_those_of_statsmodels(counts: tuple[int, int]) -> None:
    successes, n = counts
    found = Proportion.of(successes, n)
    assert (found.successes, found.n) == counts
    if n == 0:
        assert np.isnan([found.value, found.low, found.high]).all()
        return
    low, high = proportion_confint(successes, n, method="wilson")
    assert found.value == successes / n
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_interval_of_none_of_ten_by_hand() -> None:
    # z² / (n + z²) is the upper limit of Wilson's interval when nothing succeeds.
    z2 = 1.959963984540054**2
    assert Proportion.of(0, 10) == Proportion(0.0, 0.0, pytest.approx(z2 / (10 + z2), abs=1e-12), 0, 10)
    assert Proportion.of(10, 10).high == 1


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_counts_that_are_no_share_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        Proportion.of(successes, n)


def test_figures_by_hand() -> None:
    #          fn   tp   tp   tn   tn   fp: a probability of the threshold itself is positive
    labels = [1, 1, 1, 0, 0, 0]
    found = figures_at(labels, [0.1, 0.5, 0.9, 0.2, 0.4, 0.7], 0.5)
    assert found.confusion == Confusion(tp=2, fp=1, fn=1, tn=2)
    assert found.confusion.n == 6
    shares = {name: (one.successes, one.n) for name, one in vars(found).items() if isinstance(one, Proportion)}
    assert shares == {
        "sensitivity": (2, 3), "specificity": (2, 3), "ppv": (2, 3), "npv": (2, 3), "ruled_out": (3, 6),
        "accuracy": (4, 6),
    }  # fmt: skip


@settings(max_examples=examples(60))
@given(answers, st.integers(0, 9).map(lambda level: level / 8))
def test_figures_are_those_of_scikit_learn(pairs: list[tuple[bool, float]], threshold: float) -> None:
    labels, values = (np.array(column) for column in zip(*pairs, strict=True))
    called = values >= threshold
    found = figures_at(labels, values, threshold)
    tn, fp, fn, tp = reference.confusion_matrix(labels, called, labels=[False, True]).ravel()
    assert found.confusion == Confusion(tp, fp, fn, tn)
    assert found.accuracy.value == pytest.approx(reference.accuracy_score(labels, called), abs=1e-9)
    for share, truth, decision in (
        (found.sensitivity, labels, called),
        (found.specificity, ~labels, ~called),
    ):
        if truth.any():
            assert share.value == pytest.approx(reference.recall_score(truth, decision), abs=1e-9)
        else:
            assert math.isnan(share.value)
    for share, truth, decision in ((found.ppv, labels, called), (found.npv, ~labels, ~called)):
        if decision.any():
            assert share.value == pytest.approx(reference.precision_score(truth, decision), abs=1e-9)
        else:
            assert math.isnan(share.value)


@pytest.mark.parametrize(("values", "threshold"), [([0.1, math.nan], 0.5), ([0.1, 0.9], math.nan)])
def test_nothing_is_decided_where_a_number_is_missing(values: list[float], threshold: float) -> None:
    found = figures_at([0, 1], values, threshold)
    assert found.confusion == Confusion(0, 0, 0, 0)
    assert all(math.isnan(one.value) and one.n == 0 for one in vars(found).values() if isinstance(one, Proportion))


def test_figures_of_nobody() -> None:
    assert figures_at([], [], 0.5).accuracy.n == 0


@settings(max_examples=examples(60))
@given(answers)
def test_the_youden_threshold_is_the_first_best_of_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    labels, values = (np.array(column) for column in zip(*pairs, strict=True))
    found = youden_threshold(labels, values)
    if labels.all() or not labels.any():
        assert math.isnan(found)
        return
    false, true, thresholds = reference.roc_curve(labels, values, drop_intermediate=False)
    index = np.round(true - false, 9)[1:]
    assert found == thresholds[1:][np.argmax(index)]


def test_a_network_without_numbers_has_no_threshold() -> None:
    assert math.isnan(youden_threshold([0, 1], [0.1, math.nan]))


CLUSTERED = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=3, max_size=40)


@given(CLUSTERED)
@settings(max_examples=examples(100))
def test_intervals_over_patients_are_those_of_a_robust_variance_of_statsmodels(pairs: list[tuple[bool, int]]) -> None:
    done, groups = np.array([one for one, _ in pairs]), np.array([group for _, group in pairs])
    found, count = Proportion.of_groups(done, groups), len(set(groups))
    assert (found.successes, found.n) == (done.sum(), len(done))
    if count in (1, len(done)):
        return
    share, size = done.mean(), float(count)
    if 0 < share < 1:
        fitted = OLS(done.astype(float), np.ones(len(done))).fit(
            cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
        )
        size = min(len(done), share * (1 - share) / max(float(fitted.cov_params()[0, 0]), 1e-300))
        size *= (norm.ppf(0.975) / student.ppf(0.975, count - 1)) ** 2
    limits = proportion_confint(share * size, size, method="wilson")
    assert (found.low, found.high) == pytest.approx(limits, abs=1e-9)


def test_each_patient_once_is_wilson_and_one_patient_alone_has_no_interval() -> None:
    done = [True, False, True, True]
    assert Proportion.of_groups(done, list("abcd")) == Proportion.of_groups(done, None) == Proportion.of(3, 4)
    alone = Proportion.of_groups(done, list("aaaa"))
    assert (alone.value, alone.successes, alone.n) == (0.75, 3, 4)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_slides_that_are_copies_tell_nothing_new() -> None:
    one = Proportion.of(10, 10)
    copies = Proportion.of_groups([True] * 40, np.repeat(np.arange(10), 4))
    assert (copies.low, copies.high) == (one.low, one.high)
    assert copies.n == 40


def test_intervals_over_patients_hold_the_truth_where_those_over_slides_do_not() -> None:
    generator, truth, held = np.random.default_rng(0), 0.9, {"patients": 0, "slides": 0}
    repeats = 300
    for _ in range(repeats):
        sizes = generator.integers(1, 8, 12)
        of_patient = generator.beta(truth, 1 - truth, 12)  # correlation of slides of one patient: 0.5
        done = generator.random(sizes.sum()) < np.repeat(of_patient, sizes)
        for name, groups in (("patients", np.repeat(np.arange(12), sizes)), ("slides", None)):
            found = Proportion.of_groups(done, groups)
            held[name] += found.low <= truth <= found.high
    assert held["patients"] / repeats > 0.93
    assert held["slides"] / repeats < 0.85


def test_figures_at_a_threshold_take_patients() -> None:
    labels, answers, patients = [1, 1, 1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1, 0.7, 0.1], list("aabbcc")
    found = figures_at(labels, answers, 0.5, groups=patients)
    assert found.sensitivity == Proportion.of_groups([True, True, False, False], list("aabb"))
    assert found.ppv == Proportion.of_groups([True, True, False], list("aac"))
    assert found.npv == Proportion.of_groups([False, False, True], list("bbc"))
    assert found.accuracy == Proportion.of_groups([True, True, False, False, False, True], patients)
    with pytest.raises(ValueError, match="1 samples have no group"):
        figures_at([1, 0], [0.5, 0.5], 0.5, groups=["a", None])
