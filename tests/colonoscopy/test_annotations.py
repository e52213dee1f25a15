"""Annotations that cannot be read or tied: their frames are left out by name and are never negatives."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.colonoscopy.annotations import match_annotations
from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes
from kdml_med.colonoscopy.coco import format_coco
from kdml_med.colonoscopy.formats import format_voc
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.colonoscopy.report import describe_report
from kdml_med.colonoscopy.sources import Source
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_manifest
from tests.colonoscopy.pictures import save, save_mask, save_video

BOX = (60, 40, 100, 90)
NEGATIVE = FrameOptions(crop=False, unlisted="negative")


def prepare(tmp_path, annotations, options=NEGATIVE):
    """Labels and failures of what is in the folder ``in``."""
    report = prepare_frames([tmp_path / "in"], tmp_path / "out", options, annotations, progress=False)
    rows = read_manifest(tmp_path / "out")
    reasons = {}
    for name, reason in report.failures:
        reasons[name] = f"{reasons[name]}; {reason}" if name in reasons else reason
    return dict(zip(rows["sample_id"], rows["label"], strict=True)), reasons


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def pictures(tmp_path):
    for seed, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.png", seed=seed)
    return tmp_path


def test_a_coco_annotation_of_no_image_leaves_no_negatives(pictures):
    content = format_coco([FrameBoxes("a.png", (BOX,)), FrameBoxes("b.png")])
    assert prepare(pictures, write(pictures / "whole.json", json.dumps(content)))[0] == {
        "a.png": "polyp",
        "b.png": "negative",
        "c.png": "negative",
    }
    content["annotations"].append({"image_id": 77, "bbox": [1, 2, 30, 40]})
    (pictures / "out").rename(pictures / "before")
    labels, failures = prepare(pictures, write(pictures / "orphan.json", json.dumps(content)))
    assert labels == {"a.png": "polyp"}
    assert "annotations[1] belongs to no image" in failures["b.png"]
    assert "annotations[1] in the annotations may mean it" in failures["c.png"]


@pytest.mark.parametrize("given", ["B.PNG", "b .jpg", "B"])
def test_an_input_that_an_annotation_without_one_may_mean_is_no_negative(pictures, given):
    table = write(pictures / "t.csv", f"image,xmin,ymin,xmax,ymax\na,60,40,100,90\n{given},60,40,100,90\n")
    labels, failures = prepare(pictures, table)
    assert labels == {"a.png": "polyp", "c.png": "negative"}
    assert failures[given] == "row 3: no such image or frame"
    assert failures["b.png"] == f"left out: {given!r} in the annotations may mean it"


def test_a_row_about_a_video_without_a_frame_leaves_its_other_frames_out(tmp_path):
    save_video(tmp_path / "in" / "clip.mp4", frames=10)
    options = FrameOptions(crop=False, unlisted="negative", fps=0)
    rows = "video,frame,xmin,ymin,xmax,ymax\nclip.mp4,3,10,10,60,50\nclip.mp4,three,10,10,60,50\n"
    labels, failures = prepare(tmp_path, write(tmp_path / "t.csv", rows), options)
    assert labels == {"clip.mp4/000003": "polyp"}
    assert "row 3: frame is 'three'" in failures["clip.mp4"]
    assert "frames that are not annotated are left out" in failures["clip.mp4"]


def test_a_voc_file_that_names_another_image_than_its_own_is_not_believed(pictures):
    for name, says in {"a": "a.png", "b": "a.png", "c": "somewhere/else.jpg"}.items():
        write(pictures / "voc" / f"{name}.xml", format_voc(FrameBoxes(says, (BOX,), width=200, height=160)))
    labels, failures = prepare(pictures, pictures / "voc")
    assert labels == {"a.png": "polyp", "c.png": "polyp"}
    assert "b.xml says that it is about 'a.png'" in failures["b.png"]
    (pictures / "voc" / "a.xml").unlink()
    (pictures / "out").rename(pictures / "before")
    labels, failures = prepare(pictures, pictures / "voc")
    assert labels == {"c.png": "polyp"}, "what b.xml says may be about a"
    assert "b.xml in the annotations may mean it" in failures["a.png"]


def test_boxes_given_twice_count_once():
    twice = FrameBoxes("a.png", (BOX, BOX, (1, 2, 30, 40)), classes=("x", "y", "x"), place="row 2")
    found = match_annotations(BoxTable([twice]), [Source("a.png", Path("a.png"))], FrameOptions(), "t.csv")
    (frame,) = found.frames.values()
    assert (frame.boxes, frame.classes) == ((BOX, (1, 2, 30, 40)), ("x", "x"))
    assert found.failures == [("a.png", "1 box given twice counts once")]


def test_one_impossible_number_costs_its_own_frame_only(pictures):
    rows = "image,frame,xmin,ymin,xmax,ymax\na,1e300,60,40,100,90\nb,4,60,40,100,90\nc,nan,60,40,1e300,90\n"
    labels, failures = prepare(pictures, write(pictures / "t.csv", rows))
    assert labels == {"b.png": "polyp"}
    assert set(failures) == {"a.png", "c.png"}


@pytest.mark.parametrize(
    ("encoding", "works"), [("utf-8", True), ("utf-8-sig", True), ("utf-16", True), ("latin-1", False)]
)
def test_yolo_classes_are_read_as_unicode_or_refused_in_one_line(pictures, encoding, works):
    write(pictures / "yolo" / "a.txt", "0 0.5 0.5 0.3 0.3\n".encode("utf-16"))
    write(pictures / "yolo" / "classes.txt", "polype pédiculé\n".encode(encoding))
    options = FrameOptions(crop=False, unlisted="skip", polyp_classes=("polype pédiculé",))
    if works:
        assert prepare(pictures, pictures / "yolo", options)[0] == {"a.png": "polyp"}
    else:
        with pytest.raises(InputError, match=r"classes\.txt cannot be read as UTF-8 text"):
            prepare(pictures, pictures / "yolo", options)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"images": [' + "[" * 2000, "\xff", '{"images": 1}', ""])
def test_json_that_is_no_coco_is_refused_in_one_line(pictures, content):
    with pytest.raises(InputError, match=r"c\.json"):
        prepare(pictures, write(pictures / "c.json", content.encode("latin-1")))


def test_masks_behind_links_count_and_masks_of_other_kinds_are_named(pictures):
    save_mask(pictures / "archive" / "a.png", [BOX])
    (pictures / "masks").mkdir()
    (pictures / "masks" / "linked").symlink_to(pictures / "archive")
    Image.fromarray(np.zeros((160, 200), np.uint8)).save(pictures / "masks" / "b.gif")
    labels, failures = prepare(pictures, pictures / "masks")
    assert labels == {"a.png": "polyp", "c.png": "negative"}
    assert "its mask b.gif: .gif files are not read" in failures["b.png"]


def test_annotations_that_cannot_be_reached_leave_no_negatives(pictures):
    (pictures / "in" / "c.png").rename(pictures / "in" / "cé.png")
    save_mask(pictures / "masks" / "a.png", [BOX])
    (pictures / "masks" / "b.png").symlink_to(pictures / "nowhere")
    data = (pictures / "masks" / "a.png").read_bytes()
    Path(os.fsdecode(os.fsencode(pictures / "masks") + b"/c\xe9.png")).write_bytes(data)
    labels, failures = prepare(pictures, pictures / "masks")
    assert labels == {"a.png": "polyp"}
    assert "which is not there" in failures["b.png"]
    assert "may mean it" in failures["cé.png"]


def test_names_with_line_breaks_stay_one_line_on_the_screen(tmp_path):
    for seed, name in enumerate(("a\nb.png", "c\rd.png")):
        save(tmp_path / "in" / name, seed=seed)
    table = write(tmp_path / "t.csv", 'image,xmin,ymin,xmax,ymax\n"a\nb.png",60,40,100,90\n"x\ny",60,40,100,90\n')
    report = prepare_frames([tmp_path / "in"], tmp_path / "out", NEGATIVE, table, progress=False)
    assert set(read_manifest(tmp_path / "out")["sample_id"]) == {"a\nb.png", "c\rd.png"}
    assert list(pd.read_csv(tmp_path / "out" / "failures.csv")["input"]) == ["x\ny"]
    lines = describe_report(report, tmp_path)
    assert all(line.isprintable() for line in lines)
    assert any("x\\ny: row" in line for line in lines)


@pytest.mark.parametrize("masks", ["Ground Truth/a.png", "masks_C1/deep/a.png", "frames/a_mask.png"])
def test_masks_among_the_inputs_are_no_frames(tmp_path, masks):
    save(tmp_path / "in" / "frames" / "a.png")
    save_mask(tmp_path / "in" / masks, [BOX])
    table = write(tmp_path / "t.csv", "image,xmin,ymin,xmax,ymax\nframes/a.png,60,40,100,90\n")
    labels, failures = prepare(tmp_path, table)
    assert labels == {"frames/a.png": "polyp"}
    assert [*failures] == [str(Path(masks).parent)]


@pytest.mark.parametrize("name", ["seg_01/a.png", "patient_GT/a.png", "unmasked/a.png", "x/b_mask.png"])
def test_folders_and_names_that_only_resemble_those_of_masks_are_read(tmp_path, name):
    save(tmp_path / "in" / name)
    save(tmp_path / "in" / "frames" / "b.png", seed=1)
    assert prepare(tmp_path, None)[0].keys() == {name, "frames/b.png"}


def test_pictures_that_are_all_named_as_masks_are_frames(tmp_path):
    save(tmp_path / "in" / "gt" / "a_mask.png")
    assert prepare(tmp_path, None)[0].keys() == {"gt/a_mask.png"}


@pytest.mark.parametrize(
    ("image", "label"),
    [("train/images/a.png", "train/labels/a.txt"), ("images/train/a.png", "labels/train/a.txt")],
)
def test_folders_of_images_and_labels_go_together_and_notes_do_not_count(tmp_path, image, label):
    save(tmp_path / "in" / image)
    write(tmp_path / "in" / label, "0 0.4 0.40625 0.2 0.3125\n")
    for name in ("README.roboflow.txt", "LICENSE.txt", "checksums.txt"):
        write(tmp_path / "in" / name, "This set has 7 images\n")
    assert prepare(tmp_path, tmp_path / "in") == ({image: "polyp"}, {})


def test_notes_beside_masks_do_not_make_their_format_unclear(pictures):
    for name in "abc":
        save_mask(pictures / "masks" / f"{name}.png", [BOX])
    write(pictures / "masks" / "notes.txt", "drawn by two people\n")
    write(pictures / "masks" / "project.xml", "<project/>")
    assert prepare(pictures, pictures / "masks") == (dict.fromkeys(("a.png", "b.png", "c.png"), "polyp"), {})


@pytest.mark.parametrize(
    ("name", "text"),
    [("case1.txt", "a.png 60,40,100,90,0\n"), ("cvat.xml", "<annotation><object/></annotation>"), ("t.csv", None)],
)
def test_annotations_of_something_else_make_no_negatives(pictures, name, text):
    path = write(pictures / "boxes" / name, text or "image,xmin,ymin,xmax,ymax\nother.png,60,40,100,90\n")
    with pytest.raises(InputError, match="none of the annotations fits an input"):
        prepare(pictures, path if name.endswith("csv") else path.parent)


@pytest.mark.parametrize(("image", "mask"), [("1.png", "p1.png"), ("x.png", "x_mask.png"), ("x 1.png", "x 1-gt.png")])
def test_masks_with_a_word_more_leave_their_images_out(tmp_path, image, mask):
    save(tmp_path / "in" / image)
    save(tmp_path / "in" / "b.png")
    save_mask(tmp_path / "masks" / mask, [BOX])
    save_mask(tmp_path / "masks" / "b.png", [BOX])
    assert prepare(tmp_path, tmp_path / "masks")[0] == {"b.png": "polyp"}


def test_boxes_of_what_is_no_polyp_are_refused(pictures):
    table = "image,xmin,ymin,xmax,ymax,class\na.png,60,40,100,90,Polyp\nb.png,60,40,100,90,Non-polyp\n"
    path = write(pictures / "t.csv", table)
    with pytest.raises(InputError, match="'Non-polyp', which would be polyps"):
        prepare(pictures, path)
    write(path, table + "c.png,60,40,100,90,\n")
    labels, failures = prepare(pictures, path, FrameOptions(crop=False, polyp_classes=("polyp",)))
    assert labels == {"a.png": "polyp", "b.png": "negative"}
    assert "has no class" in failures["c.png"]


@pytest.mark.parametrize(("numbers", "used"), [((1, 10), 0), ((0, 10), 1), ((1, 9), 2), ((1, 11), 1)])
def test_frame_numbers_that_begin_with_1_are_not_taken_for_others(tmp_path, numbers, used):
    save_video(tmp_path / "in" / "clip.mp4", 10, size=(200, 160))
    rows = [f"clip.mp4,{number},60,40,100,90\n" for number in numbers]
    path = write(tmp_path / "t.csv", "video,frame,xmin,ymin,xmax,ymax\n" + "".join(rows))
    labels, failures = prepare(tmp_path, path, FrameOptions(crop=False, fps=0, unlisted="skip"))
    assert len(labels) == used
    assert ("begin with 1" in failures.get("clip.mp4", "")) == (used == 0)


@pytest.mark.parametrize(("name", "label"), [("x.png", "polyp"), ("l.png", None)])
def test_an_image_goes_by_its_own_name_and_one_of_a_link_to_it_makes_no_negative(tmp_path, name, label):
    save(tmp_path / "in" / "b.png", seed=1)
    (tmp_path / "in" / "l.png").symlink_to(save(tmp_path / "in" / "x.png"))
    path = write(tmp_path / "t.csv", f"image,xmin,ymin,xmax,ymax\n{name},60,40,100,90\n")
    assert prepare(tmp_path, path)[0] == {"b.png": "negative"} | ({"x.png": label} if label else {})
