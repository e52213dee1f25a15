"""kdml_med from Python: what a person writes in a notebook."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

import kdml_med
from kdml_med.api import Prediction
from kdml_med.errors import InputError
from kdml_med.keys import Task
from tests.synthetic_frames import frame_pixels, write_frame_dataset
from tests.synthetic_tiles import write_tile_dataset

# Of what is told to a person: one line.
ONE_LINE = r"\A[^\n]+\Z"


def test_importing_it_loads_no_framework() -> None:
    code = "import sys, kdml_med; print(*{'torch', 'monai', 'numpy', 'pandas', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_what_it_offers_is_what_its_types_say() -> None:
    stub = Path(kdml_med.__file__).with_suffix(".pyi").read_text()
    for name in set(kdml_med.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(kdml_med, name)), name
        assert name in stub
    assert set(dir(kdml_med)) == set(kdml_med.__all__)
    with pytest.raises(AttributeError, match="'trian'"):
        kdml_med.trian  # noqa: B018


def test_a_run_is_what_training_left_behind(tiles_run: Path, tmp_path: Path) -> None:
    run = kdml_med.load_run(tiles_run)
    assert (run.task, run.folder) == (Task.CLASSIFICATION, tiles_run)
    assert run.description.names == ["teacher", "student_0", "student_1"]
    assert run.settings["max_epochs"] == 1
    assert run.settings["batch_size"] == 16, "a default is a setting, too"
    assert run.metrics == json.loads((tiles_run / "metrics.json").read_text())
    assert run.dataset_dir == (tiles_run.parent / "tiles").resolve()
    assert list(run.patients["label"].unique()) == ["MSS", "MSI"]
    assert run.patients["probability_ensemble"].between(0, 1).all(), "numbers, not texts"
    assert len(run.predictions) == 4 * run.patients["tiles"].sum()
    assert set(run.losses["network"]) >= {"teacher", "student_0"}
    assert set(run.history["network"]) >= {"teacher", "student_0", "ensemble"}
    image = torch.zeros(1, 3, 32, 32)
    torch.testing.assert_close(run.cohort()(image)["student_1"], run.network("student_1")(image))
    with pytest.raises(InputError, match="has no network 'student_7'"):
        run.network("student_7")
    earlier = replace(run, folder=tmp_path)
    with pytest.raises(InputError, match=r"has no history\.csv: an earlier version trained it"):
        earlier.history  # noqa: B018


def test_a_run_of_detectors_likewise(frames_run: Path) -> None:
    run = kdml_med.load_run(frames_run)
    assert run.task is Task.DETECTION
    assert "sequence_id" in run.patients
    assert run.description.frame_size_px == 64


def test_evaluation_needs_the_run_and_nothing_else(tiles_run: Path, tmp_path: Path) -> None:
    metrics = kdml_med.evaluate(tiles_run, output_dir=tmp_path / "out")
    assert metrics["split"] == "test"
    assert metrics["networks"]["student_0"]["patient"]["n"] == 3
    elsewhere = write_tile_dataset(tmp_path / "tiles")  # the same tiles in another place
    again = kdml_med.evaluate(kdml_med.load_run(tiles_run), elsewhere, output_dir=tmp_path / "again", device="cpu")
    assert again == metrics
    assert not (tiles_run / "evaluation_test").exists()


def test_a_dataset_that_moved_is_named(tiles_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiles_run, tmp_path / "run")
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"dataset_dir": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"was trained on .*gone, which is not there: name its new place with --data"):
        kdml_med.evaluate(run)


def test_a_dataset_folder_is_predicted(tiles_run: Path, tmp_path: Path) -> None:
    new = write_tile_dataset(tmp_path / "new", labelled=False, patients=3)
    found = kdml_med.predict(tiles_run, new, tmp_path / "out")
    assert found.failures == []
    table = found.table("patients.csv")
    assert len(table) == 3
    assert "probability_teacher" not in table
    kdml_med.predict(tiles_run, new, tmp_path / "teacher", network="teacher")
    assert "probability_teacher" in (tmp_path / "teacher/patients.csv").read_text()


def test_truths_in_tables_are_true_and_false(tmp_path: Path) -> None:
    table = pd.DataFrame({"above_threshold": [True, False], "seen": [True, None], "file_name": ["True", "False"]})
    table.to_csv(tmp_path / "detections.csv", index=False)
    found = Prediction(tmp_path).table("detections.csv")
    assert list(found[found["above_threshold"]].index) == [0]
    assert found["seen"].isna().tolist() == [False, True]
    assert found["file_name"].tolist() == ["True", "False"]


def test_images_and_what_cannot_be_used_of_them(frames_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(frame_pixels([[10, 10, 30, 30]], height=48, width=64)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    found = kdml_med.predict(frames_run, [folder], tmp_path / "out", network="student_0", workers=1)
    assert [name for name, _ in found.failures] == ["bad.png"]
    assert list(found.table("frames.csv")["source"]) == ["good.png"]
    with pytest.raises(InputError, match=r"nothing\.csv does not exist"):
        found.table("nothing.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 2}, r"unknown option --max_epoch\. Did you mean --max_epochs\?"),
        ({"image_size": [64, 64]}, "--image_size is .*, expected a whole number"),
    ],
)
def test_a_wrong_setting_is_said_before_anything_is_done(
    tiles_run: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kdml_med.train(tiles_run.parent / "tiles", tmp_path / "run", **settings)
    caught.match(ONE_LINE)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_said_in_one_line(tiles_run: Path, frames_run: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    frames = write_frame_dataset(tmp_path / "frames")
    calls: list[tuple[Any, str]] = [
        (lambda: kdml_med.load_run(nothing), "is not a finished training run"),
        (lambda: kdml_med.train(nothing, tmp_path / "run"), "is not a dataset folder"),
        (lambda: kdml_med.evaluate(nothing), "is not a finished training run"),
        (lambda: kdml_med.evaluate(tiles_run, frames), "frames"),
        (lambda: kdml_med.evaluate(tiles_run, splt="val"), r"Did you mean --split\?"),
        (lambda: kdml_med.predict(tiles_run, nothing, tmp_path / "out"), "nothing does not exist"),
        (lambda: kdml_med.predict(tiles_run, [], tmp_path / "out"), "no input is named"),
        (lambda: kdml_med.predict(frames_run, [frames, tiles_run], tmp_path / "out"), "2 inputs are named"),
        (lambda: kdml_med.predict(frames_run, frames, tmp_path / "out", network="student_9"), "student_9"),
        (lambda: kdml_med.predict(frames_run, frames, tmp_path / "out", roi="x"), "unknown option --roi"),
        (lambda: kdml_med.export(nothing, tmp_path / "out"), "is not a finished training run"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message) as caught:
            call()
        caught.match(ONE_LINE)
    assert not (tmp_path / "out").exists()


def test_a_report_tells_how_large_and_how_fast_networks_are(tiles_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiles_run, tmp_path / "run")
    page = kdml_med.write_report(kdml_med.load_run(run))
    found = json.loads(page.with_suffix(".json").read_text())["networks"]
    assert set(found["milliseconds"]) == {"teacher", "student_0", "student_1", "ensemble"}
    assert found["parameters"]["ensemble"] == found["parameters"]["student_0"] + found["parameters"]["student_1"]
    weights = (run / "checkpoints/teacher.pt").stat().st_size
    assert found["megabytes"]["teacher"] == weights / 1e6
    kdml_med.write_report(run)
    again = json.loads(page.with_suffix(".json").read_text())["networks"]
    assert again["milliseconds"] == found["milliseconds"], "what an earlier report measured here is not measured again"
    kdml_med.write_report(run, speed=False)
    assert json.loads(page.with_suffix(".json").read_text())["networks"]["milliseconds"] == {}
    assert "The latency was not measured." in page.read_text()
