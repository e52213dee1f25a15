"""Inference of detectors on images, videos and dataset folders.

The networks of the run are not trained: they find what is bright, so that the right answer is known.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn

from kdml_med.bundle import prepare_source
from kdml_med.bundle.settings import Settings
from kdml_med.colonoscopy.frames import Placement
from kdml_med.deploy.polyps import detection_chunks as chunks
from kdml_med.deploy.polyps.annotate import SourceSize
from kdml_med.deploy.polyps.frames import boxes_in_source, coco_dataset, count_frames, name_videos
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.networks.anchors import STRIDES, AnchorPredictions
from kdml_med.runs import METRICS_FILE, RunDescription, checkpoint_path, hashed_patient
from kdml_med.storage import files
from kdml_med.storage.files import write_json
from tests.bundles.conftest import REPOSITORY, run_bundle
from tests.colonoscopy.pictures import frame, save, save_video
from tests.synthetic_frames import write_frame_dataset

CONFIG = Path("bundles/polyp_kdml/configs/inference.json")
POLYP = (100, 60, 140, 100)  # white, in pixels of the source; the field begins at (30, 10)
GAINS = {"teacher": 10.0, "student_0": 8.0, "student_1": 6.0}


class BrightNetwork(nn.Module):
    """Answers for every anchor how much green is at its centre; boxes are the anchors."""

    def __init__(self, num_classes: int = 1, *, gain: float) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))

    def forward(self, image: Tensor) -> AnchorPredictions:
        levels = [nn.functional.avg_pool2d(image[:, 1:2], stride) for stride in STRIDES]
        green = torch.cat([level.flatten(1) for level in levels], dim=1)
        return AnchorPredictions((self.gain * (green - 1.0))[..., None], torch.zeros(*green.shape, 4), tuple(levels))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bright") / "run"
    name = f"{BrightNetwork.__module__}.{BrightNetwork.__name__}"
    RunDescription(
        task=Task.DETECTION, version="tiny", classes=["negative", "polyp"], image_size=[128, 128], frame_size_px=128,
        fusion="anchors", fold=None, seen_patients={"train": [], "val": []},
        frame_options={"crop": True}, synthetic=False, kdml_med="0",
        networks={network: {"name": name, "gain": gain} for network, gain in GAINS.items()},
    ).write(folder)  # fmt: skip
    write_json(folder / METRICS_FILE, {"thresholds": dict.fromkeys([*GAINS, "ensemble"], 0.5)})
    for network, gain in GAINS.items():
        path = checkpoint_path(folder, network)
        path.parent.mkdir(exist_ok=True)
        torch.save(BrightNetwork(gain=gain).state_dict(), path)
    return folder


def picture(seed: int, *, polyp: bool) -> np.ndarray:
    image = frame(seed=seed)
    if polyp:
        xmin, ymin, xmax, ymax = POLYP
        image[ymin:ymax, xmin:xmax] = 255
    return image


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one of them with a polyp; a whole video and one that was cut short; and a broken image."""
    folder = tmp_path_factory.mktemp("source") / "input"
    save(folder / "polyp.png", picture(1, polyp=True))
    save(folder / "empty.png", picture(2, polyp=False))
    save_video(folder / "whole.avi")
    data = save_video(folder / "cut.avi").read_bytes()
    (folder / "cut.avi").write_bytes(data[: len(data) // 2])
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def infer(run_dir: Path, **overrides: Any) -> None:
    """The inference config, run in this process."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in overrides.items()}
    workflow = ConfigWorkflow(
        config_file=str(REPOSITORY / CONFIG), workflow_type="inference", logging_file=False, run_dir=str(run_dir),
        bundle_root=str(REPOSITORY / "bundles/polyp_kdml"), device="cpu", **settings,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()


@pytest.fixture(scope="module")
def inferred(run_dir: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("inferred") / "out"
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        infer(run_dir, source=source, output_dir=out, annotate=True)
    return out, screen.getvalue()


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def frame_numbers(path: Path) -> tuple[int, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return len(list(container.decode(stream))), float(stream.average_rate or 0)


def test_boxes_are_where_the_polyp_is_in_the_source(inferred: tuple[Path, str]) -> None:
    boxes = pd.read_csv(inferred[0] / "detections.csv")
    assert list(boxes.columns) == [
        "source", "frame_index", "sample_id", "sequence_id", "network", "score", "xmin", "ymin", "xmax", "ymax",
        "above_threshold",
    ]  # fmt: skip
    image = boxes[boxes["source"].isin(["polyp.png", "empty.png"])]
    assert set(image["source"]) == {"polyp.png"}
    best = image[image["above_threshold"]]
    assert list(best["network"].unique()) == ["student_0", "student_1", "ensemble"]
    x, y = (best["xmin"] + best["xmax"]) / 2, (best["ymin"] + best["ymax"]) / 2
    assert x.between(POLYP[0], POLYP[2]).all()
    assert y.between(POLYP[1], POLYP[3]).all()


def test_bad_inputs_are_named_and_all_others_are_done(inferred: tuple[Path, str]) -> None:
    out, screen = inferred
    assert "2 problems" in screen
    assert "  broken.jpg: not a JPEG" in screen
    assert "  cut.avi: " in screen
    frames = pd.read_csv(out / "frames.csv")
    counts = frames["source"].value_counts().to_dict()
    assert counts.pop("cut.avi") in range(1, 10)
    assert counts == {"polyp.png": 1, "empty.png": 1, "whole.avi": 10}
    assert frames.set_index("sample_id").loc["polyp.png", "polyps_ensemble"] > 0
    assert frames.set_index("sample_id").loc["empty.png", ["polyps_ensemble", "score_ensemble"]].tolist() == [0, 0]
    above = int((frames["polyps_student_1"] > 0).sum())
    assert f"student_1  {above} (score of at least 0.500)" in screen


def test_videos_and_images_are_drawn(inferred: tuple[Path, str]) -> None:
    out = inferred[0]
    assert frame_numbers(out / "whole.annotated.mp4") == (10, 5)
    frames = pd.read_csv(out / "frames.csv")
    assert frame_numbers(out / "cut.annotated.mp4") == ((frames["source"] == "cut.avi").sum(), 5)
    assert (out / "detections.jpg").is_file()


def test_coco_file_loads_with_pycocotools(inferred: tuple[Path, str]) -> None:
    out = inferred[0]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(out / "detections.coco.json")
        again = dataset.loadRes(list(dataset.anns.values()))
    assert len(again.anns) == len(dataset.anns) > 0
    boxes = pd.read_csv(out / "detections.csv")
    assert len(dataset.anns) == (boxes["network"] == "ensemble").sum()
    images = {image["file_name"]: image for image in dataset.imgs.values()}
    assert (images["polyp.png"]["width"], images["polyp.png"]["height"]) == (200, 160)
    assert "frame_index" not in images["polyp.png"]
    assert images["whole.avi/000005"]["frame_index"] == 5
    first = dataset.anns[1]
    row = boxes[boxes["network"] == "ensemble"].iloc[0]
    np.testing.assert_allclose(
        first["bbox"], [row["xmin"], row["ymin"], row["xmax"] - row["xmin"], row["ymax"] - row["ymin"]], atol=0.011
    )
    for annotation in dataset.anns.values():
        x, y, width, height = annotation["bbox"]
        image = dataset.imgs[annotation["image_id"]]
        assert 0 <= x <= x + width <= image["width"] + 0.01
        assert 0 <= y <= y + height <= image["height"] + 0.01


def test_second_run_takes_the_frames_that_are_there_and_gives_the_same_bytes(
    run_dir: Path, source: Path, inferred: tuple[Path, str], tmp_path: Path
) -> None:
    out = inferred[0]
    before = results(out)
    shards = {path: path.stat().st_mtime_ns for path in (out / "frames/shards").iterdir()}
    infer(run_dir, source=source, output_dir=out, annotate=True)
    assert {path: path.stat().st_mtime_ns for path in (out / "frames/shards").iterdir()} == shards
    assert [name for name, data in results(out).items() if before.get(name) != data] == []
    infer(run_dir, source=source, output_dir=tmp_path / "elsewhere", annotate=True)
    assert results(tmp_path / "elsewhere") == before


def test_annotations_beside_the_source_tell_what_was_missed(
    run_dir: Path, source: Path, inferred: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The polyp of the image is annotated where it is; in the first frame of the video one that nothing shows.
    lines = [
        "image,frame,xmin,ymin,xmax,ymax",
        "polyp.png,,100,60,140,100",
        "whole.avi,0,30,20,60,50",
        "empty.png,,,,,",
    ]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    infer(run_dir, source=source, output_dir=out, annotate=True, annotations=tmp_path / "boxes.csv", corrections="coco")
    frames = pd.read_csv(out / "frames.csv")
    assert frames["sample_id"].iloc[0] == "whole.avi/000000", "the missed one comes first"
    assert frames["missed_ensemble"].iloc[0] == 1
    assert frames["annotated"].notna().sum() == 3
    found = frames.set_index("sample_id").loc["polyp.png", ["found_ensemble", "missed_ensemble", "false_ensemble"]]
    assert found.iloc[:2].sum() == 1
    assert "of 2 annotated boxes found" in capsys.readouterr().out
    # Nothing that was detected depends on the annotation.
    for name in ("detections.csv", "detections.coco.json"):
        assert (out / name).read_bytes() == (inferred[0] / name).read_bytes()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / "corrections/coco.json")
    assert {image["file_name"] for image in coco.imgs.values()} >= {"polyp.png", "whole.avi/000005.jpg"}
    assert len(coco.imgs) == len(frames)
    # Once corrected, the folder is not written over, and nothing else of the run is touched.
    (out / "corrections/coco.json").write_text("{}")
    before = results(out)
    with pytest.raises(InputError, match="may be a correction"):
        infer(run_dir, source=source, output_dir=out, corrections="yolo")
    assert results(out) == before


def test_frames_of_the_training_are_no_evidence_and_it_is_said(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = write_frame_dataset(tmp_path / "frames", splits={"P0": "train", "P1": "test"}, frames=2)
    shutil.copytree(run_dir, tmp_path / "run")
    for seen, expected in (([], False), (["P0"], True)):
        run = RunDescription.read(run_dir)
        replace(run, seen_patients={"train": [], "val": list(map(hashed_patient, seen))}).write(tmp_path / "run")
        out = tmp_path / f"out{len(seen)}"
        infer(tmp_path / "run", dataset_dir=frames, output_dir=out, annotate=True)
        table = pd.read_csv(out / "frames.csv")
        assert set(table.loc[table["seen"], "sequence_id"]) == {f"{patient}-s" for patient in seen}
        text = "2 of 4 annotated frames were seen by the run in training or choice"
        assert (text in capsys.readouterr().out) == expected
    sheets = [np.asarray(Image.open(tmp_path / f"out{number}/detections.jpg")) for number in (0, 1)]
    assert sheets[1].shape[0] > sheets[0].shape[0], "the sheet has a line more"


def test_what_was_drawn_of_other_weights_or_networks_goes(run_dir: Path, source: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", checkpoint_path(tmp_path / "run", "student_0")
    shutil.copytree(run_dir, tmp_path / "run")
    infer(tmp_path / "run", source=source / "polyp.png", output_dir=out, annotate=True)
    infer(tmp_path / "run", source=source / "polyp.png", output_dir=out)
    assert (out / "detections.jpg").exists()
    before = pd.read_csv(out / "detections.csv")
    torch.save(BrightNetwork(gain=9.0).state_dict(), path)
    infer(tmp_path / "run", source=source / "polyp.png", output_dir=out)
    assert not (out / "detections.jpg").exists()
    now = pd.read_csv(out / "detections.csv")
    for network, same in (("student_0", False), ("student_1", True), ("ensemble", False)):
        tables = [table[table["network"] == network].reset_index(drop=True) for table in (before, now)]
        assert tables[0].equals(tables[1]) == same
    infer(tmp_path / "run", source=source / "polyp.png", output_dir=out, annotate=True, network="student_1")
    infer(tmp_path / "run", source=source / "polyp.png", output_dir=out, network="student_0")
    assert not (out / "detections.jpg").exists()


def test_a_run_that_is_cut_off_goes_on_with_the_same_bytes(
    run_dir: Path, source: Path, inferred: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls = []
    forward = BrightNetwork.forward

    def cut_off(network: BrightNetwork, image: Tensor) -> AnchorPredictions:
        calls.append(len(image))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(network, image)

    with monkeypatch.context() as patched:
        patched.setattr(BrightNetwork, "forward", cut_off)
        with pytest.raises(KeyboardInterrupt):
            infer(run_dir, source=source, output_dir=out, annotate=True, batch_size=4)
    assert not list(out.rglob(".*"))
    assert json.loads((out / "input.json").read_bytes())["run_dir"] == str(run_dir.resolve())
    with pytest.raises(InputError, match="name another --output_dir"):
        infer(run_dir, source=source / "polyp.png", output_dir=out)
    infer(run_dir, source=source, output_dir=out, annotate=True)
    assert results(out) == results(inferred[0])


def test_detections_never_go_over_the_figures_of_a_run_or_an_evaluation(
    run_dir: Path, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is the folder of a run"):
        infer(run_dir, source=source, output_dir=run_dir)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="holds an evaluation"):
        infer(run_dir, source=source, output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert not (run_dir / "frames").exists()


def test_a_source_that_changed_while_a_run_was_cut_off_is_searched_anew(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        save(source / f"{number}.png", picture(number, polyp=number == 0))
    monkeypatch.setattr(chunks, "CHUNK_FRAMES", 1)
    stored = chunks.write_parquet
    with monkeypatch.context() as patched:

        def cut_off(path: Path, table: pd.DataFrame) -> None:
            stored(path, table)
            if len(list(path.parent.iterdir())) == 2:
                raise KeyboardInterrupt

        patched.setattr(chunks, "write_parquet", cut_off)
        with pytest.raises(KeyboardInterrupt):
            infer(run_dir, source=source, output_dir=out, batch_size=1)
    save(source / "0.png", picture(0, polyp=False))
    save(source / "2.png", picture(2, polyp=True))
    infer(run_dir, source=source, output_dir=out, batch_size=1)
    infer(run_dir, source=source, output_dir=tmp_path / "fresh", batch_size=1)
    assert results(out) == results(tmp_path / "fresh")
    assert (pd.read_csv(out / "frames.csv")["polyps_ensemble"] > 0).tolist() == [False, False, True]
    assert len(list((out / "detecting").iterdir())) == 3


def test_a_source_that_cannot_be_read_any_more_is_named_and_keeps_what_was_found(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name, polyp in (("lost.png", True), ("other.png", False)):
        save(source / name, picture(1, polyp=polyp))
    for name in ("lost.avi", "other.avi"):
        save_video(source / name)
    how = {"source": source, "output_dir": out, "annotate": True, "corrections": ["coco"]}
    infer(run_dir, **how)
    before, boxes = results(out), pd.read_csv(out / "detections.csv")
    images = (out / "corrections/coco.json").read_bytes()
    capsys.readouterr()
    taken = {name: (source / name).read_bytes() for name in ("lost.png", "lost.avi")}
    known = files.source_fingerprint

    def fail(path: Path, name: str, **options: Any) -> files.Fingerprint:
        return files.Fingerprint(name, -1, "unreadable: Stale file handle") if name in taken else known(path, name)

    with monkeypatch.context() as broken:
        broken.setattr(files, "source_fingerprint", fail)
        for name in taken:
            (source / name).write_bytes(b"")
        infer(run_dir, **how)
        # As if the share had failed after the frames were prepared: nobody wrote failures.csv then.
        none = pd.DataFrame({"input": [], "reason": []})
        broken.setattr("kdml_med.bundle.inference.read_table", lambda *_, **__: none)
        infer(run_dir, **how)
    screen, late = capsys.readouterr().out.split("could not be read any more")
    for name in taken:
        assert f"  {name}: " in screen
        assert f"  {name}: " in late
    assert screen.count("cannot be read: Stale file handle; the frames of an earlier run stay") == 2
    now = pd.read_csv(out / "detections.csv")
    pd.testing.assert_frame_equal(now, boxes, atol=1.01)  # they are cut to the source where its size is known
    kept = results(out)
    for name in ("lost.annotated.mp4", "other.annotated.mp4", "frames.csv", "detections.jpg"):
        assert kept[name] == before[name], name
    sizes = {image["source"]: "width" in image for image in json.loads(kept["detections.coco.json"])["images"]}
    assert sizes == {"lost.avi": False, "lost.png": False, "other.avi": True, "other.png": True}
    listed = {image["file_name"] for image in json.loads((out / "corrections/coco.json").read_text())["images"]}
    assert {name.partition("/")[0] for name in listed} == {"other.png", "other.avi"}
    for name, data in taken.items():
        (source / name).write_bytes(data)
    infer(run_dir, **how)
    assert results(out) == before
    assert (out / "corrections/coco.json").read_bytes() == images


def test_an_output_folder_belongs_to_one_input(run_dir: Path, source: Path, inferred: tuple[Path, str]) -> None:
    before = results(inferred[0])
    for changes in ({"source": source / "polyp.png"}, {"source": source, "fps": 2}, {}):
        with pytest.raises(InputError, match="name another --output_dir"):
            infer(run_dir, output_dir=inferred[0], **changes)
    assert results(inferred[0]) == before


def test_dataset_folder_is_taken_with_and_without_labels(run_dir: Path, tmp_path: Path) -> None:
    for labelled in (True, False):
        frames = write_frame_dataset(tmp_path / f"frames_{labelled}", frames=3, labelled=labelled)
        out = tmp_path / f"out_{labelled}"
        infer(run_dir, dataset_dir=frames, output_dir=out, annotate=True, network="teacher", students_only=False)
        table = pd.read_csv(out / "frames.csv")
        assert len(table) == 12
        assert list(table["label"].isna().unique()) == [not labelled]
        assert {"polyps_teacher", "polyps_student_0", "polyps_ensemble"} < set(table.columns)
        assert (table["polyps_teacher"] > 0).sum() == 8, "frames 1 and 2 of each sequence have bright polyps"
        assert (out / "detections.jpg").is_file()
        assert "width" not in json.loads((out / "detections.coco.json").read_text())["images"][0]


def test_nothing_found_anywhere_is_no_error(run_dir: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "dark.png", picture(0, polyp=False))
    out = tmp_path / "out"
    infer(run_dir, source=image, output_dir=out, annotate=True)
    assert pd.read_csv(out / "detections.csv").empty
    assert pd.read_csv(out / "frames.csv")["polyps_ensemble"].tolist() == [0]
    with contextlib.redirect_stdout(io.StringIO()):
        assert COCO(out / "detections.coco.json").anns == {}
    assert (out / "detections.jpg").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "student_7"}, "has: teacher, student_0, student_1, ensemble"),
        ({"network": "teacher", "students_only": True}, "leave --students_only out"),
        ({"fps": -1}, "--fps is -1"),
        ({"annotations": "nowhere.csv"}, "does not exist. Check the path of the annotations"),
        ({"annotations": "classes.csv"}, "--polyp-class is an option of preprocessing.prepare_frames"),
        ({"source": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"source": "."}, "lies in --source"),
        ({"source": "broken.png"}, "no frame of"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(run_dir: Path, tmp_path: Path, changes: dict, message: str) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    place = {"dataset_dir": "", "run_dir": str(run_dir), "output_dir": str(tmp_path / "out"), "num_workers": 0}
    given = place | {"source": "good.png", "network": "ensemble", "students_only": False, "fps": 5}
    given |= {"annotations": None, "corrections": None} | changes
    given["source"] = str(tmp_path / given["source"])
    (tmp_path / "classes.csv").write_text("image,xmin,ymin,xmax,ymax,class\ngood.png,1,1,90,90,normal\n")
    if given["annotations"] is not None:
        given["annotations"] = str(tmp_path / given["annotations"])
    with pytest.raises(InputError, match=message):
        prepare_source(Settings(Task.DETECTION, given))
    assert not (tmp_path / "out/input.json").exists()


def test_annotated_videos_of_one_folder_have_names_of_their_own() -> None:
    names = ["a/b.mp4", "a_b.mp4", "a b.mp4", "A_b.avi", "c.mp4"]
    files = name_videos(names)
    assert (files["a/b.mp4"], files["c.mp4"]) == ("a_b.annotated.mp4", "c.annotated.mp4")
    assert len({file.lower() for file in files.values()}) == len(names)


def tables(generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a manifest with any placement, and detections in them."""
    count = 4
    rows = pd.DataFrame(
        {
            "source": [f"{n}.png" for n in range(count)], "frame_index": [0, None, 2, 3], "label": None,
            "sample_id": list("abcd"), "sequence_id": list("abcd"), "width": 100, "height": 80,
            "crop_x": generator.integers(0, 50, count), "crop_y": generator.integers(0, 50, count),
            "scale": generator.uniform(0.2, 1, count),
        }
    )  # fmt: skip
    low = generator.uniform(0, 40, (30, 2))
    found = pd.DataFrame(np.hstack([low, low + 30]), columns=["xmin", "ymin", "xmax", "ymax"])
    found["sample_id"] = generator.choice(list("abc"), 30)
    found["network"] = generator.choice(["student_0", "ensemble"], 30)
    found["score"] = generator.uniform(0, 1, 30)
    return rows, found


def test_boxes_are_led_back_as_they_came_and_cut_to_the_source() -> None:
    rows, found = tables(np.random.default_rng(0))
    thresholds = {"student_0": 0.3, "ensemble": 0.6}
    boxes = boxes_in_source(rows, found, thresholds, {})
    expected = []
    for _, row in rows.iterrows():
        placement = Placement(*row[["crop_x", "crop_y", "scale", "width", "height"]])
        for network in ("student_0", "ensemble"):
            own = found[(found["sample_id"] == row["sample_id"]) & (found["network"] == network)]
            for _, one in own.sort_values("score", ascending=False).iterrows():
                (box,) = placement.to_source([tuple(one[["xmin", "ymin", "xmax", "ymax"]])])
                expected.append((row["sample_id"], network, one["score"], *box, one["score"] >= thresholds[network]))
    table = boxes[["sample_id", "network", "score", "xmin", "ymin", "xmax", "ymax", "above_threshold"]]
    for got, wanted in zip(table.itertuples(index=False), expected, strict=True):
        assert (*got[:3], got[7]) == (*wanted[:3], wanted[7])
        np.testing.assert_allclose(got[3:7], wanted[3:7], atol=0.006)
    cut = boxes_in_source(rows, found, thresholds, {name: SourceSize(60, 50) for name in rows["source"]})
    assert (cut["xmax"].max(), cut["ymax"].max()) == (60, 50)


def test_frames_have_numbers_in_videos_and_images_none_also_where_they_are_of_a_sequence() -> None:
    rows, found = tables(np.random.default_rng(3))
    rows = rows.assign(source=["s/1.png", "s/2.png", "v.MP4", "v.MP4"], frame_index=[0, 1, 0, 7])
    found = found.assign(sample_id=np.resize(list("abcd"), len(found)))
    boxes = boxes_in_source(rows, found, {"student_0": 0.5, "ensemble": 0.5}, {})
    assert boxes.groupby("sample_id")["frame_index"].first().fillna(-1).to_dict() == {"a": -1, "b": -1, "c": 0, "d": 7}
    frames = count_frames(rows, boxes, ["student_0", "ensemble"], {})
    assert frames["frame_index"].fillna(-1).tolist() == [-1, -1, 0, 7]
    images = coco_dataset(rows, boxes, "ensemble", 0.5, {})["images"]
    assert [image.get("frame_index") for image in images] == [None, None, 0, 7]


def test_threshold_itself_counts_as_above() -> None:
    rows, found = tables(np.random.default_rng(1))
    score = float(found["score"].iloc[0])
    boxes = boxes_in_source(rows, found, {"student_0": score, "ensemble": score}, {})
    assert boxes.loc[boxes["score"] == score, "above_threshold"].tolist() == [True]


def test_tables_without_any_detection_have_every_frame() -> None:
    rows, found = tables(np.random.default_rng(2))
    boxes = boxes_in_source(rows, found.iloc[:0], {}, {})
    frames = count_frames(rows, boxes, ["student_0", "ensemble"], {}, "ensemble")
    assert frames["polyps_ensemble"].tolist() == [0] * 4
    coco = coco_dataset(rows, boxes, "ensemble", 0.5, {})
    assert [image["file_name"] for image in coco["images"]] == list("abcd")
    assert coco["annotations"] == []


@pytest.mark.slow
def test_command_works_as_the_manual_says(run_dir: Path, source: Path, tmp_path: Path) -> None:
    result = run_bundle(
        "run", "--config_file", CONFIG, "--source", source, "--run_dir", run_dir, "--output_dir", tmp_path / "out",
        "--annotate", "True", "--fps", "5", "--students_only", "True", "--network", "ensemble", "--device", "cpu",
        check=False,
    )  # fmt: skip
    assert result.returncode == 3, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    assert "broken.jpg: not a JPEG" in result.stdout
    expected = {
        "detections.csv", "detections.coco.json", "frames.csv", "input.json", "detections.jpg",
        "whole.annotated.mp4", "cut.annotated.mp4", "frames", "detecting",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_config_has_the_properties_monai_asks_for(run_dir: Path, tmp_path: Path) -> None:
    frames = write_frame_dataset(tmp_path / "frames", frames=1)
    workflow = ConfigWorkflow(
        config_file=str(REPOSITORY / CONFIG), workflow_type="inference", logging_file=False, run_dir=str(run_dir),
        bundle_root=str(REPOSITORY / "bundles/polyp_kdml"), dataset_dir=str(frames), output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("order", [["clip.avi", "a.png"], ["a.png", "clip.avi"]])
def test_a_file_of_another_kind_joins_the_source_later(run_dir: Path, tmp_path: Path, order: list[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in order:
        (save_video if name.endswith(".avi") else save)(source / name)
        infer(run_dir, source=source, output_dir=out)
    infer(run_dir, source=source, output_dir=tmp_path / "fresh")
    for name in ("detections.csv", "frames.csv", "detections.coco.json"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_an_image_that_is_gone_from_the_source_is_named_and_costs_nothing(run_dir: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png"):
        save(source / name)
    infer(run_dir, source=source, output_dir=out)
    before = (out / "frames.csv").read_bytes()
    (source / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png\. Name all inputs .* choose another --output_dir"):
        infer(run_dir, source=source, output_dir=out)
    assert (out / "frames.csv").read_bytes() == before
