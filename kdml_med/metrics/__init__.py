"""Metrics for predictions of tiles, slides and patients: NumPy and pandas in, numbers out; no engine, no torch."""

from kdml_med.metrics.aggregation import aggregate_predictions, aggregate_tiles
from kdml_med.metrics.bootstrap import Interval, bootstrap_interval, resample_auroc
from kdml_med.metrics.calibration import brier_score, expected_calibration_error
from kdml_med.metrics.classification import (
    accuracy,
    average_precision,
    balanced_accuracy,
    binary_auroc,
    classification_summary,
    sensitivity,
    specificity,
    threshold_for_sensitivity,
)
from kdml_med.metrics.evaluation import evaluate_predictions

__all__ = [
    "Interval",
    "accuracy",
    "aggregate_predictions",
    "aggregate_tiles",
    "average_precision",
    "balanced_accuracy",
    "binary_auroc",
    "bootstrap_interval",
    "brier_score",
    "classification_summary",
    "evaluate_predictions",
    "expected_calibration_error",
    "resample_auroc",
    "sensitivity",
    "specificity",
    "threshold_for_sensitivity",
]
