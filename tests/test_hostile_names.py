"""Patients, files and folders whose names want to be more than text: formulas, HTML, escapes of a terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdml_med import evaluate, load_run, predict, train
from kdml_med.errors import ExitCode
from kdml_med.handlers.tensorboard_frames import frame_figures
from kdml_med.handlers.tensorboard_tiles import tile_figures
from kdml_med.programs.make_splits import command as make_splits
from kdml_med.programs.prepare_frames import main as prepare_frames
from kdml_med.programs.tile_slides import main as tile_slides
from kdml_med.storage.files import write_table
from kdml_med.storage.manifest import read_info, read_manifest
from kdml_med.storage.reading import read_table
from tests.colonoscopy.pictures import save
from tests.synthetic_slides import write_slide

PATIENTS = [
    '=HYPERLINK("http://x","y")',
    "<script>alert(1)</script>",
    "c;=1+1",
    "@SUM(1)",
    "-2+3|cmd' /C'!A0",
    "+é",
]
FILES = [name.replace("/", "_") for name in PATIENTS]
RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r")


def cells(path: Path) -> Iterator[str]:
    """Every cell as spreadsheets of three countries would see it."""
    text = path.read_text(encoding="utf-8")
    for separator in ",;\t":
        for row in csv.reader(text.splitlines(keepends=True), delimiter=separator):
            yield from row


def check_tables(folder: Path, *expected: str) -> None:
    """No cell of any table below a folder would be run, and the tables that are expected are among them."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.csv")}
    assert set(expected) <= set(found)
    for name, path in found.items():
        for cell in cells(path):
            if cell.startswith(RUN_BY_SPREADSHEETS):
                assert np.isfinite(float(cell)), f"{name}: {cell}"


def names_in(path: Path, column: str) -> set[str]:
    return set(read_table(path, [column], remedy="")[column].map(str))


def check_screen(said: str) -> None:
    assert said.strip()
    for line in said.splitlines():
        assert line.isprintable(), repr(line)


def write_labels(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate((*FILES, "a\x1b[31mred")):
        write_slide(tmp_path / "slides" / f"{name}.svs", width=700, height=600, seed=seed)
    words = ["MSI-H", "MSS"] * 3
    rows = list(zip(FILES, PATIENTS, words, strict=True))
    write_labels(tmp_path / "labels.csv", ["slide", "patient", "MSIStatus"], rows)
    return tmp_path / "slides"


def tile(slides: Path, out: Path) -> None:
    code = tile_slides([slides], out, slides.parent / "labels.csv", tile_size=64, mpp=0.5, label_column="MSIStatus")
    assert code == ExitCode.SOME_FAILED, "one file name holds control characters and is refused"


def test_slides_from_files_to_frozen_splits(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiles"
    tile(slides, out)
    make_splits(out, folds=3)
    check_screen(capsys.readouterr().out)
    check_tables(out, "slides.csv", "splits.csv", "failures.csv")
    assert names_in(out / "splits.csv", "patient_id") == set(PATIENTS) == set(read_manifest(out)["patient_id"])
    assert names_in(out / "slides.csv", "slide_id") == set(FILES)
    # A table that was written here is one that can be read here, also when it comes back by hand.
    table = read_table(out / "splits.csv", ["patient_id", "fold"], remedy="")
    write_table(tmp_path / "again.csv", table)
    make_splits(out, from_table=tmp_path / "again.csv", force=True)
    assert names_in(out / "splits.csv", "patient_id") == set(PATIENTS)


def frames_of_hostile_patients(folder: Path) -> tuple[Path, Path]:
    """Images in folders, and a table with a box on each; one name breaks its line."""
    rows = []
    for place, (name, patient) in enumerate(zip([*FILES, "x\ny\x1b[2J"], [*PATIENTS, "P7"], strict=True)):
        for frame in range(2):
            save(folder / "images" / name / f"{frame}.png", seed=10 * place + frame)
            rows.append((f"{name}/{frame}.png", 60, 40, 100, 90, name, patient))
    header = ["image", "xmin", "ymin", "xmax", "ymax", "sequence", "patient"]
    return folder / "images", write_labels(folder / "boxes.csv", header, rows)


def test_frames_from_files_to_frozen_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, boxes = frames_of_hostile_patients(tmp_path)
    out = tmp_path / "frames"
    assert prepare_frames([images], out, boxes, workers=1) == ExitCode.OK
    check_screen(capsys.readouterr().out)
    check_tables(out, "splits.csv", "failures.csv")
    assert names_in(out / "splits.csv", "patient_id") == {*PATIENTS, "P7"} == set(read_manifest(out)["patient_id"])


def test_a_name_that_breaks_its_line_is_one_line_on_a_picture() -> None:
    rows = pd.DataFrame({"sample_id": ["x\ny.png"], "sequence_id": ["s"], "patient_id": ["p"], "label": ["negative"]})
    rows["boxes"], rows["polyp_ids"] = [[]], [None]
    frame = np.full((40, 300, 3), 120, np.uint8)

    class Dataset:
        def __init__(self, name: str) -> None:
            self.rows = rows.assign(sample_id=name)

        def read(self, index: int) -> np.ndarray:
            return frame

    broken, escaped = (frame_figures(Dataset(name), {}, {})["val_frames_spread/1"] for name in ("x\ny", "x\\ny"))
    np.testing.assert_array_equal(broken, escaped)


@pytest.mark.parametrize(
    "name", [r"$\frac{}{}$", "x\ny", "\x1b[31m\t", "नमस्ते", "مريض", "😀", "a" * 500], ids=lambda name: ascii(name[:9])
)
def test_names_of_a_tile_are_text_on_its_picture(name: str) -> None:
    class Dataset:
        classes = ("MSS", name)

        def read(self, index: int) -> np.ndarray:
            return np.full((64, 64, 3), 120, np.uint8)

    row = {"network": "ensemble", "patient_id": name, "label": 1, "probability": 0.2}
    (picture,) = tile_figures(Dataset(), pd.DataFrame([row])).values()
    assert (picture[:25] < 120).any(axis=2).sum() > 10, "the title is there"


def test_numbers_that_are_names_stay_names(tmp_path: Path) -> None:
    from kdml_med.api import _table

    table = pd.DataFrame({"patient_id": ["007", "010"], "label": ["1", "0"], "probability_ensemble": [0.25, 1.0]})
    write_table(tmp_path / "patients.csv", table)
    pd.testing.assert_frame_equal(_table(tmp_path / "patients.csv"), table, check_dtype=False)


@pytest.mark.slow
def test_classifiers_from_training_to_new_slides(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tile(slides, tmp_path / "tiles")
    make_splits(tmp_path / "tiles", folds=3)
    networks = {"teacher": {"name": "mobilenet_v2", "last_block": 3}}
    networks |= {"students": [{"name": "mobilenet_v2", "last_block": 2}] * 2}
    run = train(tmp_path / "tiles", tmp_path / "run", fold=0, max_epochs=1, batch_size=8, **networks)
    evaluate(run)
    found = predict(run, slides, tmp_path / "new")
    inferred = predict(run, tmp_path / "tiles", tmp_path / "inferred", maps=True)
    check_screen(capsys.readouterr().out.replace("\r", "\n"))
    check_screen("\n".join(found.lines))
    check_tables(tmp_path / "run", "patients.csv", "evaluation_test/patients.csv")
    check_tables(found.folder, "patients.csv", "slides.csv", "failures.csv")
    check_tables(inferred.folder, "patients.csv")
    assert set(load_run(run.folder).patients["patient_id"]) < set(PATIENTS)
    assert names_in(inferred.folder / "patients.csv", "patient_id") == set(PATIENTS)
    assert names_in(found.folder / "slides.csv", "slide_id") == set(FILES)
    layers = [json.loads(path.read_text()) for path in found.folder.rglob("*.geojson")]
    assert {layer["kdml_med"]["slide_id"] for layer in layers} == set(FILES)


@pytest.mark.slow
def test_detectors_from_training_to_new_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, boxes = frames_of_hostile_patients(tmp_path)
    prepare_frames([images], tmp_path / "frames", boxes, workers=1)
    small = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
    networks = {"teacher": small, "students": [small, small]}
    run = train(tmp_path / "frames", tmp_path / "run", image_size=64, batch_size=4, max_epochs=1, **networks)
    evaluate(run, split="train", output_dir=tmp_path / "evaluation")
    predict(run, images, tmp_path / "new", annotate=True)
    check_screen(capsys.readouterr().out.replace("\r", "\n"))
    check_tables(tmp_path / "evaluation", "sequences.csv")
    check_tables(tmp_path / "new", "detections.csv", "frames.csv")
    train_patients = assigned(tmp_path / "frames", "train")
    assert names_in(tmp_path / "evaluation/sequences.csv", "patient_id") == train_patients
    coco = json.loads((tmp_path / "new/detections.coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == set(read_manifest(tmp_path / "new/frames")["source"])


def assigned(dataset: Path, split: str) -> set[str]:
    table = read_table(dataset / "splits.csv", ["patient_id", "split"], remedy="")
    assert read_info(dataset).splits is not None
    return set(table["patient_id"][table["split"] == split])
