"""Evaluation, inference and export of a finished run, as the README says."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
import torch
from monai.bundle import ConfigWorkflow
from sklearn.metrics import roc_auc_score

from kdml_med import evaluate
from kdml_med.bundle import evaluation
from kdml_med.data.tiles import TileDataset
from kdml_med.runs import RunDescription, checkpoint_path, load_network
from kdml_med.storage.files import content_hash
from kdml_med.storage.manifest import manifest_table, read_manifest, write_manifest
from tests.bundles.conftest import CONFIGS, REPOSITORY, read_json, refused, run_bundle, run_here, train_words
from tests.synthetic_tiles import write_tile_dataset


def evaluate_words(dataset: Path, run_dir: Path, *more: str) -> list[str | Path]:
    files = f"['{CONFIGS}/train.json','{CONFIGS}/evaluate.json']"
    return ["run", "--config_file", files, "--dataset_dir", dataset, "--run_dir", run_dir, *more]


def infer_words(dataset: Path, run_dir: Path, *more: str | Path) -> list[str | Path]:
    files = CONFIGS / "inference.json"
    return ["run", "--config_file", files, "--dataset_dir", dataset, "--run_dir", run_dir, *more]


@pytest.fixture(scope="module")
def evaluated(dataset: Path, trained: Path) -> Path:
    run_bundle(*evaluate_words(dataset, trained))
    return trained / "evaluation_test"


def test_metrics_agree_with_scikit_learn_on_the_written_predictions(evaluated: Path, dataset: Path) -> None:
    metrics = read_json(evaluated / "metrics.json")
    predictions = pd.read_parquet(evaluated / "predictions.parquet")
    splits = pd.read_csv(dataset / "splits.csv").set_index("patient_id")["split"]
    assert set(predictions["patient_id"].map(splits)) == {"test"}
    for network, rows in predictions.groupby("network"):
        figures = metrics["networks"][network]
        assert figures["tile"]["auroc"] == pytest.approx(roc_auc_score(rows["label"], rows["probability"]))
        patients = rows.groupby("patient_id").agg({"label": "first", "probability": "mean"})
        expected = roc_auc_score(patients["label"], patients["probability"])
        assert figures["patient"]["auroc"] == pytest.approx(expected)
    students = predictions[predictions["network"].str.startswith("student")]
    mean = students.groupby("sample_id")["probability"].mean()
    ensemble = predictions[predictions["network"] == "ensemble"].set_index("sample_id")["probability"]
    np.testing.assert_allclose(ensemble.sort_index(), mean.sort_index(), rtol=1e-6)


def test_training_and_evaluation_record_command_versions_data_and_weights(
    dataset: Path, trained: Path, evaluated: Path
) -> None:
    settings = read_json(trained / "settings.json")
    words = shlex.split(settings["made_by"]["command"])
    assert words == ["python", "-m", "monai.bundle", *map(str, train_words(dataset, trained))]
    assert settings["made_by"]["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    record = read_json(evaluated / "evaluation.json")
    assert record["dataset"] == settings["dataset"]
    assert record["dataset_dir"] == settings["dataset_dir"]
    assert record["split"] == "test"
    assert record["versions"] == settings["made_by"]["versions"]
    assert shlex.split(record["command"])[3:] == [*map(str, evaluate_words(dataset, trained))]
    hashes = {name: content_hash(checkpoint_path(trained, name)) for name in ("teacher", "student_0", "student_1")}
    assert record["weights"] == hashes


def test_predictions_say_where_each_tile_was_cut(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    columns = ["x_l0", "y_l0", "size_l0"]
    imported = pd.read_parquet(evaluated / "predictions.parquet")
    assert imported[columns].isna().all().all()
    slides = write_tile_dataset(tmp_path / "new", patients=2, labelled=False, seed=5)
    manifest = read_manifest(slides)
    places = {"x_l0": np.arange(len(manifest)) * 112, "y_l0": np.arange(len(manifest))[::-1] * 7, "size_l0": 112.5}
    rows = manifest.assign(**places).astype(object)
    write_manifest(slides / "manifest.parquet", manifest_table(rows.where(rows.notna(), None).to_dict("records")))
    run_here(*infer_words(slides, trained, "--output_dir", tmp_path / "out"))
    found = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert found.dtypes[columns].astype(str).tolist() == ["int64", "int64", "float64"]
    expected = manifest.assign(**places).set_index("sample_id").loc[found["sample_id"], columns]
    np.testing.assert_array_equal(found[columns], expected)
    assert len(found) == 3 * len(manifest)


@pytest.mark.parametrize("named", [True, False])
def test_slides_of_unknown_patients_are_not_called_patients(
    named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tile_dataset(tmp_path / "tiles", patients=6, tiles=2, split=False)
    rows = read_manifest(folder)
    if not named:
        rows["patient_id"] = rows["slide_id"]
        write_manifest(folder / "manifest.parquet", pa.Table.from_pandas(rows, preserve_index=False))
    label = (rows["label"] == "MSI").astype(int)
    answers = rows[["sample_id", "slide_id", "patient_id"]].astype("str").assign(label=label, probability=0.5)
    evaluator = SimpleNamespace(
        data_loader=SimpleNamespace(dataset=TileDataset(folder)),
        state=SimpleNamespace(predictions=answers.assign(network="teacher")),
        run=lambda: None,
    )
    cohort = SimpleNamespace(parameter_counts=lambda: {"teacher": 1})
    metrics = evaluation.save_evaluation(
        evaluator, cohort, str(tmp_path / "out"), split="all", level="patient", aggregation="mean", resamples=20
    )
    unit = "patient" if named else "slide"
    assert (metrics["bootstrap"]["unit"], metrics["bootstrap"]["units"]) == (unit, 6)
    assert f"intervals by bootstrap over 6 {unit}s." in capsys.readouterr().out


def test_an_evaluation_that_is_interrupted_leaves_nothing_that_vouches_for_it(
    dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    files = ("metrics.json", "evaluation.json", "speed.json")
    for name in files:
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(evaluation, "write_classification_figures", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, dataset, output_dir=tmp_path)
    assert (tmp_path / "predictions.parquet").is_file()
    assert not any((tmp_path / name).exists() for name in files)


def test_inference_needs_neither_labels_nor_places(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = write_tile_dataset(tmp_path / "new", patients=3, labelled=False, seed=5)
    run_here(*infer_words(slides, trained, "--output_dir", tmp_path / "out", "--maps", "True"))
    assert capsys.readouterr().out.count("No maps: the tiles of this dataset were imported") == 1
    patients = pd.read_csv(tmp_path / "out/patients.csv")
    assert list(patients["patient_id"]) == ["P00", "P01", "P02"]
    assert patients["label"].isna().all()
    predictions = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert set(predictions["network"]) == {"student_0", "student_1", "ensemble"}
    ensemble = predictions[predictions["network"] == "ensemble"].groupby("patient_id")["probability"].mean()
    np.testing.assert_allclose(patients["probability_ensemble"], ensemble, rtol=1e-9)


def test_patients_seen_in_training_are_refused_as_test_patients(dataset: Path, trained: Path, tmp_path: Path) -> None:
    other = write_tile_dataset(tmp_path / "other", seed=1)
    said = refused(*evaluate_words(other, trained))
    assert "used in training this run" in said


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--aggregation", "median"], "aggregation"),
        (["--ensemble_average", "logits"], "ensemble_average"),
        (["--validate#evaluator#ensemble_average", "logits"], "ensemble_average"),  # past the settings
    ],
)
def test_test_patients_do_not_choose_how_they_are_judged(
    dataset: Path, trained: Path, tmp_path: Path, words: list[str], name: str
) -> None:
    said = refused(*evaluate_words(dataset, trained, "--output_dir", str(tmp_path), *words))
    assert said.startswith(f"--{name} is '{words[1]}', the run was trained with")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("named", "read"), [("val", "test"), ("test", "val")])
def test_patients_are_called_by_their_split(
    dataset: Path, trained: Path, tmp_path: Path, named: str, read: str
) -> None:
    words = ["--output_dir", str(tmp_path), "--split", named, "--validate#dataset#split", read]
    said = refused(*evaluate_words(dataset, trained, *words))
    assert said.startswith(f"the evaluator reads the split '{read}', and its results would be called '{named}'")


def test_results_never_go_over_those_of_another_run(dataset: Path, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    over_a_run = f"--output_dir {other} is the folder of a run"
    assert refused(*evaluate_words(dataset, trained, "--output_dir", str(other))).startswith(over_a_run)
    assert refused(*infer_words(dataset, trained, "--output_dir", other)).startswith(over_a_run)
    own = refused(*infer_words(dataset, other, "--output_dir", other))
    assert own.startswith(over_a_run)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text("{}")
    said = refused(*infer_words(dataset, trained, "--output_dir", evaluation))
    assert said.startswith(f"--output_dir {evaluation} holds an evaluation")
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_tiles_of_another_resolution_are_refused(trained: Path, tmp_path: Path) -> None:
    slides = write_tile_dataset(tmp_path / "new", patients=2, labelled=False, mpp=0.25)
    said = refused(*infer_words(slides, trained))
    assert "trained at 1.0 µm/px" in said


def test_a_folder_that_is_no_run_is_refused(dataset: Path, tmp_path: Path) -> None:
    said = refused(*evaluate_words(dataset, tmp_path))
    assert "is not a finished training run" in said


@pytest.mark.slow
def test_commands_work_inside_the_bundle_folder(dataset: Path, trained: Path, tmp_path: Path) -> None:
    words = ["run", "--config_file", "configs/inference.json", "--dataset_dir", dataset, "--run_dir", trained]
    run_bundle(*words, "--output_dir", tmp_path / "out", cwd=REPOSITORY / "bundles/msi_kdml")
    assert (tmp_path / "out/patients.csv").is_file()


def export_words(command: str, trained: Path, target: Path, *more: str) -> list[str | Path]:
    return [
        command, "--net_id", "student_def", "--config_file", CONFIGS / "inference.json",
        "--meta_file", trained / "metadata.json", "--run_dir", trained,
        "--ckpt_file", trained / "checkpoints/student_0.pt", "--filepath", target, *more,
    ]  # fmt: skip


ONE_FILE = ("--use_trace", "True", "--converter_kwargs", "{'external_data': False}")
"""Without these words MONAI's ``onnx_export`` leaves a file with the weights in the folder for temporary files."""


def test_student_exports_to_torchscript_with_the_same_answers(trained: Path, tmp_path: Path) -> None:
    run_bundle(*export_words("ckpt_export", trained, tmp_path / "student.ts"))
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), pytest.warns(DeprecationWarning, match="jit"):
        exported = torch.jit.load(tmp_path / "student.ts")(image)
    torch.testing.assert_close(exported, load_network(trained, "student_0")(image), rtol=1e-5, atol=1e-6)


def test_student_exports_to_onnx_with_the_same_answers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    shape = ("--input_shape", "[1,3,32,32]")
    run_bundle(*export_words("onnx_export", trained, tmp_path / "student.onnx", *shape, *ONE_FILE))
    assert list((tmp_path / "temporary").glob("*.data")) == []
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    exported = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.no_grad():
        expected = load_network(trained, "student_0")(image)
    np.testing.assert_allclose(exported, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("command", "name"), [("ckpt_export", "student.ts"), ("onnx_export", "student.onnx")])
@pytest.mark.slow
def test_metadata_of_another_run_are_refused(trained: Path, tmp_path: Path, command: str, name: str) -> None:
    words = export_words(command, trained, tmp_path / name, "--meta_file", str(CONFIGS / "metadata.json"))
    result = run_bundle(*words, check=False)
    assert result.returncode == 2
    assert f"do not describe the run {trained}" in result.stderr
    assert f"--meta_file {trained / 'metadata.json'}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_exported_files_have_the_metadata_of_the_run(trained: Path, tmp_path: Path) -> None:
    run_bundle(*export_words("ckpt_export", trained, tmp_path / "student.ts"))
    extra = {"metadata.json": ""}
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.load(tmp_path / "student.ts", _extra_files=extra)
    run = RunDescription.read(trained)
    found = json.loads(extra["metadata.json"])
    assert found["label_classes"] == ", ".join(f"{place} = {name}" for place, name in enumerate(run.classes))
    image = found["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [run.image_size, run.image_size]


@pytest.mark.slow
def test_onnx_takes_its_shape_from_the_run(trained: Path, tmp_path: Path) -> None:
    run_bundle(*export_words("onnx_export", trained, tmp_path / "student.onnx", *ONE_FILE))
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    assert session.get_inputs()[0].shape[2:] == [RunDescription.read(trained).image_size] * 2


@pytest.mark.slow
def test_metadata_is_verified_with_the_shipped_schema() -> None:
    schema = "bundles/metadata_schema.json"
    result = run_bundle("verify_metadata", "--meta_file", CONFIGS / "metadata.json", "--filepath", schema)
    assert "metadata is verified with no error" in result.stdout + result.stderr


@pytest.mark.parametrize(("file", "kind"), [("train.json", "train"), ("inference.json", "inference")])
def test_configs_have_the_properties_monai_asks_for(
    dataset: Path, trained: Path, tmp_path: Path, file: str, kind: str
) -> None:
    run_dir = trained if kind == "inference" else tmp_path / "run"
    workflow = ConfigWorkflow(
        config_file=str(REPOSITORY / CONFIGS / file),
        workflow_type=kind,
        logging_file=False,
        dataset_dir=str(dataset),
        run_dir=str(run_dir),
        bundle_root=str(REPOSITORY / "bundles/msi_kdml"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
