import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.colonoscopy.boxes import FrameBoxes
from kdml_med.colonoscopy.coco import format_coco
from kdml_med.colonoscopy.formats import format_voc, format_yolo
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.colonoscopy.report import describe_report
from kdml_med.errors import InputError
from kdml_med.splits import assign_splits
from kdml_med.storage.locks import sole_user
from kdml_med.storage.manifest import read_info, read_manifest, read_member
from tests.colonoscopy.pictures import contents, save, save_mask, save_video

# Two with polyps, one that was looked at and shows none; pictures are 200×160 with the field at 30, 10 to 190, 150.
TRUTH = {"p1": [(60, 40, 100, 90)], "p2": [(50, 30, 90, 70), (110, 80, 150, 120)], "n1": []}
PLAIN = FrameOptions(crop=False)


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate((*TRUTH, "u1")):
        save(tmp_path / "images" / f"{name}.png", seed=seed)
    return tmp_path / "images"


def prepare(inputs, out, options=PLAIN, annotations=None, **more):
    return prepare_frames([inputs], out, options, annotations, progress=False, **more)


def table(tmp_path, text, name="boxes.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def failures(out):
    return pd.read_csv(out / "failures.csv").groupby("input")["reason"].agg("; ".join).to_dict()


def boxes_of(manifest):
    return {row.sample_id: [tuple(box) for box in row.boxes] for row in manifest.itertuples()}


def write_annotations(kind, folder):
    """TRUTH in a format."""
    known = [FrameBoxes(f"{n}.png", tuple(boxes), width=200, height=160) for n, boxes in TRUTH.items()]
    path = folder / kind
    path.mkdir()
    for item in known:
        stem = item.image.removesuffix(".png")
        if kind == "masks":
            save_mask(path / f"{stem}.png", TRUTH[stem])
        elif kind == "voc":
            (path / f"{stem}.xml").write_text(format_voc(item))
        elif kind == "yolo":
            (path / f"{stem}.txt").write_text(format_yolo(item, 200, 160))
    if kind == "coco":
        (path / "boxes.json").write_text(json.dumps(format_coco(known)))
        return path / "boxes.json"
    if kind == "csv":
        rows = [f"{n}.png,{','.join(map(str, box))}" for n, boxes in TRUTH.items() for box in boxes or [("",) * 4]]
        return table(path, "\n".join(["image,xmin,ymin,xmax,ymax", *rows]))
    return path


@pytest.mark.parametrize("kind", ["masks", "voc", "yolo", "coco", "csv"])
def test_every_format_gives_the_same_frames(images, tmp_path, kind):
    report = prepare(images, tmp_path / "out", annotations=write_annotations(kind, tmp_path))
    manifest = read_manifest(tmp_path / "out")
    np.testing.assert_allclose(
        np.concatenate([b for b in boxes_of(manifest).values() if b]), [*TRUTH["p1"], *TRUTH["p2"]], atol=1e-6
    )
    labels = manifest.set_index("sample_id")["label"].astype("str").fillna("none").to_dict()
    assert labels == {"n1.png": "negative", "p1.png": "polyp", "p2.png": "polyp", "u1.png": "none"}
    assert (report.frames, report.polyps, report.negatives, report.unlabelled) == (4, 2, 1, 1)
    assert (report.boxes, report.unlisted, report.failures) == (3, 1, [])


def test_stored_bytes_are_the_frame_and_can_be_mapped_back(images, tmp_path):
    options = FrameOptions(size_px=80, image_format="png")
    prepare(images, tmp_path / "out", options, write_annotations("csv", tmp_path))
    info, manifest = read_info(tmp_path / "out"), read_manifest(tmp_path / "out")
    assert (info.kind, info.classes, info.frame_size_px) == ("frames", ["negative", "polyp"], 80)
    assert (info.label_level, info.image_root) == ("frame", ".")
    row = manifest.set_index("sample_id").loc["p1.png"]
    data = read_member(tmp_path / "out", row["shard"], row["offset"], row["size"])
    (tmp_path / "p1.png").write_bytes(data)
    with Image.open(tmp_path / "p1.png") as stored:
        assert stored.size == (row["width"], row["height"]) == (80, 70)
    assert (row["crop_x"], row["crop_y"], row["scale"]) == (30, 10, 0.5)
    box = row["boxes"][0]
    assert [value / row["scale"] + (row["crop_x"], row["crop_y"])[i % 2] for i, value in enumerate(box)] == [
        60,
        40,
        100,
        90,
    ]


@pytest.mark.parametrize(("unlisted", "expected"), [("negative", "negative"), ("skip", None)])
def test_frames_that_are_not_mentioned_are_what_the_option_says(images, tmp_path, unlisted, expected):
    options = FrameOptions(unlisted=unlisted)
    report = prepare(images, tmp_path / "out", options, write_annotations("voc", tmp_path))
    labels = read_manifest(tmp_path / "out").set_index("sample_id")["label"]
    assert labels.get("u1.png") == expected
    assert report.skipped == (expected is None)


def test_bad_inputs_are_named_and_the_rest_is_finished(images, tmp_path):
    save(images / "a" / "twin.png", seed=8)
    save(images / "b" / "twin.png", seed=9)
    (images / "broken.jpg").write_bytes(save(images / "whole.jpg").read_bytes()[:3000])
    (images / "empty.png").write_bytes(b"")
    for name in ("out_of", "inverted", "number", "speck", "specks", "other_size", "slightly", "contrary"):
        save(images / f"{name}.png", seed=len(name))
    rows = """image,xmin,ymin,xmax,ymax,width,height
p1,60,40,100,90,,
p2,-1,0,200.8,160,,
out_of,150,40,240,90,,
out_of,60,40,100,90,,
inverted,100,40,60,90,,
number,60,40,nought,90,,
speck,60,40,100,90,,
speck,10,10,14,60,,
specks,60,40,66,90,,
other_size,6,4,10,9,640,480
contrary,60,40,100,90,,
contrary,,,,,,
twin,60,40,100,90,,
absent,60,40,100,90,,
broken,60,40,100,90,,
empty,,,,,,
whole,inf,40,100,90,,
"""
    options = FrameOptions(unlisted="negative", crop=False)
    report = prepare(images, tmp_path / "out", options, table(tmp_path, rows))
    found = failures(tmp_path / "out")
    for name, reason in {
        "out_of.png": "reaches out of the image of 200×160",
        "inverted.png": "inverted",
        "number.png": "row 7: xmax is 'nought'",
        "speck.png": "1 of 2 boxes dropped",
        "specks.png": "no box has sides of at least 10 px",
        "other_size.png": "640×480",
        "contrary.png": "contradict",
        "twin": "fits 2 inputs",
        "a/twin.png": "may mean it",
        "b/twin.png": "may mean it",
        "absent": "no such image",
        "broken.jpg": "truncated",
        "empty.png": "empty",
        "whole.jpg": "not a number",
    }.items():
        assert reason in found.pop(name), name
    assert found == {}
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest["sample_id"]) == {"n1.png", "p1.png", "p2.png", "slightly.png", "speck.png", "u1.png"}
    stored = boxes_of(read_manifest(tmp_path / "out"))
    assert stored["p2.png"] == [(0, 0, 200, 160)]  # one pixel over the edge is rounding
    assert stored["speck.png"] == [(60, 40, 100, 90)]
    assert any("all in" in line for line in describe_report(report, tmp_path / "out"))


def test_box_on_the_border_leaves_its_frame_out(images, tmp_path):
    path = table(tmp_path, "image,xmin,ymin,xmax,ymax\np1,0,40,40,90\np2,60,40,100,90\n")
    prepare(images, tmp_path / "out", FrameOptions(unlisted="skip"), path)
    assert "75% of box [0, 40, 40, 90] lies on what was taken for border" in failures(tmp_path / "out")["p1.png"]
    assert boxes_of(read_manifest(tmp_path / "out")) == {"p2.png": [(30, 30, 70, 80)]}


SEQUENCES = "image,xmin,ymin,xmax,ymax,sequence,patient,site,polyp,split\n"


def test_columns_give_sequence_patient_site_polyp_and_split(images, tmp_path):
    rows = "p1,60,40,100,90,s1,A,h1,1,train\np2,60,40,100,90,s2,B,h2,1,test\nn1,,,,,s3,A,h1,,train\n"
    report = prepare(images, tmp_path / "out", PLAIN, table(tmp_path, SEQUENCES + rows))
    manifest = read_manifest(tmp_path / "out").set_index("sample_id")
    assert manifest["patient_id"].to_dict() == {"n1.png": "A", "p1.png": "A", "p2.png": "B"}
    assert manifest.loc["p2.png", "sequence_id"] == "s2"
    assert manifest.loc["p2.png", "site"] == "h2"
    assert list(manifest.loc["p2.png", "polyp_ids"]) == ["s2/1"]
    info = read_info(tmp_path / "out")
    assert (info.label_level, report.has_splits, report.skipped) == ("patient", True, 1)
    assert assign_splits(tmp_path / "out", manifest, info).to_dict() == {
        "n1.png": "train",
        "p1.png": "train",
        "p2.png": "test",
    }
    assert sorted(path.name for path in (tmp_path / "out" / "shards").glob("*.tar")) == ["s1.tar", "s2.tar", "s3.tar"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("p1,60,40,100,90,s1,,,,train\np2,60,40,100,90,s1,,,,test\n", r"sequence 's1' is in two splits: .*would leak"),
        ("p1,60,40,100,90,s1,A,,,train\np2,60,40,100,90,s2,A,,,test\n", "patient 'A' is in two splits"),
        ("p1,60,40,100,90,s1,A,,,train\np2,60,40,100,90,s1,B,,,train\n", "'s1' belongs to the patients 'A'"),
        ("p1,60,40,100,90,s1,,,,train\np2,60,40,100,90,,,,,train\n", "row 3. has no sequence"),
        ("p1,60,40,100,90,s1,,,,train\np2,60,40,100,90,s2,,,,\n", "row 3. has no split"),
    ],
)
def test_leaks_and_gaps_are_refused_before_any_work(images, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        prepare(images, tmp_path / "out", PLAIN, table(tmp_path, SEQUENCES + rows))
    assert not (tmp_path / "out").exists()


def test_unlisted_frames_are_no_negatives_where_the_table_tells_sequences(images, tmp_path):
    path = table(tmp_path, SEQUENCES + "p1,60,40,100,90,s1,,,,train\n")
    with pytest.raises(InputError, match=r"n1\.png is not among the annotations"):
        prepare(images, tmp_path / "out", FrameOptions(unlisted="negative"), path)


def test_folders_are_sequences_where_there_are_several(tmp_path):
    for name in ("a/f10", "a/f2", "b/f1"):
        save(tmp_path / "in" / f"{name}.png", seed=len(name))
    prepare(tmp_path / "in", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    rows = manifest[["sample_id", "sequence_id", "frame_index"]].itertuples(index=False, name=None)
    assert list(rows) == [("a/f2.png", "a", 0), ("a/f10.png", "a", 1), ("b/f1.png", "b", 0)]
    assert read_info(tmp_path / "out").label_level == "sequence"
    with pytest.raises(InputError, match="no sequence column"):
        prepare(tmp_path / "in", tmp_path / "other", FrameOptions(sequence_from="column"))


def test_one_split_for_all_makes_external_data_without_training_frames(images, tmp_path):
    options = FrameOptions(split="test")
    assert prepare(images, tmp_path / "out", options, write_annotations("masks", tmp_path)).has_splits
    manifest = read_manifest(tmp_path / "out")
    assert set(assign_splits(tmp_path / "out", manifest, read_info(tmp_path / "out"))) == {"test"}


def test_video_frames_carry_their_numbers_and_boxes(tmp_path):
    save_video(tmp_path / "in" / "clip.avi", frames=50)
    rows = "video,frame,xmin,ymin,xmax,ymax\nclip.avi,10,20,10,60,50\nclip,15,,,,\nclip,11,20,10,60,50\nclip,99,,,,\n"
    report = prepare(tmp_path / "in", tmp_path / "out", PLAIN, table(tmp_path, rows))
    manifest = read_manifest(tmp_path / "out").set_index("frame_index")
    assert list(manifest.index) == list(range(0, 50, 5))
    assert manifest["label"].astype("str").fillna("none").loc[[5, 10, 15]].tolist() == ["none", "polyp", "negative"]
    assert manifest.loc[10, "sample_id"] == "clip.avi/000010"
    assert set(manifest["sequence_id"]) == {"clip.avi"}
    assert (report.passed_over, report.unlisted) == (1, 8)
    assert failures(tmp_path / "out") == {"clip.avi/99": "annotated, but the video has only 50 frames"}


def test_cut_video_keeps_its_frames_and_is_listed(tmp_path):
    data = save_video(tmp_path / "clip.avi").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.avi").write_bytes(data[: len(data) // 2])
    content = {"images": [{"id": 1, "file_name": "clip/45"}], "annotations": []}
    (tmp_path / "c.json").write_text(json.dumps(content))
    report = prepare(tmp_path / "in", tmp_path / "out", FrameOptions(fps=0), tmp_path / "c.json")
    assert 10 < report.frames < 40
    found = failures(tmp_path / "out")
    assert f"the {report.frames} frames before it are used" in found["clip.avi"]
    assert "annotated, but the video has only" in found["clip.avi/45"]


def test_run_taken_up_again_gives_the_same_bytes_as_one_in_one_go(tmp_path):
    for name in ("a/1", "a/2", "b/1", "c/1"):
        save(tmp_path / "in" / f"{name}.png", seed=len(name))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    prepare(tmp_path / "in", whole)
    assert prepare(tmp_path / "in", parts).done == 3
    assert contents(parts) == contents(whole)
    (parts / "shards" / "a.parquet").unlink()  # killed between the two renames
    (parts / "shards" / "b.tar").unlink()
    (parts / "shards" / ".c.tar.part").write_bytes(b"half a frame")
    (parts / "manifest.parquet").unlink()
    report = prepare(tmp_path / "in", parts)
    assert (report.done, report.finished) == (2, 1)
    assert contents(parts) == contents(whole)
    report = prepare(tmp_path / "in", parts)
    assert (report.done, report.finished) == (0, 3)
    assert contents(parts) == contents(whole)
    with pytest.raises(InputError, match=r"was made with size_px = 384, this run has 100"):
        prepare(tmp_path / "in", parts, FrameOptions(size_px=100, crop=False))


@pytest.mark.slow
def test_number_of_workers_does_not_change_the_bytes(tmp_path):
    for name in ("a/1", "b/1", "c/1"):
        save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "c" / "bad.png").write_bytes(b"")
    one, two = (prepare(tmp_path / "in", tmp_path / f"{count}", workers=count) for count in (1, 2))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert one == two


def test_further_inputs_join_and_dropped_ones_are_not_deleted_silently(tmp_path):
    for name in ("a/1", "b/1", "c/1"):
        save(tmp_path / "in" / f"{name}.png", seed=ord(name[0]))
    inputs = [tmp_path / "in" / name for name in "abc"]
    out = tmp_path / "out"
    prepare_frames(inputs[:2], out, PLAIN, None, progress=False)
    report = prepare_frames(inputs, out, PLAIN, None, progress=False)
    assert (report.done, report.finished, report.frames) == (1, 2, 3)
    before = contents(out)
    with pytest.raises(InputError, match=r"holds what is not among the inputs of this run: b\."):
        prepare_frames(inputs[::2], out, PLAIN, None, progress=False)
    assert contents(out) == before
    assert prepare_frames(inputs[::2], out, PLAIN, None, progress=False, force=True).frames == 2


def test_yolo_files_may_lie_beside_their_images(images, tmp_path):
    for path in write_annotations("yolo", tmp_path).iterdir():
        path.rename(images / path.name)
    assert prepare(images, tmp_path / "out", PLAIN, images).polyps == 2


def test_masks_below_the_input_are_no_frames(images, tmp_path):
    masks = write_annotations("masks", tmp_path).rename(images / "masks")
    assert prepare(images, tmp_path / "out", PLAIN, masks).frames == 4


def test_nothing_usable_leaves_an_empty_dataset_that_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    report = prepare(tmp_path / "in", tmp_path / "out", FrameOptions(split="test"))
    assert (report.frames, report.has_splits, len(report.failures)) == (0, False, 1)
    assert read_manifest(tmp_path / "out").empty
    assert not (tmp_path / "out" / "contact_sheet.jpg").exists()


def test_corrected_annotations_remake_their_shard_only(tmp_path):
    for name in ("a/1", "b/1"):
        save(tmp_path / "in" / f"{name}.png")
    text = "image,xmin,ymin,xmax,ymax\na/1,60,40,100,90\nb/1,60,40,100,90\n"
    prepare(tmp_path / "in", tmp_path / "out", PLAIN, table(tmp_path, text))
    report = prepare(tmp_path / "in", tmp_path / "out", PLAIN, table(tmp_path, text.replace("b/1,60", "b/1,70")))
    assert (report.done, report.finished) == (1, 1)
    assert boxes_of(read_manifest(tmp_path / "out"))["b/1.png"] == [(70, 40, 100, 90)]


def test_given_splits_are_not_changed_silently(images, tmp_path):
    rows = SEQUENCES + "p1,60,40,100,90,s1,,,,train\np2,60,40,100,90,s2,,,,test\n"
    prepare(images, tmp_path / "out", PLAIN, table(tmp_path, rows))
    changed = table(tmp_path, rows.replace("train", "val"), "changed.csv")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="has 's1' in train, this run in val"):
        prepare(images, tmp_path / "out", PLAIN, changed)
    assert contents(tmp_path / "out") == before
    prepare(images, tmp_path / "out", PLAIN, changed, force=True)
    assert "val" in (tmp_path / "out" / "splits.csv").read_text()


def test_same_picture_in_two_sequences_is_reported(tmp_path):
    for name in ("a/1", "b/1", "b/2"):
        save(tmp_path / "in" / f"{name}.png", seed=name == "b/2")
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert report.duplicates == [("b/1.png", "a/1.png")]
    assert pd.read_csv(tmp_path / "out" / "duplicates.csv").to_dict("list") == {
        "sample_id": ["b/1.png"],
        "same_as": ["a/1.png"],
    }


def test_two_runs_do_not_write_to_one_folder(images, tmp_path):
    with sole_user(tmp_path / "out"), pytest.raises(InputError, match="another run is writing"):
        prepare(images, tmp_path / "out")


def test_polyp_names_are_kept_only_where_every_box_has_one(images, tmp_path):
    rows = "p1,60,40,100,90,A\np2,50,30,90,70,A\np2,110,80,150,120,\n"
    path = table(tmp_path, "image,xmin,ymin,xmax,ymax,polyp\n" + rows)
    prepare(images, tmp_path / "out", PLAIN, path)
    names = read_manifest(tmp_path / "out").set_index("sample_id")["polyp_ids"]
    assert list(names["p1.png"]) == ["A"]  # without sequences a name holds for the whole dataset
    assert names["p2.png"] is None


def test_contact_sheet_shows_boxes(images, tmp_path):
    prepare(images, tmp_path / "out", PLAIN, write_annotations("masks", tmp_path))
    with Image.open(tmp_path / "out" / "contact_sheet.jpg") as sheet:
        yellow = (np.abs(np.asarray(sheet.convert("RGB")).astype(int) - (255, 235, 0)).sum(axis=2) < 90).sum()
    assert yellow > 200


def test_named_class_must_exist(images, tmp_path):
    path = write_annotations("coco", tmp_path)
    assert prepare(images, tmp_path / "out", FrameOptions(polyp_classes=("Polyp",)), path).polyps == 2
    with pytest.raises(InputError, match=r"--polyp-class tool: .* has no such class; its classes: \['polyp'\]"):
        prepare(images, tmp_path / "other", FrameOptions(polyp_classes=("tool",)), path)


def test_annotations_whose_format_is_unclear_are_refused(images, tmp_path):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.xml").write_text("<annotation/>")
    (tmp_path / "mixed" / "a.txt").write_text("")
    (tmp_path / "notes.md").write_text("")
    for path, message in (("mixed", "several formats"), ("notes.md", "expected a .json"), ("absent", "does not exist")):
        with pytest.raises(InputError, match=message):
            prepare(images, tmp_path / "out", PLAIN, tmp_path / path)
    assert not (tmp_path / "out").exists()


def research_data():
    root = os.environ.get("KDML_MED_DATA")
    if not root or not (Path(root) / "polyp").is_dir():
        pytest.skip("the research data folder is not at hand; KDML_MED_DATA names it")
    return Path(root) / "polyp"


@pytest.mark.real_data
def test_masks_and_boxes_of_clinicdb_agree(tmp_path):
    source = research_data() / "cvc-clinicdb"
    stored = []
    for name, annotations in (("masks", source / "masks"), ("table", source / "boxes.csv")):
        report = prepare(source / "images", tmp_path / name, FrameOptions(), annotations)
        assert (report.frames, report.polyps, report.boxes, report.cropped) == (408, 408, 420, 408)
        stored.append(boxes_of(read_manifest(tmp_path / name)))
    masks, table_boxes = stored
    # The table was made without single pixels that touch a polyp by a corner: a few boxes are a little smaller there.
    gaps = [np.abs(np.subtract(sorted(found), sorted(table_boxes[name]))).max() for name, found in masks.items()]
    assert max(gaps) <= 5
    assert np.mean(np.array(gaps) == 0) > 0.97


@pytest.mark.real_data
def test_specks_of_kvasir_are_dropped_and_no_picture_is_lost(tmp_path):
    source = research_data() / "kvasir-seg"
    report = prepare(source / "images", tmp_path / "out", FrameOptions(), source / "boxes.csv")
    assert (report.frames, report.boxes, len(report.failures), report.label_level) == (1000, 1064, 7, "frame")
