"""What goes to MLflow, with a stand-in for MONAI's handler; that one itself is tried in tests/bundles."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
from ignite.engine import Events

from kdml_med.errors import InputError
from kdml_med.handlers import MLflowTracking, tracking
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import batches, trainer_of
from tests.networks.tiny import TINY


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Server:
    """The only experiment of an MLflow, or none, and its runs."""

    def __init__(self) -> None:
        self.experiment: Any = None
        self.runs: list[Any] = []

    def get_experiment_by_name(self, _: str) -> Any:
        return self.experiment

    def create_run(self, experiment_id: str, *, run_name: str) -> Any:
        assert experiment_id == self.experiment.experiment_id
        info = SimpleNamespace(run_id=str(len(self.runs)), run_name=run_name, status="RUNNING")
        self.runs.append(SimpleNamespace(info=info, params={}))
        return self.runs[-1]

    def search_runs(self, experiment_ids: list[str], *, filter_string: str, order_by: list[str]) -> list[Any]:
        assert experiment_ids == [self.experiment.experiment_id]
        assert order_by == ["attributes.start_time DESC"]
        end = filter_string.removeprefix("attributes.run_name LIKE '%").removesuffix("'")
        return [run for run in self.runs[::-1] if run.info.run_name.endswith(end)]


class StandIn:
    """Notes what it is told; fails at the call whose number is ``fails_at``."""

    fails_at = math.inf
    run_finish_status = "FINISHED"
    made: ClassVar[list[StandIn]]
    server: ClassVar[Server]

    def __init__(self, **arguments: Any) -> None:
        # As MONAI's, which lets the environment go first.
        if "refused" in (os.environ.get("MLFLOW_TRACKING_URI") or arguments["tracking_uri"]):
            raise ValueError("no such place.\nAnd more.")
        self.arguments = arguments
        self.cur_run: Any = None
        self.ended: list[str] = []
        self.points: list[Metric] = []
        self.calls = 0
        self.client = SimpleNamespace(
            log_batch=self._log,
            get_experiment_by_name=self._find_experiment,
            create_run=self.server.create_run,
            search_runs=self.server.search_runs,
        )
        type(self).made.append(self)

    def start(self, _: Any) -> None:
        self.server.experiment = SimpleNamespace(experiment_id="7")
        if self.cur_run is None:  # the oldest of those that are not finished, as MONAI's does
            still = [run for run in self.server.runs if run.info.status != "FINISHED"]
            name = self.arguments["run_name"]
            self.cur_run = still[0] if still else self.server.create_run("7", run_name=name)
        told = self.cur_run.params | self.arguments["experiment_param"]
        if self.cur_run.params not in ({}, told):
            raise ValueError("Changing param values is not allowed.")
        self.cur_run.params = told

    def complete(self) -> None:
        self.ended.append("complete")

    def close(self) -> None:
        self.ended.append("close")
        self.cur_run.info.status = "FINISHED"
        self.cur_run = None

    def _find_experiment(self, name: str) -> Any:
        self._call()
        return self.server.get_experiment_by_name(name)

    def _log(self, run_id: str, *, metrics: list[Metric]) -> None:
        self._call()
        assert run_id == self.cur_run.info.run_id
        self.points += metrics

    def _call(self) -> None:
        self.calls += 1
        if self.calls >= self.fails_at:
            raise ConnectionError("the server is away.\nTraceback")


seen: list[str] = []
"""What MLflow saw of its switch for statistics when it was asked to look."""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Own(StandIn):
        made: ClassVar[list[StandIn]] = []
        server: ClassVar[Server] = Server()

    entities, telemetry = ModuleType("mlflow.entities"), ModuleType("mlflow.telemetry")
    entities.Metric = Metric  # type: ignore[attr-defined]
    telemetry.set_telemetry_client = lambda: seen.append(os.environ["MLFLOW_DISABLE_TELEMETRY"])  # type: ignore[attr-defined]
    for name, module in (
        ("mlflow", ModuleType("mlflow")),
        (entities.__name__, entities),
        (telemetry.__name__, telemetry),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    seen.clear()
    monkeypatch.setattr(tracking, "MLFlowHandler", Own)
    return Own


def train(run_dir: Path, *, epochs: int = 2, begin: int = 0, **kwargs: Any) -> Any:
    """Train three batches an epoch and note a validation of every second epoch."""
    evaluator: Any = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}))
    cohort = build_cohort(students=[TINY, TINY], use_teacher=False)
    trainer = trainer_of(cohort, batches(3), ClassificationCohortLoss(beta=0.0), epochs=epochs)

    def validate() -> None:
        if trainer.state.epoch % 2 == 0:
            evaluator.state.epoch = trainer.state.epoch
            metrics = {"ensemble_ap": 0.5, "student_0_ap": math.nan, "student_1_ap": tracking.UNDEFINED}
            evaluator.state.metrics = metrics

    def start() -> None:
        trainer.state.epoch, trainer.state.iteration = begin, 3 * begin

    trainer.add_event_handler(Events.STARTED, start)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    MLflowTracking(run_dir, trainer.optimizer, evaluator, **kwargs).attach(trainer)
    trainer.run()
    return trainer


def steps(handler: StandIn, name: str) -> list[int]:
    return [point.step for point in handler.points if point.key == name]


def test_losses_rates_and_defined_figures_go_there(tmp_path: Path, stand_in: type[StandIn]) -> None:
    train(tmp_path / "crc", settings={"beta": 0.0}, experiment="mine")
    (handler,) = stand_in.made
    assert handler.arguments["experiment_param"] == {"beta": 0.0}
    assert handler.arguments["experiment_name"] == "mine"
    assert handler.arguments["tracking_uri"] == f"sqlite:///{tmp_path}/crc/mlruns.db"
    assert steps(handler, "train/student_0_task") == steps(handler, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert steps(handler, "train/student_1_learning_rate") == steps(handler, "train/loss_epoch") == [1, 2]
    assert steps(handler, "val/ensemble_ap") == [2]
    assert {point.key for point in handler.points if point.key.startswith("val/")} == {"val/ensemble_ap"}
    means = [point.value for point in handler.points if point.key == "train/loss_epoch"]
    losses = [point.value for point in handler.points if point.key == "train/loss"]
    assert means == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert handler.ended == ["complete", "close"]


@pytest.mark.parametrize(("set_to", "expected"), [(None, "true"), ("false", "false")])
def test_mlflow_tells_its_makers_nothing_unless_it_is_allowed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_to: str | None, expected: str
) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    if set_to is not None:
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", set_to)
    train(tmp_path)
    assert seen == [expected]


def test_curves_have_a_point_every_interval(tmp_path: Path, stand_in: type[StandIn]) -> None:
    train(tmp_path, interval=2)
    assert steps(stand_in.made[0], "train/loss") == [2, 4, 6]


def test_nothing_is_begun_for_a_training_that_is_finished(tmp_path: Path, stand_in: type[StandIn]) -> None:
    train(tmp_path, begin=2)
    (handler,) = stand_in.made
    assert handler.cur_run is None
    assert handler.points == handler.ended == handler.server.runs == []


def test_mlflow_that_fails_later_does_not_end_the_training(
    tmp_path: Path, stand_in: type[StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.fails_at = 4
    caplog.set_level(logging.WARNING, "kdml_med")
    trainer = train(tmp_path)
    assert trainer.state.iteration == 6
    assert caplog.messages == ["MLflow failed, and tracking ends; the training goes on: the server is away."]
    assert stand_in.made[0].ended == []


def test_an_address_that_does_not_work_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--tracking mlflow cannot use refused: no such place\.$"):
        train(tmp_path, uri="refused")


def test_the_address_of_the_environment_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://refused")
    with pytest.raises(InputError, match=r"^--tracking mlflow cannot use http://refused: no such place\.$"):
        train(tmp_path, uri="sqlite:///mine.db")


def test_only_the_main_process_opens_mlflow(
    tmp_path: Path, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.processes, "is_main", lambda: False)
    train(tmp_path, uri="refused")
    assert stand_in.made == []
    assert seen == ["true"]  # MONAI imports MLflow in every process


def run(tmp_path: Path, stand_in: type[StandIn], *, killed: bool = False, **arguments: Any) -> list[tuple[Any, str]]:
    """Train and say which runs there are, with what and how they stand; a killed one is not finished."""
    train(tmp_path, settings={"beta": arguments.pop("beta", 0.0)}, **arguments)
    if killed:
        stand_in.server.runs[-1].info.status = "RUNNING"
    return [(one.params["beta"], one.info.status) for one in stand_in.server.runs]


def test_a_training_that_begins_has_a_run_of_its_own_and_one_that_goes_on_goes_on_in_it(
    tmp_path: Path, stand_in: type[StandIn]
) -> None:
    assert run(tmp_path, stand_in, killed=True) == [(0.0, "RUNNING")]
    # The folder was deleted, and the same name is trained anew: what was killed stays what it is.
    assert run(tmp_path, stand_in, beta=1.0, killed=True) == [(0.0, "RUNNING"), (1.0, "RUNNING")]
    assert run(tmp_path, stand_in, beta=1.0, begin=1) == [(0.0, "RUNNING"), (1.0, "FINISHED")]
    assert [point.step for point in stand_in.made[-1].points if point.key == "train/loss"] == [4, 5, 6]
    # More epochs of a training that was finished are another run, and those of another folder are not looked at.
    assert run(tmp_path, stand_in, beta=1.0, begin=2, epochs=3)[1:] == [(1.0, "FINISHED")] * 2
    assert run(tmp_path / "other", stand_in, beta=2.0, begin=1)[2:] == [(1.0, "FINISHED"), (2.0, "FINISHED")]


def test_a_training_that_was_killed_when_nothing_was_left_to_do_is_finished_by_the_next(
    tmp_path: Path, stand_in: type[StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path, stand_in, killed=True) == [(0.0, "RUNNING")]
    caplog.set_level(logging.WARNING, "kdml_med")
    stand_in.fails_at = 1
    assert run(tmp_path, stand_in, begin=2) == [(0.0, "RUNNING")]
    assert caplog.messages == ["MLflow failed, and tracking ends; the training goes on: the server is away."]
    stand_in.fails_at = math.inf
    for _ in range(2):
        assert run(tmp_path, stand_in, begin=2) == [(0.0, "FINISHED")]
    assert [handler.ended for handler in stand_in.made[1:]] == [[], ["complete", "close"], []]


def test_runs_of_the_same_name_in_other_folders_are_others(tmp_path: Path) -> None:
    names = [tracking.run_name(tmp_path / place / "crc") for place in ("a", "b", "a/../a")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("crc ") for name in names)
