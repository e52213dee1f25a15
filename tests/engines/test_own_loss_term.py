"""A loss term of one's own reaches everything that a training writes, with no entry anywhere but in its loss."""

import logging

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdml_med.handlers import CohortProgress, CohortTensorBoard, LossHistory
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import batches, trainer_of
from tests.losses.extra import ExtraLoss
from tests.networks.tiny import TINY


def test_a_term_of_ones_own_is_trained_with_written_and_shown(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    totals = []
    cohort = build_cohort(students=[TINY, TINY], use_teacher=False)
    optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=0.01)
    loss = ExtraLoss(1.0, 0.0, 1.0, delta=0.5)
    trainer = trainer_of(cohort, batches(2), loss, epochs=2, optimizer=optimizer)
    for handler in (LossHistory(tmp_path), CohortTensorBoard(tmp_path / "events", optimizer), CohortProgress()):
        handler.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: totals.append(trainer.state.output["loss"].item()))
    trainer.run()
    losses = pd.read_csv(tmp_path / "losses.csv")
    own = losses[losses["term"] == "extra_pull"]
    assert own["network"].tolist() == ["student_0", "student_1"] * 2
    assert set(own["weight"]) == {0.5}
    tags = {run: EventAccumulator(str(tmp_path / "events" / run)).Reload().Tags()["scalars"] for run in cohort.names}
    assert all("train/extra_pull_loss" in found for found in tags.values())
    assert "student_1_extra_pull" in caplog.text
    # What is written adds up to what was back-propagated.
    written = (losses["weight"] * losses["value"]).groupby(losses["epoch"]).sum()
    assert written.tolist() == pytest.approx([sum(totals[:2]) / 2, sum(totals[2:]) / 2])
