from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.utils import CommonKeys
from sklearn.metrics import roc_auc_score

from kdml_med.engines import ClassificationEvaluator
from kdml_med.handlers import CohortMetrics, CohortPredictions, at_least_as_good
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.keys import BatchKey


class Oracle(torch.nn.Module):
    """Answers with logits that the "image" spells out, so that every probability is known."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = torch.zeros(len(image))
        return {
            "teacher": torch.stack([zero, image[:, 0]], dim=1),
            "student_0": torch.stack([zero, image[:, 1]], dim=1),
            "student_1": torch.stack([zero, image[:, 2]], dim=1),
        }


def batches(labels: list[int], seed: int = 0) -> list[dict]:
    """Ten tiles for each patient, in batches of four."""
    generator = np.random.default_rng(seed)
    samples = []
    for patient, label in enumerate(labels):
        for tile in range(10):
            samples.append(
                {
                    BatchKey.IMAGE: torch.from_numpy(generator.normal(label, 2, 3)).float(),
                    BatchKey.LABEL: label,
                    BatchKey.SAMPLE_ID: f"{patient}_{tile}",
                    BatchKey.SLIDE_ID: f"s{patient}",
                    BatchKey.PATIENT_ID: f"p{patient}",
                }
            )
    return [torch.utils.data.default_collate(samples[start : start + 4]) for start in range(0, len(samples), 4)]


def evaluate(labels: list[int], **kwargs: str) -> ClassificationEvaluator:
    metrics = CohortMetrics(**kwargs)
    evaluator = ClassificationEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches(labels),
        network=Oracle(),
        key_val_metric={metrics.key: metrics},
        metric_cmp_fn=at_least_as_good,
    )
    evaluator.run()
    return evaluator


def test_key_metric_is_the_patient_auroc_of_the_student_ensemble() -> None:
    state = evaluate([0, 1, 0, 1, 0, 1, 1, 0]).state
    assert state.key_metric_name == "ensemble_patient_auroc"
    frame = state.predictions[state.predictions["network"].isin(["student_0", "student_1"])]
    patients = frame.groupby("patient_id").agg({"label": "first", "probability": "mean"})
    expected = roc_auc_score(patients["label"], patients["probability"])
    assert state.metrics["ensemble_patient_auroc"] == pytest.approx(expected)
    assert 0 < expected < 1
    assert isinstance(state.best_metric, float)


def test_tile_metrics_and_agreement_of_every_network_are_there() -> None:
    state = evaluate([0, 1, 0, 1]).state
    table = state.predictions.pivot(index="sample_id", columns="network", values="probability")
    labels = state.predictions.groupby("sample_id")["label"].first()
    for name in ("teacher", "student_0", "student_1", "ensemble"):
        assert state.metrics[f"{name}_tile_auroc"] == pytest.approx(roc_auc_score(labels, table[name]))
        assert state.metrics[f"{name}_tile_accuracy"] == pytest.approx(((table[name] >= 0.5) == labels).mean())
    agreement = ((table["student_0"] >= 0.5) == (table["student_1"] >= 0.5)).mean()
    assert state.metrics["agreement_student_0_student_1"] == pytest.approx(agreement)


def test_absent_class_gives_a_comparable_key_metric(caplog: pytest.LogCaptureFixture) -> None:
    state = evaluate([1, 1, 1]).state
    assert state.metrics["ensemble_patient_auroc"] == UNDEFINED
    assert math.isnan(state.metrics["teacher_patient_auroc"])
    assert "all of one class" in caplog.text
    assert at_least_as_good(0.0, UNDEFINED), "any AUROC must replace an undefined one"
    assert not at_least_as_good(UNDEFINED, 0.0)


def test_among_equals_the_later_epoch_is_kept() -> None:
    assert at_least_as_good(0.9, 0.9)
    assert not at_least_as_good(0.89, 0.9)


def test_level_slide_names_and_groups_by_slide() -> None:
    state = evaluate([0, 1, 0, 1], level="slide").state
    assert state.key_metric_name == "ensemble_slide_auroc"
    assert state.metrics["ensemble_slide_n"] == 4


def test_a_second_evaluation_starts_anew() -> None:
    evaluator = evaluate([0, 1])
    evaluator.run()
    assert len(evaluator.state.predictions) == 2 * 10 * 4


def test_predictions_are_collected_without_labels() -> None:
    evaluator = ClassificationEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches([-1, -1]),
        network=Oracle(),
        val_handlers=[CohortPredictions()],
    )
    evaluator.run()
    frame = evaluator.state.predictions
    assert set(frame["label"]) == {-1}
    teacher = frame[frame["network"] == "teacher"]["probability"].to_numpy()
    images = torch.cat([batch[CommonKeys.IMAGE] for batch in batches([-1, -1])])
    np.testing.assert_allclose(teacher, torch.sigmoid(images[:, 0]).numpy(), rtol=1e-6)


def test_processes_hand_in_one_tensor_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here two processes have evaluated the same tiles."""
    handed: list[Any] = []
    alone = evaluate([0, 1]).state.predictions
    monkeypatch.setattr("kdml_med.handlers.metrics.world_size", lambda: 2)
    monkeypatch.setattr("kdml_med.handlers.metrics.gather", lambda value: handed.append(value) or [value, value])
    together = evaluate([0, 1]).state.predictions
    ((_, tensors),) = handed
    assert [tuple(tensor.shape) for tensor in tensors] == [(4, 20)]
    for name, own in together.groupby("network"):
        single = alone[alone["network"] == name]
        pd.testing.assert_frame_equal(own.reset_index(drop=True), pd.concat([single, single], ignore_index=True))
