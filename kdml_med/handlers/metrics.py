"""Tile, slide and patient metrics of every network while an evaluator runs."""

from __future__ import annotations

import logging
import math
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor

from kdml_med.engines.processes import gather, made_by_main, world_size
from kdml_med.keys import BatchKey, NetworkName, OutputKey, PredictionColumn
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.metrics.evaluation import evaluate_predictions

logger = logging.getLogger(__name__)

UNDEFINED = -1.0
"""Value of a key metric that is not defined: below every AUROC and precision, and unlike NaN it can be compared."""


class CohortPredictions:
    """Collects the tile predictions of an evaluation and leaves them in ``engine.state.predictions``.

    Args:
        positive_class: index of the class whose probability counts; the last one by default.
    """

    def __init__(self, *, positive_class: int = -1) -> None:
        self.positive_class = positive_class
        self.reset()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.publish)

    def reset(self) -> None:
        """Forget everything collected."""
        self.networks: list[str] = []
        self._batches: list[Tensor] = []
        keys = (BatchKey.SAMPLE_ID, BatchKey.SLIDE_ID, BatchKey.PATIENT_ID, BatchKey.LABEL)
        self._identifiers: dict[str, list[Any]] = {key.value: [] for key in keys}

    def collect(self, engine: Engine) -> None:
        """Take one batch; identifiers come from the batch, probabilities from the output."""
        for key, values in self._identifiers.items():
            batch = engine.state.batch[key]
            values.extend(batch.tolist() if isinstance(batch, Tensor) else batch)
        answers = engine.state.output[OutputKey.PROBABILITIES]
        self.networks = list(answers)
        self._batches.append(torch.stack([answer[:, self.positive_class] for answer in answers.values()]))

    def probabilities(self) -> dict[str, Tensor]:
        """Float64, [tiles], on the CPU, by network name; they stay on their device up to here."""
        if not self._batches:
            return {}
        self._join()
        # Double precision comes last: not every device has it.
        return dict(zip(self.networks, self._batches[0].cpu().double(), strict=True))

    def publish(self, engine: Engine) -> None:
        """Leave the table in the engine's state; of several processes the main one has that of all."""
        self._gather()
        engine.state.predictions = self.table()

    def _gather(self) -> None:
        """Bring together what the processes have, each of which evaluated a block of the samples."""
        if world_size() == 1:
            return
        self._join()
        parts = gather((self._identifiers, [batch.cpu() for batch in self._batches]))
        if parts is not None:
            self._batches = [batch for _, batches in parts for batch in batches]
            for key in self._identifiers:
                self._identifiers[key] = [value for identifiers, _ in parts for value in identifiers[key]]

    def _join(self) -> None:
        """Make one tensor of all batches: of millions of tiles there are many, each a wait for the device."""
        if len(self._batches) > 1:
            self._batches = [torch.cat(self._batches, dim=1)]

    def table(self) -> pd.DataFrame:
        """One row per tile and network, columns of ``PredictionColumn``; network by network, tiles in loading order."""
        identifiers = pd.DataFrame(self._identifiers)  # made once: of millions of tiles it is large
        frames = []
        for name, values in self.probabilities().items():
            frame = identifiers.copy(deep=False)
            frame[PredictionColumn.NETWORK.value] = name
            frame[PredictionColumn.PROBABILITY.value] = values.numpy()
            frames.append(frame)
        columns = [str(column) for column in PredictionColumn]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


class CohortMetrics(Metric):
    """Collects tile predictions and aggregates them to slides or patients when the evaluation ends.

    Attached under its key name it leaves in ``engine.state.metrics``, for each network and the ensemble,
    "{network}_tile_auroc", "{network}_{level}_auroc" and so on, "agreement_{a}_{b}" for each pair of networks (share of
    tiles on which both decide alike), and the key metric: the AUROC of the ensemble at the chosen level, or
    ``UNDEFINED`` where a class is absent. The predictions themselves are in ``engine.state.predictions``.

    Args:
        level: what carries a label, "patient" or "slide".
        aggregation: how tiles become one probability, see ``kdml_med.metrics.aggregation.aggregate_tiles``.
        threshold: from which probability a tile or a patient is called positive.
        positive_class: index of the class whose probability counts; the last one by default.
    """

    def __init__(
        self,
        *,
        level: Level = "patient",
        aggregation: AggregationMethod = "mean",
        threshold: float = 0.5,
        positive_class: int = -1,
    ) -> None:
        self.level, self.aggregation, self.threshold = level, aggregation, threshold
        self.collector = CohortPredictions(positive_class=positive_class)
        super().__init__(output_transform=lambda output: output)

    @property
    def key(self) -> str:
        """Name of the key metric."""
        return f"{NetworkName.ENSEMBLE}_{self.level}_auroc"

    def reset(self) -> None:
        """Forget everything collected."""
        self.collector.reset()

    def iteration_completed(self, engine: Engine) -> None:
        """Collect one batch."""
        self.collector.collect(engine)

    def update(self, output: Any) -> None:
        """Unused: a batch needs identifiers too, see ``iteration_completed``."""

    def compute(self) -> dict[str, float]:
        """All metrics by name; NaN where one is not defined."""
        return self._figures(self.collector.table())

    def completed(self, engine: Engine, name: str) -> None:
        """Put everything into the engine's state; ``name`` is the key metric."""
        self.collector.publish(engine)
        lost = engine.state.predictions[PredictionColumn.PROBABILITY.value].isna().any()
        why = "a network answers with NaN" if lost else f"the evaluated {self.level}s are all of one class"
        figures = made_by_main(lambda: self._figures(engine.state.predictions))
        publish_metrics(engine, figures, key=self.key, name=name, why=why)

    def _figures(self, predictions: pd.DataFrame) -> dict[str, float]:
        result: dict[str, float] = {}
        for name, levels in evaluate_predictions(
            predictions, level=self.level, method=self.aggregation, threshold=self.threshold, resamples=0
        ).items():
            for level, figures in levels.items():
                for figure, value in figures.items():
                    if isinstance(value, int | float):
                        result[f"{name}_{level}_{figure}"] = float(value)
                    elif value is None:
                        result[f"{name}_{level}_{figure}"] = math.nan
        return result | self._agreement()

    def _agreement(self) -> dict[str, float]:
        decisions = {
            name: values >= self.threshold
            for name, values in self.collector.probabilities().items()
            if name != NetworkName.ENSEMBLE
        }
        return {
            f"agreement_{a}_{b}": float((decisions[a] == decisions[b]).double().mean())
            for a, b in combinations(decisions, 2)
        }


def publish_metrics(engine: Engine, metrics: dict[str, float], *, key: str, name: str, why: str) -> None:
    """Put metrics into an evaluator's state, and the one called ``key`` under ``name`` too, as a comparable number.

    Args:
        engine: the evaluator.
        metrics: by name, NaN where one is not defined.
        key: which of them decides.
        name: what the engine calls its key metric.
        why: the reason, for the log, if that one is not defined.
    """
    value = metrics.get(key, math.nan)
    if math.isnan(value):
        logger.warning("%s is not defined: %s.", key, why)
        value = UNDEFINED
    engine.state.metrics.update(metrics)
    engine.state.metrics[name] = value


def at_least_as_good(current: float, best: float) -> bool:
    """Whether a key metric is worth keeping: among equals the later epoch wins, it has learned longer.

    Few validation patients give few distinct AUROC values, so that ties are common.
    """
    return current >= best
