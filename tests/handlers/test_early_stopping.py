"""Trainings that end when validations are no longer better."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events

from kdml_med.handlers import EarlyStopping
from tests.examples import examples

Values = list[float | None]


def trained(
    values: Values,
    patience: int | None,
    *,
    state: dict[str, Any] | None = None,
    epoch: int = 0,
    best: float | None = None,
) -> Any:
    """Run an epoch for each value, the figure of its validation or None for an epoch without one.

    Args:
        values: of epoch 1, 2, ….
        patience: as the setting.
        state: to go on from.
        epoch: behind which.
        best: value of the validations before, as the evaluator has it.

    Returns:
        The epochs that ended with all handlers, and the handler.
    """
    evaluator: Any = SimpleNamespace(
        state=SimpleNamespace(
            epoch=0, key_metric_name="ensemble_ap", metrics={}, best_metric=-1.0, best_metric_epoch=-1
        )
    )
    if best is not None:
        evaluator.state.best_metric, evaluator.state.best_metric_epoch = best, epoch
    engine = Engine(lambda _engine, _batch: None)
    handler = EarlyStopping(evaluator, patience)
    finished: list[int] = []

    def validate() -> None:
        value = values[engine.state.epoch - 1]
        if value is not None:
            evaluator.state.epoch, evaluator.state.metrics = engine.state.epoch, {"ensemble_ap": value}
            if value > evaluator.state.best_metric:
                evaluator.state.best_metric, evaluator.state.best_metric_epoch = value, engine.state.epoch

    def start() -> None:
        engine.state.epoch = epoch
        engine.state.iteration = epoch
        if state is not None:
            handler.load_state_dict(state)

    engine.add_event_handler(Events.STARTED, start)
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    handler.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: finished.append(engine.state.epoch))
    engine.run([0], max_epochs=len(values))
    return finished, handler


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.5, 0.6, 0.6, 0.55, 0.9], 2, 4),  # as good as before is not better
        ([0.5, 0.6, 0.55, 0.7, 0.6, 0.65, 0.69], 3, 7),
        ([0.5, 0.4, 0.9], 1, 2),
        ([0.1, 0.2, 0.3], 1, 3),
        ([-1.0, -1.0, -1.0, 0.5], 2, 4),  # a figure that is not defined says nothing
        ([0.5, -1.0, 0.4, -1.0, -1.0, 0.3, 0.9], 2, 6),
        ([0.5, None, None, 0.4, None, 0.4, 0.9], 2, 6),  # epochs without a validation do not count
        ([0.5, 0.4, 0.3], None, 3),
    ],
)
def test_training_ends_after_so_many_validations_without_a_better_one(
    values: Values, patience: int | None, epochs: int
) -> None:
    finished, _ = trained(values, patience)
    assert finished == list(range(1, epochs + 1))  # the last one with everything that follows a validation


def last_epoch(values: list[float], patience: int) -> int:
    """The same by its definition: none of the last validations is above all before them."""
    for epoch in range(patience + 1, len(values) + 1):
        if max(values[epoch - patience : epoch]) <= max(values[: epoch - patience]):
            return epoch
    return len(values)


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=12),
    patience=st.integers(1, 4),
    kill=st.integers(1, 11),
)
@settings(max_examples=examples(60), deadline=None)
def test_it_ends_where_it_should_also_when_it_was_killed_before(values: list[float], patience: int, kill: int) -> None:
    whole, _ = trained(list(values), patience)
    assert whole[-1] == last_epoch(values, patience)
    kill = min(kill, whole[-1])
    first, handler = trained(list(values[:kill]), patience)
    state = json.loads(json.dumps(handler.state_dict()))  # plain values, which any checkpoint can hold
    rest, _ = trained(list(values), patience, state=state, epoch=kill)
    assert first + rest == whole


def test_a_run_that_has_stopped_stops_again_and_goes_on_with_more_patience(caplog: pytest.LogCaptureFixture) -> None:
    values: Values = [0.5, 0.4, 0.3, 0.2, 0.1]
    caplog.set_level(logging.INFO, "kdml_med")
    finished, handler = trained(values, 2)
    assert finished == [1, 2, 3]
    assert "Stopped early: ensemble_ap was not above 0.500 in the last 2 validations." in caplog.text
    state = handler.state_dict()
    assert trained(values, 2, state=state, epoch=3)[0] == []
    assert "raise or leave out early_stopping to go on" in caplog.text
    assert trained(values, 3, state=state, epoch=3)[0] == [4]
    assert trained(values, None, state=state, epoch=3)[0] == [4, 5]


def test_a_run_that_had_no_end_can_be_given_one() -> None:
    _, handler = trained([0.5, 0.4], None)
    assert handler.state_dict() == {}
    assert trained([0.5, 0.4, 0.3, 0.2, 0.1], 1, state={}, epoch=2)[0] == [3, 4]


@pytest.mark.parametrize("state", [{}, None])  # None: of an earlier version
def test_an_end_that_is_given_later_knows_the_best_value_before(state: dict[str, Any] | None) -> None:
    assert trained([0.95, 0.6, 0.7, 0.8, 0.9], 2, state=state, epoch=1, best=0.95)[0] == [2, 3]
