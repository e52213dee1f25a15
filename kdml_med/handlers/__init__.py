"""Handlers that connect engines to metrics, files and TensorBoard."""

from kdml_med.handlers.averaging import WeightAverage
from kdml_med.handlers.checkpoint import CohortCheckpoint
from kdml_med.handlers.detection import CohortDetections, DetectionMetrics
from kdml_med.handlers.early_stopping import EarlyStopping
from kdml_med.handlers.losses import EpochMeans, LossHistory
from kdml_med.handlers.metrics import CohortMetrics, CohortPredictions, at_least_as_good
from kdml_med.handlers.profiling import StepProfile
from kdml_med.handlers.progress import CohortProgress
from kdml_med.handlers.schedule import UpdateSchedule
from kdml_med.handlers.tensorboard import ClassificationTensorBoard, CohortTensorBoard, DetectionTensorBoard
from kdml_med.handlers.timing import StepTimes
from kdml_med.handlers.tracking import MLflowTracking
from kdml_med.handlers.validation import ValidationHistory

__all__ = [
    "ClassificationTensorBoard",
    "CohortCheckpoint",
    "CohortDetections",
    "CohortMetrics",
    "CohortPredictions",
    "CohortProgress",
    "CohortTensorBoard",
    "DetectionMetrics",
    "DetectionTensorBoard",
    "EarlyStopping",
    "EpochMeans",
    "LossHistory",
    "MLflowTracking",
    "StepProfile",
    "StepTimes",
    "UpdateSchedule",
    "ValidationHistory",
    "WeightAverage",
    "at_least_as_good",
]
