"""Detectors as files of each format, against the module that equals the evaluation."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdml_med.deploy.export.detector import ExportedDetector
from kdml_med.deploy.export.detector_parity import differences, may_be_chance
from kdml_med.deploy.export.running import export_run
from kdml_med.errors import InputError
from kdml_med.keys import DetectionColumn, Task
from kdml_med.runs import METRICS_FILE, SETTINGS_FILE, RunDescription, checkpoint_path, hashed_patient, load_network
from kdml_med.storage.files import write_json
from tests.deploy.export.test_export_detector import SIZE, detector
from tests.synthetic_frames import SPLITS, write_frame_dataset

SPEC = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}
NAMES = ["student_0", "student_1"]
SEEN = [hashed_patient(name) for name in SPLITS]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frame_dataset(tmp_path_factory.mktemp("frames") / "data", frames=3, height=100, width=170)


def write_run(folder: Path, *, fusion: str = "anchors") -> Path:
    RunDescription(
        task=Task.DETECTION, version="tiny", classes=["negative", "polyp"], image_size=list(SIZE), fusion=fusion,
        fold=None, seen_patients={"train": SEEN, "val": []}, synthetic=True, kdml_med="0",
        networks=dict.fromkeys(NAMES, SPEC),
    ).write(folder)  # fmt: skip
    write_json(folder / SETTINGS_FILE, {})
    write_json(folder / METRICS_FILE, {"thresholds": dict.fromkeys([*NAMES, "ensemble"], 0.5)})
    for seed, name in enumerate(NAMES):
        path = checkpoint_path(folder, name)
        path.parent.mkdir(exist_ok=True)
        torch.save(detector(seed).state_dict(), path)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize(("network", "format"), [("ensemble", "onnx"), ("student_1", "torchscript")])
def test_a_file_finds_what_the_evaluation_finds(
    run_dir: Path, frames: Path, tmp_path: Path, network: str, format: str
) -> None:
    report = export_run(
        run_dir, tmp_path, network=network, format=format, dataset_dir=frames, split="val", measure_speed=False
    )
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert parity["passed"]
    assert parity["boxes_of_both"] > 30
    assert parity["boxes_of_one"] == 0
    assert parity["largest_score_difference"] < 1e-5
    assert parity["largest_box_difference_px"] < 1e-2
    assert report.path.is_file()


def test_a_file_takes_frames_of_any_size_and_several_at_a_time(run_dir: Path, tmp_path: Path, frames: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_run(run_dir, tmp_path, network="ensemble", dataset_dir=frames, split="val", measure_speed=False).path
    session = onnxruntime.InferenceSession(path)
    assert [one.name for one in session.get_inputs()] == ["image"]
    assert [one.name for one in session.get_outputs()] == ["boxes", "scores", "batch_index"]
    module = ExportedDetector({name: load_network(run_dir, name) for name in NAMES}, SIZE)
    for shape in ((1, 64, 128, 3), (3, 90, 111, 3), (2, 200, 150, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        boxes, scores, frame = session.run(None, {"image": images})
        with torch.inference_mode():
            expected = [value.numpy() for value in module(torch.from_numpy(images))]
        np.testing.assert_array_equal(frame, expected[2])
        np.testing.assert_allclose(scores, expected[1], atol=1e-5)
        np.testing.assert_allclose(boxes, expected[0], atol=1e-2)


@pytest.mark.slow
def test_a_detector_is_timed_as_a_classifier_is(
    run_dir: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_run(run_dir, tmp_path, format="onnx-int8", dataset_dir=frames, split="val", calibration_images=2)
    assert report.speed is not None
    rows = [(row["format"], row["runtime"]) for row in report.speed["rows"]]
    runtimes = ["ONNX Runtime", *(["OpenVINO"] if find_spec("openvino") else [])]
    files = [(format_, runtime) for format_ in ("onnx", "onnx-int8") for runtime in runtimes]
    assert rows == [("checkpoint", "eager"), *files]
    last = report.speed["rows"][-1]
    assert last["figure"] == report.parity["runtimes"][runtimes[-1]]["ap"]
    assert last["times_as_fast_quartiles"][0] <= last["times_as_fast"] <= last["times_as_fast_quartiles"][1]
    assert report.described["calibration"] == {"split": "train", "n_frames": 2, "n_patients": 2}
    assert "frames/s" in capsys.readouterr().out


def test_a_detector_is_timed_on_the_frames_that_were_compared(run_dir: Path, tmp_path: Path) -> None:
    tested = write_frame_dataset(tmp_path / "tested", splits={"P0": "test"}, frames=2, height=90, width=150)
    report = export_run(run_dir, tmp_path / "out", format="torchscript", dataset_dir=tested, split="test")
    assert report.speed is not None
    assert report.speed["images"] == [[90, 150]] * 2


def test_without_frames_noise_is_compared(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parity = export_run(run_dir, tmp_path, measure_speed=False).parity
    assert parity["split"] is None
    assert parity["passed"]
    assert parity["boxes_of_both"] > 0
    assert "random pixels" in capsys.readouterr().out


def test_fused_boxes_are_refused_before_work(frames: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", fusion="boxes")
    with pytest.raises(InputError, match=r"weighted box fusion .* which no file format has"):
        export_run(run, tmp_path / "out", network="ensemble", dataset_dir=frames, split="val")
    assert not (tmp_path / "out").exists()


def boxes(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """Squares of 10 px at x, by frame and score."""
    content = [(frame, frame, "p", "n", score, x, 0.0, x + 10, 10.0) for frame, score, x in rows]
    return pd.DataFrame(content, columns=[str(column) for column in DetectionColumn])


@pytest.mark.parametrize(
    ("beyond", "pairs", "chance"),
    [(0, 0, True), (0, 5, True), (1, 1, False), (1, 2, True), (2, 1999, False), (2, 2000, True), (7583, 7583, False)],
)
def test_few_boxes_may_differ_by_which_candidate_was_kept(beyond: int, pairs: int, chance: bool) -> None:
    assert may_be_chance(beyond, pairs) is chance


def test_differences_pair_boxes_by_overlap_and_not_by_rank() -> None:
    before = boxes(("a", 0.9, 0.0), ("a", 0.8, 40.0), ("b", 0.6, 0.0))
    after = boxes(("a", 0.81, 40.5), ("a", 0.8, 0.0), ("b", 0.6, 90.0), ("c", 0.3, 0.0))
    found = differences(before, after, 0.5)
    assert found["boxes_of_both"] == 2
    assert found["largest_score_difference"] == pytest.approx(0.1)
    assert found["largest_box_difference_px"] == pytest.approx(0.5)
    assert found["boxes_beyond_tolerance"] == 2  # one by 0.1 of the score, one by half a pixel
    assert (found["boxes_of_one"], found["highest_score_of_one"]) == (3, 0.6)
    assert found["frames_with_changed_decisions"] == 0
    assert differences(before, after, 0.85)["frames_with_changed_decisions"] == 1
