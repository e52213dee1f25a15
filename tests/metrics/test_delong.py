"""DeLong's interval and test, against their definition, scipy, and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from kdml_med.metrics import binary_auroc, bootstrap_interval, compare
from kdml_med.metrics.delong import delong_interval, delong_test
from kdml_med.metrics.paired_scores import ClassificationScores
from tests.examples import examples

Floats = npt.NDArray[np.float64]


def placements(labels: npt.NDArray[np.bool_], values: Floats) -> tuple[Floats, Floats]:
    """Of each positive and of each negative, the share of the other class on the right side: pair by pair."""
    wins = np.array(
        [[1.0 if high > low else 0.5 if high == low else 0.0 for low in values[~labels]] for high in values[labels]]
    )
    return wins.mean(axis=1), wins.mean(axis=0)


def covariance(labels: npt.NDArray[np.bool_], *columns: Floats) -> Floats:
    """Equation 4 of DeLong et al., written out."""
    of_positives, of_negatives = zip(*(placements(labels, column) for column in columns), strict=True)
    result = np.zeros((len(columns), len(columns)))
    for parts in (of_positives, of_negatives):
        for row, first in enumerate(parts):
            for place, second in enumerate(parts):
                n = len(first)
                shared = sum((a - first.mean()) * (b - second.mean()) for a, b in zip(first, second, strict=True))
                result[row, place] += shared / (n - 1) / n
    return result


def cohort(n: int, seed: int, *, ties: bool = False) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Labels, and probabilities of two networks that err alike."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    shared = generator.normal(labels, 1.2)
    a, b = (1 / (1 + np.exp(-(shared + generator.normal(0, 0.6, n)))) for _ in range(2))
    return (labels, np.round(a, 1), np.round(b, 1)) if ties else (labels, a, b)


@settings(max_examples=examples(25))
@given(st.integers(6, 40), st.integers(0, 1000), st.booleans())
def test_interval_and_test_are_those_of_the_definition(n: int, seed: int, ties: bool) -> None:
    labels, a, b = cohort(n, seed, ties=ties)
    expected = covariance(labels, a, b)
    area, low, high = delong_interval(labels, a)
    assert area == pytest.approx(roc_auc_score(labels, a), abs=1e-9)
    variance = expected[0, 0]
    half = norm.ppf(0.975) * math.sqrt(variance)
    if variance > 1e-12:
        assert (low, high) == pytest.approx((max(area - half, 0), min(area + half, 1)), abs=1e-9)
    difference, low, high, p = delong_test(labels, a, b)
    assert difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b), abs=1e-9)
    variance = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
    if variance > 1e-12:
        error = math.sqrt(variance)
        assert p == pytest.approx(2 * norm.sf(abs(difference) / error), abs=1e-9)
        assert (high - low) / 2 == pytest.approx(norm.ppf(0.975) * error, abs=1e-9)
        assert (low > 0 or high < 0) == (p < 0.05)


def test_the_area_is_the_rank_sum_statistic_of_scipy() -> None:
    labels, a, _ = cohort(60, 1, ties=True)
    rank_sum = mannwhitneyu(a[labels], a[~labels]).statistic
    assert delong_interval(labels, a)[0] == pytest.approx(rank_sum / labels.sum() / (~labels).sum(), abs=1e-9)


def test_variance_by_hand() -> None:
    # Positives 0.4 and 0.8 beat 1 and 2 of the negatives 0.2 and 0.6: placements 1/2, 1 and 1, 1/2. Each has the
    # variance 1/8, by 2 samples 1/16: together 1/8.
    area, low, high = delong_interval([0, 1, 0, 1], [0.2, 0.4, 0.6, 0.8], confidence=0.5)
    assert area == 0.75
    half = 0.6744897501960817 * math.sqrt(1 / 8)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=1e-9)
    assert delong_interval([0, 1, 0, 1], [0.2, 0.4, 0.6, 0.8])[2] == 1  # cut at 1


@pytest.mark.parametrize("seed", range(4))
def test_the_bootstrap_says_nearly_the_same(seed: int) -> None:
    """Of independent samples, both intervals are of the same quantity; they differ by less than a tenth of a width."""
    labels, a, _ = cohort(300, seed)
    _, low, high = delong_interval(labels, a)
    resampled = bootstrap_interval(binary_auroc, labels, a, resamples=4000)
    assert abs(resampled.low - low) < 0.1 * (high - low)
    assert abs(resampled.high - high) < 0.1 * (high - low)


def test_the_test_says_nearly_the_same_as_the_paired_permutation() -> None:
    labels, a, b = cohort(150, 5)
    ids = np.arange(len(labels))
    networks = [ClassificationScores.of(ids, labels, column) for column in (a, b)]
    found = compare([[networks[0]]], [[networks[1]]], resamples=2000, permutations=4000)
    difference, low, high, p = delong_test(labels, a, b)
    assert found.difference == pytest.approx(difference, abs=1e-9)
    assert abs(found.low - low) < 0.15 * (high - low)
    assert abs(found.high - high) < 0.15 * (high - low)
    assert found.p_value == pytest.approx(p, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "values", "area"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 1.0),  # no variance: nothing is known of the uncertainty
        ([0, 0, 1], [0.1, 0.9, 0.5], 0.5),  # one positive has no variance either
        ([0, 0], [0.1, 0.2], math.nan),
        ([0, 1], [0.1, math.nan], math.nan),
        ([], [], math.nan),
    ],
)
def test_what_is_not_defined_is_nan(labels: list[int], values: list[float], area: float) -> None:
    found = delong_interval(labels, values)
    assert found[0] == pytest.approx(area, nan_ok=True)
    assert np.isnan(found[1:]).all()
    assert all(math.isnan(value) for value in delong_test(labels, values, values)[1:])


def obuchowski(labels: np.ndarray, columns: list[np.ndarray], patients: np.ndarray) -> np.ndarray:
    """Covariance of the AUROCs, [columns, columns]: equations of Obuchowski 1997, patient by patient."""
    m, n, names = (labels == 1).sum(), (labels == 0).sum(), sorted(set(patients))
    ups, downs = [], []
    for scores in columns:
        won = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (
            scores[labels == 1][:, None] == scores[labels == 0]
        )
        up, down, area = won.mean(axis=1), won.mean(axis=0), won.mean()
        of_up, of_down = patients[labels == 1], patients[labels == 0]
        ups.append([up[of_up == name].sum() - (of_up == name).sum() * area for name in names])
        downs.append([down[of_down == name].sum() - (of_down == name).sum() * area for name in names])
    i, i10, i01 = len(names), len(set(patients[labels == 1])), len(set(patients[labels == 0]))
    found = np.empty((len(columns), len(columns)))
    for a in range(len(columns)):
        for b in range(len(columns)):
            s10 = i10 / ((i10 - 1) * m) * np.dot(ups[a], ups[b])
            s01 = i01 / ((i01 - 1) * n) * np.dot(downs[a], downs[b])
            s11 = i / (i - 1) * (np.dot(ups[a], downs[b]) + np.dot(ups[b], downs[a]))
            found[a, b] = s10 / m + s01 / n + s11 / (m * n)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_with_patients_the_variance_is_that_of_obuchowski(seed: int) -> None:
    generator = np.random.default_rng(seed)
    patients = generator.integers(0, 12, 60)
    labels = (generator.random(60) < 0.5).astype(int)
    a, b = (np.round(labels + generator.normal(0, 1.2, 12)[patients] + generator.normal(0, 1, 60), 1) for _ in "ab")
    expected = obuchowski(labels, [a, b], patients)
    area, low, high = delong_interval(labels, a, groups=patients)
    assert area == pytest.approx(roc_auc_score(labels, a), abs=1e-12)
    half = norm.ppf(0.975) * np.sqrt(expected[0, 0])
    assert (low, high) == pytest.approx((max(area - half, 0), min(area + half, 1)), abs=1e-9)
    difference, _, _, p_value = delong_test(labels, a, b, groups=patients)
    apart = np.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert p_value == pytest.approx(2 * norm.sf(abs(difference) / apart), abs=1e-9)
    assert delong_test(labels, a, b, groups=np.arange(60)) == pytest.approx(delong_test(labels, a, b), abs=1e-12)


def test_copies_of_slides_do_not_narrow_the_interval() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 2
    scores = labels + generator.normal(0, 1, 30)
    once = delong_interval(labels, scores)
    thrice = delong_interval(np.repeat(labels, 3), np.repeat(scores, 3), groups=np.repeat(np.arange(30), 3))
    assert thrice == pytest.approx(once, abs=1e-9)
    assert np.isnan(delong_interval([1, 1, 0, 0], [0.9, 0.2, 0.4, 0.1], groups=list("aabc"))[1])
