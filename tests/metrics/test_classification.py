import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdml_med.metrics import (
    accuracy,
    average_precision,
    balanced_accuracy,
    binary_auroc,
    brier_score,
    classification_summary,
    expected_calibration_error,
    is_positive,
    sensitivity,
    specificity,
    threshold_for_sensitivity,
)
from tests.examples import examples

# Few distinct values, so that ties are the rule.
SAMPLES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda n: n / 8)), min_size=1, max_size=60)


def split(samples: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label for label, _ in samples]), np.array([value for _, value in samples])


@settings(max_examples=examples(50), deadline=None)
@given(SAMPLES)
def test_auroc_is_the_share_of_ordered_pairs(samples: list[tuple[int, float]]) -> None:
    labels, values = split(samples)
    assume(0 < labels.sum() < len(labels))
    gaps = values[labels == 1][:, None] - values[labels == 0][None, :]
    assert binary_auroc(labels, values) == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


@settings(max_examples=examples(50), deadline=None)
@given(SAMPLES, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_figures_agree_with_scikit_learn(samples: list[tuple[int, float]], threshold: float) -> None:
    labels, values = split(samples)
    assume(0 < labels.sum() < len(labels))
    called = values >= threshold
    assert average_precision(labels, values) == pytest.approx(reference.average_precision_score(labels, values))
    assert accuracy(labels, values, threshold) == pytest.approx(reference.accuracy_score(labels, called))
    assert sensitivity(labels, values, threshold) == pytest.approx(reference.recall_score(labels, called))
    assert specificity(labels, values, threshold) == pytest.approx(reference.recall_score(labels, called, pos_label=0))
    balanced = reference.balanced_accuracy_score(labels, called)
    assert balanced_accuracy(labels, values, threshold) == pytest.approx(balanced)
    assert brier_score(labels, values) == pytest.approx(reference.brier_score_loss(labels, values))


@pytest.mark.parametrize(
    ("labels", "values"), [([1, 1], [0.1, 0.9]), ([0], [0.3]), ([], []), ([0, 1], [0.1, math.nan])]
)
def test_undefined_figures_are_nan_and_never_warn(labels: list[int], values: list[float]) -> None:
    summary = classification_summary(labels, values)
    assert math.isnan(summary["auroc"])
    assert math.isnan(summary["average_precision"])
    assert math.isnan(summary["balanced_accuracy"])


def test_threshold_is_the_highest_that_reaches_the_sensitivity() -> None:
    labels = [1] * 20 + [0] * 3
    values = [i / 20 for i in range(20)] + [0.0, 0.5, 1.0]
    threshold = threshold_for_sensitivity(labels, values, 0.95)
    assert threshold == 1 / 20
    assert sensitivity(labels, values, threshold) == 0.95
    assert threshold_for_sensitivity(labels, values, 1.0) == 0.0
    assert math.isnan(threshold_for_sensitivity([0, 0], [0.1, 0.2]))


@settings(max_examples=examples(50), deadline=None)
@given(SAMPLES, st.floats(0.01, 1))
def test_threshold_reaches_its_sensitivity(samples: list[tuple[int, float]], target: float) -> None:
    labels, values = split(samples)
    assume(labels.any())
    threshold = threshold_for_sensitivity(labels, values, target)
    assert sensitivity(labels, values, threshold) >= target - 1e-9
    higher = values[values > threshold]
    if len(higher):
        assert sensitivity(labels, values, higher.min()) < target


def test_calibration_error_by_hand() -> None:
    # Bin [0.2, 0.3): two samples, mean 0.25, none positive. Bin [0.9, 1]: two samples, mean 0.95, one positive.
    assert expected_calibration_error([0, 0, 1, 0], [0.2, 0.3 - 1e-9, 0.9, 1.0]) == pytest.approx(
        0.5 * 0.25 + 0.5 * 0.45, abs=1e-6
    )
    assert expected_calibration_error([0, 1], [0.0, 1.0]) == 0
    assert math.isnan(expected_calibration_error([], []))


def test_calibrated_probabilities_have_a_small_error() -> None:
    generator = np.random.default_rng(0)
    values = generator.uniform(size=50_000)
    labels = (generator.uniform(size=50_000) < values).astype(int)
    assert expected_calibration_error(labels, values) < 0.01
    assert expected_calibration_error(labels, values**3) > 0.1


def test_unusable_input_raises() -> None:
    with pytest.raises(ValueError, match="one length"):
        binary_auroc([0, 1], [0.5])
    with pytest.raises(ValueError, match="labels must be 0 or 1, found -1"):
        binary_auroc([0, -1], [0.5, 0.5])
    with pytest.raises(ValueError, match="target sensitivity"):
        threshold_for_sensitivity([0, 1], [0.5, 0.5], 0)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        expected_calibration_error([0, 1], [0.5, 1.5])
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error([0, 1], [0.5, 0.5], bins=0)


def test_summary_holds_plain_numbers() -> None:
    summary = classification_summary(np.array([0, 1, 1]), np.array([0.2, 0.6, 0.4], dtype=np.float32))
    assert {type(value) for value in summary.values()} == {int, float}
    assert (summary["n"], summary["positives"], summary["auroc"]) == (3, 2, 1.0)


def test_a_class_that_nobody_has_is_refused_with_those_there_are() -> None:
    labels = pd.Series(["MSI", "MSS", "MSS"])
    assert is_positive(labels, "MSI").tolist() == [True, False, False]
    with pytest.raises(ValueError, match="no label is 'MSl'; there are 'MSI', 'MSS'"):
        is_positive(labels, "MSl")
    with pytest.raises(ValueError, match="no label is 'MSI'; there are none"):
        is_positive([], "MSI")


def test_who_has_no_label_is_no_negative() -> None:
    with pytest.raises(ValueError, match="1 of 2 have no label"):
        is_positive(["MSI", None], "MSI")
