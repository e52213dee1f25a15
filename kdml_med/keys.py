"""Names that cross rooms: one enum for each dictionary or table that one module writes and another reads."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self


class NetworkName(StrEnum):
    """Names of cohort members in predictions, losses, tables and checkpoints."""

    TEACHER = "teacher"
    ENSEMBLE = "ensemble"

    @staticmethod
    def student(index: int) -> str:
        """Name of the student with this zero-based index."""
        return f"student_{index}"


def network_order(name: str) -> tuple[int, tuple[int, ...], str]:
    """Sorting key: teacher, students by number, each followed by its members where it is a committee, ensemble."""
    first, *rest = name.split("_")
    place = {NetworkName.TEACHER.value: 0, NetworkName.ENSEMBLE.value: 2}.get(first, 1)
    return (place, tuple(int(number) for number in rest if number.isdigit()), name)


class Task(StrEnum):
    """What a cohort is trained for."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"


class BatchKey(StrEnum):
    """Keys of a sample (and of a collated batch) that a dataset yields."""

    IMAGE = "image"
    """float32, [channels, height, width], RGB, rows are y."""
    LABEL = "label"
    """int64 class index; -1 where the dataset has no label. Detection: a list with the boxes of each image."""
    SAMPLE_ID = "sample_id"
    SLIDE_ID = "slide_id"
    SEQUENCE_ID = "sequence_id"
    SCALE = "scale"
    """float32; pixels of the network's input per pixel of the stored frame."""
    FRAME_SIZE = "frame_size"
    """float32, [width, height] of the stored frame, pixels."""
    PATIENT_ID = "patient_id"
    LEARNER = "learner"
    """int64, number of the student that reads the label, where each has patients of its own."""


class OutputKey(StrEnum):
    """Keys that this project adds to ``engine.state.output`` beside MONAI's image, label, pred and loss."""

    LOSS_TERMS = "loss_terms"
    """Detached scalars by loss name."""
    PROBABILITIES = "probabilities"
    """float32, [batch, classes], by network name and "ensemble"."""
    DETECTIONS = "detections"
    """For each network name and "ensemble" a list with the ``Detections`` of each image."""


class LossTerm(StrEnum):
    """Second half of a loss name, as in ``student_0_kd``; ``LOSS`` alone is the sum that is back-propagated.

    What tables, figures and handlers need to know of a term stands here and nowhere else. A term that a loss of one's
    own adds need not stand here: it goes everywhere under its own name.

    Attributes:
        weight: name of what it is multiplied with in a student's loss, see ``kdml_med.losses.CohortLoss.weights``.
        source: what a student learns from by it: its name in tables of results.
        words: the same for people.
    """

    weight: str
    source: str
    words: str

    TASK = "task", "alpha", "labels", "labels"
    KD = "kd", "beta", "teacher", "teacher (KD)"
    ML = "ml", "gamma", "peers", "peers (ML)"
    LOSS = "loss"

    def __new__(cls, name: str, weight: str = "", source: str = "", words: str = "") -> Self:
        """Make a member that says more than its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.weight, member.source, member.words = weight, source, words
        return member

    @classmethod
    def parts(cls) -> list[LossTerm]:
        """All but the sum, in the order in which they are shown."""
        return [term for term in cls if term is not cls.LOSS]


def split_loss_name(name: str) -> tuple[str, str]:
    """Network and term of a loss name: "student_0" and "kd" of "student_0_kd"; the network of a sum is ""."""
    known = re.fullmatch(r"(teacher|student_\d+)_(.+)", name)  # whose terms may have a name of several words
    if known:
        return known[1], known[2]
    network, _, term = name.rpartition("_")
    return network, term


class Split(StrEnum):
    """Values of the ``split`` column of splits.csv."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class DetectionColumn(StrEnum):
    """Columns of detections.parquet: one row for each detected box and network."""

    SAMPLE_ID = "sample_id"
    SEQUENCE_ID = "sequence_id"
    PATIENT_ID = "patient_id"
    NETWORK = "network"
    SCORE = "score"
    XMIN = "xmin"
    YMIN = "ymin"
    XMAX = "xmax"
    YMAX = "ymax"


class PredictionColumn(StrEnum):
    """Columns of predictions.parquet: one row for each tile and network."""

    SAMPLE_ID = "sample_id"
    SLIDE_ID = "slide_id"
    PATIENT_ID = "patient_id"
    NETWORK = "network"
    LABEL = "label"
    PROBABILITY = "probability"


class PlaceColumn(StrEnum):
    """Where a tile was cut, in the manifest and in predictions.parquet, level-0 pixels of its slide.

    Null for tiles that were imported; a predictions.parquet of an earlier version has none of them.
    """

    X_L0 = "x_l0"
    Y_L0 = "y_l0"
    SIZE_L0 = "size_l0"


class LossColumn(StrEnum):
    """Columns of losses.csv: one row for each epoch, network and term."""

    EPOCH = "epoch"
    ITERATIONS = "iterations"
    """Of this epoch."""
    NETWORK = "network"
    TERM = "term"
    WEIGHT = "weight"
    """In force in this epoch."""
    VALUE = "value"
    """Mean over the epoch, not weighted."""


class HistoryColumn(StrEnum):
    """Columns of history.csv: one row for each validated epoch, network and figure that is defined."""

    EPOCH = "epoch"
    NETWORK = "network"
    FIGURE = "figure"
    """As in metrics.json, of classifiers with "tile_", "slide_" or "patient_" before it; "loss" is the task loss."""
    VALUE = "value"
