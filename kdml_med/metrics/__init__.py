"""Metrics for predictions of tiles, slides and patients, and for detected boxes; comparison of ways to train.

NumPy and pandas in, numbers out; no engine, no torch.
"""

from kdml_med.metrics.aggregation import aggregate_predictions, aggregate_tiles
from kdml_med.metrics.bootstrap import Interval, bootstrap_interval, resample_auroc
from kdml_med.metrics.box_matching import AnnotatedFrames, Matches, box_iou, match_detections, read_frames
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
from kdml_med.metrics.detection import choose_threshold, choose_thresholds, score_curve
from kdml_med.metrics.detection_evaluation import evaluate_detections, sequence_table
from kdml_med.metrics.diversity import (
    agreement,
    detection_calibration,
    disagreement,
    error_correlation,
    found_by_network,
    found_disagreement,
    found_error_correlation,
)
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.metrics.froc import froc_curve
from kdml_med.metrics.inputs import is_positive
from kdml_med.metrics.paired import Comparison, Estimate, compare, estimate, holm
from kdml_med.metrics.paired_scores import ClassificationScores, DetectionScores, Scores

__all__ = [
    "AnnotatedFrames",
    "ClassificationScores",
    "Comparison",
    "DetectionScores",
    "Estimate",
    "Interval",
    "Matches",
    "Scores",
    "accuracy",
    "aggregate_predictions",
    "aggregate_tiles",
    "agreement",
    "average_precision",
    "balanced_accuracy",
    "binary_auroc",
    "bootstrap_interval",
    "box_iou",
    "brier_score",
    "choose_threshold",
    "choose_thresholds",
    "classification_summary",
    "compare",
    "detection_calibration",
    "disagreement",
    "error_correlation",
    "estimate",
    "evaluate_detections",
    "evaluate_predictions",
    "expected_calibration_error",
    "found_by_network",
    "found_disagreement",
    "found_error_correlation",
    "froc_curve",
    "holm",
    "is_positive",
    "match_detections",
    "read_frames",
    "resample_auroc",
    "score_curve",
    "sensitivity",
    "sequence_table",
    "specificity",
    "threshold_for_sensitivity",
]
