"""A run as a bundle of its own: the checks of MONAI's model zoo, without a network to download anything from.

They are those of ``ci/verify_bundle.py`` in Project-MONAI/model-zoo (files, version, metadata, data shape, TorchScript)
and of its unit tests (properties of the workflows).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, verify_metadata, verify_net_in_out
from PIL import Image

from kdml_med.bundle.model_bundle import write_model_bundle
from kdml_med.data.frames import FrameDataset
from kdml_med.data.samples import ManifestDataset
from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.export.detector import ExportedDetector
from kdml_med.errors import InputError
from kdml_med.programs.export import export
from kdml_med.runs import RunDescription, load_network
from tests.bundles.conftest import REPOSITORY, read_json, run_bundle

pytestmark = [
    pytest.mark.slow,  # a training of each task
    pytest.mark.filterwarnings("ignore:parsing config_file"),
    pytest.mark.filterwarnings("ignore:No hash value provided"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TASKS = ["classification", "detection"]


@pytest.fixture(scope="module")
def material(
    trained: Path, trained_detectors: Path, dataset: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, Path]]:
    """By task: run, dataset folder, bundle."""
    found = {}
    for task, run_dir, data in (("classification", trained, dataset), ("detection", trained_detectors, frames)):
        found[task] = (run_dir, data, write_model_bundle(run_dir, tmp_path_factory.mktemp("bundles") / task))
    return found


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest, material: dict[str, tuple[Path, Path, Path]]) -> tuple[Path, Path, Path]:
    return material[request.param]


def test_the_files_of_a_bundle_are_there_and_its_version_has_an_entry(case: tuple[Path, Path, Path]) -> None:
    bundle = case[2]
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "models/model.ts", "configs/inference.json",
                 "configs/train.json", "configs/logging.conf", "docs/README.md"):  # fmt: skip
        assert (bundle / name).stat().st_size > 0, name
    metadata = read_json(bundle / "configs/metadata.json")
    assert metadata["version"] in metadata["changelog"]


def test_metadata_fit_the_schema_and_the_run(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run_dir, _, bundle = case
    schema = shutil.copy(REPOSITORY / "bundles/metadata_schema.json", tmp_path / "schema.json")
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(schema))
    metadata, run = read_json(bundle / "configs/metadata.json"), RunDescription.read(run_dir)
    size = run.image_size if isinstance(run.image_size, list) else [run.image_size] * 2
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == size
    assert all(name in json.dumps(metadata["network_data_format"]["outputs"]) for name in run.classes[-1:])
    assert metadata["eval_metrics"]


def test_network_def_takes_and_gives_what_the_metadata_say(case: tuple[Path, Path, Path]) -> None:
    configs = case[2] / "configs"
    words = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out(net_id="network_def", bundle_root=str(case[2]), device="cpu", **words)


def test_weights_can_be_exported_by_monai_and_answer_as_model_ts(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bundle = case[2]
    metadata = read_json(bundle / "configs/metadata.json")
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "verify.ts"), ckpt_file=str(bundle / "models/model.pt"),
        meta_file=str(bundle / "configs/metadata.json"), config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
    )  # fmt: skip
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    image = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    extra = {"metadata.json": ""}
    with torch.no_grad():
        ours = torch.jit.load(bundle / "models/model.ts", _extra_files=extra)(image)
        theirs = torch.jit.load(tmp_path / "verify.ts")(image)
    torch.testing.assert_close(ours, theirs)
    assert json.loads(extra["metadata.json"])["label_classes"] == metadata["label_classes"]


@pytest.mark.parametrize("kind", ["inference", "train"])
def test_workflows_have_every_property_that_monai_knows(
    case: tuple[Path, Path, Path], kind: str, tmp_path: Path
) -> None:
    _, data, bundle = case
    own = {"run_dir": str(tmp_path / "run")} if kind == "train" else {}
    workflow = create_workflow(
        workflow_type=kind, config_file=str(bundle / f"configs/{kind}.json"), bundle_root=str(bundle),
        meta_file=str(bundle / "configs/metadata.json"), logging_file=str(bundle / "configs/logging.conf"),
        dataset_dir=str(data), **own,
    )  # fmt: skip
    assert workflow.check_properties() in (None, [])
    names = (
        ["train_dataset_data", "val_dataset_data", "val_handlers"] if kind == "train" else ["dataset_data", "handlers"]
    )
    for name in names:
        assert getattr(workflow, name) is not None
    workflow.finalize()


def write_images(dataset: ManifestDataset, folder: Path) -> list[str]:
    folder.mkdir()
    for position in range(len(dataset)):
        Image.fromarray(dataset.read(position)).save(folder / f"{position:04}.png")
    return [str(folder / f"{position:04}.png") for position in range(len(dataset))]


def infer(bundle: Path, images: Path, out: Path) -> pd.DataFrame:
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs/inference.json"), workflow_type="inference", logging_file=False,
        bundle_root=str(bundle), dataset_dir=str(images), output_dir=str(out), device="cpu",
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    return pd.read_csv(out / "predictions.csv")


def test_probabilities_are_those_of_the_run(material: dict[str, tuple[Path, Path, Path]], tmp_path: Path) -> None:
    run_dir, data, bundle = material["classification"]
    dataset = TileDataset(data, "val")
    files = write_images(dataset, tmp_path / "images")
    found = infer(bundle, tmp_path / "images", tmp_path / "out").set_index("file").loc[files]
    recorded = pd.read_parquet(run_dir / "predictions.parquet")
    expected = recorded[recorded["network"] == "ensemble"].set_index("sample_id")["probability"]
    np.testing.assert_allclose(found[dataset.classes[-1]], expected.loc[dataset.rows["sample_id"]], atol=1e-5)


def test_boxes_are_those_of_the_run(material: dict[str, tuple[Path, Path, Path]], tmp_path: Path) -> None:
    run_dir = shutil.copytree(material["detection"][0], tmp_path / "run")
    for path in (run_dir / "checkpoints").glob("student_*.pt"):  # two epochs find nothing: let them find much
        state = torch.load(path, weights_only=True)
        state["detector.classification_head.cls_logits.bias"] += 4
        torch.save(state, path)
    dataset = FrameDataset(material["detection"][1], "val")
    files = write_images(dataset, tmp_path / "images")
    found = infer(write_model_bundle(run_dir, tmp_path / "bundle"), tmp_path / "images", tmp_path / "out")
    networks = {name: load_network(run_dir, name) for name in ("student_0", "student_1")}
    detector = ExportedDetector(
        networks, RunDescription.read(run_dir).image_size
    )  # equals the evaluation, see its test
    for position, file in enumerate(files):
        with torch.inference_mode():
            boxes, scores, _ = detector(torch.from_numpy(dataset.read(position).copy())[None])
        own = found[found["file"] == file]
        assert len(own) == len(scores) > 0
        np.testing.assert_allclose(own["score"], scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(own[["xmin", "ymin", "xmax", "ymax"]], boxes, rtol=1e-4, atol=1e-3)


def test_the_command_writes_a_bundle_whose_training_starts(
    material: dict[str, tuple[Path, Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, data, _ = material["classification"]
    export(run_dir, tmp_path / "bundle", format="monai-bundle")
    assert "Written to" in capsys.readouterr().out
    words = ["--config_file", "configs/train.json", "--dataset_dir", data, "--run_dir", tmp_path / "run"]
    run_bundle("run", *words, "--max_epochs", "1", cwd=tmp_path / "bundle")
    assert (tmp_path / "run/metrics.json").is_file()
    with pytest.raises(InputError, match="--data has no part in the format monai-bundle"):
        export(run_dir, tmp_path / "other", format="monai-bundle", data=data)


def test_one_network_can_be_named(material: dict[str, tuple[Path, Path, Path]], tmp_path: Path) -> None:
    bundle = write_model_bundle(material["classification"][0], tmp_path / "one", network="student_1")
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert {name.split(".")[1] for name in state} == {"student_1"}


def test_the_training_starts_as_that_of_the_run_did_or_names_the_file_that_it_needs(
    material: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    run_dir, data, _ = material["classification"]
    run = shutil.copytree(run_dir, tmp_path / "run")
    settings = read_json(run / "settings.json")
    settings["knobs"] |= {"initial_weights": {"mobilenet_v2": "/elsewhere/m.pth"}}
    settings["knobs"] |= {"teacher_checkpoint": "/elsewhere/cells/teacher.pt"}
    (run / "settings.json").write_text(json.dumps(settings))
    bundle = write_model_bundle(run, tmp_path / "bundle")
    training = read_json(bundle / "configs/train.json")
    assert training["initial_weights"] == {"mobilenet_v2": "m.pth"}
    assert training["teacher_checkpoint"] == "teacher.pt"
    card = (bundle / "docs/README.md").read_text()
    assert "files that are not part of this bundle: `m.pth`, `teacher.pt`." in card
    assert "elsewhere" not in json.dumps(training) + card
    words = ["--config_file", "configs/train.json", "--dataset_dir", data, "--run_dir", tmp_path / "again"]
    ended = run_bundle("run", *words, cwd=bundle, check=False)
    assert ended.returncode == 2
    assert "teacher.pt" in ended.stderr or "m.pth" in ended.stderr


def test_an_earlier_export_is_written_over_also_where_it_was_cut_off(
    material: dict[str, tuple[Path, Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, folder = material["classification"][0], tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr("kdml_med.bundle.model_bundle._train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_model_bundle(run_dir, folder, network="student_0")
    assert not (folder / "configs/train.json").exists()
    for network in ("student_0", "student_1"):
        write_model_bundle(run_dir, folder, network=network)
        state = torch.load(folder / "models/model.pt", weights_only=True)
        assert {name.split(".")[1] for name in state} == {network}


def test_wrong_requests_end_in_one_line(material: dict[str, tuple[Path, Path, Path]], tmp_path: Path) -> None:
    run_dir = material["detection"][0]
    with pytest.raises(InputError, match=r"network is 'student_9'; the run has: teacher, student_0"):
        write_model_bundle(run_dir, tmp_path / "out", network="student_9")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things than a bundle"):
        write_model_bundle(run_dir, tmp_path / "full")
    with pytest.raises(InputError, match="is not a finished training run"):
        write_model_bundle(tmp_path, tmp_path / "out")
    boxes = shutil.copytree(run_dir, tmp_path / "boxes")
    (boxes / "cohort.json").write_text(json.dumps(read_json(run_dir / "cohort.json") | {"fusion": "boxes"}))
    with pytest.raises(InputError, match="weighted box fusion"):
        write_model_bundle(boxes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_are_text_on_the_model_card(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard", "figures"))
    described = read_json(run / "cohort.json")
    described["classes"] = ["<script>alert(1)</script>", "a|b [c](d)\n# e"]
    (run / "cohort.json").write_text(json.dumps(described))
    card = write_model_bundle(run, tmp_path / "bundle", network="student_0") / "docs/README.md"
    lines = card.read_text().splitlines()
    assert lines[0].startswith(r"# a\|b \[c\](d) # e by")
    assert not [line for line in lines if "<script>" in line.replace(r"\<script>", "")]
    assert sum(line.startswith("# ") for line in lines) == 1
