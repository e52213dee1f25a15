"""Detections of every network and their metrics while an evaluator runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric

from kdml_med.engines.processes import gather, made_by_main
from kdml_med.handlers.metrics import publish_metrics
from kdml_med.keys import BatchKey, DetectionColumn, NetworkName, OutputKey
from kdml_med.metrics.detection import choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.networks.boxes import Detections

logger = logging.getLogger(__name__)

_IDENTIFIERS = (DetectionColumn.SAMPLE_ID, DetectionColumn.SEQUENCE_ID, DetectionColumn.PATIENT_ID)
_SIDES = (DetectionColumn.XMIN, DetectionColumn.YMIN, DetectionColumn.XMAX, DetectionColumn.YMAX)


class CohortDetections:
    """Collects the detections of an evaluation and leaves them in ``engine.state.predictions``.

    The names of the networks are in ``networks``, also of those that found nothing.
    """

    def __init__(self) -> None:
        self.reset()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.publish)

    def reset(self) -> None:
        """Forget everything collected."""
        self._found: dict[str, list[_Batch]] = {}

    @property
    def networks(self) -> list[str]:
        """Names of all networks that were asked."""
        return list(self._found)

    def collect(self, engine: Engine) -> None:
        """Take one batch; identifiers come from the batch, detections from the output."""
        batch = engine.state.batch
        keys = (BatchKey.SAMPLE_ID, BatchKey.SEQUENCE_ID, BatchKey.PATIENT_ID)
        identifiers = np.array([batch[key] for key in keys], dtype=object)
        for name, images in engine.state.output[OutputKey.DETECTIONS].items():
            self._found.setdefault(str(name), []).append(_Batch.of(identifiers, images))

    def publish(self, engine: Engine) -> None:
        """Leave the table and the names in the engine's state; of several processes the main one has those of all."""
        parts = gather(self._found)
        if parts is not None:
            self._found = {name: [batch for part in parts for batch in part[name]] for name in self._found}
        engine.state.predictions = self.table()
        engine.state.networks = list(self.networks)

    def table(self) -> pd.DataFrame:
        """One row per detection, columns of ``DetectionColumn``; network by network, frames in loading order."""
        batches = [one for found in self._found.values() for one in found]
        identifiers = np.concatenate([np.empty((3, 0), object), *(one.identifiers for one in batches)], axis=1)
        names = [name for name, found in self._found.items() for one in found for _ in range(len(one.numbers))]
        numbers = np.concatenate([np.empty((0, 1 + len(_SIDES))), *(one.numbers for one in batches)])
        columns = {str(column): own.tolist() for column, own in zip(_IDENTIFIERS, identifiers, strict=True)}
        columns |= {DetectionColumn.NETWORK.value: names}
        columns |= {str(column): own for column, own in zip((DetectionColumn.SCORE, *_SIDES), numbers.T, strict=True)}
        return pd.DataFrame(columns)


class _Batch(NamedTuple):
    """What one network found in the images of a batch, image by image."""

    identifiers: npt.NDArray[np.object_]
    """[3, detections]; of sample, sequence and patient."""
    numbers: npt.NDArray[np.float64]
    """[detections, 5]; score and sides."""

    @classmethod
    def of(cls, identifiers: npt.NDArray[np.object_], images: Sequence[Detections]) -> _Batch:
        """Join the detections of images with these identifiers, [3, images]; a GPU is waited for once."""
        scores, boxes = (torch.cat(parts) for parts in zip(*((one.scores, one.boxes) for one in images), strict=True))
        counts = [len(one.scores) for one in images]
        return cls(identifiers.repeat(counts, axis=1), torch.column_stack([scores, boxes]).double().cpu().numpy())


class DetectionMetrics(Metric):
    """Collects detections and compares them with the boxes of the evaluated frames when the evaluation ends.

    Attached under its key name it leaves in ``engine.state.metrics``, for each network and the ensemble,
    "{network}_ap", "{network}_ap50" and so on (see ``evaluate_detections``), and the key metric: the COCO average
    precision of the ensemble, or ``UNDEFINED`` without any box. The detections themselves are in
    ``engine.state.predictions``.
    """

    key = f"{NetworkName.ENSEMBLE}_ap"
    """Name of the key metric."""

    def __init__(self) -> None:
        self.collector = CohortDetections()
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget everything collected."""
        self.collector.reset()

    def iteration_completed(self, engine: Engine) -> None:
        """Collect one batch."""
        self.collector.collect(engine)

    def update(self, output: Any) -> None:
        """Unused: a batch needs identifiers too, see ``iteration_completed``."""

    def compute(self) -> None:
        """Unused: the ground truth is in the evaluator's dataset, see ``completed``."""

    def completed(self, engine: Engine, name: str) -> None:
        """Put everything into the engine's state; ``name`` is the key metric."""
        self.collector.publish(engine)
        metrics = made_by_main(lambda: self._figures(engine.data_loader.dataset.rows, engine.state.predictions))
        publish_metrics(engine, metrics, key=self.key, name=name, why="the evaluated frames have no box")

    def _figures(self, frames: pd.DataFrame, detections: pd.DataFrame) -> dict[str, float]:
        networks = self.collector.networks
        thresholds = choose_thresholds(frames, detections, networks=networks)
        found = evaluate_detections(frames, detections, threshold=thresholds, networks=networks, resamples=0)
        return {
            f"{network}_{figure}": math.nan if value is None else float(value)
            for network, figures in found.items()
            for figure, value in figures.items()
            if not isinstance(value, list)
        }
