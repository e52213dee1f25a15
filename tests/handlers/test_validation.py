"""history.csv and the validation loss against sums by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from kdml_med.handlers import ValidationHistory
from kdml_med.losses import ClassificationCohortLoss, DetectionCohortLoss
from kdml_med.networks.anchors import AnchorPredictions, anchor_grid
from kdml_med.runs import read_history

METRICS = {"student_0_tile_auroc": 0.75, "ensemble_tile_auroc": 0.5, "student_0_tile_n": 8.0, "student_0_ece": math.nan}


def validate(
    run_dir: Path,
    batches: list[dict[str, object]],
    loss: object,
    *,
    epochs: int = 1,
    behind: int = 0,
    interval: int = 1,
    metrics: dict[str, float] | None = None,
) -> Engine:
    """Train for epochs without content, each ``interval`` of which is validated, going on behind an epoch."""
    evaluator = Engine(lambda _, batch: batch)
    trainer = Engine(lambda *_: None)
    trainer.cohort_loss = loss
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.state.metrics.update(metrics or METRICS))

    def run(engine: Engine) -> None:
        evaluator.state.max_epochs, evaluator.state.epoch = engine.state.epoch, engine.state.epoch - 1
        evaluator.run(batches, max_epochs=engine.state.epoch)

    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval), run)
    ValidationHistory(run_dir, evaluator).attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda: setattr(trainer.state, "epoch", behind))
    trainer.run([0], max_epochs=epochs)
    return evaluator


def batch(logits: list[list[float]], labels: list[int]) -> dict[str, object]:
    answer = torch.tensor(logits)
    return {
        CommonKeys.IMAGE: torch.zeros(len(labels), 3, 4, 4),
        CommonKeys.PRED: {"student_0": answer},
        CommonKeys.LABEL: torch.tensor(labels),
    }


def test_the_loss_is_the_mean_over_samples_with_a_label(tmp_path: Path) -> None:
    batches = [
        batch([[0.0, 0.0], [9.0, 2.0]], [0, -1]),
        batch([[0.0, math.log(3)]] * 3, [1, 1, 0]),
        batch([[0, 1.0]], [-1]),
    ]
    evaluator = validate(tmp_path, batches, ClassificationCohortLoss())
    expected = (math.log(2) + 2 * math.log(4 / 3) + math.log(4)) / 4
    assert evaluator.state.metrics["student_0_loss"] == pytest.approx(expected, rel=1e-6)
    assert read_history(tmp_path).set_index(["epoch", "network", "figure"])["value"].to_dict() == {
        (1, "student_0", "tile_auroc"): 0.75,
        (1, "student_0", "loss"): evaluator.state.metrics["student_0_loss"],
        (1, "ensemble", "tile_auroc"): 0.5,
    }


def test_without_any_label_there_is_no_loss(tmp_path: Path) -> None:
    evaluator = validate(tmp_path, [batch([[0.0, 1.0]], [-1])], ClassificationCohortLoss())
    assert "student_0_loss" not in evaluator.state.metrics
    assert "loss" not in set(read_history(tmp_path)["figure"])


def test_detectors_are_judged_by_their_task_loss(tmp_path: Path) -> None:
    loss = DetectionCohortLoss(box_weight=0.5)
    count = len(anchor_grid(64, 64)[0])
    generator = torch.Generator().manual_seed(0)
    answers = {
        name: AnchorPredictions(
            torch.randn(2, count, 1, generator=generator), torch.randn(2, count, 4, generator=generator), ()
        )
        for name in ("teacher", "student_0")
    }
    target = ([torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.zeros(0, 4)], (64, 64))
    output = {CommonKeys.IMAGE: torch.zeros(2, 3, 64, 64), CommonKeys.PRED: answers, CommonKeys.LABEL: target}
    evaluator = validate(tmp_path, [output], loss, metrics={"ensemble_ap": -1.0})
    terms = DetectionCohortLoss(box_weight=0.5)(answers, target)
    for name in answers:
        assert evaluator.state.metrics[f"{name}_loss"] == float(terms[f"{name}_task"])
    assert list(read_history(tmp_path)["network"]) == ["teacher", "student_0"], "an AP of -1 is one that is undefined"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [5, 0, 7, 2, 1, 6, 3, 4]])
def test_the_loss_of_detectors_does_not_hang_on_how_frames_come(tmp_path: Path, size: int, order: list[int]) -> None:
    """Sequence by sequence, batches without any polyp among them, as in one batch of all frames."""
    generator, count = torch.Generator().manual_seed(0), len(anchor_grid(64, 64)[0])
    whole = AnchorPredictions(
        torch.randn(8, count, 1, generator=generator), torch.randn(8, count, 4, generator=generator), ()
    )
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0 - number]])[: number < 3] for number in range(8)]
    batches: list[dict[str, object]] = [
        {
            CommonKeys.IMAGE: torch.zeros(len(rows), 3, 64, 64),
            CommonKeys.PRED: {"student_0": AnchorPredictions(whole.logits[rows], whole.deltas[rows], ())},
            CommonKeys.LABEL: ([boxes[row] for row in rows], (64, 64)),
        }
        for rows in (order[start : start + size] for start in range(0, 8, size))
    ]
    evaluator = validate(tmp_path, batches, DetectionCohortLoss(), metrics={"ensemble_ap": -1.0})
    terms = DetectionCohortLoss(beta=0.0, gamma=0.0)({"student_0": whole}, (boxes, (64, 64)))
    assert evaluator.state.metrics["student_0_loss"] == pytest.approx(float(terms["student_0_task"]), rel=1e-5)


@pytest.mark.parametrize("weight", [3.0, 0.0])
def test_classes_weigh_in_batches_of_one_class_as_in_one_batch(tmp_path: Path, weight: float) -> None:
    """Two samples of class 0, whose loss is log 2, and one of class 1, whose loss is log 4."""
    batches = [batch([[0.0, 0.0]] * 2, [0, 0]), batch([[math.log(3), 0.0]], [1])]
    evaluator = validate(tmp_path, batches, ClassificationCohortLoss(class_weights=[1.0, weight]))
    expected = (2 * math.log(2) + weight * math.log(4)) / (2 + weight)
    assert evaluator.state.metrics["student_0_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_loss_of_another_kind_has_no_validation_loss(tmp_path: Path) -> None:
    evaluator = validate(tmp_path, [batch([[0.0, 1.0]], [1])], SimpleNamespace())
    assert "student_0_loss" not in evaluator.state.metrics
    assert list(read_history(tmp_path)["figure"]) == ["tile_auroc", "tile_auroc"]


def test_epochs_that_were_not_validated_have_no_rows(tmp_path: Path) -> None:
    validate(tmp_path, [batch([[0.0, 1.0]], [1])], ClassificationCohortLoss(), epochs=5, interval=2)
    assert list(dict.fromkeys(read_history(tmp_path)["epoch"])) == [2, 4]


def test_an_interrupted_history_has_the_same_bytes_as_a_whole_one(tmp_path: Path) -> None:
    batches, loss = [batch([[0.1, 0.2]], [1])], ClassificationCohortLoss()
    validate(tmp_path / "whole", batches, loss, epochs=3)
    validate(tmp_path / "parts", batches, loss, epochs=2)
    validate(tmp_path / "parts", batches, loss, epochs=3, behind=1)
    assert (tmp_path / "parts/history.csv").read_bytes() == (tmp_path / "whole/history.csv").read_bytes()
