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

from kdml_med.keys import LossTerm, NetworkName, OutputKey
from kdml_med.metrics.aggregation import AggregationMethod, Level, aggregate_predictions
from kdml_med.runs import network_order

SCALARS = ("auroc", "accuracy")


class CohortTensorBoard:
    """Writes scalars, example tiles, precision-recall curves and settings as TensorBoard events.

    Tags group the charts: ``train_loss/…`` (every term of every network, per iteration), ``train_learning_rate/…``
    (likewise), ``train_weight/…`` (per epoch), ``val_patient_auroc/…``, ``val_tile_accuracy/…`` and so on (one chart
    for each network, and all networks in one chart under CUSTOM SCALARS), ``val_agreement/…`` between networks,
    ``val_precision_recall/…`` and ``val_tiles``.

    Args:
        log_dir: folder of the event files.
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
        tiles: int = 12,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.optimizer, self.evaluator = optimizer, evaluator
        self.settings = dict(settings or {})
        self.level, self.aggregation = level, aggregation
        self.interval, self.tiles = interval, tiles
        self.writer: SummaryWriter | None = None

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

    def _epoch_started(self, engine: Engine) -> None:
        if self.writer is None:
            # A resumed run repeats the interrupted epoch: points behind its start are taken back.
            self.writer = SummaryWriter(str(self.log_dir), purge_step=engine.state.iteration + 1)

    def _learning_rates(self, engine: Engine) -> None:
        assert self.writer is not None
        for group in self.optimizer.param_groups:
            name = group.get("name", "all")
            self.writer.add_scalar(f"train_learning_rate/{name}", group["lr"], engine.state.iteration)

    def _weights(self, engine: Engine) -> None:
        assert self.writer is not None
        weights = getattr(engine.cohort_loss, "weights", None)
        if weights is not None:
            for name, value in weights().items():
                self.writer.add_scalar(f"train_weight/{name}", value, engine.state.epoch)

    def _losses(self, engine: Engine) -> None:
        assert self.writer is not None
        for name, value in engine.state.output[OutputKey.LOSS_TERMS].items():
            tag = "total" if name == LossTerm.LOSS else name
            self.writer.add_scalar(f"train_loss/{tag}", float(value), engine.state.iteration)

    def _validation(self, engine: Engine) -> None:
        if self.writer is None:
            return
        epoch = engine.state.epoch
        predictions: pd.DataFrame = engine.state.predictions
        networks = sorted(predictions["network"].unique(), key=network_order)
        self._layout(networks, sorted(tag for tag in engine.state.metrics if tag.startswith("agreement_")))
        for level in dict.fromkeys(("tile", self.level)):
            for figure in SCALARS:
                for name in networks:
                    value = engine.state.metrics.get(f"{name}_{level}_{figure}", math.nan)
                    if not math.isnan(value):
                        self.writer.add_scalar(f"val_{level}_{figure}/{name}", value, epoch)
        for name, value in engine.state.metrics.items():
            if name.startswith("agreement_"):
                self.writer.add_scalar(f"val_agreement/{name.removeprefix('agreement_')}", value, epoch)
        self._precision_recall(predictions, networks, epoch)
        dataset = getattr(engine.data_loader, "dataset", None)
        if self.tiles and hasattr(dataset, "read"):
            image = tile_figure(dataset, predictions, count=self.tiles)
            self.writer.add_image("val_tiles", image, epoch, dataformats="HWC")
        self.writer.flush()

    def _layout(self, networks: list[str], agreements: list[str]) -> None:
        assert self.writer is not None
        charts = {
            f"{level} {figure}": ["Multiline", [f"val_{level}_{figure}/{name}$" for name in networks]]
            for level in dict.fromkeys((self.level, "tile"))
            for figure in SCALARS
        }
        if agreements:
            tags = [f"val_agreement/{name.removeprefix('agreement_')}$" for name in agreements]
            charts["agreement between networks"] = ["Multiline", tags]
        losses = {
            f"{term} loss": ["Multiline", [f"train_loss/.*_{term}$"]]
            for term in (LossTerm.TASK, LossTerm.KD, LossTerm.ML)
        }
        self.writer.add_custom_scalars({"Validation": charts, "Training": losses})

    def _precision_recall(self, predictions: pd.DataFrame, networks: list[str], epoch: int) -> None:
        assert self.writer is not None
        labelled = predictions[predictions["label"] >= 0]
        if labelled["label"].nunique() < 2:
            return
        groups = aggregate_predictions(labelled, self.level, self.aggregation)
        for name in networks:
            rows = groups[groups["network"] == name]
            labels, probabilities = rows["label"].to_numpy(dtype=np.int64), rows["probability"].to_numpy()
            self.writer.add_pr_curve(f"val_precision_recall/{name}", labels, probabilities, epoch)

    def _finish(self, engine: Engine) -> None:
        if self.writer is None:
            return
        if self.settings and self.evaluator is not None and self.evaluator.state.best_metric_epoch > 0:
            values = {name: _hparam(value) for name, value in self.settings.items()}
            # Written here and not by add_hparams, which would open a second run folder beside this one.
            metric = f"best/{self.evaluator.state.key_metric_name}"
            best = float(self.evaluator.state.best_metric)
            for summary in hparams_summary(values, {metric: best}):
                self.writer._get_file_writer().add_summary(summary)
            self.writer.add_scalar(metric, best, self.evaluator.state.best_metric_epoch)
        self.writer.close()
        self.writer = None

    def _close_and_raise(self, engine: Engine, error: Exception) -> None:
        if self.writer is not None:
            self.writer.close()
        raise error


def _hparam(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def tile_figure(dataset: Any, predictions: pd.DataFrame, *, count: int = 12) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Example tiles with their label and every network's probability of the positive class.

    The first half are spread evenly over the split and stay the same from epoch to epoch; the second half are the
    tiles on which the ensemble is most wrong now.

    Args:
        dataset: gives ``read(index)`` (uint8 [height, width, 3]) and ``classes``; samples in the order of the tiles.
        predictions: columns of ``PredictionColumn``.
        count: number of tiles.

    Returns:
        uint8, [height, width, 3].
    """
    # Rows of one network stand in loading order, which is the order of the dataset.
    wide = {str(name): rows.reset_index(drop=True) for name, rows in predictions.groupby("network", sort=False)}
    ensemble = wide[NetworkName.ENSEMBLE.value]
    fixed = np.linspace(0, len(ensemble) - 1, min(count // 2, len(ensemble))).round().astype(int).tolist()
    error = (ensemble["probability"] - ensemble["label"]).abs().where(ensemble["label"] >= 0, 0.0)
    worst = [int(index) for index in error.sort_values(ascending=False, kind="stable").index if index not in fixed]
    shown = list(dict.fromkeys(fixed + worst[: count - len(fixed)]))
    columns = min(6, len(shown))
    lines = -(-len(shown) // columns)
    names = sorted(wide, key=network_order)
    figure = Figure(figsize=(2.0 * columns, (2.25 + 0.16 * len(names)) * lines), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, shown, strict=False):
        label = int(ensemble["label"][index])
        truth = dataset.classes[label] if label >= 0 else "no label"
        wrong = label >= 0 and bool(error[index] > 0.5)
        axis.imshow(dataset.read(index))
        axis.set_title(
            f"{truth} · {ensemble['patient_id'][index]}", fontsize=7, color="firebrick" if wrong else "black"
        )
        text = "\n".join(f"{name}  {wide[name]['probability'][index]:.2f}" for name in names)
        axis.text(0.0, -0.03, text, transform=axis.transAxes, fontsize=6.5, va="top", family="monospace")
    positive = dataset.classes[-1] if dataset.classes else "positive class"
    figure.suptitle(
        f"probability of {positive}; first {len(fixed)} tiles fixed, then the ensemble's worst (wrong ones in red)",
        fontsize=8,
    )
    canvas.draw()
    image: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image
