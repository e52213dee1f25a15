import dataclasses
import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.runs import (
    COHORT_FILE,
    LOSSES_FILE,
    METRICS_FILE,
    RunDescription,
    checkpoint_path,
    hash_checkpoints,
    hashed_patient,
    load_network,
    read_checkpoint,
    read_losses,
    read_run_json,
    read_thresholds,
    tell_other_weights,
    write_checkpoint,
    write_predictions,
)
from kdml_med.storage.files import write_json

COMMON: dict[str, Any] = {
    "version": "tiny", "fold": None, "synthetic": True, "kdml_med": "0.1.0",
    "seen_patients": {"train": [hashed_patient("p1")], "val": [hashed_patient("p2")]},
}  # fmt: skip
TILES = RunDescription(
    task=Task.CLASSIFICATION, networks={"student_1": "resnet10", "teacher": "resnet18", "student_0": "resnet10"},
    classes=["MSS", "MSI"], image_size=64, tile_size_px=64, mpp=1.75, stain="macenko", level="slide",
    aggregation="median", ensemble_average="logits", **COMMON,
)  # fmt: skip
FRAMES = RunDescription(
    task=Task.DETECTION, networks={"student_0": {"name": "retinanet", "body": "resnet10"}},
    classes=["negative", "polyp"], image_size=[64, 128], frame_size_px=None, frame_options={"crop": True},
    fusion="boxes", **COMMON,
)  # fmt: skip


@pytest.mark.parametrize("description", [TILES, FRAMES])
def test_what_is_written_is_read_back(tmp_path: Path, description: RunDescription) -> None:
    description.write(tmp_path)
    assert RunDescription.read(tmp_path) == description
    assert RunDescription.read(tmp_path, task=description.task) == description


@pytest.mark.parametrize(("description", "absent"), [(TILES, "fusion"), (FRAMES, "stain")])
def test_a_run_says_nothing_about_the_other_task(tmp_path: Path, description: RunDescription, absent: str) -> None:
    description.write(tmp_path)
    assert absent not in json.loads((tmp_path / COHORT_FILE).read_text())


def test_runs_that_did_not_name_a_schema_version_are_read(tmp_path: Path) -> None:
    TILES.write(tmp_path)
    path = tmp_path / COHORT_FILE
    content = json.loads(path.read_text())
    del content["schema_version"]
    path.write_text(json.dumps(content))
    assert RunDescription.read(tmp_path) == TILES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"task": "segmentation"}, "task 'segmentation', expected one of classification, detection"),
        ({"task": None}, "task None"),
        ({"netwroks": {}}, "unknown key 'netwroks'"),
        ({"classes": "MSS"}, "classes is 'MSS'"),
        ({"networks": None}, "networks is None"),
        ({"image_size": "64"}, "image_size is '64'"),
    ],
)
def test_a_changed_description_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    TILES.write(tmp_path)
    path = tmp_path / COHORT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        RunDescription.read(tmp_path)


def test_a_description_that_lacks_something_is_refused(tmp_path: Path) -> None:
    TILES.write(tmp_path)
    content = json.loads((tmp_path / COHORT_FILE).read_text())
    (tmp_path / COHORT_FILE).write_text(json.dumps({k: v for k, v in content.items() if k != "networks"}))
    with pytest.raises(InputError, match="lacks networks"):
        RunDescription.read(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list")])
def test_a_damaged_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / COHORT_FILE).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_run_json(tmp_path, COHORT_FILE)
    assert str(tmp_path / COHORT_FILE) in str(caught.value)


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a finished training run"):
        RunDescription.read(tmp_path)


def test_a_run_for_the_other_task_is_refused(tmp_path: Path) -> None:
    TILES.write(tmp_path)
    with pytest.raises(InputError, match="trained for classification; this needs one for detection"):
        RunDescription.read(tmp_path, task="detection")


def test_detectors_have_no_output_for_background(tmp_path: Path) -> None:
    assert (TILES.num_classes, FRAMES.num_classes) == (2, 1)
    FRAMES.write(tmp_path)
    assert load_network(tmp_path, "student_0", trained=False).num_classes == 1


def test_networks_are_in_the_order_of_the_cohort() -> None:
    assert TILES.names == ["teacher", "student_0", "student_1"]


def test_seen_patients_are_known_without_being_named(tmp_path: Path) -> None:
    TILES.write(tmp_path)
    assert "p1" not in (tmp_path / COHORT_FILE).read_text()
    read = RunDescription.read(tmp_path)
    assert [read.has_seen(name) for name in ("p1", "p2", "p3")] == [True, True, False]
    assert [read.has_seen(name, ["train"]) for name in ("p1", "p2", "p3")] == [True, False, False]


@pytest.mark.parametrize(("trained", "tested"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_seen_patients_are_known_in_both_forms_of_unicode(trained: str, tested: str) -> None:
    hashed = hashed_patient(unicodedata.normalize(trained, "Zoë"))
    run = dataclasses.replace(TILES, seen_patients={"train": [hashed], "val": []})
    assert run.has_seen(unicodedata.normalize(tested, "Zoë"))


def test_a_network_that_the_run_lacks_is_named(tmp_path: Path) -> None:
    TILES.write(tmp_path)
    with pytest.raises(InputError, match="no network 'student_7'; it has"):
        load_network(tmp_path, "student_7")


OTHERS: dict[str, list[Any]] = {
    "task": ["segmentation", 3, None, ["classification"], {}],
    "version": [1, None, ["tiny"]],
    "networks": [
        {},
        "resnet10",
        {"ensemble": "resnet10"},
        {"student_1": "resnet10", "student_x": "resnet10"},
        {"student_0": 3},
        {"student_0": {"body": "resnet10"}},
        [["student_0", "resnet10"]],
    ],
    "classes": ["MSI", ["MSI"], ["MSI", "MSI"], ["MSS", 3], {"MSS": 0}],
    "image_size": ["64", 64.5, 0, -64, [64], [64, 64, 64], [64, "64"], True, None],
    "fold": ["0", 1.5, [0], -1],
    "synthetic": ["yes", 1, None],
    "seen_patients": [["p1"], {"train": "p1"}, {"train": [1]}, None, {}, {"train": ["p1"]}],
    "kdml_med": [1, None],
    "tile_size_px": ["64", 1.5, 0],
    "mpp": ["1", [1], -1, 0],
    "stain": [None, 1],
    "tile_options": [["stain"], "none", {"foo": 1}, {"stain": 1}, {"max_pen": True}],
    "level": ["tile", 1, None],
    "aggregation": ["max", 1, None],
    "ensemble_average": [1, ["logits"], None],
    "frame_size_px": ["1", 0],
    "frame_options": [["crop"], "crop", {"crop": 3}, {"foo": True}, {"jpeg_quality": "95"}],
    "fusion": [1],
    "schema_version": ["1", 2, None],
}


def test_every_key_of_cohort_json_is_tried() -> None:
    assert set(OTHERS) == set(RunDescription.__dataclass_fields__)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OTHERS.items() for value in values])
def test_a_wrong_value_in_cohort_json_is_refused_by_its_key(tmp_path: Path, name: str, value: Any) -> None:
    TILES.write(tmp_path)
    path = tmp_path / COHORT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError) as caught:
        RunDescription.read(tmp_path)
    for part in (str(path), name.replace("_", " ") if name == "schema_version" else name, repr(value)):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [-0.1, 5])
def test_a_threshold_that_is_no_score_is_refused(tmp_path: Path, threshold: float) -> None:
    (tmp_path / METRICS_FILE).write_text(json.dumps({"thresholds": {"student_0": threshold}}))
    with pytest.raises(InputError, match=r"the threshold of student_0 is .*, expected a score from 0 to 1"):
        read_thresholds(tmp_path)


def test_thresholds_that_were_chosen_on_other_splits_are_refused(tmp_path: Path) -> None:
    content = {"split": "val", "thresholds": {"student_0": 0.5}}
    (tmp_path / METRICS_FILE).write_text(json.dumps(content))
    assert read_thresholds(tmp_path) == {"student_0": 0.5}
    (tmp_path / METRICS_FILE).write_text(json.dumps(content | {"split": "test"}))
    with pytest.raises(InputError, match="is of the split 'test', expected that of the validation"):
        read_thresholds(tmp_path)


@pytest.mark.parametrize("thresholds", [None, 0.5, {"student_0": "0.5"}, {"student_0": True}, ["student_0", 0.5]])
def test_thresholds_of_another_type_are_refused(tmp_path: Path, thresholds: Any) -> None:
    (tmp_path / METRICS_FILE).write_text(json.dumps({"thresholds": thresholds}))
    with pytest.raises(InputError, match=r"metrics\.json: thresholds is .*, expected an object, each value a number"):
        read_thresholds(tmp_path)
    (tmp_path / METRICS_FILE).write_text("{}")
    with pytest.raises(InputError, match=r"metrics\.json lacks thresholds\. Train again"):
        read_thresholds(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "epoch,iterations\n1,2\n", "epoch,iterations,network,term,weight,value\nx,1,a,kd,1,1\n"]
)
def test_damaged_losses_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LOSSES_FILE).write_text(text)
    with pytest.raises(InputError, match=r"losses\.csv .*Train again"):
        read_losses(tmp_path)


def test_a_checkpoint_cut_short_anywhere_empty_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"network": {"a": torch.ones(100)}, "epoch": 1}, path)
    kinds: dict[str, Any] = {"network": dict, "epoch": int}
    whole = path.read_bytes()
    assert read_checkpoint(path, kinds, remedy="Do this.")["epoch"] == 1
    for size in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"best\.pt cannot be read as a checkpoint: .*Do this\.$") as caught:
            read_checkpoint(path, kinds, remedy="Do this.")
        assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Path("an object")))
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(path, kinds, remedy="Do this.")
    for content in ([1], torch.ones(3), {"epoch": 1}, {"network": {}, "epoch": "1"}):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"is no checkpoint of training: it has no usable '.*Do this\.$"):
            read_checkpoint(path, kinds, remedy="Do this.")
    path.unlink()
    with pytest.raises(InputError, match=r"best\.pt does not exist\. Do this\.$"):
        read_checkpoint(path, kinds, remedy="Do this.")


@pytest.mark.parametrize("order", [[0, 1, 2, 0, 1, 2], [2, 0, 1], [0, 1], [0, 1, 2, 0, 2, 1], [3, 0]])
def test_predictions_know_where_their_tiles_were_cut(tmp_path: Path, order: list[int]) -> None:
    tiles = pd.DataFrame(
        {"sample_id": ["a", "b", "c"], "x_l0": [1, 2, 3], "y_l0": [4, 5, 6], "size_l0": [7.0, 8.0, 9.0]}
    )
    names = [("a", "b", "c", "strange")[place] for place in order]
    predictions = pd.DataFrame({"sample_id": names, "network": "n", "label": 0, "probability": 0.5})
    predictions = predictions.assign(slide_id="s", patient_id="p")
    write_predictions(tmp_path / "plain.parquet", predictions, tiles)
    coded = predictions.astype({"slide_id": "category", "patient_id": "category"})
    write_predictions(tmp_path / "coded.parquet", coded, tiles)
    found = pd.read_parquet(tmp_path / "plain.parquet")
    places = [None if place == 3 else tiles.loc[place, ["x_l0", "y_l0", "size_l0"]].tolist() for place in order]
    read = found[["x_l0", "y_l0", "size_l0"]].astype(object).where(found["x_l0"].notna(), None).to_numpy().tolist()
    assert [None if row[0] is None else row for row in read] == places
    assert found["sample_id"].tolist() == names
    assert (tmp_path / "plain.parquet").read_bytes() == (tmp_path / "coded.parquet").read_bytes()


def test_other_weights_than_an_evaluation_had_are_told_by_network_and_nothing_where_none_were_noted(
    tmp_path: Path,
) -> None:
    for name in ("student_0", "student_1"):
        write_checkpoint(checkpoint_path(tmp_path, name), {"weight": torch.tensor([1.0])})
    folder = tmp_path / "evaluation_test"
    names = ["teacher", "student_0", "student_1"]  # the teacher was moved away
    for content in (None, {}, {"weights": None}):
        if content is not None:
            write_json(folder / "evaluation.json", content)
        assert tell_other_weights(tmp_path, folder, names) == ""
    noted = hash_checkpoints(tmp_path, names[1:]) | {"teacher": "0" * 64}
    write_json(folder / "evaluation.json", {"weights": noted})
    assert tell_other_weights(tmp_path, folder, names) == ""
    write_checkpoint(checkpoint_path(tmp_path, "student_1"), {"weight": torch.tensor([2.0])})
    assert tell_other_weights(tmp_path, folder, ["student_0"]) == ""
    said = tell_other_weights(tmp_path, folder, names)
    assert said.startswith(f"{folder} was evaluated with other weights of student_1 than lie in {tmp_path}")
