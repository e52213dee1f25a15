"""The end of a detection run: detections, one row per sequence, and figures with intervals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.engines import Evaluator

from kdml_med.bundle.results import load_best_weights, run_evaluator
from kdml_med.data.frames import FrameDataset
from kdml_med.keys import Split
from kdml_med.metrics.detection import choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections, sequence_table
from kdml_med.networks.cohort import Cohort
from kdml_med.report.screen import detection_results_table
from kdml_med.runs import COHORT_FILE, DETECTIONS_FILE, METRICS_FILE, SEQUENCES_FILE, read_run_json, write_detections
from kdml_med.storage.files import write_json, write_table

logger = logging.getLogger(__name__)


def save_detection_evaluation(
    evaluator: Evaluator,
    network: Cohort,
    output_dir: str,
    *,
    run_dir: str,
    split: str,
    load_best: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Run an evaluator and write detections.parquet, sequences.csv and metrics.json.

    On the validation split the score threshold of every network is chosen, where F1 is best; on all others the
    thresholds that the training run chose are used.

    Args:
        evaluator: with ``DetectionMetrics``; its data loader has a ``FrameDataset``.
        network: the evaluator's cohort.
        output_dir: where the files go.
        run_dir: training run.
        split: name of what is evaluated, for the record.
        load_best: load the best weights of the run first.
        resamples: of the bootstrap over sequences.

    Returns:
        Content of metrics.json.
    """
    epoch = load_best_weights(network, run_dir) if load_best else None
    detections = run_evaluator(evaluator)
    names = evaluator.state.networks
    dataset: FrameDataset = evaluator.data_loader.dataset
    level = dataset.info.label_level
    if split == Split.VAL:
        thresholds = choose_thresholds(dataset.rows, detections, networks=names)
    else:
        thresholds = read_run_json(Path(run_dir), METRICS_FILE)["thresholds"]
        chosen_with = read_run_json(Path(run_dir), COHORT_FILE)["fusion"]
        if evaluator.fusion != chosen_with:
            logger.warning(
                "The ensemble's threshold was chosen with fusion %r, its figures at a threshold do not fit %r; "
                "AP and FROC need none.",
                chosen_with,
                evaluator.fusion,
            )
    group: Any = level
    figures = evaluate_detections(
        dataset.rows, detections, threshold=thresholds, group=group, networks=names, resamples=resamples
    )
    counts = network.parameter_counts()
    metrics = {
        "split": split,
        "classes": dataset.classes,
        "bootstrap": {"resamples": resamples, "unit": level, "confidence": 0.95, "interval": "percentile"},
        "thresholds": thresholds,
        "synthetic": dataset.info.synthetic,
        "networks": {name: {"parameters": counts[name], **values} for name, values in figures.items()},
    }
    if epoch is not None:
        metrics["best_epoch"] = epoch
    target = Path(output_dir)
    write_detections(target / DETECTIONS_FILE, detections)
    write_table(target / SEQUENCES_FILE, sequence_table(dataset.rows, detections, threshold=thresholds))
    write_json(target / METRICS_FILE, metrics)
    print(f"\n{_heading(metrics)}\n\n{detection_results_table(metrics)}\n\nWritten to {target}\n")
    return metrics


def _heading(metrics: Mapping[str, Any]) -> str:
    some = next(iter(metrics["networks"].values()))
    unit = metrics["bootstrap"]["unit"]
    sequences = f"{some['n_sequences']} sequences, " if some["n_sequences"] else ""
    text = (
        f"Split {metrics['split']}: {sequences}{some['n_frames']} frames, {some['n_boxes']} polyp boxes, "
        f"{some['n_negative_frames']} frames without; intervals by bootstrap over {unit}s."
    )
    if metrics["synthetic"]:
        text += (
            "\nGenerated data: these figures show that the pipeline works, they say nothing about accuracy on patients."
        )
    return text
