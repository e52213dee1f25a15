import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.colonoscopy.cropping import cut_crops, describe_crop_report
from kdml_med.colonoscopy.crops import CropOptions
from kdml_med.errors import InputError
from kdml_med.splits import assign_splits, freeze_splits
from kdml_med.storage.manifest import (
    FRAME_CLASSES,
    MANIFEST_FILE,
    DatasetInfo,
    DatasetKind,
    manifest_table,
    owner_word,
    read_info,
    read_manifest,
    read_member,
    write_info,
    write_manifest,
)
from tests.colonoscopy.pictures import contents

BOXES = [(60, 40, 100, 90)]
SPLITS = {"P0": "train", "P1": "train", "P2": "val", "P3": "test"}
OPTIONS = CropOptions(size_px=32, image_format="png", near_bits=20)


def pixels(seed, boxes, *, height=120, width=160):
    """Grey folds that no two seeds share, with a flat bright rectangle for each polyp."""
    small = np.random.default_rng(seed).uniform(60, 140, (24, 32)).astype(np.uint8)
    image = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    image = np.stack([image] * 3, axis=2)
    for xmin, ymin, xmax, ymax in boxes:
        image[ymin:ymax, xmin:xmax] = (250, 200, 190)
    return image


def write_frames(folder, frames, splits=SPLITS):
    """A dataset of frames: (patient, pixels or bytes, boxes or None where nothing is known)."""
    rows, tars = [], {}
    for number, (patient, image, boxes) in enumerate(frames):
        data = image
        if not isinstance(image, bytes):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            data = stream.getvalue()
        shard = tars.setdefault(patient, bytearray())
        rows.append(
            {
                "sample_id": f"{patient}/{number}.png",
                "patient_id": patient,
                "sequence_id": patient,
                "label": None if boxes is None else FRAME_CLASSES[bool(boxes)],
                "boxes": [list(map(float, box)) for box in boxes or []],
                **{"width": 160, "height": 120, "crop_x": 0, "crop_y": 0, "scale": 1.0, "source": f"{number}.png"},
                **{"shard": f"shards/{patient}.tar", "offset": len(shard), "size": len(data)},
            }
        )
        shard += data
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for patient, content in tars.items():
        (folder / "shards" / f"{patient}.tar").write_bytes(content)
    write_manifest(folder / MANIFEST_FILE, manifest_table(rows, DatasetKind.FRAMES))
    write_info(folder, DatasetInfo(kind="frames", classes=list(FRAME_CLASSES), synthetic=True))
    if splits is not None:
        table = pd.DataFrame({"patient_id": list(splits), "split": list(splits.values())})
        freeze_splits(folder, table, mode="table", seed=None, force=True)
    return folder


@pytest.fixture
def frames(tmp_path):
    """Two frames of each of four patients, the second one without a polyp."""
    own = [
        (patient, pixels(2 * place + second, [] if second else BOXES), [] if second else BOXES)
        for place, patient in enumerate(SPLITS)
        for second in range(2)
    ]
    return write_frames(tmp_path / "frames", own)


def cut(frames, out, options=OPTIONS, **how):
    return cut_crops(frames, out, options, progress=False, **how)


def test_crops_are_what_lies_at_their_place_and_touch_no_box_unless_they_are_of_a_polyp(frames, tmp_path):
    report = cut(frames, tmp_path / "out")
    assert (report.frames, report.crops["polyp"], report.failures) == (8, 8, [])
    assert 16 < report.crops["mucosa"] <= 32
    manifest, info = read_manifest(tmp_path / "out"), read_info(tmp_path / "out")
    assert (info.kind, info.classes, info.tile_size_px, info.synthetic) == ("tiles", ["mucosa", "polyp"], 32, True)
    places = pd.read_csv(tmp_path / "out" / "crops.csv").set_index("sample_id")
    known = {row.sample_id: row for row in read_manifest(frames).itertuples()}
    for row in manifest.to_dict("records"):
        place = places.loc[row["sample_id"]]
        frame = known[place["frame"]]
        assert (row["patient_id"], row["slide_id"]) == (frame.patient_id, f"{place['frame']}/{row['label']}")
        whole = Image.open(io.BytesIO(read_member(frames, frame.shard, frame.offset, frame.size))).convert("RGB")
        x, y, side = (int(place[name]) for name in ("x", "y", "side"))
        part = whole.crop((x, y, x + side, y + side)).resize((32, 32), Image.Resampling.LANCZOS)
        data = read_member(tmp_path / "out", row["shard"], row["offset"], row["size"])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(part))
        covered = min(x + side, 100) > max(x, 60) and min(y + side, 90) > max(y, 40) and len(frame.boxes) > 0
        assert covered == (row["label"] == "polyp")


def test_every_crop_of_a_polyp_has_one_as_large_on_mucosa_of_its_frame_and_one_without_is_counted(tmp_path):
    filled = [(0, 0, 160, 110)]
    own = [("P0", pixels(0, BOXES), BOXES), ("P1", pixels(1, filled), filled)]
    report = cut(write_frames(tmp_path / "frames", own, {"P0": "train", "P1": "test"}), tmp_path / "out")
    assert (report.unpaired, report.crops, report.sides["mucosa"]) == (
        2,
        {"mucosa": 2, "polyp": 2},
        report.sides["polyp"],
    )
    assert "2 windows of polyps are left out: no room" in "\n".join(describe_crop_report(report, tmp_path / "out"))
    places = pd.read_csv(tmp_path / "out" / "crops.csv")
    sides = {label: own["side"].tolist() for label, own in places.groupby("label")}
    assert sides["mucosa"] == sides["polyp"]


def test_splits_are_those_of_the_frames(frames, tmp_path):
    cut(frames, tmp_path / "out")
    manifest, info = read_manifest(tmp_path / "out"), read_info(tmp_path / "out")
    parts = assign_splits(tmp_path / "out", manifest, info)
    assert (parts.astype(str) == manifest["patient_id"].astype(str).map(SPLITS)).all()
    assert info.splits["frames_sha256"] == read_info(frames).splits["sha256"]


def test_the_same_frames_give_the_same_bytes_with_any_number_of_processes_and_a_second_run_does_nothing(
    frames, tmp_path
):
    cut(frames, tmp_path / "one")
    assert cut(frames, tmp_path / "two", workers=2).done == 4
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    again = cut(frames, tmp_path / "one")
    assert (again.done, again.finished) == (0, 4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    cut(frames, tmp_path / "other", CropOptions(size_px=32, image_format="png", near_bits=20, seed=1))
    first, second = (pd.read_csv(tmp_path / name / "crops.csv") for name in ("one", "other"))
    assert first["x"].tolist() != second["x"].tolist()


def test_crops_of_a_frame_do_not_depend_on_the_other_frames(frames, tmp_path):
    cut(frames, tmp_path / "out")
    some = [("P3", pixels(6, BOXES), BOXES), ("P3", pixels(7, []), [])]
    rows = pd.read_csv(tmp_path / "out" / "crops.csv")
    write_frames(tmp_path / "some", [("P0", pixels(0, BOXES), BOXES), *some], {"P0": "train", "P3": "test"})
    cut(tmp_path / "some", tmp_path / "fewer")
    fewer = pd.read_csv(tmp_path / "fewer" / "crops.csv")
    expected = rows[rows["frame"] == "P0/0.png"].reset_index(drop=True)
    pd.testing.assert_frame_equal(fewer[fewer["frame"] == "P0/0.png"].reset_index(drop=True), expected)


def test_a_frame_that_another_split_has_too_is_left_out_of_training_and_listed(tmp_path):
    shared = pixels(50, BOXES)
    own = [(patient, pixels(place, BOXES), BOXES) for place, patient in enumerate(SPLITS)]
    frames = write_frames(tmp_path / "frames", [*own, ("P0", shared, BOXES), ("P3", shared, BOXES)])
    report = cut(frames, tmp_path / "out")
    near = pd.read_csv(tmp_path / "out" / "near_duplicates.csv")
    assert near.iloc[0].tolist() == ["P0/4.png", "train", "P3/5.png", "test", 0]
    assert "1 frame is left out because another split has nearly the same view" in "\n".join(
        describe_crop_report(report, tmp_path / "out")
    )
    left = set(pd.read_csv(tmp_path / "out" / "crops.csv")["frame"])
    assert left == {"P0/0.png", "P1/1.png", "P2/2.png", "P3/3.png", "P3/5.png"}


def test_frames_without_splits_give_tiles_without_splits(tmp_path):
    shared = pixels(0, BOXES)
    frames = write_frames(tmp_path / "frames", [("P0", shared, BOXES), ("P1", shared, BOXES)], None)
    report = cut(frames, tmp_path / "out")
    assert report.near_duplicates == []
    assert not (tmp_path / "out" / "splits.csv").exists()
    assert not (tmp_path / "out" / "near_duplicates.csv").exists()


def told(frames, level):
    """The frames, with what `kdml-med frames` says of whom it knows."""
    write_info(frames, replace(read_info(frames), label_level=level))
    return frames


def test_crops_say_whose_they_are_where_patients_are_not_known(frames, tmp_path):
    cut(told(frames, "sequence"), tmp_path / "out")
    info = read_info(tmp_path / "out")
    assert (info.owner, owner_word(read_manifest(tmp_path / "out"), info)) == ("sequence", "sequence")
    described = tmp_path / "out" / "dataset.json"
    before = described.read_bytes()
    earlier = {name: value for name, value in json.loads(before).items() if name != "owner"}
    described.write_text(json.dumps(earlier))  # which did not say it
    cut(frames, tmp_path / "out")
    assert described.read_bytes() == before


@pytest.mark.parametrize(("level", "owner"), [("patient", None), ("sequence", "sequence"), ("frame", "sequence")])
def test_what_frames_know_of_patients_decides_whose_crops_are_and_not_names_that_are_alike(
    frames, tmp_path, level, owner
):
    """Here every patient has the id of a sequence: of a patient who was named so, or of one who was not named."""
    cut(told(frames, level), tmp_path / "out")
    assert read_info(tmp_path / "out").owner == owner


def test_crops_are_of_sequences_where_only_some_patients_are_named(frames, tmp_path):
    rows = read_manifest(frames).assign(
        sequence_id=lambda table: table["patient_id"].astype(str).replace("P0", "first")
    )
    rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    write_manifest(frames / MANIFEST_FILE, manifest_table(rows, DatasetKind.FRAMES))
    cut(told(frames, "sequence"), tmp_path / "out")
    assert read_info(tmp_path / "out").owner == "sequence"


def test_a_refused_run_says_nothing_else_of_the_crops_that_are_there(frames, tmp_path):
    cut(told(frames, "sequence"), tmp_path / "out")
    before = contents(tmp_path / "out")
    own = [(f"case{number}", pixels(number, BOXES), BOXES) for number in range(4)]
    others = write_frames(
        tmp_path / "others", own, {f"case{number}": name for number, name in enumerate(SPLITS.values())}
    )
    with pytest.raises(InputError):
        cut(told(others, "patient"), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_what_cannot_be_used_is_named(tmp_path):
    large = pixels(3, BOXES, height=200)
    own = [
        ("P0", pixels(0, BOXES), BOXES),
        ("P1", b"no picture", BOXES),
        ("P2", pixels(1, []), None),
        ("P3", large, BOXES),
    ]
    frames = write_frames(tmp_path / "frames", own)
    report = cut(frames, tmp_path / "out")
    reasons = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("input")["reason"]
    assert "cannot be read" in reasons["P1/1.png"]
    assert "is 160 × 200 px, the manifest says 160 × 120" in reasons["P3/3.png"]
    assert (len(reasons), report.unlabelled) == (2, 1)
    assert set(read_manifest(tmp_path / "out")["patient_id"]) == {"P0"}
    lines = "\n".join(describe_crop_report(report, tmp_path / "out"))
    assert "1 unlabelled frame is left out" in lines
    assert "2 problems" in lines


def test_a_part_that_is_left_out_is_no_field(frames, tmp_path):
    options = CropOptions(size_px=32, image_format="png", near_bits=20, left_out=((0, 0, 0.375, 1),), margin=0.0)
    cut(frames, tmp_path / "out", options)
    places = pd.read_csv(tmp_path / "out" / "crops.csv")
    assert (places["x"] >= 60 - 0.02 * places["side"]).all()


def test_frames_that_are_too_small_are_named(frames, tmp_path):
    report = cut(frames, tmp_path / "out", CropOptions(size_px=32, smallest_px=121, near_bits=20))
    assert len(report.failures) == 8
    assert "smaller than the smallest window of 121 px" in report.failures[0][1]


def test_a_changed_frame_is_cut_anew_and_what_would_change_the_splits_is_refused(frames, tmp_path):
    cut(frames, tmp_path / "out")
    own = [(p, pixels(10 + place, BOXES), BOXES) for place, p in enumerate(SPLITS)]
    write_frames(frames, own, {**SPLITS, "P1": "test"})
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="has 'P1' in train, the frames have it in test"):
        cut(frames, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    report = cut(frames, tmp_path / "out", force=True)
    assert (report.done, sorted(report.remade)) == (4, ["P0", "P1", "P2", "P3"])


def test_who_joins_or_leaves_the_frozen_splits_is_refused_before_anything_is_written(frames, tmp_path):
    cut(frames, tmp_path / "out")
    before = contents(tmp_path / "out")
    own = [(patient, pixels(2 * place, BOXES), BOXES) for place, patient in enumerate([*SPLITS, "P4"])]
    write_frames(frames, own, {**SPLITS, "P4": "train"})
    with pytest.raises(InputError, match="has no split for 'P4', which joins in this run"):
        cut(frames, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    write_frames(frames, [(patient, image, None if patient == "P3" else boxes) for patient, image, boxes in own[:4]])
    with pytest.raises(InputError, match=r"inputs of this run: P3\. .*another --out, or pass --force to delete"):
        cut(frames, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    write_frames(frames, own, {**SPLITS, "P4": "train"})
    cut(frames, tmp_path / "out", force=True)
    manifest, info = read_manifest(tmp_path / "out"), read_info(tmp_path / "out")
    assert set(assign_splits(tmp_path / "out", manifest, info)) == {"train", "val", "test"}


def freeze_crops(out, splits):
    freeze_splits(out, pd.DataFrame({"patient_id": list(splits), "split": list(splits.values())}), mode="table", seed=0)


def test_splits_that_were_made_for_the_crops_keep_their_patients(tmp_path):
    own = [(patient, pixels(place, BOXES), BOXES) for place, patient in enumerate([*SPLITS, "P4"])]
    frames, out = write_frames(tmp_path / "frames", own[:4], None), tmp_path / "out"
    cut(frames, out)
    freeze_crops(out, SPLITS)
    before = contents(out)
    write_frames(frames, own, None)
    with pytest.raises(InputError, match="has no split for 'P4', which joins in this run"):
        cut(frames, out)
    assert contents(out) == before
    cut(frames, out, force=True)
    assert "P4" in set(read_manifest(out)["patient_id"])


def test_no_manifest_is_written_beside_splits_of_others_that_were_made_for_the_crops(tmp_path):
    own = [("P0", pixels(0, BOXES), BOXES), ("P1", b"no picture", BOXES)]
    frames, out = write_frames(tmp_path / "frames", own, None), tmp_path / "out"
    cut(frames, out)
    freeze_crops(out, {"P0": "train"})
    write_frames(frames, [own[0], ("P1", pixels(1, BOXES), BOXES)], None)
    with pytest.raises(InputError, match="has no split for 'P1'"):  # that it can be read now is not known before
        cut(frames, out)
    assert not (out / "manifest.parquet").exists()


def test_crops_of_loose_frames_that_are_gone_are_refused_before_anything_is_written(tmp_path):
    own = [("frames-0000", pixels(place, BOXES), BOXES) for place in range(2)]
    frames, out = write_frames(tmp_path / "frames", own, None), tmp_path / "out"
    cut(frames, out)
    before = contents(out)
    write_frames(frames, own[:1], None)
    with pytest.raises(InputError, match=r"of this run: frames-0000/1\.png\. .*pass --force to delete them"):
        cut(frames, out)
    assert contents(out) == before
    cut(frames, out, force=True)
    assert set(pd.read_csv(out / "crops.csv")["frame"]) == {"frames-0000/0.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 4}, "--size is 4, expected 8 to 2048"),
        ({"margin": -0.1}, "--margin is -0.1"),
        ({"left_out": ((0.5, 0, 0.2, 1),)}, "--leave-out is 0.5,0,0.2,1, expected left"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CropOptions(**options)


def test_tiles_and_frames_without_polyps_are_refused_before_anything_is_written(frames, tmp_path):
    cut(frames, tmp_path / "tiles")
    with pytest.raises(InputError, match="is a dataset of tiles, expected one of frames"):
        cut(tmp_path / "tiles", tmp_path / "out")
    write_frames(tmp_path / "none", [("P0", pixels(0, []), [])], None)
    with pytest.raises(InputError, match="has no frame with a polyp"):
        cut(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
