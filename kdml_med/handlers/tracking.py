"""Figures of a training in MLflow, beside those of other trainings."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from monai.engines import Evaluator, Trainer
from monai.handlers import MLFlowHandler
from monai.utils import path_to_sqlite_uri
from torch.optim import Optimizer

from kdml_med.engines import processes
from kdml_med.errors import InputError, one_line
from kdml_med.handlers.losses import EpochMeans
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.runs import HISTORY_FILE, LOSSES_FILE, SETTINGS_FILE

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

DATABASE = "mlruns.db"
"""File in the run folder with what is tracked, where no other place is named."""
_DIGITS = 8


class MLflowTracking:
    """Hands settings, losses, learning rates and validation figures to MLflow, through MONAI's handler.

    Of samples and patients nothing goes there: names of figures, numbers, settings, and at the end settings.json,
    losses.csv and history.csv. A training that begins has a new MLflow run, one that goes on behind a checkpoint goes
    on in the last of its name unless that is finished, and finishes it where nothing is left to do. Once it has
    started, an MLflow that fails ends the tracking, not the training.

    Attach it last: it looks at what the validation found, and at where a continued training starts.

    Args:
        run_dir: folder of the run.
        optimizer: its learning rates are tracked.
        evaluator: validation engine; None tracks training only.
        uri: of MLflow; None for a database in the run folder. MLFLOW_TRACKING_URI of the environment goes before both.
        experiment: heading under which MLflow lists runs.
        settings: by name, those that stay the same when the run is continued.
        interval: iterations between two points of a loss curve.
    """

    handler: MLFlowHandler

    def __init__(
        self,
        run_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Evaluator | None = None,
        *,
        uri: str | None = None,
        experiment: str = "kdml_med",
        settings: Mapping[str, Any] | None = None,
        interval: int = 1,
    ) -> None:
        self.run_dir, self.optimizer, self.evaluator, self.interval = Path(run_dir), optimizer, evaluator, interval
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or uri or path_to_sqlite_uri(self.run_dir / DATABASE)
        self.experiment, self.settings = experiment, dict(settings or {})
        self.name = run_name(self.run_dir)
        _send_no_statistics()

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer; only one of several processes tracks, and opens MLflow.

        Raises:
            InputError: MLflow cannot use the address.
        """
        self.means = EpochMeans.of(engine)
        if not processes.is_main():
            return
        try:
            self.handler = MLFlowHandler(
                tracking_uri=self.uri,
                experiment_name=self.experiment,
                run_name=self.name,
                experiment_param=self.settings,
                artifacts=[self.run_dir / name for name in (SETTINGS_FILE, LOSSES_FILE, HISTORY_FILE)],
            )
        except Exception as error:  # MLflow and the drivers of databases raise all kinds
            raise self._refused(error) from error
        self.means.listen(self._terms_read)
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Trainer) -> None:
        nothing_left = engine.should_terminate or engine.state.epoch >= engine.state.max_epochs
        try:
            self.handler.cur_run = self._find_run(engine, begin=not nothing_left)
            if not nothing_left:
                self.handler.start(engine)
        except Exception as error:
            if not nothing_left:
                raise self._refused(error) from error
            self._give_up(error)
        if nothing_left:
            self._completed()

    def _find_run(self, engine: Trainer, *, begin: bool) -> Run | None:
        """The MLflow run of this training; None leaves it to the handler to begin one, which begins the experiment.

        Not the handler's own search: it takes the first run of this name that was never finished, also for a training
        that begins anew in the same folder, with other settings.
        """
        client = self.handler.client
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        if engine.state.iteration:  # behind a checkpoint
            found = client.search_runs(
                [experiment.experiment_id],
                filter_string=f"attributes.run_name LIKE '%{self.name[-_DIGITS:]}'",
                order_by=["attributes.start_time DESC"],
            )
            last = next((run for run in found if run.info.run_name == self.name), None)
            if last is not None and last.info.status != self.handler.run_finish_status:
                return last
        return client.create_run(experiment.experiment_id, run_name=self.name) if begin else None

    def _refused(self, error: Exception) -> InputError:
        return InputError(f"--tracking mlflow cannot use {self.uri}: {one_line(error)}")

    def _terms_read(self, iteration: int, terms: Mapping[str, float]) -> None:
        if iteration % self.interval == 0:
            self._log({f"train/{name}": value for name, value in terms.items()}, iteration)

    def _epoch_completed(self, engine: Trainer) -> None:
        figures = {f"train/{name}_epoch": value for name, value in self.means.values().items()}
        figures |= {f"train/{group['name']}_learning_rate": group["lr"] for group in self.optimizer.param_groups}
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            figures |= {f"val/{name}": value for name, value in self.evaluator.state.metrics.items()}
        self._log(figures, engine.state.epoch)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        run = self.handler.cur_run
        if run is None:
            return
        from mlflow.entities import Metric  # whoever comes as far as this has it

        now = int(time.time() * 1000)
        known = {name: float(value) for name, value in figures.items() if math.isfinite(value) and value != UNDEFINED}
        try:
            self.handler.client.log_batch(
                run.info.run_id, metrics=[Metric(name, value, now, step) for name, value in known.items()]
            )
        except Exception as error:
            self._give_up(error)

    def _completed(self) -> None:
        if self.handler.cur_run is not None:
            try:
                self.handler.complete()
                self.handler.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("MLflow failed, and tracking ends; the training goes on: %s", one_line(error))
        self.handler.cur_run = None


def _send_no_statistics() -> None:
    """Keep MLflow from telling its makers how it is used, unless the environment wants that."""
    from mlflow.telemetry import set_telemetry_client

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    set_telemetry_client()  # looks at the environment anew; it was imported before


def run_name(run_dir: Path) -> str:
    """What MLflow calls a run: the folder's name, and a hash of its path, by which a continued training finds it."""
    path = run_dir.resolve()
    return f"{path.name} {hashlib.sha256(str(path).encode()).hexdigest()[:_DIGITS]}"
