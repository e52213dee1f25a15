from __future__ import annotations

import io
import resource
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from kdml_med.errors import InputError
from kdml_med.handlers import ClassificationTensorBoard, CohortTensorBoard, DetectionTensorBoard
from kdml_med.handlers.tensorboard_events import begin_events, take_back
from kdml_med.keys import LossTerm, OutputKey
from kdml_med.metrics import choose_thresholds, evaluate_detections
from tests.handlers.test_metrics import evaluate
from tests.metrics.detection_tables import Box, Scored, cohort, detection_table, frame_table

NETWORKS = ["teacher", "student_0", "student_1", "ensemble"]
FIGURES = {"ap", "ap50", "ap75", "froc_mean", "f1", "false_positives_per_negative_frame"}
LOSSES = {"teacher_task": 1.0, "student_0_task": 2.0, "student_0_kd": 3.0, LossTerm.LOSS.value: 6.0}
OWN_TERMS = {"student_0_answer_norm": 4.0, "regulariser": 5.0}


def frames_of(frames: pd.DataFrame) -> SimpleNamespace:
    return SimpleNamespace(rows=frames, read=lambda index: np.full((60, 80, 3), 10 * (index % 20), np.uint8))


def validated(frames: pd.DataFrame, detections: pd.DataFrame, epoch: int = 1) -> Engine:
    """An evaluator as it stands when it has finished."""
    evaluator = Engine(lambda *_: None)
    thresholds = choose_thresholds(frames, detections, networks=NETWORKS)
    results = evaluate_detections(frames, detections, threshold=thresholds, resamples=0)
    evaluator.state.metrics = {
        f"{network}_{figure}": float("nan") if value is None else value
        for network, figures in results.items()
        for figure, value in figures.items()
    }
    evaluator.state.predictions, evaluator.state.networks = detections, list(reversed(NETWORKS))
    evaluator.data_loader = SimpleNamespace(dataset=frames_of(frames))
    evaluator.state.epoch = epoch
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = 0.5, epoch
    evaluator.state.key_metric_name = "ensemble_ap"
    return evaluator


def train(handler: CohortTensorBoard, evaluator: Engine | None, *, epochs: int = 1, done: int = 0) -> None:
    """Train for epochs of three iterations, the first ``done`` of which were trained before."""
    losses = OWN_TERMS | LOSSES
    terms = {name: torch.tensor(value + done) for name, value in losses.items()}
    trainer = Engine(lambda *_: {OutputKey.LOSS_TERMS: terms})
    trainer.cohort_loss = SimpleNamespace(weights=lambda: {"beta": 0.25})
    if evaluator is not None:  # first, as in the bundle
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.fire_event(Events.COMPLETED))

    def go_on(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = done, 3 * done

    trainer.add_event_handler(Events.STARTED, go_on)
    handler.attach(trainer)
    trainer.run([0] * 3, max_epochs=epochs)


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1)], "name": name} for name in ("teacher", "student_0")]
    return torch.optim.SGD(groups, lr=0.125)


def events_of(folder: Path, run: str) -> EventAccumulator:
    return EventAccumulator(str(folder / run), size_guidance={"scalars": 0, "images": 0}).Reload()


def images_of(folder: Path) -> dict[str, np.ndarray]:
    events = events_of(folder, "cohort")
    data = {tag: events.Images(tag)[-1].encoded_image_string for tag in events.Tags()["images"]}
    return {tag: np.asarray(Image.open(io.BytesIO(image))) for tag, image in data.items()}


def show(folder: Path, rows: pd.DataFrame, detections: pd.DataFrame, **counts: int) -> dict[str, np.ndarray]:
    evaluator = validated(rows, detections)
    train(DetectionTensorBoard(folder, optimizer(), evaluator, **counts), evaluator)
    return images_of(folder)


def ensemble_found(
    boxes: Mapping[str, Sequence[Box]], detected: Mapping[str, Sequence[Scored]], sequences: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    frames = frame_table(boxes, **({"sequence_id": sequences} if sequences else {}))
    return frames, pd.concat([detection_table(detected, name) for name in NETWORKS], ignore_index=True)


BOX = (10, 10, 40, 40)
FAR = (45, 10, 75, 40)


def test_every_network_has_the_figures_of_detection(tmp_path: Path) -> None:
    frames, detections = cohort(networks=NETWORKS)
    evaluator = validated(frames, detections, epoch=7)
    train(DetectionTensorBoard(tmp_path, optimizer(), evaluator), evaluator)
    for name in NETWORKS:
        events = events_of(tmp_path, name)
        assert {tag for tag in events.Tags()["scalars"] if tag.startswith("val/")} == {f"val/{key}" for key in FIGURES}
        point = events.Scalars("val/ap50")[0]
        assert point.step == 7
        assert point.value == pytest.approx(evaluator.state.metrics[f"{name}_ap50"])
    tags = events_of(tmp_path, "cohort").Tags()
    agreements = {"teacher_student_0", "teacher_student_1", "student_0_student_1"}
    assert {f"val/agreement_{pair}" for pair in agreements} == {tag for tag in tags["scalars"] if "agreement" in tag}
    spread = {f"val_frames_spread/{number}" for number in range(1, 7)}
    worst = {f"val_frames_worst/{number}" for number in range(1, 5)}
    assert set(tags["images"]) == {"val/froc"} | spread | worst


def test_losses_rates_weights_and_settings_are_there_for_every_task(tmp_path: Path) -> None:
    evaluator = validated(*cohort(networks=NETWORKS))
    settings = {"beta": 1.0, "students": None}
    handler = DetectionTensorBoard(tmp_path, optimizer(), evaluator, settings=settings, frames=0, worst_frames=0)
    train(handler, evaluator)
    student, shared = events_of(tmp_path, "student_0"), events_of(tmp_path, "cohort")
    assert [(point.step, point.value) for point in student.Scalars("train/kd_loss")] == [(1, 3), (2, 3), (3, 3)]
    assert student.Scalars("train/answer_norm_loss")[0].value == 4
    assert student.Scalars("train/learning_rate")[0].value == 0.125
    assert [point.value for point in shared.Scalars("train/regulariser_loss")] == [5] * 3
    assert [point.value for point in shared.Scalars("train/total_loss")] == [6] * 3
    assert [(point.step, point.value) for point in shared.Scalars("train/total_loss_epoch")] == [(1, 6)]
    assert shared.Scalars("weights/beta")[0].value == 0.25
    assert shared.Scalars("val/best_ensemble_ap")[0].value == 0.5
    assert "_hparams_/session_start_info" in shared.summary_metadata
    assert handler.writers == {}


def test_means_of_an_epoch_count_every_iteration_whatever_the_interval(tmp_path: Path) -> None:
    trainer = Engine(lambda _, value: {OutputKey.LOSS_TERMS: {"student_0_kd": torch.tensor(value)}})
    trainer.cohort_loss = None
    CohortTensorBoard(tmp_path, optimizer(), interval=3).attach(trainer)
    trainer.run([1.0, 2.0, 6.0, 7.0], max_epochs=2)
    events = events_of(tmp_path, "student_0")
    assert [(point.step, point.value) for point in events.Scalars("train/kd_loss")] == [(3, 6), (6, 2)]
    assert [(point.step, point.value) for point in events.Scalars("train/kd_loss_epoch")] == [(1, 4), (2, 4)]


def test_a_training_that_fails_leaves_the_curves_up_to_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that wait on a GPU, here those of all iterations, are read first."""

    def step(_: Engine, value: float) -> dict[str, Any]:
        if value > 6:
            raise FloatingPointError("the loss has exploded")
        return {OutputKey.LOSS_TERMS: {"student_0_kd": torch.tensor(value)}}

    monkeypatch.setattr("kdml_med.handlers.losses.read_interval", lambda _: 20)
    trainer = Engine(step)
    CohortTensorBoard(tmp_path, optimizer()).attach(trainer)
    with pytest.raises(FloatingPointError, match="the loss has exploded"):
        trainer.run([1.0, 2.0, 6.0, 7.0], max_epochs=1)
    events = events_of(tmp_path, "student_0")
    assert [(point.step, point.value) for point in events.Scalars("train/kd_loss")] == [(1, 1), (2, 2), (3, 6)]


def test_the_validation_loss_has_a_curve_for_each_network(tmp_path: Path) -> None:
    evaluator = validated(*cohort(networks=NETWORKS), epoch=4)
    evaluator.state.metrics |= {"teacher_loss": 0.5, "student_0_loss": float("nan")}
    train(DetectionTensorBoard(tmp_path, optimizer(), evaluator, frames=0, worst_frames=0), evaluator)
    assert [(point.step, point.value) for point in events_of(tmp_path, "teacher").Scalars("val/loss")] == [(4, 0.5)]
    assert "val/loss" not in events_of(tmp_path, "student_0").Tags()["scalars"]


def test_settings_are_few_and_those_that_were_changed_come_first(tmp_path: Path) -> None:
    evaluator = validated(*cohort(networks=NETWORKS))
    students = [{"name": "resnet", "depth": 10}, "tiny"]
    settings = {
        "beta": 0.5, "alpha": 1.0, "seed": 3, "balance": True, "fold": None, "image_size": [128, 192],
        "box_weight": 2.0, "initial_weights": {"teacher": "/data/weights/teacher.pt"}, "students": students,
        "device": "cpu",
    }  # fmt: skip
    defaults = {
        "beta": 1.0, "alpha": 1.0, "seed": 0, "balance": False, "fold": None, "image_size": [128, 128],
        "box_weight": 2.0, "initial_weights": None, "students": None,
    }  # fmt: skip
    handler = CohortTensorBoard(tmp_path, optimizer(), evaluator, settings=settings, defaults=defaults)
    handler.show_validation = lambda engine: None
    train(handler, evaluator)
    contents = {tag: data.plugin_data.content for tag, data in events_of(tmp_path, "cohort").summary_metadata.items()}
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert shown == {
        "alpha": 1.0, "balance": True, "beta": 0.5, "image_size": "128, 192", "initial_weights": "teacher=teacher.pt",
        "seed": 3.0, "students": "resnet(depth=10), tiny",
    }  # fmt: skip
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    assert {info.name for info in experiment.hparam_infos if not info.differs} == {"alpha"}
    assert [info.name.tag for info in experiment.metric_infos] == ["val/best_ensemble_ap"]


def test_a_resumed_run_takes_back_what_was_written_after_its_checkpoint(tmp_path: Path) -> None:
    def trained(*, epochs: int, done: int = 0) -> None:
        evaluator = validated(*cohort(networks=NETWORKS))
        handler = DetectionTensorBoard(
            tmp_path, optimizer(), evaluator, settings={"beta": 1.0}, frames=0, worst_frames=0
        )
        train(handler, evaluator, epochs=epochs, done=done)

    trained(epochs=3)
    trained(epochs=4, done=2)
    teacher, shared = events_of(tmp_path, "teacher"), events_of(tmp_path, "cohort")
    losses = [(point.step, point.value) for point in teacher.Scalars("train/task_loss")]
    assert losses == [(step, 1.0 if step <= 6 else 3.0) for step in range(1, 13)]
    assert [point.step for point in teacher.Scalars("train/learning_rate")] == list(range(1, 13))
    # Those that count epochs, of which a file has had more.
    means = [(point.step, point.value) for point in teacher.Scalars("train/task_loss_epoch")]
    assert means == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0)]
    assert [point.step for point in shared.Scalars("weights/beta")] == [1, 2, 3, 4]
    assert len(shared.Scalars("val/best_ensemble_ap")) == 1


def test_a_file_that_is_begun_in_the_second_of_another_one_is_read_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count(1_700_000_000, 0.25)
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    (tmp_path / "teacher").mkdir()
    # Behind any name of this second that a writer gives, as the ninth file of a process is behind its tenth.
    before = tmp_path / "teacher" / "events.out.tfevents.1700000000.~"
    before.touch()
    CohortTensorBoard(tmp_path, optimizer()).writer("teacher").close()
    first, second = sorted(path.name for path in before.parent.iterdir())
    assert first == before.name
    assert second.startswith("events.out.tfevents.1700000001.")


def test_only_points_that_are_kept_stay_in_event_files(tmp_path: Path) -> None:
    writer = begin_events(tmp_path / "teacher")
    for step in range(1, 6):
        writer.add_scalar("a", 10.0 * step, step)
        writer.add_scalar("b", -1.0 * step, step)
    writer.close()
    (path,) = (tmp_path / "teacher").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-20:-3])  # killed while it wrote
    take_back(tmp_path, lambda tag, step: step <= (3 if tag == "a" else 5))
    events = events_of(tmp_path, "teacher")
    assert [(point.step, point.value) for point in events.Scalars("a")] == [(1, 10), (2, 20), (3, 30)]
    assert [point.step for point in events.Scalars("b")] == [1, 2, 3, 4, 5]
    kept = path.read_bytes()
    take_back(tmp_path, lambda tag, step: True)
    assert path.read_bytes() == kept
    take_back(tmp_path / "absent", lambda tag, step: False)


def test_a_run_killed_behind_its_last_checkpoint_gets_its_settings_and_a_finished_one_is_left_alone(
    tmp_path: Path,
) -> None:
    def go_on() -> None:
        handler = CohortTensorBoard(tmp_path, optimizer(), evaluator, settings={"beta": 1.0})
        handler.show_validation = lambda engine: None
        handler.load_state_dict({})
        train(handler, evaluator, epochs=2, done=2)

    evaluator = validated(*cohort(networks=NETWORKS))
    handler = CohortTensorBoard(tmp_path, optimizer(), evaluator)
    handler.show_validation = lambda engine: None
    train(handler, evaluator, epochs=2)
    assert "_hparams_/session_start_info" not in events_of(tmp_path, "cohort").summary_metadata
    before = sorted(tmp_path.rglob("events*"))
    go_on()
    assert [point.value for point in events_of(tmp_path, "cohort").Scalars("val/best_ensemble_ap")] == [0.5]
    assert "_hparams_/session_start_info" in events_of(tmp_path, "cohort").summary_metadata
    after = sorted(tmp_path.rglob("events*"))
    assert len(after) == len(before) + 1
    go_on()
    assert sorted(tmp_path.rglob("events*")) == after


def test_an_evaluation_outside_of_training_writes_nothing(tmp_path: Path) -> None:
    evaluator = validated(*cohort(networks=NETWORKS))
    handler = DetectionTensorBoard(tmp_path / "events", optimizer(), evaluator, frames=1, worst_frames=0)
    train(handler, evaluator)
    before = sorted((tmp_path / "events").rglob("events*"))
    evaluator.fire_event(Events.COMPLETED)
    assert sorted((tmp_path / "events").rglob("events*")) == before


def test_classifiers_have_their_figures_and_curves(tmp_path: Path) -> None:
    evaluator = evaluate([0, 1, 0, 1, 1])
    train(ClassificationTensorBoard(tmp_path, optimizer(), evaluator), evaluator)
    tags = events_of(tmp_path, "ensemble").Tags()
    levels = [f"val/{level}_{figure}" for level in ("tile", "patient") for figure in ("auroc", "accuracy")]
    assert sorted(tags["scalars"]) == sorted(levels)
    assert "val/precision_recall" in tags["tensors"]
    shared = events_of(tmp_path, "cohort").Tags()
    assert "val/agreement_student_0_student_1" in shared["scalars"]
    assert "val/roc" in shared["images"]
    assert tags["images"] == ["val/calibration"]


def test_one_class_alone_has_no_curves(tmp_path: Path) -> None:
    evaluator = evaluate([1, 1, 1])
    train(ClassificationTensorBoard(tmp_path, optimizer(), evaluator), evaluator)
    assert events_of(tmp_path, "cohort").Tags()["images"] == []
    assert events_of(tmp_path, "ensemble").Tags()["tensors"] == []


@pytest.mark.parametrize("size", [0, 400])
def test_a_full_disk_names_the_folder_of_the_events_and_prints_no_traceback(
    tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = CohortTensorBoard(tmp_path / "tensorboard", torch.optim.SGD([torch.zeros(1)], lr=0.1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(InputError, match=r"^cannot write .*tensorboard: File too large\. Free some space"):
            train(handler, None, epochs=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in capfd.readouterr().err
