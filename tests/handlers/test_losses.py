"""losses.csv against means by hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from kdml_med.handlers import CohortProgress, EpochMeans, LossHistory, losses
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.keys import OutputKey
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import batches, trainer_of
from tests.networks.tiny import TINY

COLUMNS = ["epoch", "iterations", "network", "term", "weight", "value"]


class WithNorm(ClassificationCohortLoss):
    """A loss of one's own: the size of the answers as a further term, named nowhere in the library."""

    def forward(self, predictions: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        terms = super().forward(predictions, target)
        for name, logits in predictions.items():
            terms[f"{name}_answer_norm"] = logits.square().mean()
            terms["loss"] = terms["loss"] + self.term_weights(name)["answer_norm"] * terms[f"{name}_answer_norm"]
        return terms

    def term_weights(self, network: str) -> dict[str, float]:
        return super().term_weights(network) | {"answer_norm": 0.25}


def as_tensors(terms: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in terms.items()}


def train(run_dir: Path, terms: list[dict[str, float]], *, epochs: int = 1, behind: int = 0, **loss: float) -> None:
    """Run an engine whose iterations give these loss terms, going on behind an epoch."""
    engine = Engine(lambda _, batch: {OutputKey.LOSS_TERMS: as_tensors(batch)})
    engine.cohort_loss = ClassificationCohortLoss(**loss)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: engine.cohort_loss.set_epoch(engine.state.epoch))
    LossHistory(run_dir).attach(engine)

    @engine.on(Events.STARTED)
    def go_on() -> None:
        engine.state.epoch = behind
        engine.state.iteration = behind * len(terms)

    engine.run(terms, max_epochs=epochs)


def rows(run_dir: Path) -> list[tuple]:
    table = pd.read_csv(run_dir / "losses.csv")
    assert list(table.columns) == COLUMNS
    return list(table.itertuples(index=False, name=None))


def test_values_are_unweighted_means_over_the_iterations(tmp_path: Path) -> None:
    terms = [
        {"teacher_task": 1.0, "student_0_task": 0.5, "student_0_kd": 8.0, "loss": 99.0},
        {"teacher_task": 2.0, "student_0_task": 0.25, "student_0_kd": 4.0, "loss": 99.0},
        {"teacher_task": 6.0, "student_0_task": 0.0, "student_0_kd": 0.0, "loss": 99.0},
    ]
    train(tmp_path, terms, alpha=0.5, beta=2.0)
    assert rows(tmp_path) == [
        (1, 3, "teacher", "task", 1.0, 3.0),
        (1, 3, "student_0", "task", 0.5, 0.25),
        (1, 3, "student_0", "kd", 2.0, 4.0),
    ]


def test_weights_are_those_in_force_while_they_ramp_up(tmp_path: Path) -> None:
    terms = [{"student_0_task": 1.0, "student_0_kd": 1.0, "student_0_ml": 1.0}]
    train(tmp_path, terms, epochs=4, beta=3.0, gamma=6.0, ramp_up_epochs=2)
    weights = {(epoch, term): weight for epoch, _, _, term, weight, _ in rows(tmp_path)}
    assert [weights[epoch, "task"] for epoch in (1, 2, 3, 4)] == [1.0, 1.0, 1.0, 1.0]
    assert [weights[epoch, "kd"] for epoch in (1, 2, 3, 4)] == pytest.approx([1.0, 2.0, 3.0, 3.0])
    assert [weights[epoch, "ml"] for epoch in (1, 2, 3, 4)] == pytest.approx([2.0, 4.0, 6.0, 6.0])


def test_students_with_two_digits_keep_their_names(tmp_path: Path) -> None:
    train(tmp_path, [{"student_11_ml": 1.0}])
    assert rows(tmp_path)[0][2:4] == ("student_11", "ml")


def test_a_repeated_epoch_replaces_its_rows_and_leaves_those_before(tmp_path: Path) -> None:
    train(tmp_path, [{"teacher_task": 0.1}], epochs=3)
    train(tmp_path, [{"teacher_task": 0.7}], epochs=3, behind=1)
    assert [(epoch, value) for epoch, *_, value in rows(tmp_path)] == [(1, 0.1), (2, 0.7), (3, 0.7)]


def test_an_interrupted_history_has_the_same_bytes_as_a_whole_one(tmp_path: Path) -> None:
    terms = [{"teacher_task": 1 / 3, "student_0_kd": 2 / 7}, {"teacher_task": 1e-17, "student_0_kd": 0.1}]
    train(tmp_path / "whole", terms, epochs=3)
    train(tmp_path / "parts", terms, epochs=2)
    train(tmp_path / "parts", terms, epochs=3, behind=1)
    assert (tmp_path / "parts/losses.csv").read_bytes() == (tmp_path / "whole/losses.csv").read_bytes()


def test_a_term_that_the_library_does_not_know_is_kept_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(build_cohort(teacher=TINY, students=[TINY]), batches(2), WithNorm(beta=0.5), epochs=1)
    LossHistory(tmp_path).attach(trainer)
    CohortProgress().attach(trainer)
    seen: list[dict[str, float]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(dict(trainer.state.output["loss_terms"])))
    with caplog.at_level(logging.INFO):
        trainer.run()
    own = [row for row in rows(tmp_path) if row[3] == "answer_norm"]
    assert [row[:5] for row in own] == [(1, 2, name, "answer_norm", 0.25) for name in ("teacher", "student_0")]
    assert own[1][5] == pytest.approx(torch.stack([terms["student_0_answer_norm"] for terms in seen]).mean().item())
    assert {(network, term): weight for _, _, network, term, weight, _ in rows(tmp_path)}["student_0", "kd"] == 0.5
    assert f"student_0_answer_norm {own[1][5]:.3f}" in caplog.text


def test_a_figure_that_is_not_defined_is_called_that(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(build_cohort(teacher=TINY, students=[TINY]), batches(2), WithNorm(), epochs=3)
    evaluator: Any = SimpleNamespace(state=SimpleNamespace(key_metric_name="ensemble_ap", best_metric=-1.0))

    def validate(engine: Any) -> None:
        state, epoch = evaluator.state, engine.state.epoch
        value = (UNDEFINED, 0.5, UNDEFINED)[epoch - 1]
        state.epoch, state.metrics = epoch, {"ensemble_ap": value, "ensemble_f1": math.nan if value < 0 else 0.25}
        if value >= state.best_metric:
            state.best_metric, state.best_metric_epoch = value, epoch

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    CohortProgress(evaluator, figures=["f1"]).attach(trainer)
    with caplog.at_level(logging.INFO):
        trainer.run()
    assert [line for line in caplog.messages if "validation" in line] == [
        "  validation: ensemble_ap not defined (best not defined), f1 not defined",
        "  validation: ensemble_ap 0.500 (best so far), f1 0.250",
        "  validation: ensemble_ap not defined (best 0.500), f1 not defined",
    ]


def test_a_term_counts_as_it_is_when_the_loss_tells_no_weight(tmp_path: Path) -> None:
    train(tmp_path, [{"student_0_extra": 2.0, "student_0_kd": 1.0}], beta=3.0)
    assert [row[3:] for row in rows(tmp_path)] == [("extra", 1.0, 2.0), ("kd", 3.0, 1.0)]


def test_terms_that_wait_on_a_device_are_read_together_and_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = [{"teacher_task": 1 / 3 + step, "student_0_kd": 2 / 7 * step, "loss": 9.0} for step in range(7)]
    train(tmp_path / "at_once", terms, epochs=2)

    readings: list[int] = []
    heard: list[tuple[int, Mapping[str, float]]] = []
    monkeypatch.setattr(losses, "read_interval", lambda _: 3)
    monkeypatch.setattr("kdml_med.engines.processes.mean", lambda values: readings.append(len(values) // 3) or values)
    of = EpochMeans.of

    def listening(engine: Engine) -> EpochMeans:
        fresh = not hasattr(engine, "epoch_means")
        means = of(engine)
        if fresh:
            means.listen(lambda *said: heard.append(said))
        return means

    monkeypatch.setattr(EpochMeans, "of", listening)
    train(tmp_path / "together", terms, epochs=2)
    assert readings == [3, 3, 1] * 2
    assert heard == list(enumerate([*terms, *terms], start=1))
    assert (tmp_path / "together/losses.csv").read_bytes() == (tmp_path / "at_once/losses.csv").read_bytes()


def test_terms_may_change_from_one_iteration_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "read_interval", lambda _: 10)
    train(tmp_path, [{"student_0_task": 1.0}, {"student_0_extra": 8.0, "student_0_task": 3.0}])
    assert [(term, value) for *_, term, _, value in rows(tmp_path)] == [("task", 2.0), ("extra", 4.0)]


def test_an_epoch_goes_on_with_the_sums_of_its_first_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "read_interval", lambda _: 10)
    terms = [{"teacher_task": value} for value in (1 / 3, 1e-17, 0.1, 7.0, 2 / 7)]

    def engine_of() -> tuple[Engine, EpochMeans]:
        engine = Engine(lambda _, batch: {OutputKey.LOSS_TERMS: as_tensors(batch)})
        return engine, EpochMeans.of(engine)

    whole, means = engine_of()
    whole.run(terms)
    halted, first = engine_of()
    states: list[dict[str, object]] = []
    halted.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: states.append(first.state_dict()))
    halted.run(terms)
    resumed, second = engine_of()
    resumed.load_state_dict({"iteration": 3, "epoch_length": 5, "max_epochs": 1})
    second.load_state_dict(states[0])
    resumed.run(terms[3:])
    assert second.values() == means.values()
    # An epoch that begins anew takes nothing from before.
    first.load_state_dict({"iterations": 100, "sums": {"teacher_task": 1e9}})
    halted.run(terms, max_epochs=1)
    assert first.values() == means.values()
