import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from kdml_med.colonoscopy.boxes import FrameBoxes, FrameError, boxes_of_mask, check_boxes
from kdml_med.colonoscopy.coco import format_coco, parse_coco
from kdml_med.colonoscopy.formats import (
    EDGES,
    TABLE_COLUMNS,
    decode_xml,
    format_voc,
    format_yolo,
    parse_table,
    parse_voc,
    parse_yolo,
)
from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.errors import InputError
from tests.examples import examples

WIDTH, HEIGHT = 640, 480
EDGE = st.integers(0, 4000).map(lambda n: n / 10)


def make_box(x, y, width, height):
    return (x, y, x + width, y + height)


BOXES = st.lists(
    st.builds(make_box, EDGE, st.integers(0, 2000).map(lambda n: n / 10), *[st.floats(1, 200)] * 2), max_size=4
)
KINDS = st.sampled_from(["adenoma", "hyperplastic"])


@st.composite
def frames(draw):
    boxes = tuple(draw(BOXES))
    kinds = tuple(draw(KINDS) for _ in boxes)
    return FrameBoxes("a/b 1.jpg", boxes, classes=kinds, width=WIDTH, height=HEIGHT)


def format_table(frames: Iterable[FrameBoxes]) -> pd.DataFrame:
    """Table that ``parse_table`` reads back, text cells, all of ``TABLE_COLUMNS``."""
    rows: list[dict[str, Any]] = []
    for frame in frames:
        common: dict[str, Any] = {"image": frame.image, "frame": frame.frame}
        common |= {name: getattr(frame, name) for name in TABLE_COLUMNS[8:]}
        if not frame.boxes:
            rows.append(common)
        for i, box in enumerate(frame.boxes):
            named = {"class": frame.classes[i] if frame.classes else None}
            named |= {"polyp": frame.polyps[i] if frame.polyps else None}
            rows.append(common | dict(zip(EDGES, map(repr, box), strict=True)) | named)
    cells = [{name: "" if row.get(name) is None else str(row[name]) for name in TABLE_COLUMNS} for row in rows]
    return pd.DataFrame(cells, columns=list(TABLE_COLUMNS), index=range(2, len(cells) + 2), dtype=object)


def assert_same(read, written):
    assert (read.image, read.classes) == (written.image, written.classes)
    np.testing.assert_allclose(check_boxes(read, WIDTH, HEIGHT), check_boxes(written, WIDTH, HEIGHT), atol=1e-5)


@settings(max_examples=examples(40), deadline=None)
@given(frames())
def test_every_format_reads_back_what_it_wrote(known):
    assert_same(replace(parse_voc(format_voc(known), "x.xml"), image=known.image), known)
    assert parse_voc(format_voc(known), "x.xml").other_name == known.image
    names = ["adenoma", "hyperplastic"]
    assert_same(parse_yolo(format_yolo(known, WIDTH, HEIGHT, names), known.image, names), known)
    (read,) = parse_coco(format_coco([known]), "x.json").frames
    assert_same(read, known)
    assert (read.width, read.height) == (WIDTH, HEIGHT)
    full = replace(
        known, polyps=tuple("ab"[i % 2] for i in range(len(known.boxes))), sequence="s", patient="p", split="val"
    )
    (read,) = parse_table(format_table([full]), "x.csv").frames
    assert replace(read, place="") == full  # text keeps every digit


def test_voc_counts_pixels_from_1_and_includes_both_ends():
    text = (
        "<annotation><filename>i.jpg</filename><size><width>10</width><height>8</height></size><object><name>polyp</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object></annotation>"
    )
    assert parse_voc(text, "i.xml").boxes == ((0, 0, 10, 8),)


def test_yolo_edge_to_edge_is_the_whole_image():
    assert check_boxes(parse_yolo("0 0.5 0.5 1 1\n\n", "a"), 10, 8) == [(0, 0, 10, 8)]
    assert parse_yolo("\n", "a").boxes == ()


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(frames(), min_size=1, max_size=3))
def test_pycocotools_reads_what_is_written(known):
    known = [replace(item, image=f"{i}.jpg") for i, item in enumerate(known)]
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = format_coco(known)
        coco.createIndex()
    for item, image in zip(known, coco.loadImgs(coco.getImgIds()), strict=True):
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert image["file_name"] == item.image
        boxes = np.array([a["bbox"] for a in found]).reshape(-1, 4)
        expected = np.array(item.boxes).reshape(-1, 4)
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], expected[:, 2:], atol=1e-9)
        assert [coco.loadCats(a["category_id"])[0]["name"] for a in found] == list(item.classes)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 10), st.integers(1, 10))
def test_mask_boxes_agree_with_pycocotools(x, y, width, height):
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    (box,) = boxes_of_mask(mask.astype(bool))
    expected = coco_mask.toBbox(coco_mask.encode(mask))
    assert [box[0], box[1], box[2] - box[0], box[3] - box[1]] == list(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation><object>", "not XML"),
        ("<html/>", "its root is <html>"),
        ("<annotation><object><name>p</name></object></annotation>", "object 1 has None as xmin"),
        ("<annotation><size><width>wide</width></size></annotation>", "the image has 'wide' as width"),
    ],
)
def test_unreadable_voc_makes_a_problem(text, reason):
    assert reason in parse_voc(text, "a.xml").problem


@pytest.mark.parametrize("line", ["0 0.5 0.5 1", "polyp 0.5 0.5 1 1", "0 0.5 0.5 1 1 0.9", "0 0,5 0.5 1 1"])
def test_unreadable_yolo_names_the_line(line):
    assert "a.txt, line 2" in parse_yolo(f"0 0.5 0.5 1 1\n{line}\n", "a.txt").problem


def test_coco_keeps_what_is_good_and_names_the_rest():
    content = {
        "images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}, {"id": 3, "file_name": "c"}, {"id": 4}],
        "annotations": [
            {"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1},
            {"image_id": 2, "bbox": [1, 2, 3], "category_id": 1},
            {"image_id": 9, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 1, "name": "polyp"}],
    }
    read = parse_coco(content, "x.json")
    assert [(f.image, f.boxes, f.problem is None) for f in read.frames] == [
        ("a", ((1, 2, 4, 6),), True),
        ("b", (), False),
        ("c", (), False),  # the last annotation may be its own
    ]
    assert [reason for _, reason in read.problems] == [
        "images[3] has no file_name",
        "annotations[2]: no image has its image_id 9",
    ]
    content["annotations"] = content["annotations"][:1]
    assert [frame.problem for frame in parse_coco(content, "x.json").frames] == [None] * 3
    content["annotations"] = [{"image_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1}]
    assert "crowd" in parse_coco(content, "x.json").frames[0].problem
    for wrong in ([], {"images": []}, {"images": {}, "annotations": []}):
        with pytest.raises(InputError, match=r"x\.json"):
            parse_coco(wrong, "x.json")


def table(*rows, header="image,xmin,ymin,xmax,ymax"):
    columns = header.split(",")
    return pd.DataFrame([row.split(",") for row in rows], columns=columns, index=range(2, len(rows) + 2), dtype=object)


def test_table_joins_rows_and_reads_empty_edges_as_no_polyp():
    read = parse_table(table("a,1,2,3,4", "b,,,,", "a,5,6,7,8"), "x.csv")
    assert [(f.image, f.boxes, f.problem) for f in read.frames] == [
        ("a", ((1, 2, 3, 4), (5, 6, 7, 8)), None),
        ("b", (), None),
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a,1,2,x,4"], "row 2: xmax is 'x', expected a number"),
        (["a,1,2,,4"], "row 2: only xmin and ymin and ymax of the four edges"),
        (["a,1,2,3,4", "a,,,,"], "row 2 and row 3 contradict"),
        (["a,1,2,3,4", "a,1,2,x,4"], "row 3: xmax"),
    ],
)
def test_unreadable_row_spoils_its_frame_only(rows, reason):
    read = parse_table(table(*rows, "good,1,2,3,4"), "x.csv")
    assert reason in read.frames[0].problem
    assert read.frames[1].problem is None


def test_row_without_an_image_is_listed():
    assert parse_table(table(",1,2,3,4"), "x.csv").problems == [("x.csv", "row 2: no image in column 'image'")]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("image,xmin,ymin,xmax", ["a,1,2,3"], r"lacks the columns \['ymax'\]"),
        ("image,path,xmin,ymin,xmax,ymax", ["a,a,1,2,3,4"], "could each be the image column"),
        (
            "image,xmin,ymin,xmax,ymax,patient,Patient",
            ["a,1,2,3,4,P1,visit1", "b,1,2,3,4,P1,visit2"],
            r"\['patient', 'Patient'\] could each be the patient column",
        ),
        ("image,xmin,ymin,xmax,ymax,patient id,Patient_ID", ["a,1,2,3,4,P,Q"], r"\['patient id', 'Patient_ID'\]"),
        ("image,xmin,Xmin,ymin,xmax,ymax", ["a,1,1,2,3,4"], r"\['xmin', 'Xmin'\] could each be the xmin column"),
        ("image,xmin,ymin,xmax,ymax,patient", ["a,1,2,3,4,7", "b,1,2,3,4,007"], r"'7' \(row 2\) and '007' \(row 3\)"),
        ("image,xmin,ymin,xmax,ymax,split", ["a,1,2,3,4,dev"], "row 2: split is 'dev'"),
        (
            "image,xmin,ymin,xmax,ymax,sequence",
            ["a,1,2,3,4,1", "a,1,2,3,4,2"],
            "sequence '1' in row 2 and '2' in row 3",
        ),
    ],
)
def test_tables_that_mean_nothing_certain_are_refused(header, rows, message):
    with pytest.raises(InputError, match=message):
        parse_table(table(*rows, header=header), "x.csv")


IDS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@pytest.mark.parametrize("change", [str, float, lambda number: f" {number} "])
def test_coco_ids_are_one_id_as_number_and_as_text(change):
    known = [FrameBoxes(f"{i}.jpg", ((1, 2, 30, 40),) * (i > 0), classes=("polyp",) * (i > 0)) for i in range(3)]
    content = format_coco(known)
    for found in content["annotations"]:
        found["image_id"], found["category_id"] = change(found["image_id"]), change(found["category_id"])
    read = parse_coco(content, "x.json")
    assert [replace(frame, place="") for frame in read.frames] == known
    assert read.problems == []


@settings(max_examples=examples(60))
@given(
    st.lists(IDS, min_size=1, max_size=3),
    st.lists(st.tuples(IDS, IDS, st.one_of(IDS, st.just([1, 2, 30, 40])), IDS), max_size=4),
)
def test_coco_of_any_json_types_never_makes_a_negative_of_a_frame_whose_boxes_were_not_read(ids, annotations):
    content = {
        "images": [{"id": key, "file_name": f"{i}.jpg"} for i, key in enumerate(ids)],
        "annotations": [
            {"image_id": key, "category_id": kind, "bbox": box, "iscrowd": crowd}
            for key, kind, box, crowd in annotations
        ],
        "categories": [{"id": key, "name": "polyp"} for key in ids],
    }
    read = parse_coco(content, "x.json")
    boxes = sum(len(frame.boxes) for frame in read.frames)
    negatives = [frame for frame in read.frames if not frame.boxes and frame.problem is None]
    refused = sum(frame.problem is not None for frame in read.frames)
    assert len(read.frames) == len(ids)
    assert boxes + len(read.untied) + refused > 0 or not annotations
    assert not (negatives and read.untied)


def test_two_coco_images_with_one_id_are_refused_and_the_others_stay():
    content = format_coco([FrameBoxes(f"{name}.jpg", ((1, 2, 30, 40),)) for name in "abc"])
    content["images"][1]["id"] = 1
    content["annotations"][1]["image_id"] = 1
    problems = {frame.image: frame.problem for frame in parse_coco(content, "x.json").frames}
    assert "two images have the id 1" in problems["a.jpg"]
    assert problems["a.jpg"] == problems["b.jpg"]
    assert problems["c.jpg"] is None


def test_coco_with_corners_instead_of_sizes_is_refused():
    corners = [(20, 30, 200, 210), (100, 90, 150, 140), (5, 6, 90, 80)]
    known = [FrameBoxes(f"{i}.jpg", (box,), width=220, height=220) for i, box in enumerate(corners)]
    content = format_coco(known)
    assert [frame.problem for frame in parse_coco(content, "x.json").frames] == [None] * 3
    for found, box in zip(content["annotations"], corners, strict=True):
        found["bbox"] = list(box)
    assert all("corners" in frame.problem for frame in parse_coco(content, "x.json").frames)


@pytest.mark.parametrize(
    "size", [{"width": "wide"}, {"height": -1}, {"width": 1e300}, {"width": [3]}, {"height": float("nan")}]
)
def test_a_coco_size_that_is_none_spoils_its_frame_only(size):
    content = {
        "images": [{"id": 1, "file_name": "a", **size}, {"id": 2, "file_name": "b", "width": 640.0}],
        "annotations": [],
    }
    first, second = parse_coco(content, "x.json").frames
    assert "states the size" in first.problem
    assert (second.width, second.problem) == (640, None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb2312", "latin-1", "cp1252", "shift_jis"])
def test_voc_is_read_in_the_encoding_that_it_declares(encoding):
    name = {"gb2312": "息肉", "shift_jis": "腺腫"}.get(encoding, "adénome")
    known = FrameBoxes("a.jpg", ((1, 2, 30, 40),), classes=(name,))
    declared = "utf-8" if encoding == "utf-8-sig" else encoding
    data = f'<?xml version="1.0" encoding="{declared}"?>{format_voc(known)}'.encode(encoding)
    read = parse_voc(decode_xml(data), "a.xml")
    assert (read.classes, read.boxes) == (known.classes, known.boxes)


def test_voc_in_no_encoding_or_another_than_it_declares_is_an_error_to_name():
    for data in (b'<?xml version="1.0" encoding="martian"?><a/>', b'<?xml version="1.0"?><a>\xe9</a>'):
        with pytest.raises((LookupError, UnicodeError)):
            decode_xml(data)


@pytest.mark.parametrize("value", ["1e300", "-1", "inf", "2.5", str(2**31)])
@pytest.mark.parametrize("column", ["frame", "width"])
def test_a_number_that_no_frame_can_have_spoils_its_row_only(column, value):
    read = parse_table(
        table(f"a,1,2,3,4,{value}", "b,1,2,3,4,7", header=f"image,xmin,ymin,xmax,ymax,{column}"), "x.csv"
    )
    assert f"{column} is '{value}', expected a whole number" in read.frames[0].problem
    assert read.frames[1].problem is None


def test_yolo_classes_beyond_the_names_are_refused():
    assert parse_yolo("1 0.5 0.5 1 1", "a.txt", ["polyp", "tool"]).problem is None
    assert "class 2, but classes.txt names 0 to 1" in parse_yolo("2 0.5 0.5 1 1", "a.txt", ["polyp", "tool"]).problem


VOC_BOX = "<bndbox><xmin>61</xmin><ymin>41</ymin><xmax>100</xmax><ymax>90</ymax></bndbox>"


@pytest.mark.parametrize(
    "content",
    [
        f"<objects><object>{VOC_BOX}</object></objects>",
        f"<Object>{VOC_BOX}</Object>",
        f"<object>{VOC_BOX}{VOC_BOX}</object>",
        f"<object>{VOC_BOX.replace('bndbox', 'robndbox')}</object>",
        f"<object>{VOC_BOX}<attributes><attribute><name>rotation</name><value>30.5</value></attribute></attributes>"
        "</object>",
    ],
)
def test_voc_boxes_that_would_be_overlooked_or_are_turned_are_refused(content):
    found = parse_voc(f"<annotation>{content}</annotation>", "a.xml")
    assert found.problem is not None
    assert not found.boxes


def test_voc_boxes_of_parts_and_angles_of_0_do_no_harm():
    more = (
        f"<part>{VOC_BOX}</part><attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes>"
    )
    found = parse_voc(f"<annotation><object>{VOC_BOX}{more}</object></annotation>", "a.xml")
    assert (found.boxes, found.problem) == (((60, 40, 100, 90),), None)


def test_yolo_boxes_that_fit_as_corners_only_are_refused(tmp_path):
    for name, line in {"a": "0 0.2 0.3 0.5 0.6", "b": "0 0.6 0.5 0.9 0.9"}.items():
        (tmp_path / f"{name}.txt").write_text(line)
    assert all("as corners" in str(frame.problem) for frame in FORMATS["yolo"].read_all(tmp_path).frames)
    (tmp_path / "c.txt").write_text("0 0.5 0.5 0.1 0.1")  # no second corner
    assert not any(frame.problem for frame in FORMATS["yolo"].read_all(tmp_path).frames)


def test_yolo_classes_are_counted_as_they_stand(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.1 0.1")
    (tmp_path / "classes.txt").write_text("tool\n\npolyp\n")
    with pytest.raises(InputError, match="empty line"):
        FORMATS["yolo"].read_all(tmp_path)
    (tmp_path / "classes.txt").write_text("tool\npolyp\n\n")
    assert FORMATS["yolo"].read_all(tmp_path).frames[0].classes == ("polyp",)
    assert "begin with 0" in str(parse_yolo("-1 0.5 0.5 0.1 0.1", "a.txt").problem)


@pytest.mark.parametrize("more", [{"attributes": {"rotation": 30}}, {"ignore": 1}])
def test_coco_boxes_that_are_no_upright_polyp_leave_their_frame_out(more):
    content = format_coco([FrameBoxes("a.png", ((60, 40, 100, 90),))])
    content["annotations"][0]["attributes"] = {"rotation": 0.0, "occluded": False}
    assert parse_coco(content, "x").frames[0].problem is None
    content["annotations"][0] |= more
    assert parse_coco(content, "x").frames[0].problem is not None


def test_a_coco_category_with_two_names_fits_nothing():
    content = format_coco([FrameBoxes("a.png", ((60, 40, 100, 90),))])
    content["categories"] += [{"id": 1, "name": "tool"}, {"id": 2, "name": "x"}]
    assert "category_id" in str(parse_coco(content, "x").frames[0].problem)


def test_shares_in_place_of_pixels_are_refused_whatever_their_size():
    with pytest.raises(FrameError, match="shares"):
        check_boxes(FrameBoxes("a.png", ((0.3, 0.2, 0.6, 0.5),)), 200, 160)


@pytest.mark.parametrize("role", ["patient", "sequence"])
@pytest.mark.parametrize("spelt", ["p1", "P\u20111", "P  1", "1.2E+15"])
def test_one_patient_in_two_spellings_is_refused(role, spelt):
    first = {"p1": "P1", "P\u20111": "P-1", "P  1": "P 1"}.get(spelt, "1")
    cells = [["a.png", "", "", "", "", first], ["b.png", "", "", "", "", spelt], ["c.png", "", "", "", "", "q"]]
    table = pd.DataFrame(cells, columns=["image", "xmin", "ymin", "xmax", "ymax", role], index=[2, 3, 4])
    with pytest.raises(InputError, match=f"{role}.*(one id for one {role}|rounded)"):
        parse_table(table, "t.csv")
    assert parse_table(table[:1], "t.csv").frames[0].image == "a.png"
