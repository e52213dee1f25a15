import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from kdml_med.metrics import Interval, binary_auroc, bootstrap, bootstrap_interval, brier_score, resample_auroc
from kdml_med.metrics.bootstrap import percentile_interval, weighted_pairs
from kdml_med.metrics.classification import average_precision
from tests.examples import examples


def weighted_auroc(labels: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under many weightings, [weightings]; NaN where a class has no weight."""
    won, pairs = weighted_pairs(labels, values, weights)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30),
)
def test_weighted_auroc_agrees_with_scikit_learn(samples: list[tuple[bool, int, int]]) -> None:
    labels, values, weights = (np.array(column) for column in zip(*samples, strict=True))
    found = weighted_auroc(labels, values / 5, np.stack([weights, np.ones_like(weights)]))
    for row, weight in zip(found, (weights, np.ones_like(weights)), strict=True):
        used = weight > 0
        if labels[used].all() or not labels[used].any():
            assert math.isnan(row)
        else:
            assert row == pytest.approx(roc_auc_score(labels[used], values[used], sample_weight=weight[used]))


def cohort(patients: int, tiles: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients of tiles; the tiles of a patient share most of their error."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), tiles)
    labels = (generator.uniform(size=patients) < 0.5).astype(int)
    shared = generator.normal(labels, 1.0)
    return labels[groups], shared[groups] + generator.normal(0, 0.3, len(groups)), groups


@pytest.mark.parametrize("grouped", [True, False])
def test_fast_path_equals_resampling_rows(grouped: bool) -> None:
    labels, values, groups = cohort(15, 4, seed=3)
    values = np.round(values)  # ties
    options = {"groups": groups if grouped else None, "resamples": 100, "seed": 5}
    fast = bootstrap_interval(binary_auroc, labels, values, **options)
    slow = bootstrap_interval(lambda truth, scores: binary_auroc(truth, scores), labels, values, **options)
    assert fast.resamples_used == slow.resamples_used
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


@pytest.mark.parametrize("piece", [1, 2, 7, 60])
@pytest.mark.parametrize("digits", [0, 1, 8])
def test_a_resample_in_pieces_is_the_same(piece: int, digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, values, groups = cohort(12, 5, seed=4)
    values = np.round(values, digits)  # few values tie across the ends of pieces
    weights = np.concatenate(list(bootstrap.resampled_weights(groups, len(labels), resamples=40, seed=2)))
    expected = weighted_auroc(labels.astype(bool), values, weights)
    monkeypatch.setattr(bootstrap, "_PIECE", piece)
    found = resample_auroc(labels, values, groups=groups, resamples=40, seed=2)
    np.testing.assert_array_equal(found, expected)


def test_interval_depends_on_groups_not_on_rows() -> None:
    labels, values, groups = cohort(20, 5, seed=0)
    order = np.random.default_rng(1).permutation(len(labels))
    names = np.array([f"patient {group:02}" for group in groups])
    expected = bootstrap_interval(binary_auroc, labels, values, groups=groups, resamples=200)
    shuffled = bootstrap_interval(binary_auroc, labels[order], values[order], groups=groups[order], resamples=200)
    renamed = bootstrap_interval(binary_auroc, labels, values, groups=names, resamples=200)
    repeated = bootstrap_interval(
        binary_auroc, *(np.repeat(a, 3) for a in (labels, values)), groups=np.repeat(groups, 3), resamples=200
    )
    for interval in (shuffled, renamed, repeated):
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_grouped_interval_is_wider_than_one_over_tiles() -> None:
    labels, values, groups = cohort(30, 20, seed=2)
    by_patient = bootstrap_interval(binary_auroc, labels, values, groups=groups, resamples=500)
    by_tile = bootstrap_interval(binary_auroc, labels, values, resamples=500)
    assert by_patient.high - by_patient.low > 2 * (by_tile.high - by_tile.low)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    trials = 200
    covered = 0
    for seed in range(trials):
        labels, values, groups = cohort(80, 1, seed=seed)
        generator = np.random.default_rng(1000 + seed)
        values = generator.normal(labels, 1.0)
        interval = bootstrap_interval(binary_auroc, labels, values, groups=groups, resamples=300)
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / trials <= 0.99


def test_mean_interval_agrees_with_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = bootstrap_interval(np.mean, values, resamples=1000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    labels = np.array([1, 1, 0, 0, 0, 0])
    interval = bootstrap_interval(binary_auroc, labels, np.arange(6) / 6, resamples=1000)
    expected = 1 - (4 / 6) ** 6 - (2 / 6) ** 6
    assert interval.resamples_used / 1000 == pytest.approx(expected, abs=0.05)
    assert interval.low == interval.high == 0


@pytest.mark.parametrize(
    ("labels", "groups"), [([1, 1, 1], None), ([0, 1, 0], ["a", "a", "a"]), ([], None), ([1], None)]
)
def test_interval_is_nan_where_it_means_nothing(labels: list[int], groups: list[str] | None) -> None:
    for statistic in (binary_auroc, lambda truth, scores: binary_auroc(truth, scores)):
        interval = bootstrap_interval(statistic, labels, [0.5] * len(labels), groups=groups, resamples=20)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert interval.resamples_used == 0


@pytest.mark.parametrize("lonely", [0, 1])
def test_a_class_of_one_patient_leaves_no_interval(lonely: int) -> None:
    # Two slides of the one, two of each of nine others: no resample has another patient of that class.
    patients = np.repeat(np.arange(10), 2)
    labels = np.where(patients == 0, lonely, 1 - lonely)
    values = np.random.default_rng(0).uniform(size=20)
    for statistic in (binary_auroc, lambda truth, scores: binary_auroc(truth, scores), average_precision):
        assert math.isnan(bootstrap_interval(statistic, labels, values, groups=patients, resamples=100).low)
    two = np.where(patients < 2, lonely, 1 - lonely)
    for statistic in (binary_auroc, average_precision):
        assert bootstrap_interval(statistic, two, values, groups=patients, resamples=100).low >= 0
    assert bootstrap_interval(brier_score, labels, values, groups=patients, resamples=100).low > 0


def test_fewer_than_half_usable_is_no_interval() -> None:
    assert percentile_interval([0.5, 0.5, math.nan, math.nan]) == Interval(0.5, 0.5, 2)
    assert math.isnan(percentile_interval([0.5, math.nan, math.nan]).low)
    assert math.isnan(percentile_interval([]).low)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 1000))
def test_two_networks_see_the_same_patients(seed: int) -> None:
    labels, values, groups = cohort(12, 3, seed=0)
    first = resample_auroc(labels, values, groups=groups, resamples=20, seed=seed)
    second = resample_auroc(labels, 2 * values + 1, groups=groups, resamples=20, seed=seed)
    np.testing.assert_array_equal(first, second)


def test_chunks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, values, groups = cohort(10, 3, seed=4)
    whole = resample_auroc(labels, values, groups=groups, resamples=50)
    monkeypatch.setattr("kdml_med.metrics.bootstrap.CHUNK_ELEMENTS", 100)
    np.testing.assert_allclose(resample_auroc(labels, values, groups=groups, resamples=50), whole)


def test_unusable_arguments_raise() -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(np.mean, [1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="one length"):
        bootstrap_interval(np.mean, [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="3 groups for 2 samples"):
        bootstrap_interval(np.mean, [1.0, 2.0], groups=[1, 2, 3])
    with pytest.raises(ValueError, match="no group"):
        bootstrap_interval(np.mean, [1.0, 2.0], groups=["a", None])
