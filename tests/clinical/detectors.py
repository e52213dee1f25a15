"""A run of detectors as training and evaluation leave it, on a small dataset folder; its detections are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.data.selection import select_rows
from kdml_med.keys import DetectionColumn, NetworkName, Task
from kdml_med.metrics.detection import choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.runs import METRICS_FILE, SETTINGS_FILE, RunDescription, checkpoint_path, hashed_patient
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import dataset_identity, read_info
from kdml_med.storage.reading import read_json
from tests.clinical.answered import write_detector_evaluation
from tests.synthetic_frames import write_frame_dataset

SPLITS = {"P0": "train", "P1": "val", "P2": "val", "P3": "test", "P4": "test", "P5": "test"}
NETWORKS = (NetworkName.TEACHER.value, "student_0", "student_1", NetworkName.ENSEMBLE.value)
RESAMPLES = 20


def made_up_detections(frames: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Boxes near most of the annotated ones, and some anywhere."""
    generator = np.random.default_rng(seed)
    rows = []
    for _, frame in frames.iterrows():
        own = [] if frame["boxes"] is None else list(frame["boxes"])
        for network in NETWORKS:
            near = [np.add(box, generator.normal(0, 1.5, 4)) for box in own if generator.uniform() < 0.8]
            corner = generator.uniform(0, 30, 2)
            for box, top in [*((box, 1.0) for box in near), (np.concatenate([corner, corner + 9]), 0.7)]:
                about = (frame["sample_id"], frame["sequence_id"], frame["patient_id"], network)
                rows.append((*about, generator.uniform(0.2, top), *box))
    return pd.DataFrame(rows, columns=[str(column) for column in DetectionColumn])


def write_study(
    folder: Path, *, splits: Mapping[str, str] = SPLITS, frames: int = 4, knobs: Mapping[str, Any] | None = None
) -> Path:
    """Write a dataset folder and, beside it, a run with its evaluation on the test split; gives the run's folder."""
    dataset = write_frame_dataset(folder / "data", splits=splits, frames=frames)
    run = folder / "run"
    parts = {split: select_rows(dataset, read_info(dataset), split, None) for split in set(splits.values())}
    for place, name in enumerate(name for name in NETWORKS if name != NetworkName.ENSEMBLE):
        path = checkpoint_path(run, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([place]))
    RunDescription(
        task=Task.DETECTION, version="tiny", classes=["negative", "polyp"], image_size=64, fold=None, synthetic=False,
        networks={name: {"name": "retinanet", "body": "mobilenet_v2"} for name in NETWORKS[:3]},
        seen_patients={
            part: sorted({hashed_patient(name) for name in parts[part]["patient_id"]}) for part in ("train", "val")
        },
        kdml_med="0.1.0", frame_size_px=64, fusion="anchors",
    ).write(run)  # fmt: skip
    usual = {"seed": 3, "max_epochs": 2, "alpha": 1.0, "beta": 1.0, "gamma": 1.0, "balance": False}
    about = {"dataset": dataset_identity(dataset), "dataset_dir": str(dataset)}
    write_json(run / SETTINGS_FILE, about | {"knobs": usual | dict(knobs or {}), "free": {}})
    found = {split: made_up_detections(rows, seed=place) for place, (split, rows) in enumerate(sorted(parts.items()))}
    thresholds = choose_thresholds(parts["val"], found["val"], networks=NETWORKS)
    write_judged(run, parts["val"], found["val"], thresholds, split="val", best_epoch=2)
    if "test" in parts:
        write_judged(run / "evaluation_test", parts["test"], found["test"], thresholds, split="test")
    return run


def write_judged(
    folder: Path,
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    thresholds: Mapping[str, float],
    *,
    split: str,
    **more: Any,
) -> None:
    """Write an evaluation whose figures have intervals; ``more`` are further keys of metrics.json."""
    write_detector_evaluation(folder, frames, detections, thresholds, split=split)
    content = read_json(folder / METRICS_FILE, remedy="")
    content["bootstrap"] |= {"resamples": RESAMPLES}
    figures = evaluate_detections(frames, detections, threshold=thresholds, resamples=RESAMPLES)
    content |= {"networks": {name: {"parameters": 1000, **own} for name, own in figures.items()}, "synthetic": False}
    write_json(folder / METRICS_FILE, content | more)
