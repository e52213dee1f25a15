"""Metrics for predictions of tiles, slides and patients, and for detected boxes; comparison of ways to train.

NumPy and pandas in, numbers out; no engine, no torch.
"""

from kdml_med.metrics.aggregation import aggregate_predictions, aggregate_tiles
from kdml_med.metrics.bootstrap import Interval, bootstrap_interval, resample_auroc
from kdml_med.metrics.box_matching import AnnotatedFrames, Matches, box_iou, match_detections, read_frames
from kdml_med.metrics.box_sizes import SizeFigures, sensitivity_by_size
from kdml_med.metrics.calibration import (
    Reliability,
    brier_score,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    fit_temperature,
    reliability,
    scale_by_temperature,
)
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
from kdml_med.metrics.curves import (
    Curve,
    detection_precision_recall,
    froc_with_band,
    precision_recall_curve,
    roc_curve,
)
from kdml_med.metrics.decision import DecisionCurve, decision_curve
from kdml_med.metrics.delong import delong_interval, delong_test
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
from kdml_med.metrics.operating import Confusion, OperatingFigures, Proportion, figures_at, youden_threshold
from kdml_med.metrics.paired import Comparison, Estimate, compare, estimate, holm
from kdml_med.metrics.paired_scores import BrierScores, ClassificationScores, DetectionScores, Scores
from kdml_med.metrics.power import detectable_difference, pairs_needed

__all__ = [
    "AnnotatedFrames",
    "BrierScores",
    "ClassificationScores",
    "Comparison",
    "Confusion",
    "Curve",
    "DecisionCurve",
    "DetectionScores",
    "Estimate",
    "Interval",
    "Matches",
    "OperatingFigures",
    "Proportion",
    "Reliability",
    "Scores",
    "SizeFigures",
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
    "calibration_intercept",
    "calibration_slope",
    "choose_threshold",
    "choose_thresholds",
    "classification_summary",
    "compare",
    "decision_curve",
    "delong_interval",
    "delong_test",
    "detectable_difference",
    "detection_calibration",
    "detection_precision_recall",
    "disagreement",
    "error_correlation",
    "estimate",
    "evaluate_detections",
    "evaluate_predictions",
    "expected_calibration_error",
    "figures_at",
    "fit_temperature",
    "found_by_network",
    "found_disagreement",
    "found_error_correlation",
    "froc_curve",
    "froc_with_band",
    "holm",
    "is_positive",
    "match_detections",
    "pairs_needed",
    "precision_recall_curve",
    "read_frames",
    "reliability",
    "resample_auroc",
    "roc_curve",
    "scale_by_temperature",
    "score_curve",
    "sensitivity",
    "sensitivity_by_size",
    "sequence_table",
    "specificity",
    "threshold_for_sensitivity",
    "youden_threshold",
]
