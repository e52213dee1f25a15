"""Slides to predictions, against the long way: tiles into a dataset folder, then inference on it.

The networks of the run are not trained: they tell how green a tile is, in steps so steep that a change of the pixels
shows in the probabilities.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

from kdml_med.deploy.export.modules import NormalizedImage
from kdml_med.deploy.slides import one_slide
from kdml_med.deploy.slides.classifier import Classifier, plan_classifier
from kdml_med.errors import ExitCode, InputError
from kdml_med.keys import Task
from kdml_med.networks.registry import build_network
from kdml_med.runs import RunDescription, checkpoint_path, hashed_patient
from kdml_med.tables.labels import LabelMatch, LabelTable
from kdml_med.wsi.cutter import SlideJob, open_cutter
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.tiler import tile_slides
from tests.bundles.conftest import REPOSITORY
from tests.deploy.slides.green import GAINS, MPP, TILE_PX, GreenNetwork, contents, predict, tiles_of, write_run
from tests.synthetic_slides import damage_native_tile, write_slide

Predict = Callable[..., Any]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "in"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_slide(folder / f"{name}.svs", width=900 + 100 * seed, height=800, mpp=MPP, seed=seed)
    return folder


def infer(run_dir: Path, **overrides: Any) -> None:
    """The inference config, run in this process."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in overrides.items()}
    workflow = ConfigWorkflow(
        config_file=str(REPOSITORY / "bundles/msi_kdml/configs/inference.json"), workflow_type="inference",
        logging_file=False, run_dir=str(run_dir), bundle_root=str(REPOSITORY / "bundles/msi_kdml"), device="cpu",
        **settings,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()


@pytest.mark.parametrize(
    ("options", "changes", "more"),
    [
        ({}, {}, {}),
        ({"image_format": "png"}, {"image_size": 48}, {"ensemble_average": "logits"}),
        ({"stain": "macenko", "jpeg_quality": 80}, {"stain": "macenko"}, {"aggregation": "top_k_mean"}),
        ({"max_background": 0.2}, {"stain": "macenko"}, {"level": "slide"}),
    ],
    ids=["plain", "png, resized", "stored normalised", "normalised by a transform"],
)
def test_prediction_equals_tiling_and_inference(
    slides: Path, tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], more: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "run", tile_options=options, **changes)
    tile_slides([slides], tmp_path / "tiles", TilingOptions(mpp=MPP, tile_size_px=TILE_PX, **options), progress=False)
    stain = {} if options.get("stain") else {"stain": changes.get("stain", "none")}
    if not options:  # what an earlier inference left there, perhaps of other slides, is not taken for this one's
        (tmp_path / "long/slides/z").mkdir(parents=True)
        (tmp_path / "long/slides/z/heatmap.png").write_bytes(b"")
    infer(run, dataset_dir=tmp_path / "tiles", output_dir=tmp_path / "long", maps=not options, **stain, **more)
    assert not (tmp_path / "long/slides/z").exists()
    predict(run, slides, tmp_path / "out", **more)
    long = pd.read_parquet(tmp_path / "long/predictions.parquet")
    long = long.pivot(index="sample_id", columns="network", values="probability")
    found = tiles_of(tmp_path / "out")
    assert len(found) > 100
    assert set(found.index) == set(long.index)
    assert list(long) == ["ensemble", "student_0", "student_1"]
    for name in long:
        assert long[name].std() > 0.05, "the networks see no difference between tiles"
        assert np.abs(found[f"probability_{name}"] - long.loc[found.index, name]).max() < 1e-6
    manifest = pd.read_parquet(tmp_path / "tiles/manifest.parquet").set_index("sample_id").loc[found.index]
    columns = ["patient_id", "slide_id", "x_l0", "y_l0", "size_l0", "mpp", "tissue_fraction"]
    pd.testing.assert_frame_equal(found[columns], manifest[columns], check_dtype=False)
    if not options:
        stored = tiles_of(tmp_path / "long").loc[found.index]
        assert dict(stored.dtypes) == dict(found.dtypes), "who reads the one table can read the other"
        assert (stored["disagreement"] - found["disagreement"]).abs().max() < 1e-6
    expected, patients = (pd.read_csv(tmp_path / name / "patients.csv") for name in ("long", "out"))
    pd.testing.assert_frame_equal(patients, expected, rtol=0, atol=1e-6)


def test_tables_say_where_tiles_are_and_how_far_students_differ(run_dir: Path, slides: Path, tmp_path: Path) -> None:
    report = predict(run_dir, slides, tmp_path / "out")
    tiles = tiles_of(tmp_path / "out")
    students = tiles[["probability_student_0", "probability_student_1"]]
    assert list(tiles.columns) == [
        "patient_id", "slide_id", "x_l0", "y_l0", "size_l0", "mpp", "tissue_fraction", "probability_student_0",
        "probability_student_1", "probability_ensemble", "disagreement",
    ]  # fmt: skip
    np.testing.assert_allclose(tiles["probability_ensemble"], students.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(tiles["disagreement"], (students.max(axis=1) - students.min(axis=1)), atol=1e-6)
    table = pd.read_csv(tmp_path / "out/slides.csv").set_index("slide_id")
    assert list(table.index) == ["a", "b", "c"]
    assert table["tiles"].to_dict() == tiles.groupby("slide_id").size().to_dict()
    means = tiles.groupby("slide_id")["probability_ensemble"].mean()
    np.testing.assert_allclose(table["probability_ensemble"], means, atol=1e-6)
    assert (report.done, report.tiles, report.exit_code) == (3, len(tiles), ExitCode.OK)


def test_one_network_answers_alone_and_leaves_no_disagreement(run_dir: Path, slides: Path, tmp_path: Path) -> None:
    for network in ("teacher", "student_1"):
        report = predict(run_dir, slides / "a.svs", tmp_path / network, network=network)
        assert (report.done, report.failures) == (1, [])
        tiles = tiles_of(tmp_path / network)
        assert len(tiles) > 20
        assert tiles[f"probability_{network}"].std() > 0.01
        assert [name for name in tiles if name.startswith("probability")] == [f"probability_{network}"]
        assert tiles["disagreement"].isna().all()


def test_pictures_show_the_tiles_with_the_highest_and_the_lowest_probability(
    run_dir: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}

    def write_maps(folder: Path, picture: Any) -> list[str]:
        shown["picture"] = picture
        return []

    def write_tile_sheets(folder: Path, slide_id: str, top: Any, bottom: Any, **more: Any) -> list[str]:
        shown.update(top=top, bottom=bottom, network=more["network"])
        return ["tiles_top.png"]

    monkeypatch.setattr(one_slide, "write_maps", write_maps)
    monkeypatch.setattr(one_slide, "write_tile_sheets", write_tile_sheets)
    report = predict(run_dir, slides / "b.svs", tmp_path / "out", maps=True)
    tiles = tiles_of(tmp_path / "out").sort_values("probability_ensemble", kind="stable")
    for name, expected in (("top", tiles.iloc[::-1]), ("bottom", tiles)):
        values = [tile.probability for tile in shown[name]]
        np.testing.assert_allclose(values, expected["probability_ensemble"].iloc[: len(values)], atol=1e-6)
        for tile in shown[name]:
            row = tiles[(tiles["x_l0"] == tile.x_l0) & (tiles["y_l0"] == tile.y_l0)].iloc[0]
            green = (tile.image[: TILE_PX // 2, :, 1].mean() / 255 - 0.456) / 0.224 + 0.2
            logit = GAINS["student_0"] * green * 2
            assert row["probability_student_0"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)
    assert shown["network"] == "ensemble"
    assert len(shown["picture"].tiles) == len(tiles)
    assert report.pictures == {"b": ["tiles_top.png"]}


def test_no_tile_is_among_the_highest_and_the_lowest(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: dict[str, Any] = {}

    def write_tile_sheets(folder: Path, slide_id: str, top: Any, bottom: Any, **more: Any) -> list[str]:
        sheets[slide_id] = [[(tile.x_l0, tile.y_l0) for tile in tiles] for tiles in (top, bottom)]
        return []

    monkeypatch.setattr(one_slide, "write_tile_sheets", write_tile_sheets)
    monkeypatch.setattr(one_slide, "write_maps", lambda folder, picture: [])
    generator = np.random.default_rng(0)
    for name, width, height in (("one", 64, 64), ("few", 300, 300), ("many", 900, 300)):
        tissue = generator.normal((180, 120, 170), 25, (height, width, 3)).clip(0, 255).astype(np.uint8)
        write_slide(tmp_path / f"{name}.svs", width=width, height=height, mpp=MPP, downsamples=(1,), picture=tissue)
    predict(run_dir, [tmp_path / f"{name}.svs" for name in ("one", "few", "many")], tmp_path / "out", maps=True)
    sizes = {name: [len(places) for places in found] for name, found in sheets.items()}
    tiles = tiles_of(tmp_path / "out").groupby("slide_id").size()
    assert sizes["one"] == [1, 0]
    assert sum(sizes["few"]) == tiles["few"] < 24
    assert sizes["many"] == [12, 12]
    for top, bottom in sheets.values():
        assert not set(top) & set(bottom)


def test_the_screen_shows_the_answer_and_who_was_seen_in_training(slides: Path, tmp_path: Path) -> None:
    seen = {"train": [hashed_patient("a"), hashed_patient("P1")], "val": [hashed_patient("b")]}
    run = write_run(tmp_path / "run", seen_patients=seen)
    copy = tmp_path / "P1-02.svs"
    copy.write_bytes((slides / "c.svs").read_bytes())
    report = predict(run, [slides, copy], tmp_path / "out", maps=True)
    said = "\n".join(report.lines())
    for row in report.patients.itertuples():
        assert (
            f"{row.patient_id:5}   {row.probability_ensemble:.3f}  {tmp_path}/out/slides/{row.patient_id}/heat" in said
        )
    assert "4 slides, " in said
    assert "0 problems" in said
    assert "Caution: 3 of 4 were used in training this run" in said
    for table in ("slides", "patients"):
        found = pd.read_csv(tmp_path / f"out/{table}.csv").set_index("patient_id")["seen_in"]
        assert found.dropna().to_dict() == {"a": "train", "b": "val", "P1-02": "train"}
    # A table says whose slides they are, so that names are not guessed from.
    matches = {name: LabelMatch("X", "MSI", row=2, name=name) for name in ("a", "b", "c", "P1-02")}
    labels = LabelTable(["MSS", "MSI"], "patient", True, matches)
    said = "\n".join(predict(run, [slides, copy], tmp_path / "out", labels=labels).lines())
    assert "Caution" not in said
    assert f"4 slides, first {tmp_path}/out/slides/P1-02/heatmap.png" in said


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_nothing(run_dir: Path, slides: Path, tmp_path: Path, workers: int) -> None:
    # Two threads for one slide, and processes for three.
    inputs = slides / "a.svs" if workers == 2 else slides
    predict(run_dir, inputs, tmp_path / "one", batch_size=7)
    predict(run_dir, inputs, tmp_path / "more", batch_size=7, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "more")


def test_an_interrupted_prediction_goes_on_to_the_same_bytes(
    run_dir: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(run_dir, slides, tmp_path / "whole")
    answer, write_slide_files = Classifier.__call__, one_slide.write_slide
    calls: list[str] = []

    def answer_or_stop(self: Classifier, images: Any) -> Any:
        calls.append("answer")
        if len(calls) == 12:  # within the second slide
            raise KeyboardInterrupt
        return answer(self, images)

    def write_half(out_dir: Path, record: Any, tiles: Any, write_pictures: Any) -> None:
        def stop(folder: Path) -> list[str]:
            (folder / ".heatmap.png.part").write_bytes(b"half")
            raise KeyboardInterrupt

        write_slide_files(out_dir, record, tiles, stop if record.slide_id == "b" else write_pictures)

    for patch in ((Classifier, "__call__", answer_or_stop), (one_slide, "write_slide", write_half)):
        with monkeypatch.context() as context:
            context.setattr(*patch)
            with pytest.raises(KeyboardInterrupt):
                predict(run_dir, slides, tmp_path / "out")
    assert not (tmp_path / "out/patients.csv").exists(), "half a prediction looks like a whole one"
    report = predict(run_dir, slides, tmp_path / "out")
    assert (report.skipped, report.done) == (1, 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_prediction_is_left_alone_and_changed_slides_are_predicted_anew(
    run_dir: Path, slides: Path, tmp_path: Path
) -> None:
    copies = [tmp_path / "in" / path.name for path in sorted(slides.iterdir())]
    copies[0].parent.mkdir()
    for copy in copies:
        copy.write_bytes((slides / copy.name).read_bytes())
    predict(run_dir, copies, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/slides").rglob("*")}
    report = predict(run_dir, copies, tmp_path / "out")
    assert (report.skipped, report.done) == (3, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/slides").rglob("*")}
    write_slide(copies[1], width=900, height=800, mpp=MPP, seed=9)
    (tmp_path / "out/slides/c/slide.json").write_text("{")
    report = predict(run_dir, copies, tmp_path / "out")
    assert report.remade == {"b": "b.svs has changed", "c": "what was kept of it is damaged"}
    predict(run_dir, copies, tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    predict(run_dir, copies[0], tmp_path / "single")
    report = predict(run_dir, copies[0], tmp_path / "single", maps=True)
    assert report.remade == {"a": "it has no maps yet"}
    assert "heatmap.png" in report.pictures["a"]


def test_a_slide_that_cannot_be_read_any_more_keeps_its_prediction_and_is_named(
    run_dir: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(run_dir, slides, out)
    before = contents(out)
    opened = Path.open

    def opening(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.name == "a.svs" and mode == "rb":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, mode, *more, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", opening)
        report = predict(run_dir, slides, out)
    reason = f"cannot be read: {os.strerror(errno.EIO)}; its predictions of an earlier run stay"
    assert (report.done, report.skipped, report.remade, report.failures) == (0, 3, {}, [("a.svs", reason)])
    assert report.exit_code == ExitCode.SOME_FAILED
    assert reason in (out / "failures.csv").read_text()
    predict(run_dir, slides, out)
    assert contents(out) == before


def test_a_slide_that_cannot_be_used_costs_itself_and_is_tried_again(
    run_dir: Path, slides: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.svs").write_bytes((slides / "a.svs").read_bytes())
    (folder / "broken.svs").write_bytes(b"no slide")
    write_slide(folder / "silent.svs", width=900, height=800, mpp=None)
    write_slide(folder / "torn.svs", width=900, height=800, mpp=MPP, seed=3)
    damage_native_tile(folder / "torn.svs", 5)
    report = predict(run_dir, folder, tmp_path / "out")
    failures = pd.read_csv(tmp_path / "out/failures.csv").set_index("input")["reason"]
    assert sorted(failures.index) == ["broken.svs", "silent.svs", "torn.svs"]
    assert "--assume-mpp" in failures["silent.svs"]
    assert "unreadable (the other tiles are predicted)" in failures["torn.svs"]
    assert set(tiles_of(tmp_path / "out")["slide_id"]) == {"a", "torn"}
    assert report.exit_code == ExitCode.SOME_FAILED
    report = predict(run_dir, folder, tmp_path / "out", assume_mpp=MPP)
    assert (report.skipped, report.done, report.slides) == (2, 1, 3)
    report = predict(run_dir, folder, tmp_path / "out", assume_mpp=0.25)
    assert report.remade == {"silent": "0.5 µm/px was assumed, now 0.25"}


def test_nothing_but_failures_is_no_error(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    report = predict(run_dir, tmp_path / "broken.svs", tmp_path / "out")
    assert (report.slides, report.exit_code) == (0, ExitCode.SOME_FAILED)
    assert pd.read_csv(tmp_path / "out/patients.csv").empty
    assert tiles_of(tmp_path / "out").empty


def test_regions_restrict_tissue_and_change_no_tile_in_them(slides: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stain="macenko")
    ring = [[0, 0], [500, 0], [500, 800], [0, 800], [0, 0]]
    roi = tmp_path / "roi"
    roi.mkdir()
    area, point = {"type": "Polygon", "coordinates": [ring]}, {"type": "Point", "coordinates": [3, 4]}
    (roi / "a.geojson").write_text(json.dumps([area, point]))
    far = [[x + 5000, y] for x, y in ring]
    (roi / "c.geojson").write_text("{")
    corner = [[0, 0], [3, 0], [0, 3]]
    (roi / "d.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [corner]}))
    (roi / "b.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [far]}))
    (tmp_path / "d.svs").write_bytes((slides / "c.svs").read_bytes())
    inputs = [slides, tmp_path / "d.svs"]
    whole, report = predict(run, slides, tmp_path / "whole"), predict(run, inputs, tmp_path / "part", roi=roi)
    assert whole.exit_code == ExitCode.OK
    assert [name for name, _ in report.failures] == ["b.svs", "c.svs", "d.svs"]
    assert "in its regions: none of 204 tiles reaches the run's min_tissue" in dict(report.failures)["d.svs"]
    assert "c.geojson is not JSON" in dict(report.failures)["c.svs"]
    assert [line for line in report.lines() if "left out: feature 2 is a Point" in line], "not said, or not once"
    found, all_tiles = tiles_of(tmp_path / "part"), tiles_of(tmp_path / "whole")
    assert 0 < len(found) < (all_tiles["slide_id"] == "a").sum()
    assert (found["x_l0"] < 500).all()
    same = [name for name in found if name != "tissue_fraction"]
    pd.testing.assert_frame_equal(found[same], all_tiles.loc[found.index, same], rtol=0, atol=1e-6)
    (roi / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [[*ring[:2], [500, 300], ring[0]]]}))
    assert predict(run, inputs, tmp_path / "part", roi=roi).remade == {"a": "what is known about it has changed"}
    with pytest.raises(InputError, match="one file, and there are 3 slides"):
        predict(run, slides, tmp_path / "other", roi=roi / "a.geojson")


def test_labels_come_with_patients(run_dir: Path, slides: Path, tmp_path: Path) -> None:
    matches = {"a": LabelMatch("P1", "MSI", row=2, name="a"), "b": LabelMatch("P1", "MSI", row=3, name="b")}
    labels = LabelTable(["MSS", "MSI"], "patient", True, matches)
    report = predict(run_dir, slides, tmp_path / "out", labels=labels)
    patients = pd.read_csv(tmp_path / "out/patients.csv")
    assert patients[["patient_id", "label"]].to_numpy().tolist() == [["P1", "MSI"]]
    assert [name for name, _ in report.failures] == ["c.svs"]
    # A corrected table changes what slides are called, not what was predicted.
    matches["b"] = LabelMatch("P2", "MSS", row=3, name="b")
    report = predict(run_dir, slides, tmp_path / "out", labels=replace(labels, matches=matches))
    assert (report.done, report.patients["patient_id"].tolist()) == (0, ["P1", "P2"])


def test_other_predictions_are_never_mixed(run_dir: Path, slides: Path, tmp_path: Path) -> None:
    predict(run_dir, slides / "a.svs", tmp_path / "out")
    before = contents(tmp_path / "out")
    slide = slides / "a.svs"
    trained_on = write_run(tmp_path / "on", gains=GAINS | {"student_1": 5.5})
    blurred = write_run(tmp_path / "blurred", tile_options={"min_sharpness": 0.0})
    for words, run, inputs, more in (
        ("other weights of student_1", trained_on, slide, {}),
        ("min_sharpness = 20.0, this run has 0.0", blurred, slide, {}),
        ("network = 'ensemble', this run has 'teacher'", run_dir, slide, {"network": "teacher"}),
        ("average = 'probabilities', this run has 'logits'", run_dir, slide, {"ensemble_average": "logits"}),
        ("not among the inputs: a", run_dir, slides / "b.svs", {}),
    ):
        with pytest.raises(InputError, match=words):
            predict(run, inputs, tmp_path / "out", **more)
        assert contents(tmp_path / "out") == before
    with pytest.raises(InputError, match="holds a prediction of slides"):
        infer(run_dir, dataset_dir=tmp_path, output_dir=tmp_path / "out")


def test_input_that_makes_no_sense_is_refused_in_one_line_before_anything_is_written(
    run_dir: Path, slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("")
    polyps = tmp_path / "polyps"
    RunDescription(
        task=Task.DETECTION, version="tiny", classes=["negative", "polyp"], image_size=128, fusion="anchors", fold=None,
        seen_patients={"train": [], "val": []}, synthetic=False, kdml_med="0", networks={"student_0": "tiny"},
    ).write(polyps)  # fmt: skip
    imported = write_run(tmp_path / "imported", mpp=None)
    no_weights = write_run(tmp_path / "no_weights")
    checkpoint_path(no_weights, "student_0").unlink()
    out = tmp_path / "out"
    labels = LabelTable(["wild", "mutated"], "patient", True, {})
    for words, arguments in (
        ("is not a finished training run", {"run_dir": tmp_path / "empty"}),
        ("was trained for detection; this needs one for classification", {"run_dir": polyps}),
        ("does not know mpp of its tiles", {"run_dir": imported}),
        ("checkpoints/student_0.pt", {"run_dir": no_weights}),
        ("--network is 'student_7'; the run has: teacher, student_0, student_1, ensemble", {"network": "student_7"}),
        ("does not exist", {"inputs": [slides / "z.svs"]}),
        ("holds no slide", {"inputs": [tmp_path / "empty"]}),
        ("no input was given", {"inputs": []}),
        ("is a file", {"out": tmp_path / "file"}),
        ("is not empty .it holds mine.txt", {"out": tmp_path / "full"}),
        ("--workers is 0", {"workers": 0}),
        ("--runtime is 'tensorrt'", {"runtime": "tensorrt"}),
        ("--level is 'patients', expected one of None, patient, slide", {"level": "patients"}),
        ("--aggregation is 'max', expected one of None, mean", {"aggregation": "max"}),
        ("--ensemble_average is 'mean', expected one of None, prob", {"ensemble_average": "mean"}),
        ("--assume-mpp is -1", {"assume_mpp": -1.0}),
        ("the label table has", {"labels": labels}),
        ("does not exist", {"roi": tmp_path / "z.geojson", "inputs": [slides / "a.svs"]}),
        ("sees no GPU", {"device": "cuda"} if not torch.cuda.is_available() else {"device": "cuda:99"}),
    ):
        if words == "sees no GPU" and torch.cuda.is_available():
            words = "counted from 0"
        values: dict[str, Any] = {"run_dir": run_dir, "inputs": [slides], "out": out} | arguments
        with pytest.raises(InputError, match=words) as caught:
            predict(values.pop("run_dir"), values.pop("inputs"), values.pop("out"), **values)
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_networks_without_numbers_end_the_run(
    run_dir: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: GreenNetwork, image: Tensor) -> Tensor:
        return torch.full((len(image), 2), torch.inf) * self.gain

    monkeypatch.setattr(GreenNetwork, "forward", forward)
    with pytest.raises(InputError, match="student_0 gives no number for"):
        predict(run_dir, slides / "a.svs", tmp_path / "out")


def test_the_bundle_predicts_slides_without_a_dataset(
    run_dir: Path, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(run_dir, slides=[str(slides / "a.svs"), str(slides / "b.svs")], output_dir=tmp_path / "out", runtime="torch",
          dataset_dir=tmp_path / "none", batch_size=16)  # fmt: skip
    predict(run_dir, [slides / "a.svs", slides / "b.svs"], tmp_path / "own", maps=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "own")
    assert "2 predicted" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave it out"):
        infer(run_dir, slides=slides, output_dir=tmp_path / "other", stain="macenko")
    with pytest.raises(InputError, match="--roi is for slides"):
        infer(run_dir, dataset_dir=tmp_path / "none", output_dir=tmp_path / "other", roi=slides)


def test_onnx_runtime_answers_as_torch_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    spec = {"name": "mobilenet_v2", "last_block": 3}
    run = RunDescription(
        task=Task.CLASSIFICATION, version="v2", classes=["MSS", "MSI"], image_size=TILE_PX, fold=None, synthetic=True,
        seen_patients={"train": [], "val": []}, kdml_med="0", level="patient", aggregation="mean",
        ensemble_average="logits", networks={"student_0": spec, "student_1": spec},
    )  # fmt: skip
    run.write(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (9, TILE_PX, TILE_PX, 3), np.uint8)
    images[4:] //= 3
    for name in run.networks:
        network = build_network(spec, num_classes=2).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: not the identity
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.2, 1.0)
        head = next(module for module in network.modules() if isinstance(module, nn.Linear))
        with torch.no_grad():  # sure of something, and not of the same for all
            head.weight.mul_(1000)
            head.bias -= network(NormalizedImage()(torch.from_numpy(images))).mean(dim=0)
        checkpoint_path(tmp_path, name).parent.mkdir(exist_ok=True)
        torch.save(network.state_dict(), checkpoint_path(tmp_path, name))
    plans = [
        plan_classifier(tmp_path, run, tuple(run.names), runtime=name, folder=tmp_path) for name in ("torch", "onnx")
    ]
    assert [plan.runtime for plan in plans] == ["torch", "onnx"]
    own, other = (Classifier(plan)(images) for plan in plans)
    assert list(own) == list(other) == ["student_0", "student_1", "ensemble"]
    for name, values in own.items():
        assert values.dtype == np.float32
        assert values[:, 1].std() > 0.01
        np.testing.assert_allclose(other[name], values, atol=1e-4)
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-6)


def test_a_slide_can_be_cut_without_being_stored(slides: Path, tmp_path: Path) -> None:
    options = TilingOptions(mpp=MPP, tile_size_px=TILE_PX, max_background=0.2)
    tile_slides([slides / "a.svs"], tmp_path / "tiles", options, progress=False)
    job = SlideJob(slides / "a.svs", "a", "a")
    with open_cutter(job, options, threads=2) as cutter:
        data = [tile.data for tile in cutter.tiles() if tile.data is not None]
    shard = (tmp_path / "tiles/shards/a.tar").read_bytes()
    assert len(data) == cutter.record.tiles > 20
    assert all(tile in shard for tile in data)
    assert sum(cutter.record.rejected.values()) + len(data) == len(cutter.grid)
