"""Losses of online distillation and mutual learning."""

from kdml_med.losses.classification import ClassificationCohortLoss
from kdml_med.losses.cohort import CohortLoss
from kdml_med.losses.detection import DetectionCohortLoss
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.feature import attention_loss
from kdml_med.losses.mutual import mutual_loss

__all__ = [
    "ClassificationCohortLoss",
    "CohortLoss",
    "DetectionCohortLoss",
    "attention_loss",
    "distillation_loss",
    "mutual_loss",
]
