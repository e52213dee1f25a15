"""What a person watches in TensorBoard while a cohort trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.engines import Evaluator, Trainer
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary

from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.keys import NetworkName, OutputKey
from kdml_med.metrics.aggregation import AggregationMethod, Level, aggregate_predictions
from kdml_med.runs import network_order

FIGURES = ("auroc", "accuracy")
COHORT_RUN = "cohort"


class CohortTensorBoard:
    """Writes scalars, example tiles, precision-recall curves and settings as TensorBoard events.

    Every network, and the ensemble, is a run of its own below ``log_dir``, so that one chart shows all of them, each in
    its colour: ``train/task_loss``, ``train/kd_loss``, ``train/ml_loss``, ``train/learning_rate`` (per iteration),
    ``val/tile_auroc``, ``val/patient_auroc``, ``val/tile_accuracy``, ``val/patient_accuracy`` and
    ``val/precision_recall`` (per epoch). What belongs to no single network is in run "cohort": ``train/total_loss``,
    the weights of the terms (``weights/beta``), the agreement between networks (``val/agreement_…``), example tiles
    with every network's answer, and the settings (HPARAMS).

    Args:
        log_dir: folder of the runs.
        optimizer: its learning rates are shown.
        evaluator: validation engine with ``CohortMetrics``; None shows training only.
        settings: knobs of the run, for the HPARAMS page.
        level: "patient" or "slide", as in ``CohortMetrics``.
        aggregation: likewise.
        interval: iterations between two points of a loss curve.
        tiles: how many example tiles to show, half of them the ensemble's worst errors.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Evaluator | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        level: Level = "patient",
        aggregation: AggregationMethod = "mean",
        interval: int = 1,
        tiles: int = 8,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.optimizer, self.evaluator = optimizer, evaluator
        self.settings = dict(settings or {})
        self.level, self.aggregation = level, aggregation
        self.interval, self.tiles = interval, tiles
        self.writers: dict[str, SummaryWriter] = {}
        self.first_iteration = 1

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer, and with the evaluator where there is one."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_STARTED(every=self.interval), self._learning_rates)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._losses)
        # At the end of the epoch: the loss hears of a new epoch only after the handlers attached to its start.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._weights)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validation)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def writer(self, run: str) -> SummaryWriter:
        """Writer of a run, opened on first use; points of an interrupted epoch, which is repeated, are taken back."""
        if run not in self.writers:
            self.writers[run] = SummaryWriter(str(self.log_dir / run), purge_step=self.first_iteration)
        return self.writers[run]

    def _epoch_started(self, engine: Engine) -> None:
        if not self.writers:
            self.first_iteration = engine.state.iteration + 1
            self.writer(COHORT_RUN)

    def _learning_rates(self, engine: Engine) -> None:
        for group in self.optimizer.param_groups:
            writer = self.writer(group.get("name", COHORT_RUN))
            writer.add_scalar("train/learning_rate", group["lr"], engine.state.iteration)

    def _losses(self, engine: Engine) -> None:
        for name, value in engine.state.output[OutputKey.LOSS_TERMS].items():
            network, _, term = name.rpartition("_")
            run, tag = (network, f"{term}_loss") if network else (COHORT_RUN, "total_loss")
            self.writer(run).add_scalar(f"train/{tag}", float(value), engine.state.iteration)

    def _weights(self, engine: Engine) -> None:
        weights = getattr(engine.cohort_loss, "weights", None)
        if weights is not None:
            for name, value in weights().items():
                self.writer(COHORT_RUN).add_scalar(f"weights/{name}", value, engine.state.epoch)

    def _validation(self, engine: Engine) -> None:
        if not self.writers:
            return
        epoch, metrics = engine.state.epoch, engine.state.metrics
        predictions: pd.DataFrame = engine.state.predictions
        for name in sorted(predictions["network"].unique(), key=network_order):
            for level in dict.fromkeys(("tile", self.level)):
                for figure in FIGURES:
                    value = metrics.get(f"{name}_{level}_{figure}", math.nan)
                    if not math.isnan(value) and value != UNDEFINED:
                        self.writer(name).add_scalar(f"val/{level}_{figure}", value, epoch)
        for name, value in metrics.items():
            if name.startswith("agreement_"):
                self.writer(COHORT_RUN).add_scalar(f"val/{name}", value, epoch)
        self._precision_recall(predictions, epoch)
        dataset = getattr(engine.data_loader, "dataset", None)
        if self.tiles and hasattr(dataset, "read"):
            for tag, image in tile_figures(dataset, predictions, count=self.tiles).items():
                self.writer(COHORT_RUN).add_image(tag, image, epoch, dataformats="HWC")
        for writer in self.writers.values():
            writer.flush()

    def _precision_recall(self, predictions: pd.DataFrame, epoch: int) -> None:
        labelled = predictions[predictions["label"] >= 0]
        if labelled["label"].nunique() < 2:
            return
        for name, rows in aggregate_predictions(labelled, self.level, self.aggregation).groupby("network"):
            labels, probabilities = rows["label"].to_numpy(dtype=np.int64), rows["probability"].to_numpy()
            self.writer(str(name)).add_pr_curve("val/precision_recall", labels, probabilities, epoch)

    def _finish(self, engine: Engine) -> None:
        if not self.writers:
            return
        if self.settings and self.evaluator is not None and self.evaluator.state.best_metric_epoch > 0:
            writer = self.writer(COHORT_RUN)
            values = {name: _hparam(value) for name, value in self.settings.items()}
            # Written here and not by add_hparams, which would open one more run folder.
            metric = f"val/best_{self.evaluator.state.key_metric_name}"
            best = float(self.evaluator.state.best_metric)
            for summary in hparams_summary(values, {metric: best}):
                writer._get_file_writer().add_summary(summary)
            writer.add_scalar(metric, best, self.evaluator.state.best_metric_epoch)
        self._close()

    def _close_and_raise(self, engine: Engine, error: Exception) -> None:
        self._close()
        raise error

    def _close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}


def _hparam(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def tile_figures(
    dataset: Any, predictions: pd.DataFrame, *, count: int = 8
) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Example tiles with their label and every network's probability of the positive class.

    Half are spread evenly over the split and stay the same from epoch to epoch; the others are the tiles on which the
    ensemble is most wrong now. A wrong decision has a red title.

    Args:
        dataset: gives ``read(index)`` (uint8 [height, width, 3]) and ``classes``; samples in the order of the tiles.
        predictions: columns of ``PredictionColumn``.
        count: number of tiles.

    Returns:
        uint8, [height, width, 3], by tag.
    """
    # Rows of one network stand in loading order, which is the order of the dataset.
    wide = {str(name): rows.reset_index(drop=True) for name, rows in predictions.groupby("network", sort=False)}
    ensemble = wide[NetworkName.ENSEMBLE.value]
    fixed = np.linspace(0, len(ensemble) - 1, min(count // 2, len(ensemble))).round().astype(int).tolist()
    error = (ensemble["probability"] - ensemble["label"]).abs().where(ensemble["label"] >= 0, 0.0)
    worst = [int(index) for index in error.sort_values(ascending=False, kind="stable").index if index not in fixed]
    tags = {f"val_tiles_spread/{number}": index for number, index in enumerate(dict.fromkeys(fixed), start=1)}
    tags |= {f"val_tiles_worst/{number}": index for number, index in enumerate(worst[: count - len(tags)], start=1)}
    names = sorted(wide, key=network_order)
    positive = dataset.classes[-1] if dataset.classes else "positive"
    figures = {}
    for tag, index in tags.items():
        label = int(ensemble["label"][index])
        truth = dataset.classes[label] if label >= 0 else "no label"
        lines = [f"{name:<10}{wide[name]['probability'][index]:.2f}" for name in names]
        figures[tag] = _tile_figure(
            dataset.read(index),
            title=f"{truth} · {ensemble['patient_id'][index]}",
            text="\n".join([f"probability of {positive}", *lines]),
            wrong=label >= 0 and bool(error[index] > 0.5),
        )
    return figures


def _tile_figure(
    tile: np.ndarray[Any, np.dtype[np.uint8]], *, title: str, text: str, wrong: bool
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # As wide as TensorBoard's image cards, so that the text is readable without enlarging.
    figure = Figure(figsize=(2.5, 3.0 + 0.17 * text.count("\n")), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.imshow(tile)
    axis.set_title(title, fontsize=10, color="firebrick" if wrong else "black")
    figure.supxlabel(text, fontsize=8, family="monospace", x=0.08, ha="left", ma="left")
    canvas.draw()
    image: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image
