"""Tables of whole commands and of evaluations say what was measured and what was wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdml_med.data import FrameDataset, PlaceFrame
from kdml_med.handlers import DetectionMetrics
from kdml_med.networks.boxes import MAX_DETECTIONS
from tests.benchmarks import training_commands, training_evaluation
from tests.benchmarks.training_commands import COMMANDS, print_commands
from tests.benchmarks.training_evaluation import Part, detectors, evaluate, row, write_frames

SECONDS = {"old": [70.0, 84.0, 98.0], "new": [50.0, 70.0, 50.0]}


def test_whole_commands_are_compared_with_what_was_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkout takes as long as ``SECONDS`` says for each command; the old one tells nothing of its epochs."""
    figures = {"auroc": 0.8, "auroc_ci95": [0.7, 0.9]}
    network = {
        "patient": figures,
        "tile": figures,
        "ap50": 0.5,
        "ap50_ci95": [0.4, 0.6],
        "ap": 0.3,
        "ap_ci95": [0.4, 0.6],
    }
    moments = dict.fromkeys(SECONDS, 0)

    def timed(words: list[str], checkout: Path) -> tuple[float, float]:
        if "--data-only" in words or any("evaluate.json" in word for word in words):
            return 1.0, 1.0
        place = words.index("--out" if "--out" in words else "--run_dir") + 1
        run = Path(words[place]) / "run" if "--out" in words else Path(words[place])
        (run / "evaluation_test").mkdir(parents=True)
        (run / "evaluation_test" / "metrics.json").write_text(json.dumps({"networks": {"teacher": network}}))
        speed = {"training_speed": {"epoch_over_steps": 1.06}} if checkout.name == "new" else {}
        (run / "metrics.json").write_text(json.dumps(speed))
        number = moments[checkout.name]
        moments[checkout.name] = number + 1
        return SECONDS[checkout.name][number % 3], 10.0

    monkeypatch.setattr(training_commands, "timed", timed)
    print_commands({name: tmp_path / name for name in SECONDS}, 1)
    lines = capsys.readouterr().out.splitlines()
    demo = COMMANDS[1].name
    assert f"| {COMMANDS[0].name} | 70 → 50 | 1.40 | 0% | ≥ 1.4 | yes | 10 → 10 | 1.00 |" in lines
    assert f"| {demo} | 84 → 70 | 1.20 | 0% | ≥ 1.4 | no | 10 → 10 | 1.00 |" in lines
    assert f"| {demo} | new | 1.060 | ≤ 1.05 | no |" in lines
    assert f"| {demo} | teacher | AUROC of tiles | 0.800 (0.700–0.900) | 0.800 | yes |" in lines
    assert f"| {COMMANDS[2].name} | teacher | AP | 0.300 (0.400–0.600) | 0.300 | **no** |" in lines


def test_every_frame_of_an_evaluation_has_all_detections_that_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_evaluation, "PATIENTS", 2)
    monkeypatch.setattr(training_evaluation, "FRAMES", 2)
    counts: list[int] = []
    completed = DetectionMetrics.completed

    def count(metrics: DetectionMetrics, engine, name: str) -> None:
        completed(metrics, engine, name)
        counts.extend(engine.state.predictions.groupby(["network", "sample_id"]).size())

    monkeypatch.setattr(DetectionMetrics, "completed", count)
    dataset = FrameDataset(write_frames(tmp_path), split="val", transform=PlaceFrame(128))
    seconds = evaluate(detectors("edge"), dataset)
    assert counts == [MAX_DETECTIONS] * 5 * 4
    assert all(value > 0 for value in seconds.values())


def test_shares_of_an_evaluation_are_those_of_its_sum() -> None:
    one = {Part.READING: 1.0, Part.NETWORKS: 6.0, Part.SUPPRESSION: 2.0, Part.METRICS: 1.0}
    assert row("v1", [one]) == "| v1 | 10.0 | 10% | 60% | 20% | 10% | < 10 | no |"
    assert row("v1", [one, {part: value / 2 for part, value in one.items()}, one]).startswith("| v1 | 10.0 |")
    assert row("v1", [{part: value / 2 for part, value in one.items()}]).endswith(
        "| 5.0 | 10% | 60% | 20% | 10% | < 10 | yes |"
    )
