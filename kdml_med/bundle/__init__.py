"""What bundle configs call, so that they need no Python of their own."""

from kdml_med.bundle.acceleration import build_acceleration
from kdml_med.bundle.evaluation import save_detection_evaluation, save_evaluation, save_speed
from kdml_med.bundle.evaluation_checks import fold_of, prepare_evaluation
from kdml_med.bundle.exporting import network_to_export
from kdml_med.bundle.figures import write_training_figures
from kdml_med.bundle.inference import prepare_source, save_detections, save_inference
from kdml_med.bundle.provenance import record_evaluation
from kdml_med.bundle.slides import prepare_inference
from kdml_med.bundle.training import build_loss, build_training_cohort, prepare_training, record_run, run_training
from kdml_med.bundle.workflow import collect_settings, find_root, named_handler
from kdml_med.engines.processes import join, leave, own_device
from kdml_med.runs import RunDescription, load_cohort

__all__ = [
    "RunDescription",
    "build_acceleration",
    "build_loss",
    "build_training_cohort",
    "collect_settings",
    "find_root",
    "fold_of",
    "join",
    "leave",
    "load_cohort",
    "named_handler",
    "network_to_export",
    "own_device",
    "prepare_evaluation",
    "prepare_inference",
    "prepare_source",
    "prepare_training",
    "record_evaluation",
    "record_run",
    "run_training",
    "save_detection_evaluation",
    "save_detections",
    "save_evaluation",
    "save_inference",
    "save_speed",
    "write_training_figures",
]
