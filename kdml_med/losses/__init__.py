"""Losses of online distillation and mutual learning."""

from kdml_med.losses.cohort import CohortLoss
from kdml_med.losses.distillation import distillation_loss
from kdml_med.losses.mutual import mutual_loss

__all__ = ["CohortLoss", "distillation_loss", "mutual_loss"]
