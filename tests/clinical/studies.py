"""Runs on slides with a dataset folder, tests and answers, as the report finds them; no network is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kdml_med.runs import SETTINGS_FILE
from kdml_med.splits import assign_splits
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import (
    FAILURES_FILE,
    MANIFEST_FILE,
    SLIDES_FILE,
    dataset_identity,
    read_info,
    read_manifest,
    write_manifest,
)
from tests.clinical.answered import NETWORKS, write_evaluation, write_run
from tests.synthetic_tiles import write_tile_dataset


def write_placed_dataset(folder: Path, *, patients: int = 24, placed: bool = True) -> Path:
    """A dataset of slides of four tiles that lie two by two, in two hospitals, with a slide that could not be read."""
    write_tile_dataset(folder, patients=patients, tiles=4)
    manifest = read_manifest(folder)
    place = manifest.groupby("slide_id").cumcount()
    manifest["site"] = np.where(manifest["patient_id"].str[-1].astype(int) < 5, "north", "south")
    if placed:
        manifest = manifest.assign(x_l0=32 * (place % 2), y_l0=32 * (place // 2), size_l0=32.0)
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    slides = pd.DataFrame({"slide_id": sorted(manifest["slide_id"].unique())})
    slides = slides.assign(width_l0=80, height_l0=64, mpp=1.0, tiles=4, rejected_tissue=2, rejected_blur=0)
    write_table(folder / SLIDES_FILE, slides)
    write_table(folder / FAILURES_FILE, pd.DataFrame({"input": ["torn.svs"], "reason": ["cannot be read"]}))
    return folder


def predictions_on(
    dataset: Path, split: str, *, seed: int = 0, noise: float = 0.35, networks: Sequence[str] = NETWORKS
) -> pd.DataFrame:
    """Columns of predictions.parquet: every network answers about each tile of a split, right more often than not."""
    info, manifest = read_info(dataset), read_manifest(dataset)
    rows = manifest[(assign_splits(dataset, manifest, info) == split).to_numpy()]
    generator = np.random.default_rng(seed)
    label = (rows["label"] == info.classes[-1]).astype(int).to_numpy()
    patients = rows["patient_id"].astype("category").cat.codes.to_numpy()
    parts = []
    for network in networks:
        lean = generator.normal(0, noise, patients.max() + 1)[patients]
        probability = np.clip(0.3 + 0.4 * label + lean + generator.normal(0, 0.05, len(rows)), 0.01, 0.99)
        columns = ["sample_id", "slide_id", "patient_id"]
        parts.append(rows[columns].astype("str").assign(network=network, label=label, probability=probability))
    return pd.concat(parts, ignore_index=True)


def write_study(
    folder: Path, dataset: Path, *, test: pd.DataFrame | None = None, networks: Sequence[str] = NETWORKS, **changes: Any
) -> Path:
    """A run on a dataset with its evaluation on the test split; ``changes`` are keys of cohort.json."""
    manifest = read_manifest(dataset)
    parts = assign_splits(dataset, manifest, read_info(dataset))
    train = list(manifest["patient_id"][(parts == "train").to_numpy()].unique())
    changes = {"classes": read_info(dataset).classes} | changes
    run = write_run(
        folder, predictions_on(dataset, "val", seed=1, networks=networks), train=train, networks=networks, **changes
    )
    content = {"knobs": {}, "free": {}, "dataset": dataset_identity(dataset), "dataset_dir": str(dataset)}
    write_json(run / SETTINGS_FILE, content)
    own = predictions_on(dataset, "test", seed=2, networks=networks) if test is None else test
    write_evaluation(run / "evaluation_test", own, split="test", classes=read_info(dataset).classes)
    return run
