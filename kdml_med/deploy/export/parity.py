"""Whether an exported classifier is the one that was evaluated: both on the same real tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kdml_med.data import SampleLoader, TileDataset
from kdml_med.deploy.export.drawing import Drawn, usable_evaluation
from kdml_med.deploy.export.runtimes import Answer
from kdml_med.engines.evaluator import ensemble_probabilities
from kdml_med.keys import BatchKey, NetworkName, PredictionColumn
from kdml_med.metrics.aggregation import aggregate_predictions
from kdml_med.metrics.bootstrap import percentile_interval, resample_auroc
from kdml_med.metrics.classification import binary_auroc
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.runs import METRICS_FILE, PREDICTIONS_FILE, RunDescription, load_network, read_run_json
from kdml_med.storage.reading import read_rows

TOLERANCE = 1e-4
"""Largest difference of a probability that the arithmetic of another runtime explains."""
THRESHOLD = 0.5
RESAMPLES = 2000
_BATCH = 32
_BEFORE, _AFTER = "evaluated", "exported"

Tiles = Drawn[TileDataset]


def compare_classifier(
    run_dir: Path,
    run: RunDescription,
    tiles: Tiles,
    pixels: npt.NDArray[np.uint8],
    answers: Mapping[str, Answer],
    *,
    network: str,
    parts: Sequence[str],
) -> dict[str, Any]:
    """Compare an exported file with the networks of its run, and with what its evaluation recorded.

    Args:
        run_dir: folder of the run.
        run: its description.
        tiles: what both are asked about.
        pixels: of them, as the file takes them.
        answers: the exported file by the runtime that computes it; the first one counts.
        network: what it is an export of.
        parts: names of the networks inside.

    Returns:
        Content of parity.json.
    """
    evaluated = _evaluated(run_dir, run, tiles, network, parts)
    by_runtime = {name: _answers(answer, pixels) for name, answer in answers.items()}
    runtime, exported = next(iter(by_runtime.items()))
    table = _table(tiles, {_BEFORE: evaluated[:, -1], _AFTER: exported[:, -1]})
    level, method = run.level or "patient", run.aggregation or "mean"
    figures = evaluate_predictions(table, level=level, method=method, resamples=RESAMPLES)
    groups = aggregate_predictions(table, level, method)
    folder, problem = usable_evaluation(run_dir, tiles.split, parts, tiles.dataset.dataset_dir)
    return {
        "split": tiles.split,
        "level": level,
        "n_tiles": len(tiles),
        "n_tiles_of_split": tiles.available,
        "whole": tiles.whole,
        "n_groups": int(figures[_BEFORE][level]["n"]),
        "n_patients": tiles.patients,
        "runtime": runtime,
        **_differences(evaluated, exported),
        "runtimes": {
            name: _differences(evaluated, found) | {"tile_auroc": _auroc(tiles, found)}
            for name, found in by_runtime.items()
        },
        "changed_decisions": {"tile": _changed(table), level: _changed(groups), "threshold": THRESHOLD},
        "auroc": {name: _aurocs(rows, figures, name) for name, rows in (("tile", table), (level, groups))},
        "bootstrap": {"resamples": RESAMPLES, "unit": tiles.owner, "confidence": 0.95, "interval": "percentile"},
        "recorded": None if folder is None else _recorded(folder, table, figures, network, level),
        "not_compared": problem,
        "synthetic": run.synthetic,
    }


def compare_on_noise(module_answer: Answer, answer: Answer, image_size: int, *, tiles: int = 16) -> dict[str, Any]:
    """Likewise where there are no tiles: on random pixels, which say nothing about decisions."""
    shape = (tiles, image_size, image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {"split": None, "n_tiles": tiles, **_differences(module_answer(pixels)[0], answer(pixels)[0])}


def _evaluated(
    run_dir: Path, run: RunDescription, tiles: Tiles, network: str, parts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Probabilities [tiles, classes] on the path of an evaluation: samples, their normalisation, networks, mean."""
    networks = {name: load_network(run_dir, name) for name in parts}
    found = []
    with torch.inference_mode():
        for batch in SampleLoader(tiles.dataset, batch_size=_BATCH):
            logits = {name: part(batch[BatchKey.IMAGE]) for name, part in networks.items()}
            found.append(_probabilities(logits, network, run.ensemble_average or "probabilities"))
    return torch.cat(found).numpy()


def _probabilities(logits: Mapping[str, torch.Tensor], network: str, average: str) -> torch.Tensor:
    if network == NetworkName.TEACHER:  # an ensemble of no student is none
        return torch.softmax(logits[network].float(), dim=1)
    return ensemble_probabilities(logits, average=average)[network]


def _answers(answer: Answer, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.concatenate([answer(pixels[start : start + _BATCH])[0] for start in range(0, len(pixels), _BATCH)])


def _auroc(tiles: Tiles, probabilities: npt.NDArray[np.float32]) -> float | None:
    value = binary_auroc(tiles.dataset.labels, probabilities[:, -1])
    return None if math.isnan(value) else value


def _table(tiles: Tiles, probabilities: Mapping[str, npt.NDArray[np.float32]]) -> pd.DataFrame:
    columns = [PredictionColumn.SAMPLE_ID, PredictionColumn.SLIDE_ID, PredictionColumn.PATIENT_ID]
    base = tiles.dataset.rows[[str(column) for column in columns]].copy()
    base[PredictionColumn.LABEL.value] = tiles.dataset.labels
    frames = []
    for name, values in probabilities.items():
        frame = base.copy()
        frame[PredictionColumn.NETWORK.value] = name
        frame[PredictionColumn.PROBABILITY.value] = values.astype(np.float64)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _differences(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> dict[str, float]:
    found = np.abs(before.astype(np.float64) - after)
    return {"largest_difference": float(found.max()), "mean_difference": float(found.mean())}


def _halves(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    network = table["network"]
    return table[network == _BEFORE].reset_index(drop=True), table[network == _AFTER].reset_index(drop=True)


def _changed(table: pd.DataFrame) -> int:
    before, after = _halves(table)
    return int(((before["probability"] >= THRESHOLD) != (after["probability"] >= THRESHOLD)).sum())


def _aurocs(table: pd.DataFrame, figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    """AUROC before and after, and its change with the interval of the same resampled patients."""
    before, after = _halves(table)
    drawn = [
        resample_auroc(half["label"], half["probability"], groups=half["patient_id"], resamples=RESAMPLES)
        for half in (before, after)
    ]
    change = percentile_interval(drawn[1] - drawn[0])
    values = {moment: figures[moment][name]["auroc"] for moment in (_BEFORE, _AFTER)}
    defined = None not in values.values()
    return {
        **values,
        **{f"{moment}_ci95": figures[moment][name]["auroc_ci95"] for moment in values},
        "change": values[_AFTER] - values[_BEFORE] if defined else None,
        "change_ci95": [None if np.isnan(limit) else limit for limit in (change.low, change.high)],
    }


def _recorded(
    folder: Path, table: pd.DataFrame, figures: Mapping[str, Any], network: str, level: str
) -> dict[str, Any] | None:
    """The exported file against what the evaluation of the same split wrote; None where that left no predictions."""
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        return None
    rows = read_rows(path, [str(column) for column in PredictionColumn], remedy="Evaluate the run again.")
    own = rows[rows["network"] == network].set_index("sample_id")["probability"]
    after = _halves(table)[1].set_index("sample_id")["probability"]
    shared = own.index.intersection(after.index)
    recorded: dict[str, Any] = {"folder": folder.name, "n_tiles": len(shared)}
    if len(shared):
        recorded["largest_difference"] = float((own[shared] - after[shared]).abs().max())
    metrics = read_run_json(folder, METRICS_FILE)
    if metrics.get("level") == level and len(shared) == len(own) == len(after):
        then = metrics["networks"][network]
        for name in ("tile", level):
            recorded[f"{name}_auroc"] = then[name]["auroc"]
            recorded[f"{name}_auroc_exported"] = figures[_AFTER][name]["auroc"]
    return recorded
