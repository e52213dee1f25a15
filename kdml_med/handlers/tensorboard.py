"""What a person watches in TensorBoard while a cohort trains."""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from kdml_med.engines.processes import is_main, world_size
from kdml_med.handlers.losses import EpochMeans
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.handlers.tensorboard_boxes import box_agreement
from kdml_med.handlers.tensorboard_curves import calibration_figure, froc_figure, roc_figure
from kdml_med.handlers.tensorboard_events import begin_events, has_tag, take_back
from kdml_med.handlers.tensorboard_frames import frame_figures
from kdml_med.handlers.tensorboard_settings import settings_summaries
from kdml_med.handlers.tensorboard_tiles import tile_figures
from kdml_med.handlers.timing import StepTimes
from kdml_med.handlers.validation import LOSS_FIGURE
from kdml_med.keys import LossTerm, network_order, split_loss_name
from kdml_med.metrics.aggregation import AggregationMethod, Level, aggregate_predictions
from kdml_med.metrics.box_matching import finite
from kdml_med.metrics.classification import METRICS
from kdml_med.metrics.detection import DEFAULT_THRESHOLD, by_network
from kdml_med.metrics.detection_evaluation import CHARTS
from kdml_med.storage.files import naming

COHORT_RUN = "cohort"
_LEARNING_RATE, _LOSS, _LOSS_EPOCH = "train/learning_rate", "loss", "loss_epoch"

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def _leave_errors_to_writers() -> None:
    """Print no traceback of the threads that write events: their writer raises the error at its next call."""
    before = threading.excepthook
    if getattr(before, "__name__", "") == "quiet":
        return

    def quiet(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":  # of TensorBoard
            before(args)

    threading.excepthook = quiet


def _stays(tag: str, step: int, *, iteration: int, epochs: int) -> bool:
    """Whether a point stays in a run that goes on behind an iteration and so many whole epochs."""
    if tag.startswith(("_hparams_/", "val/best_")):
        return False  # of the end of the run
    by_iteration = tag == _LEARNING_RATE or (tag.startswith("train/") and tag.endswith(f"_{_LOSS}"))
    return step <= (iteration if by_iteration else epochs)


class CohortTensorBoard:
    """Writes losses, learning rates, weights of the losses and settings as TensorBoard events; a task adds its own.

    Every network, and the ensemble, is a run of its own below ``log_dir``, so that one chart shows all of them, each in
    its colour: ``train/task_loss``, ``train/kd_loss``, ``train/ml_loss``, ``train/learning_rate`` (per iteration), the
    means of the losses over each epoch (``train/task_loss_epoch``), and the validation loss (``val/loss``) where
    ``ValidationHistory`` works it out. What belongs to no single network is in run "cohort": ``train/total_loss``, the
    weights of the terms (``weights/beta``), how fast it goes per epoch (``speed/steps_per_second`` and the like) and
    the settings (HPARAMS).

    Args:
        log_dir: folder of the runs.
        optimizer: its learning rates are shown.
        evaluator: validation engine; None shows training only.
        settings: knobs of the run, for the HPARAMS page, see ``settings_summaries``.
        defaults: what they are where nobody sets them.
        interval: iterations between two points of a loss curve.
        times: how long the parts of a step take; None shows nothing of it. Attach it before this handler.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Evaluator | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        interval: int = 1,
        times: StepTimes | None = None,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.optimizer, self.evaluator = optimizer, evaluator
        self.settings, self.defaults = dict(settings or {}), dict(defaults or {})
        self.interval, self.times = interval, times
        self.writers: dict[str, SummaryWriter] = {}
        self._rates: dict[int, dict[str, float]] = {}
        """By iteration whose losses were not read yet, and run."""
        self.restored = False

    @abstractmethod
    def show_validation(self, engine: Engine) -> None:
        """Write what a finished validation found.

        Args:
            engine: the evaluator; its epoch is that of the training.
        """

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer, and with the evaluator where there is one."""
        _leave_errors_to_writers()
        means = EpochMeans.of(engine)
        if not is_main():
            return
        means.listen(self._losses)
        engine.add_event_handler(Events.EPOCH_STARTED, self._named(self._epoch_started))
        engine.add_event_handler(Events.ITERATION_STARTED(every=self.interval), self._named(self._learning_rates))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._named(self._epoch_completed))
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._named(self._validation))
        engine.add_event_handler(Events.COMPLETED, self._named(self._finish))
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._close_and_raise)

    def _named(self, handler: Callable[[Engine], None]) -> Callable[[Engine], None]:
        """A handler whose failure to write (a full disk, a folder that went away) names the folder of the events."""

        def named(engine: Engine) -> None:
            with naming(self.log_dir):
                handler(engine)

        return named

    def writer(self, run: str) -> SummaryWriter:
        """Writer of a run, opened on first use."""
        if run not in self.writers:
            self.writers[run] = begin_events(self.log_dir / run)
        return self.writers[run]

    def write_metrics(self, engine: Engine, networks: Iterable[str], figures: Iterable[str]) -> None:
        """Write ``val/{figure}`` of each network where it is defined.

        Args:
            engine: the evaluator, with metrics named "{network}_{figure}".
            networks: names of networks.
            figures: names of figures.
        """
        figures = list(figures)
        for name in networks:
            values = {figure: engine.state.metrics.get(f"{name}_{figure}", nan) for figure in figures}
            defined = {f"val/{key}": value for key, value in values.items() if value != UNDEFINED and not isnan(value)}
            self.write_scalars(name, defined, engine.state.epoch)

    def write_scalars(self, run: str, values: Mapping[str, float], step: int) -> None:
        """Write points by tag as one event: a step of training has a dozen, and each event takes its time."""
        if values:
            points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self.writer(run)._get_file_writer().add_summary(Summary(value=points), step)

    def write_agreement(self, engine: Engine, values: Mapping[str, float]) -> None:
        """Write those of the values whose names are "agreement_{a}_{b}", for networks a and b, below ``val/``."""
        agreement = {f"val/{name}": value for name, value in values.items() if name.startswith("agreement_")}
        self.write_scalars(COHORT_RUN, agreement, engine.state.epoch)

    def write_images(self, engine: Engine, images: Mapping[str, Pixels], *, run: str = COHORT_RUN) -> None:
        """Write images (uint8, [height, width, 3]) by tag."""
        for tag, image in images.items():
            self.writer(run).add_image(tag, image, engine.state.epoch, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """Nothing; but all that was said so far is on disk, so that a run that goes on from here has no gap."""
        for writer in self.writers.values():
            with naming(self.log_dir):
                writer.flush()
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was said later is taken back when training goes on."""
        self.restored = True

    def _epoch_started(self, engine: Engine) -> None:
        if self.writers:
            return
        # Points behind the checkpoint that training goes on from will be written again.
        iteration, epochs = engine.state.iteration, engine.state.epoch - 1
        take_back(self.log_dir, lambda tag, step: _stays(tag, step, iteration=iteration, epochs=epochs))
        self.writer(COHORT_RUN)

    def _learning_rates(self, engine: Engine) -> None:
        # Before the schedule moves them; written with the losses, so that a forward pass does not wait for it.
        self._rates[engine.state.iteration] = {
            group.get("name", COHORT_RUN): group["lr"] for group in self.optimizer.param_groups
        }

    def _losses(self, iteration: int, terms: Mapping[str, float]) -> None:
        if iteration % self.interval == 0:
            with naming(self.log_dir):
                for run, rate in self._rates.pop(iteration, {}).items():
                    self.write_scalars(run, {_LEARNING_RATE: rate}, iteration)
                self._write_losses(terms, _LOSS, iteration)

    def _epoch_completed(self, engine: Trainer) -> None:
        epoch = engine.state.epoch
        self._write_losses(EpochMeans.of(engine).values(), _LOSS_EPOCH, epoch)
        # At the end of the epoch: the loss hears of a new epoch only after the handlers attached to its start.
        weights: Mapping[str, float] = getattr(engine.cohort_loss, "weights", dict)()
        self.write_scalars(COHORT_RUN, {f"weights/{name}": value for name, value in weights.items()}, epoch)
        if self.times is not None:
            speed = self.times.last_epoch()
            self.write_scalars(COHORT_RUN, {f"speed/{name}": value for name, value in speed.items()}, epoch)
        self.state_dict()

    def _write_losses(self, losses: Mapping[str, float], ending: str, step: int) -> None:
        points: dict[str, dict[str, float]] = {}
        for name, value in losses.items():
            network, term = split_loss_name(name)
            tag = "total" if name == LossTerm.LOSS else term
            points.setdefault(network or COHORT_RUN, {})[f"train/{tag}_{ending}"] = value
        for run, values in points.items():
            self.write_scalars(run, values, step)

    def _validation(self, engine: Engine) -> None:
        if not self.writers:
            return  # an evaluation before or after the training
        self.show_validation(engine)
        for writer in self.writers.values():
            writer.flush()

    def _finish(self, engine: Engine) -> None:
        state = None if self.evaluator is None else self.evaluator.state
        if state is None or not self.settings or state.best_metric_epoch < 1:
            self._close()
            return
        metric = f"val/best_{state.key_metric_name}"
        # A run that was killed behind its last checkpoint has nothing left to train, and lacks these.
        if self.writers or (self.restored and not has_tag(self.log_dir / COHORT_RUN, metric)):
            writer = self.writer(COHORT_RUN)
            # Written here and not by add_hparams, which would open one more run folder.
            for summary in settings_summaries(self.settings, self.defaults, metric=metric):
                writer._get_file_writer().add_summary(summary)
            writer.add_scalar(metric, float(state.best_metric), state.best_metric_epoch)
        self._close()

    def _close_and_raise(self, engine: Engine, error: Exception) -> None:
        # A full disk refuses the rest once more, and a GPU that failed answers no more: neither is what is to be said.
        with contextlib.suppress(Exception):
            if world_size() == 1:  # the means of several processes need all of them
                EpochMeans.of(engine).read()
        with contextlib.suppress(OSError):
            self._close()
        raise error

    def _close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}


class ClassificationTensorBoard(CohortTensorBoard):
    """Adds the figures of classifiers, their curves and example tiles.

    Per epoch, for every network and the ensemble: those of ``kdml_med.metrics.classification.METRICS`` that have a
    chart (``val/tile_auroc``, ``val/patient_auroc``, …), ``val/precision_recall`` and ``val/calibration``. In run
    "cohort": one picture with all ROC curves (``val/roc``), the agreement between networks (``val/agreement_…``) and
    example tiles with every network's answer.

    Args:
        log_dir: see ``CohortTensorBoard``.
        optimizer: likewise.
        evaluator: validation engine with ``CohortMetrics``; None shows training only.
        level: "patient" or "slide", as in ``CohortMetrics``.
        aggregation: likewise.
        tiles: how many example tiles to show, half of them the ensemble's worst errors.
        **kwargs: see ``CohortTensorBoard``.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Evaluator | None = None,
        *,
        level: Level = "patient",
        aggregation: AggregationMethod = "mean",
        tiles: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(log_dir, optimizer, evaluator, **kwargs)
        self.level, self.aggregation, self.tiles = level, aggregation, tiles

    def show_validation(self, engine: Engine) -> None:
        """Write figures, curves, agreement and tiles."""
        predictions: pd.DataFrame = engine.state.predictions
        names = sorted(predictions["network"].unique(), key=network_order)
        levels = dict.fromkeys(("tile", self.level))
        charts = [name for name, metric in METRICS.items() if metric.chart]
        figures = [LOSS_FIGURE, *(f"{level}_{figure}" for level in levels for figure in charts)]
        self.write_metrics(engine, names, figures)
        self.write_agreement(engine, engine.state.metrics)
        self._curves(engine, predictions)
        dataset = getattr(engine.data_loader, "dataset", None)
        if self.tiles and hasattr(dataset, "read"):
            self.write_images(engine, tile_figures(dataset, predictions, count=self.tiles))

    def _curves(self, engine: Engine, predictions: pd.DataFrame) -> None:
        """Of slides or patients, where both classes are there and all networks answer with numbers."""
        labelled = predictions[predictions["label"] >= 0]
        if labelled["label"].nunique() < 2 or labelled["probability"].isna().any():
            return
        groups = aggregate_predictions(labelled, self.level, self.aggregation)
        answers = {
            str(name): (rows["label"].to_numpy(dtype=np.int64), rows["probability"].to_numpy())
            for name, rows in groups.groupby("network")
        }
        for name, (labels, probabilities) in answers.items():
            self.writer(name).add_pr_curve("val/precision_recall", labels, probabilities, engine.state.epoch)
            self.write_images(engine, calibration_figure(name, (labels, probabilities)), run=name)
        self.write_images(engine, roc_figure(answers))


class DetectionTensorBoard(CohortTensorBoard):
    """Adds the figures of detectors, their FROC curves and example frames.

    Per epoch, for every network and the ensemble: ``val/ap``, ``val/ap50``, ``val/ap75``, ``val/froc_mean``,
    ``val/f1`` and ``val/false_positives_per_negative_frame``, the last two at the network's own threshold, the one with
    the best F1. In run "cohort": one picture with all FROC curves (``val/froc``), the agreement between networks
    (``val/agreement_…``, see ``box_agreement``) and example frames with every network's boxes.

    Args:
        log_dir: see ``CohortTensorBoard``.
        optimizer: likewise.
        evaluator: validation engine with ``DetectionMetrics``; None shows training only.
        frames: how many example frames to show that stay the same, spread over the split.
        worst_frames: how many to show on which the ensemble is most wrong now.
        **kwargs: see ``CohortTensorBoard``.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Evaluator | None = None,
        *,
        frames: int = 6,
        worst_frames: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(log_dir, optimizer, evaluator, **kwargs)
        self.frames, self.worst_frames = frames, worst_frames

    def show_validation(self, engine: Engine) -> None:
        """Write figures, curves, agreement and frames."""
        dataset, metrics = engine.data_loader.dataset, engine.state.metrics
        names = sorted(engine.state.networks, key=network_order)
        thresholds = {name: float(metrics.get(f"{name}_threshold", DEFAULT_THRESHOLD)) for name in names}
        # None of a network that diverged, as in its figures.
        detections = {
            name: rows if finite(rows) else rows.iloc[:0]
            for name, rows in by_network(engine.state.predictions, names).items()
        }
        self.write_metrics(engine, names, [LOSS_FIGURE, *CHARTS])
        self.write_agreement(engine, box_agreement(dataset.rows, detections, thresholds))
        self.write_images(engine, froc_figure(dataset.rows, detections, thresholds))
        if hasattr(dataset, "read"):
            counts = {"spread": self.frames, "worst": self.worst_frames}
            self.write_images(engine, frame_figures(dataset, detections, thresholds, **counts))
