"""losses.csv against means by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from ignite.engine import Engine, Events

from kdml_med.handlers import LossHistory
from kdml_med.keys import OutputKey
from kdml_med.losses import ClassificationCohortLoss, CohortLoss
from tests.losses.extra import ExtraLoss

COLUMNS = ["epoch", "iterations", "network", "term", "weight", "value"]


def train(
    run_dir: Path,
    terms: list[dict[str, float]],
    *,
    epochs: int = 1,
    behind: int = 0,
    kind: type[CohortLoss] = ClassificationCohortLoss,
    **loss: float,
) -> None:
    """Run an engine whose iterations give these loss terms, going on behind an epoch."""
    engine = Engine(lambda _, batch: {OutputKey.LOSS_TERMS: batch})
    engine.cohort_loss = kind(**loss)
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


def test_a_term_of_ones_own_has_the_weight_that_its_loss_names(tmp_path: Path) -> None:
    terms = [{"teacher_task": 1.0, "student_0_task": 1.0, "student_0_extra_pull": 4.0, "teacher_extra_pull": 2.0}]
    train(tmp_path, terms, epochs=2, kind=ExtraLoss, alpha=0.5, delta=3.0, ramp_up_epochs=1)
    assert rows(tmp_path)[:4] == [
        (1, 1, "teacher", "task", 1.0, 1.0),
        (1, 1, "student_0", "task", 0.5, 1.0),
        (1, 1, "student_0", "extra_pull", 1.5, 4.0),
        (1, 1, "teacher", "extra_pull", 1.5, 2.0),
    ]
    assert rows(tmp_path)[6][4] == 3.0


def test_a_term_that_no_weight_is_named_for_counts_as_it_is(tmp_path: Path) -> None:
    train(tmp_path, [{"student_0_other": 2.0}], alpha=0.5)
    assert rows(tmp_path) == [(1, 1, "student_0", "other", 1.0, 2.0)]


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
