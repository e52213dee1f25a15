"""Results folders as `kdml_med.experiments run` leaves them, with made-up predictions instead of trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.data.selection import select_rows
from kdml_med.experiments.plan import Cell, Plan, expand, make_plan
from kdml_med.experiments.training import CELL_FILE, cell_record
from kdml_med.keys import LossColumn, NetworkName, Task
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.networks.registry import NetworkSpec
from kdml_med.runs import RunDescription, write_detections, write_predictions
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import DatasetInfo, manifest_table, read_info, write_info, write_manifest
from tests.synthetic_frames import write_frame_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSIFIER = {"name": "mobilenet_v2", "last_block": 2}
DETECTOR = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
PARAMETERS = {"teacher": 50, "student_0": 10, "student_1": 20, "student_2": 30}
CHECKPOINT_BYTES = {"teacher": 500, "student_0": 100, "student_1": 200, "student_2": 300}
TEACHER_ALONE = ["student_0"]
STUDENTS = ["student_0", "student_1"]
ALL = ["teacher", "student_0", "student_1"]
NETWORKS = {"teacher_only": TEACHER_ALONE, "independent": STUDENTS, "ml": STUDENTS}
RESAMPLES = 20

Tables = Callable[[Cell, str], pd.DataFrame]
"""Predictions or detections of a cell's evaluation, networks without the ensemble."""


def networks_of(cell: Cell) -> list[str]:
    students = cell.settings.get("students")
    if cell.arm in NETWORKS or students is None:
        return NETWORKS.get(cell.arm, ALL)
    return ["teacher", *(f"student_{number}" for number in range(len(students)))]


def specs_of(cell: Cell, spec: NetworkSpec) -> dict[str, NetworkSpec]:
    """Networks of a cell: those of its settings, and the given one where these name none."""
    specs = {"teacher": cell.settings.get("teacher") or spec}
    specs |= {f"student_{number}": student for number, student in enumerate(cell.settings.get("students") or ())}
    return {name: specs.get(name, spec) for name in networks_of(cell)}


def tile_plan(tmp_path: Path, **content: Any) -> Plan:
    """A plan on an empty-handed dataset: reading results of classification needs no tiles."""
    for name in ("tiles", "others"):
        folder = tmp_path / name
        write_info(folder_made(folder), DatasetInfo(classes=["MSS", "MSI"], tile_size_px=32))
        write_manifest(folder / "manifest.parquet", manifest_table([]))
    settings = {"name": "made up", "bundle": str(REPOSITORY / "bundles/msi_kdml"), "versions": ["edge"], "seeds": [0]}
    return make_plan(settings | {"dataset_dir": str(tmp_path / "tiles")} | content)


def frame_plan(tmp_path: Path, **content: Any) -> Plan:
    """A plan on frames of six patients, four of whom are tested."""
    patients = {"A": "train", "B": "val", "C": "test", "D": "test", "E": "test", "F": "test"}
    if not (tmp_path / "frames").exists():
        write_frame_dataset(tmp_path / "frames", splits=patients, frames=4)
    settings = {"name": "made up", "bundle": str(REPOSITORY / "bundles/polyp_kdml"), "versions": ["edge"], "seeds": [0]}
    return make_plan(settings | {"dataset_dir": str(tmp_path / "frames")} | content)


def folder_made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tile_table(
    labels: Mapping[str, int], probabilities: Mapping[str, Mapping[str, Sequence[float]]], *, prefix: str = ""
) -> pd.DataFrame:
    """Rows of predictions.parquet: labels by patient, probabilities of tiles by network and patient."""
    rows = [
        (f"{prefix}{patient}/{tile}", f"{prefix}{patient}-s", f"{prefix}{patient}", network, labels[patient], value)
        for network, patients in probabilities.items()
        for patient, values in patients.items()
        for tile, value in enumerate(values)
    ]
    columns = ["sample_id", "slide_id", "patient_id", "network", "label", "probability"]
    return pd.DataFrame(rows, columns=columns)


def random_tiles(cell: Cell, evaluation: str, *, patients: int = 8, shared: bool = False) -> pd.DataFrame:
    """Predictions somewhat better than chance; each fold has patients of its own unless they are shared."""
    generator = np.random.default_rng([cell.seed, cell.fold or 0, *cell.arm.encode(), *evaluation.encode()])
    fold = 0 if shared or cell.fold is None else cell.fold
    labels = {f"P{fold}{number}": int(number % (2 + fold) == 0) for number in range(patients)}
    tiles = {patient: 1 + number % 3 for number, patient in enumerate(labels)}
    shift = 0.15 * (cell.fold or 0)  # networks of different folds are calibrated differently
    probabilities = {
        network: {
            patient: ((0.1 + 0.15 * label + shift) + 0.4 * generator.random(tiles[patient])).round(3).tolist()
            for patient, label in labels.items()
        }
        for network in networks_of(cell)
    }
    return tile_table(labels, probabilities, prefix=evaluation)


def random_detections(frames: pd.DataFrame, networks: Sequence[str], seed: Sequence[int]) -> pd.DataFrame:
    """Boxes near most of the annotated ones, and wrong ones with lower scores."""
    generator = np.random.default_rng(seed)
    rows = []
    for network in networks:
        for frame in frames.itertuples():
            found = [
                np.asarray(box, float) + generator.normal(0, 2, 4) for box in frame.boxes if generator.random() > 0.3
            ]
            wrong = [np.array([0.0, 0, 8, 8]) + generator.integers(0, 30)]
            for box, scale in [*((box, 1.0) for box in found), *((box, 0.7) for box in wrong)]:
                place = (frame.sample_id, frame.sequence_id, frame.patient_id)
                rows.append((*place, network, scale * generator.uniform(0.2, 1), *box))
    return detection_table(rows)


def detection_table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    columns = ["sample_id", "sequence_id", "patient_id", "network", "score", "xmin", "ymin", "xmax", "ymax"]
    return pd.DataFrame(rows, columns=columns)


def with_ensemble(table: pd.DataFrame) -> pd.DataFrame:
    """Add the mean of the students."""
    students = table[table["network"] != NetworkName.TEACHER]
    keys = [name for name in students if name not in ("network", "probability")]
    mean = students.groupby(keys, as_index=False, sort=False)["probability"].mean()
    return pd.concat([table, mean.assign(network=NetworkName.ENSEMBLE.value)], ignore_index=True)


def loss_rows(networks: Sequence[str], *, frozen_teacher: bool = False) -> list[tuple[Any, ...]]:
    """Two epochs of five steps; the weight of teacher and peers is 0.5 in the first one."""
    rows: list[tuple[Any, ...]] = []
    for epoch in (1, 2):
        for number, network in enumerate(networks):
            if network == "teacher" and frozen_teacher:
                continue
            rows.append((epoch, 5, network, "task", 1.0, 0.6))
            if network != "teacher" and "teacher" in networks:
                rows.append((epoch, 5, network, "kd", epoch / 2, 0.2 * number))
    return rows


def write_cell(
    plan: Plan, out: Path, cell: Cell, tables: Mapping[str, pd.DataFrame], *, frames: pd.DataFrame | None = None,
    thresholds: float = 0.4, level: str = "patient",
) -> None:  # fmt: skip
    """Write what a finished cell leaves.

    Args:
        plan: of the cell.
        out: results folder.
        cell: what was trained.
        tables: predictions (without the ensemble) or detections (with it) by evaluation.
        frames: what detectors were evaluated on; None for classification.
        thresholds: of detectors.
        level: of the aggregation, for classification.
    """
    folder, networks = out / cell.path, networks_of(cell)
    classes = ["MSS", "MSI"] if frames is None else ["negative", "polyp"]
    spec: NetworkSpec = CLASSIFIER if frames is None else DETECTOR
    tile_words: dict[str, Any] = {"level": level, "aggregation": "mean", "ensemble_average": "probabilities"}
    RunDescription(
        task=Task.CLASSIFICATION if frames is None else Task.DETECTION,
        version=cell.version,
        networks=specs_of(cell, spec),
        classes=classes,
        image_size=cell.settings.get("image_size", 32 if frames is None else [32, 64]),
        fold=cell.fold,
        synthetic=True,
        seen_patients={"train": [], "val": []},
        kdml_med="0",
        **(tile_words if frames is None else {"fusion": "anchors"}),
    ).write(folder)
    write_table(
        folder / "losses.csv",
        pd.DataFrame(
            loss_rows(networks, frozen_teacher=cell.needs is not None), columns=[str(name) for name in LossColumn]
        ),
    )
    for name in networks:
        path = folder / "checkpoints" / f"{name}.pt"
        folder_made(path.parent)
        path.write_bytes(b"w" * CHECKPOINT_BYTES[name])
    counts = {name: {"parameters": PARAMETERS[name]} for name in networks}
    counts["ensemble"] = {"parameters": sum(PARAMETERS[name] for name in networks if name != "teacher")}
    write_json(folder / "metrics.json", {"networks": counts, "best_epoch": 2})
    for evaluation, table in tables.items():
        target = folder / f"evaluation_{evaluation}"
        if frames is None:
            full = with_ensemble(table)
            write_predictions(target / "predictions.parquet", full)
            figures: Any = evaluate_predictions(full, level=level, resamples=RESAMPLES)  # type: ignore[arg-type]
            content = {"level": level, "aggregation": "mean", "bootstrap": {"unit": "patient"}}
        else:
            names = [*networks, "ensemble"]
            write_detections(target / "detections.parquet", table)
            limits = dict.fromkeys(names, thresholds)
            figures = evaluate_detections(frames, table, threshold=limits, group="patient", resamples=RESAMPLES)
            content = {"bootstrap": {"unit": "patient"}, "thresholds": limits}
        content["networks"] = {name: counts[name] | own for name, own in figures.items()}
        write_json(target / "metrics.json", content)
    write_json(folder / CELL_FILE, cell_record(cell, plan))


def write_results(
    plan: Plan, out: Path, make: Tables = random_tiles, *, without: Sequence[str] = (), **options: Any
) -> None:
    """Write all cells of a plan but those whose path ends in one of ``without``."""
    for cell in expand(plan):
        if not cell.path.endswith(tuple(without) or ("/",)):
            write_cell(plan, out, cell, {name: make(cell, name) for name in plan.evaluations}, **options)


def frames_tested(plan: Plan) -> pd.DataFrame:
    """Manifest rows of the test split."""
    folder = Path(plan.dataset_dir)
    return select_rows(folder, read_info(folder), "test", None)


def detections_on(frames: pd.DataFrame) -> Tables:
    """Random detections of each cell, the ensemble's too."""

    def make(cell: Cell, evaluation: str) -> pd.DataFrame:
        return random_detections(frames, [*networks_of(cell), "ensemble"], [cell.seed, *cell.arm.encode()])

    return make
