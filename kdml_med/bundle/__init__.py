"""What bundle configs call, so that they need no Python of their own."""

from kdml_med.bundle.command_line import check_command_line, find_root
from kdml_med.bundle.detection_inference import prepare_source, save_detections
from kdml_med.bundle.detection_results import save_detection_evaluation
from kdml_med.bundle.preparation import (
    build_loss,
    build_training_cohort,
    fold_of,
    load_trained_cohort,
    prepare_evaluation,
    prepare_training,
    read_description,
    record_run,
    run_training,
)
from kdml_med.bundle.results import save_evaluation, save_inference
from kdml_med.deploy.speed import save_speed

__all__ = [
    "build_loss",
    "build_training_cohort",
    "check_command_line",
    "find_root",
    "fold_of",
    "load_trained_cohort",
    "prepare_evaluation",
    "prepare_source",
    "prepare_training",
    "read_description",
    "record_run",
    "run_training",
    "save_detection_evaluation",
    "save_detections",
    "save_evaluation",
    "save_inference",
    "save_speed",
]
