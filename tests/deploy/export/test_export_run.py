from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from kdml_med.data import TileDataset
from kdml_med.deploy.export import export_run
from kdml_med.deploy.export.runtimes import load_answer
from kdml_med.errors import InputError
from kdml_med.runs import checkpoint_path, hash_checkpoints
from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import read_info, read_manifest, write_info
from tests.deploy.runs import Moody, Stubborn, write_run
from tests.synthetic_tiles import write_tile_dataset

FILES = {"onnx": "student_0.onnx", "onnx-int8": "student_0.int8.onnx", "torchscript": "student_0.ts"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tile_dataset(tmp_path_factory.mktemp("dataset") / "tiles")


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", dataset)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("format", FILES)
def test_an_export_is_the_model_that_was_evaluated(
    run: Path, dataset: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_run(run, tmp_path, format=format, dataset_dir=dataset, split="test", calibration_images=8)
    assert report.path.name == FILES[format]
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {FILES[format], "model.json", "parity.json", "speed.json"}
    parity = read(tmp_path / "parity.json")
    assert parity["passed"] is (None if format == "onnx-int8" else True)
    assert parity["largest_difference"] < (0.1 if format == "onnx-int8" else 1e-5)
    assert parity["n_tiles"] == parity["n_tiles_of_split"] > 0
    model = read(tmp_path / "model.json")
    assert (model["classes"], model["positive_class"], model["mpp"]) == (["MSS", "MSI"], "MSI", 1.0)
    rows = read(tmp_path / "speed.json")["rows"]
    assert rows[0]["network"] == "teacher"
    assert rows[-1]["format"] == format
    assert rows[-1]["size_bytes"] == report.path.stat().st_size
    screen = capsys.readouterr().out
    assert "largest difference of a probability" in screen
    assert "times as fast" in screen
    assert "Research only" in screen


def test_figures_agree_with_scikit_learn_on_answers_of_the_file(run: Path, dataset: Path, tmp_path: Path) -> None:
    report = export_run(run, tmp_path, network="ensemble", dataset_dir=dataset, split="train", measure_speed=False)
    assert report.speed is None
    tiles = TileDataset(dataset, "train")
    pixels = np.stack([tiles.read(row) for row in range(len(tiles))])
    probability = load_answer(report.path, "ONNX Runtime")(pixels)[0][:, 1]
    auroc = report.parity["auroc"]
    assert auroc["tile"]["exported"] == pytest.approx(roc_auc_score(tiles.labels, probability))
    table = pd.DataFrame({"patient": tiles.rows["patient_id"], "label": tiles.labels, "probability": probability})
    patients = table.groupby("patient").agg({"label": "first", "probability": "mean"})
    expected = roc_auc_score(patients["label"], patients["probability"])
    assert auroc["patient"]["exported"] == pytest.approx(expected)
    low, high = auroc["tile"]["change_ci95"]
    assert low <= auroc["tile"]["change"] <= high


def test_a_teacher_is_compared_on_real_tiles_too(run: Path, dataset: Path, tmp_path: Path) -> None:
    report = export_run(run, tmp_path, network="teacher", dataset_dir=dataset, split="val", measure_speed=False)
    assert report.parity["largest_difference"] < 1e-5
    assert report.parity["n_tiles"] > 0


def test_stains_that_the_file_expects_are_said(run: Path, dataset: Path, tmp_path: Path) -> None:
    macenko = write_run(tmp_path / "run", dataset, stain="macenko")
    for name, folder in (("none", run), ("macenko", macenko)):
        export_run(folder, tmp_path / name, measure_speed=False)
    assert read(tmp_path / "none/model.json")["input"]["stain"] is None
    assert "macenko" in read(tmp_path / "macenko/model.json")["input"]["stain"]


def test_a_comparison_is_limited_to_tiles_drawn_by_the_seed(run: Path, dataset: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path, dataset_dir=dataset, split="train", limit=5, measure_speed=False)
    parity = read(tmp_path / "parity.json")
    assert parity["n_tiles"] == 5 < parity["n_tiles_of_split"]


def test_without_tiles_random_pixels_are_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(run, tmp_path, network="teacher", measure_speed=False)
    assert read(tmp_path / "parity.json")["split"] is None
    assert "random pixels" in capsys.readouterr().out


def test_int8_is_calibrated_on_patients_that_were_learned_from(run: Path, dataset: Path, tmp_path: Path) -> None:
    report = export_run(
        run, tmp_path, format="onnx-int8", dataset_dir=dataset, split="val", calibration_images=7, measure_speed=False
    )
    assert report.described["calibration"]["n_tiles"] == 7
    strangers = write_tile_dataset(tmp_path / "strangers", seed=1)
    shutil.copytree(run, tmp_path / "run")
    described = read(tmp_path / "run/cohort.json")
    described["seen_patients"]["train"] = ["0" * 16]
    (tmp_path / "run/cohort.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="learned from none of the patients"):
        export_run(tmp_path / "run", tmp_path / "out", format="onnx-int8", dataset_dir=strangers)


def test_the_same_export_again_gives_the_same_files_and_another_is_refused(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    def export(**settings: str) -> None:
        export_run(run, tmp_path, dataset_dir=dataset, split="val", measure_speed=False, **settings)

    export()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match="holds an export with the network 'student_0': name another --out"):
        export(network="student_1")
    with pytest.raises(InputError, match="with the format 'onnx'"):
        export(format="torchscript")


def test_an_export_of_another_run_is_not_replaced(run: Path, dataset: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out", dataset_dir=dataset, split="val", measure_speed=False)
    other = write_run(tmp_path / "other", dataset, seed=5)
    with pytest.raises(InputError, match="holds an export of another run"):
        export_run(other, tmp_path / "out", dataset_dir=dataset)


def test_a_file_that_is_not_the_network_is_taken_away(dataset: Path, tmp_path: Path) -> None:
    moody = f"{Moody.__module__}.Moody"
    run = write_run(tmp_path / "run", dataset, students=(moody, moody))
    with pytest.raises(InputError, match="gives other probabilities than the network"):
        export_run(run, tmp_path / "out", dataset_dir=dataset, split="val")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parity.json"]
    assert read(tmp_path / "out/parity.json")["passed"] is False


def test_a_network_that_cannot_be_exported_is_named(dataset: Path, tmp_path: Path) -> None:
    stubborn = f"{Stubborn.__module__}.Stubborn"
    run = write_run(tmp_path / "run", dataset, students=(stubborn, stubborn))
    with pytest.raises(InputError, match="Stubborn cannot be written as onnx"):
        export_run(run, tmp_path / "out", dataset_dir=dataset)


def test_tiles_of_another_size_are_resized_as_in_training(dataset: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", dataset, image_size=24, tile_size_px=None)
    report = export_run(run, tmp_path / "out", dataset_dir=dataset, split="val", measure_speed=False)
    assert report.parity["largest_difference"] < 1e-5
    assert report.described["input"]["shape"] == ["batch", 24, 24, 3]
    assert "resized to 24 px by Pillow" in report.described["input"]["resize"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "student_7"}, "--network is 'student_7'; the run has: teacher, student_0, student_1, ensemble"),
        ({"format": "coreml"}, "--format is 'coreml', expected one of torchscript, onnx, onnx-int8"),
        ({"split": "dev"}, "--split is 'dev'"),
        ({"format": "onnx-int8", "dataset_dir": None}, "--data"),
        ({"dataset_dir": "nowhere"}, "nowhere is not a dataset folder"),
        ({"limit": 0}, "limit is 0, expected a number of images from 1 on"),
        ({"calibration_images": -1}, "calibration_images is -1"),
    ],
)
def test_a_wrong_request_ends_before_work(
    run: Path, dataset: Path, tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_run(run, tmp_path / "out", **({"dataset_dir": dataset} | settings))
    assert not (tmp_path / "out").exists()


def test_no_run_and_no_folder_to_write_to_are_said_in_one_line(run: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a finished training run"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use .* as output folder"):
        export_run(run, tmp_path / "file", dataset_dir=dataset)


def test_classes_of_another_dataset_are_refused(run: Path, dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(dataset, tmp_path / "other")
    info = read(other / "dataset.json")
    (other / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    with pytest.raises(InputError, match="the run knows the classes"):
        export_run(run, tmp_path / "out", dataset_dir=other, split="val")
    assert not (tmp_path / "out").exists()


def write_evaluation(run: Path, split: str, weights: dict[str, str]) -> Path:
    """What an evaluation of these weights leaves: every tile as likely as not."""
    folder = run / f"evaluation_{split}"
    folder.mkdir()
    rows = TileDataset(read(run / "settings.json")["dataset_dir"], split).rows
    table = pd.concat([rows[["sample_id", "slide_id", "patient_id"]].assign(network=name) for name in weights])
    table.assign(label=0, probability=0.5).to_parquet(folder / "predictions.parquet")
    figures = {"tile": {"auroc": 0.5}, "patient": {"auroc": 0.5}}
    metrics = {"split": split, "level": "patient", "networks": dict.fromkeys(weights, figures)}
    for name, content in (("metrics.json", metrics), ("evaluation.json", {"weights": weights})):
        (folder / name).write_text(json.dumps(content))
    return folder


def test_parity_tells_frames_where_nobody_knows_their_patients(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of crops of frames."""
    crops = shutil.copytree(dataset, tmp_path / "crops")
    write_info(crops, replace(read_info(crops), owner="frame"))
    run = write_run(tmp_path / "run", crops)
    report = export_run(run, tmp_path / "out", format="torchscript", dataset_dir=crops, split="test")
    assert report.parity["bootstrap"]["unit"] == "frame"
    screen = capsys.readouterr().out
    assert f"of split test, {report.parity['n_patients']} frames:" in screen
    assert f"Caution: Only {report.parity['n_patients']} frames:" in screen


def test_figures_of_other_weights_do_not_stand_beside_those_of_the_file(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    (own / "settings.json").write_text(json.dumps({"dataset_dir": str(dataset)}))
    weights = hash_checkpoints(own, ["teacher", "student_0"])
    folder = write_evaluation(own, "test", weights)
    report = export_run(own, tmp_path / "same", format="torchscript")
    assert report.parity["recorded"]["tile_auroc"] == 0.5
    assert report.parity["not_compared"] == ""
    assert report.speed is not None
    assert report.speed["rows"][0]["figure"] == 0.5
    assert "Recorded in evaluation_test" in capsys.readouterr().out
    # Trained again since: the split to compare on stays that of the evaluation, its figures are left out.
    (folder / "evaluation.json").write_text(json.dumps({"weights": dict.fromkeys(weights, "0" * 64)}))
    report = export_run(own, tmp_path / "other", format="torchscript")
    assert (report.parity["split"], report.parity["recorded"]) == ("test", None)
    assert report.speed is not None
    assert report.speed["rows"][0]["figure"] is None
    screen = capsys.readouterr().out
    for network in ("student_0", "teacher"):
        assert f"evaluation_test was evaluated with other weights of {network} than lie in" in screen
    assert "Recorded in" not in screen
    # Of another dataset.
    (folder / "evaluation.json").write_text(json.dumps({"weights": weights, "dataset": {"manifest_sha256": "1"}}))
    report = export_run(own, tmp_path / "elsewhere", format="torchscript")
    assert report.parity["recorded"] is None
    assert f"are of another dataset than {dataset}" in report.parity["not_compared"]
    assert report.speed is not None
    assert report.speed["rows"][0]["figure"] is None


def test_a_teacher_that_no_file_holds_costs_its_row_of_the_speed_table_alone(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", dataset, teacher=f"{Stubborn.__module__}.Stubborn")
    report = export_run(run, tmp_path / "out", format="torchscript", dataset_dir=dataset, split="val")
    assert report.speed is not None
    assert [(row["network"], row["runtime"]) for row in report.speed["rows"]] == [
        ("teacher", "eager"), ("student_0", "eager"), ("student_0", "TorchScript"),
    ]  # fmt: skip
    screen = capsys.readouterr().out
    assert "The teacher is not timed as torchscript: Stubborn cannot be written as torchscript" in screen
    assert screen.index("Written to") < screen.index("times as fast")
    checkpoint_path(run, "teacher").unlink()  # moved away to save space
    report = export_run(run, tmp_path / "out", format="torchscript", dataset_dir=dataset, split="val")
    assert report.speed is not None
    assert {row["network"] for row in report.speed["rows"]} == {"student_0"}
    assert "The teacher is not timed: " in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named_as_people_write_it(run: Path, tmp_path: Path) -> None:
    tested = write_tile_dataset(tmp_path / "tested", split=False)
    table = pd.DataFrame({"patient_id": sorted(set(read_manifest(tested)["patient_id"])), "split": "test"})
    freeze_splits(tested, table, mode="table", seed=None)
    with pytest.raises(InputError, match=r"^split 'val' of .* has no tiles"):
        export_run(run, tmp_path / "out", dataset_dir=tested)
