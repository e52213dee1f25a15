"""The run folder: what a training or an evaluation leaves behind, and how to read it again.

cohort.json             networks, classes, image size, patients seen: what the networks are and how to feed them
                        (``RunDescription``)
metadata.json           the same in the words of a MONAI bundle, for MONAI's own exports
settings.json           the knobs that training started with; a resumed run must have the same
checkpoints/last.pt     everything needed to go on; step_00000120.pt, ...: the same, older;
                        best.pt, student_0.pt, teacher.pt, ...: the best weights
losses.csv              mean loss terms of every epoch
history.csv             loss and figures of every validation
tensorboard/            event files
predictions.parquet     classification: one row per tile and network
patients.csv            classification: one row per patient (or slide), one probability column per network
detections.parquet      detection: one row per detected box and network
sequences.csv           detection: one row per sequence
speed.json              detection: frames per second of every network on the machine at hand
metrics.json            figures with intervals
figures/                curves of both as pictures and tables
evaluation.json         of evaluations: data, weights, command and versions
"""

from kdml_med.runs.description import (
    FRAME_OPTIONS,
    SCHEMA_VERSION,
    TILE_OPTIONS,
    RunDescription,
    hashed_patient,
)
from kdml_med.runs.evaluations import evaluated_dataset, is_other_data, tell_other_data, tell_other_weights
from kdml_med.runs.files import (
    CHECKPOINTS_DIR,
    COHORT_FILE,
    DETECTIONS_FILE,
    EVALUATION_FILE,
    FIGURES_DIR,
    HISTORY_FILE,
    LOSSES_FILE,
    METRICS_FILE,
    PATIENTS_FILE,
    PREDICTIONS_FILE,
    SEQUENCES_FILE,
    SETTINGS_FILE,
    SPEED_FILE,
    TRAIN_AGAIN,
    networks_by_default,
    read_run_json,
    read_thresholds,
    trained_on,
)
from kdml_med.runs.tables import (
    read_history,
    read_losses,
    write_detections,
    write_predictions,
)
from kdml_med.runs.weights import (
    checkpoint_path,
    hash_checkpoints,
    load_cohort,
    load_network,
    read_checkpoint,
    write_checkpoint,
)

__all__ = [
    "CHECKPOINTS_DIR",
    "COHORT_FILE",
    "DETECTIONS_FILE",
    "EVALUATION_FILE",
    "FIGURES_DIR",
    "FRAME_OPTIONS",
    "HISTORY_FILE",
    "LOSSES_FILE",
    "METRICS_FILE",
    "PATIENTS_FILE",
    "PREDICTIONS_FILE",
    "SCHEMA_VERSION",
    "SEQUENCES_FILE",
    "SETTINGS_FILE",
    "SPEED_FILE",
    "TILE_OPTIONS",
    "TRAIN_AGAIN",
    "RunDescription",
    "checkpoint_path",
    "evaluated_dataset",
    "hash_checkpoints",
    "hashed_patient",
    "is_other_data",
    "load_cohort",
    "load_network",
    "networks_by_default",
    "read_checkpoint",
    "read_history",
    "read_losses",
    "read_run_json",
    "read_thresholds",
    "tell_other_data",
    "tell_other_weights",
    "trained_on",
    "write_checkpoint",
    "write_detections",
    "write_predictions",
]
