"""Engines: MONAI's supervised trainer and evaluator for a cohort."""

from kdml_med.engines.acceleration import Acceleration
from kdml_med.engines.detection import DetectionEvaluator
from kdml_med.engines.evaluator import ClassificationEvaluator, CohortEvaluator, ensemble_probabilities
from kdml_med.engines.guard import LossGuard
from kdml_med.engines.trainer import KDMLTrainer, prepare_cohort_batch
from kdml_med.networks.boxes import Detections

__all__ = [
    "Acceleration",
    "ClassificationEvaluator",
    "CohortEvaluator",
    "DetectionEvaluator",
    "Detections",
    "KDMLTrainer",
    "LossGuard",
    "ensemble_probabilities",
    "prepare_cohort_batch",
]
