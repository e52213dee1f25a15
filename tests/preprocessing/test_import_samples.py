"""Tiles in tars of the WebDataset convention, read where they are."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.data.tiles import TileDataset
from kdml_med.errors import ExitCode, InputError
from kdml_med.program import run
from kdml_med.programs.import_tiles import import_tiles
from kdml_med.splits import read_splits
from kdml_med.storage.manifest import image_root, read_info, read_manifest, read_member
from kdml_med.tables.images import TableColumns
from kdml_med.wsi.imported import ImportResult
from kdml_med.wsi.sample_import import import_samples
from kdml_med.wsi.sample_tars import read_tar
from tests.examples import examples

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
Members = Iterable[tuple[str, bytes]]


def picture(shade: int = 0, size: int = 32, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (shade % 256, shade // 256, 180)).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: Members, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar as WebDataset's TarWriter makes it: plain files one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(data), 0o444
            tar.addfile(header, io.BytesIO(data))
    return path


def sample(key: str, shade: int = 0, **fields: Any) -> list[tuple[str, bytes]]:
    """Members of a sample: an image, and fields such as cls="1" and json={…}."""
    texts = {name: json.dumps(value) if name == "json" else str(value) for name, value in fields.items()}
    return [(f"{key}.png", picture(shade)), *((f"{key}.{name}", text.encode()) for name, text in texts.items())]


def bring_in(source: Path, out: Path, **how: Any) -> ImportResult:
    return import_samples(source, out, **{"classes": ["a", "b"]} | how)


def failures(dataset: Path) -> dict[str, str]:
    table = pd.read_csv(dataset / "failures.csv", dtype=str)
    return dict(zip(table["input"], table["reason"], strict=True))


def shades(dataset: Path) -> dict[str, int]:
    """The number that the pixels of each sample show, as training reads them."""
    tiles = TileDataset(dataset)
    names = tiles.rows["sample_id"]
    pixels = [np.rint(tiles[number]["image"].numpy()[:2, 0, 0] * 255) for number in range(len(tiles))]
    return {name: int(low + 256 * high) for name, (low, high) in zip(names, pixels, strict=True)}


def patient_samples(numbers: Iterable[int], classes: int = 2) -> list[tuple[str, bytes]]:
    return [
        member
        for number in numbers
        for member in sample(f"{number:06}", number, cls=number % classes, json={"patient_id": f"P{number % 4}"})
    ]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars in the three formats, four samples each, of four patients."""
    for number, format in enumerate(FORMATS):
        members = patient_samples(range(4 * number, 4 * number + 4))
        write_tar(tmp_path / "source" / f"part-{number:06}.tar", members, format)
    return tmp_path / "source"


def test_samples_are_byte_ranges_of_the_tars(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ["import_tiles", tars, "--out", out, "--layout", "webdataset", "--classes", "a", "b", "--mpp", 0.5]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit) as ended:
        run(import_tiles)
    assert ended.value.code == ExitCode.OK
    manifest, info = read_manifest(out), read_info(out)
    assert (info.classes, info.tile_size_px, info.mpp) == (["a", "b"], 32, 0.5)
    assert manifest["sample_id"].tolist() == [f"part-{number // 4:06}/{number:06}" for number in range(12)]
    assert manifest["patient_id"].tolist() == [f"P{number % 4}" for number in range(12)]
    assert manifest["label"].tolist() == ["a", "b"] * 6
    assert shades(out) == {name: number for number, name in enumerate(manifest["sample_id"])}
    for row in manifest.itertuples():
        with tarfile.open(tars / row.shard) as tar:
            (member,) = [one for one in tar if one.offset_data == row.offset]
            assert (member.name, member.size) == (f"{row.sample_id[-6:]}.png", row.size)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert bring_in(tars, out, mpp=0.5).same
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_tar_is_a_source_too(tars: Path, tmp_path: Path) -> None:
    assert bring_in(tars / "part-000001.tar", tmp_path / "out").tiles == 4
    assert set(read_manifest(tmp_path / "out")["shard"]) == {"part-000001.tar"}


LONG = "deep/" * 40 + "x" * 120


@pytest.mark.parametrize("format", FORMATS[1:])
def test_long_names_and_others_than_ascii_are_read(tmp_path: Path, format: int) -> None:
    members = [*sample(LONG, 7, cls=0), *sample("./Gewebe/ä 1", 8, cls=1)]
    write_tar(tmp_path / "in" / "a.tar", members, format)
    bring_in(tmp_path / "in", tmp_path / "out", key_pattern="^(?P<patient>deep|Gewebe)")
    assert shades(tmp_path / "out") == {f"a/{LONG}": 7, "a/Gewebe/ä 1": 8}


def test_a_label_is_named_by_what_is_there(tmp_path: Path) -> None:
    by_field: dict[str, dict[str, Any]] = {
        "cls": {"cls": "1", "json": {"patient": "P"}},
        "word": {"cls": "b", "json": {"patient": "P"}},
        "txt": {"txt": "b\n", "json": {"patient": "P"}},
        "json": {"cls": "0", "json": {"patient": "P", "label": "b"}},
        "named": {"cls": "0", "json": {"patient": "P", "label": "a", "grade": "b", "boxes": [1], "more": {}}},
    }
    for name, fields in by_field.items():
        write_tar(tmp_path / name / "a.tar", sample("000", **fields))
        columns = TableColumns(label="grade" if name == "named" else None)
        bring_in(tmp_path / name, tmp_path / f"{name} out", columns=columns)
        assert read_manifest(tmp_path / f"{name} out")["label"].tolist() == ["b"], name


def test_patient_and_slide_are_found_in_the_key(tmp_path: Path) -> None:
    keys = ["P1-s1/x0_y0", "P1-s2/x0_y0", "P2-s1/x0_y0"]
    write_tar(tmp_path / "in" / "a.tar", [member for key in keys for member in sample(key, cls=0)])
    pattern = "^(?P<slide>(?P<patient>[^-]+)-s[0-9])/"
    bring_in(tmp_path / "in", tmp_path / "out", key_pattern=pattern)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["patient_id"].tolist() == ["P1", "P1", "P2"]
    assert manifest["slide_id"].tolist() == ["P1-s1", "P1-s2", "P2-s1"]
    with pytest.raises(InputError, match=r"no usable image .* its key does not fit --key-pattern"):
        bring_in(tmp_path / "in", tmp_path / "other", key_pattern="^(?P<patient>Q.)")


def test_barcodes_tell_patients_where_nothing_else_does(tmp_path: Path) -> None:
    key = "TCGA-AA-3672-01Z-00-DX1"
    members = [*sample(f"{key}/1_2", cls="MSI-H"), *sample("TCGA-G4-6302-01Z-00-DX1_7_8", cls="MSS")]
    write_tar(tmp_path / "in" / "a.tar", members)
    import_samples(tmp_path / "in", tmp_path / "out", key_pattern="(?P<patient>TCGA-..-....)")
    assert read_manifest(tmp_path / "out")["label"].tolist() == ["MSI", "MSS"]
    write_tar(tmp_path / "bare" / "a.tar", sample("TCGA-G4-6302-01Z-00-DX1_7_8", cls="MSS"))
    import_samples(tmp_path / "bare", tmp_path / "bare out")
    row = read_manifest(tmp_path / "bare out").iloc[0]
    assert (row["patient_id"], row["site"], row["label"]) == ("TCGA-G4-6302", "G4", "MSS")


@pytest.mark.parametrize("by", ["slide", "patient"])
def test_a_label_table_names_slides_or_patients(tmp_path: Path, by: str) -> None:
    keys = ["S1/0_0", "S1/0_1", "S2/0_0", "S9/0_0"] if by == "slide" else ["P1_0", "P1_1", "P2_0", "P9_0"]
    write_tar(tmp_path / "in" / "a.tar", [member for n, key in enumerate(keys) for member in sample(key, n)])
    table = tmp_path / "labels.csv"
    table.write_text({"slide": "slide,patient,label\nS1,P1,a\nS2,P2,b\n", "patient": "patient,label\nP1,a\nP2,b\n"}[by])
    result = bring_in(tmp_path / "in", tmp_path / "out", labels=table)
    manifest = read_manifest(tmp_path / "out")
    assert manifest[["patient_id", "label"]].to_numpy().tolist() == [["P1", "a"], ["P1", "a"], ["P2", "b"]]
    assert [name for name, _ in result.failures] == [f"a/{keys[3]}"]
    assert "no row in the label table" in failures(tmp_path / "out")[f"a/{keys[3]}"]
    assert read_info(tmp_path / "out").labels["rows"]["used"] == 2  # type: ignore[index]


def write_labels(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


# Keys begin with the number of a centre, so that a wrong patient of the table would be found by them.
OF_PATIENTS = {"1_7_0": "7", "2_1_1": "1", "1_9_2": "9", "2_2_3": "2"}


@pytest.mark.parametrize("pattern", [None, r"^\d_(?P<patient>\d)_"])
def test_the_patient_whom_a_sample_names_is_looked_for_in_a_table_of_patients(
    tmp_path: Path, pattern: str | None
) -> None:
    members = [
        member
        for number, (key, patient) in enumerate(OF_PATIENTS.items())
        for member in sample(key, number, json={"patient_id": "1" if pattern else patient})  # the pattern comes first
    ]
    write_tar(tmp_path / "in" / "a.tar", members)
    table = write_labels(tmp_path, "patient_id,label\n1,b\n2,a\n7,a\n9,b\n")
    result = bring_in(tmp_path / "in", tmp_path / "out", labels=table, key_pattern=pattern)
    rows = read_manifest(tmp_path / "out")
    found = dict(zip(rows["sample_id"], zip(rows["patient_id"], rows["label"], strict=True), strict=True))
    labels = {"1": "b", "2": "a", "7": "a", "9": "b"}
    assert found == {f"a/{key}": (patient, labels[patient]) for key, patient in OF_PATIENTS.items()}
    assert result.failures == []
    assert read_info(tmp_path / "out").labels["rows"]["used"] == 4  # type: ignore[index]


def test_a_patient_who_is_not_in_the_table_is_named_and_nobody_else_taken(tmp_path: Path) -> None:
    known = sample("1_0", 0, json={"patient": "12/345"})  # a number of a biopsy, and no file in a folder
    stranger = sample("1_1", 1, json={"patient": "07"})
    barcode = sample("1_2", 2, json={"patient": "TCGA-AA-3672-01Z"})
    write_tar(tmp_path / "in" / "a.tar", [*known, *stranger, *barcode])
    table = write_labels(tmp_path, "patient,label\n1,a\n345,a\n12/345,b\n7,b\nTCGA-AA-3672,a\n")
    bring_in(tmp_path / "in", tmp_path / "out", labels=table)
    assert read_manifest(tmp_path / "out")["patient_id"].tolist() == ["12/345", "TCGA-AA-3672"]
    assert failures(tmp_path / "out") == {"a/1_1": "no row in the label table for the patient 07; row 5 has '7'"}


def test_a_sample_that_names_another_patient_than_the_row_of_its_slide_is_left_out(tmp_path: Path) -> None:
    said = {"0": "P1", "1": "p01", "2": "P2", "3": None}  # p01 and P1 cannot be two patients of one table
    members = [m for key, who in said.items() for m in sample(f"S1/{key}", int(key), json={"patient": who})]
    write_tar(tmp_path / "in" / "a.tar", members)
    table = write_labels(tmp_path, "slide,patient,label\nS1,P1,a\nS2,P2,b\n")
    bring_in(tmp_path / "in", tmp_path / "out", labels=table)
    assert read_manifest(tmp_path / "out")["sample_id"].tolist() == ["a/S1/0", "a/S1/1", "a/S1/3"]
    reason = "row 2 of the label table says patient P1, the sample P2: correct the one that is wrong"
    assert failures(tmp_path / "out") == {"a/S1/2": reason}


def test_the_patient_stands_for_a_slide_that_nobody_names_beside_a_table_of_patients(tmp_path: Path) -> None:
    of_folder = sample("S/0", 2, json={"patient": "P2", "slide_mpp": 0.5})  # whose value is no name of a slide
    write_tar(tmp_path / "in" / "a.tar", [*sample("P1_0", 0), *sample("P1_1", 1), *of_folder])
    bring_in(tmp_path / "in", tmp_path / "out", labels=write_labels(tmp_path, "patient,label\nP1,a\nP2,b\n"))
    assert read_manifest(tmp_path / "out")["slide_id"].tolist() == ["P1", "P1", "S"]


@pytest.mark.parametrize("role", ["patient", "slide", "site"])
def test_the_pattern_comes_before_whatever_the_json_calls_the_same(tmp_path: Path, role: str) -> None:
    column = {"patient": "patient_id", "slide": "slide_id", "site": "hospital"}[role]
    facts = {"patient": "P", column: "of json"}
    keys = ("K1-0", "K2-0", "none-0") if role == "patient" else ("K1-0", "K2-0")
    write_tar(tmp_path / "in" / "a.tar", [m for key in keys for m in sample(key, cls=0, json=facts)])
    if role == "patient":  # both are in .json, which only the sample without a find in its key asks
        with pytest.raises(InputError, match=r"\['patient', 'patient_id'\] could each be the patient column"):
            bring_in(tmp_path / "in", tmp_path / "out", key_pattern=rf"^(?P<{role}>K\d)?")
        how = {"columns": TableColumns(patient="patient_id")}
    else:
        how = {}
    bring_in(tmp_path / "in", tmp_path / "out", key_pattern=rf"^(?P<{role}>K\d)?", **how)
    name = "site" if role == "site" else f"{role}_id"
    assert sorted(read_manifest(tmp_path / "out")[name]) == ["K1", "K2", *["of json"] * (role == "patient")]


def test_the_patient_of_json_comes_before_the_barcode_of_the_key(tmp_path: Path) -> None:
    keys = [f"TCGA-AA-367{number}-01Z-00-DX1_0" for number in range(2)]
    members = [*sample(keys[0], 0, cls=0, json={"case_id": "C"}), *sample(keys[1], 1, cls=0)]
    write_tar(tmp_path / "in" / "a.tar", members)
    bring_in(tmp_path / "in", tmp_path / "out")
    assert read_manifest(tmp_path / "out")["patient_id"].tolist() == ["C", "TCGA-AA-3671"]


def test_resolution_and_conditions_are_those_of_samples_also_beside_a_label_table(tmp_path: Path) -> None:
    facts = [("P1", 0.5, "A"), ("P2", 0.25, "A"), ("P3", 0.5, "B")]
    members = [
        member
        for number, (patient, mpp, label) in enumerate(facts)
        for member in sample(f"{patient}/0", number, json={"mpp": mpp, "um": 1, "label": label, "patient": patient})
    ]
    write_tar(tmp_path / "in" / "a.tar", members)
    table = write_labels(tmp_path, "patient,label,mpp\nP1,a,0.7\nP2,b,0.7\nP3,b,0.7\n")  # of whole slides
    bring_in(tmp_path / "in", tmp_path / "out", labels=table)
    assert read_manifest(tmp_path / "out")["mpp"].tolist() == [0.5, 0.25, 0.5]
    assert "mpp" not in read_info(tmp_path / "out").labels["columns"]  # type: ignore[index]
    named = TableColumns(mpp="um")
    bring_in(tmp_path / "in", tmp_path / "chosen", labels=table, columns=named, where={"label": "A"})
    rows = read_manifest(tmp_path / "chosen")
    assert rows[["patient_id", "label", "mpp"]].to_numpy().tolist() == [["P1", "a", 1], ["P2", "b", 1]]
    assert read_info(tmp_path / "chosen").labels["rows"]["not_chosen"] == 1  # type: ignore[index]
    with pytest.raises(InputError, match="no column 'nothing' \\(--mpp-column\\)"):
        bring_in(tmp_path / "in", tmp_path / "other", labels=table, columns=TableColumns(mpp="nothing"))


def test_splits_and_resolutions_that_are_named_can_be_columns_of_the_label_table(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [m for n in range(4) for m in sample(f"P{n}/0", n)])
    text = "patient,label,part,size\nP0,a,train,1\nP1,b,train,2\nP2,a,test,3\nP3,b,val,4\n"
    columns = TableColumns(split="part", mpp="size")
    bring_in(tmp_path / "in", tmp_path / "out", labels=write_labels(tmp_path, text), columns=columns)
    manifest = read_manifest(tmp_path / "out")
    splits = read_splits(tmp_path / "out", manifest, read_info(tmp_path / "out"))
    assert dict(splits.itertuples(index=False, name=None)) == {"P0": "train", "P1": "train", "P2": "test", "P3": "val"}
    assert manifest["mpp"].tolist() == [1, 2, 3, 4]
    assert read_info(tmp_path / "out").labels["columns"]["split"] == "part"  # type: ignore[index]


def test_samples_can_name_their_split_and_be_chosen(tmp_path: Path) -> None:
    facts = [("P1", "train", "x"), ("P2", "train", "x"), ("P3", "test", "x"), ("P4", "val", "y")]
    members = [
        member
        for number, (patient, split, set_) in enumerate(facts)
        for member in sample(f"{number}", number, cls=number % 2, json={"patient": patient, "part": split, "set": set_})
    ]
    write_tar(tmp_path / "in" / "a.tar", members)
    bring_in(tmp_path / "in", tmp_path / "out", columns=TableColumns(split="part"), where={"set": "x"}, val_fraction=0)
    manifest = read_manifest(tmp_path / "out")
    splits = read_splits(tmp_path / "out", manifest, read_info(tmp_path / "out"))
    assert dict(splits.itertuples(index=False, name=None)) == {"P1": "train", "P2": "train", "P3": "test"}


def test_what_cannot_be_used_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    good = sample("good", 5, cls=0, json={"patient": "P"})
    source = tmp_path / "in"
    bad: Mapping[str, Members] = {
        "none": [("none.cls", b"1"), ("none.tif", b"II*")],
        "two": [*sample("two", cls=0), ("two.jpg", picture(1, kind="JPEG"))],
        "twice": [*sample("twice", cls=0), *sample("other", 3, cls=0, json={"patient": "P"}), *sample("twice", 1)],
        "empty": [("empty.png", b""), ("empty.cls", b"0")],
        "json": [("json.png", picture()), ("json.json", b"{")],
        "list": [("list.png", picture()), ("list.json", b"[1]")],
        "deep": [("deep.png", picture()), ("deep.json", b"[" * 100_000)],
        "blank": sample("blank", cls=0, json={"patient": None}),
        "long": [*sample("long"), ("long.txt", b"x" * 2**21)],
    }
    write_tar(source / "a.tar", [*good, *(member for members in bad.values() for member in members), ("README", b"x")])
    with tarfile.open(source / "links.tar", "w") as tar:
        for name, kind in (
            ("hard.png", tarfile.LNKTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "good.png"
            tar.addfile(header)
    (source / "zipped.tar.gz").write_bytes(gzip.compress((source / "a.tar").read_bytes()))
    (source / "disguised.tar").write_bytes(gzip.compress((source / "a.tar").read_bytes()))
    (source / "nothing.tar").write_bytes(b"")
    (source / "text.tar").write_bytes(b"no tar" * 300)
    result = bring_in(source, tmp_path / "out")
    assert shades(tmp_path / "out") == {"a/good": 5, "a/other": 3}
    found = failures(tmp_path / "out")
    assert found == dict(sorted(result.failures))
    for name, words in {
        "a/none": "has no PNG or JPEG image, only cls, tif",
        "a/two": "has 2 images (.png, .jpg): name one with --image-column",
        "a/twice": "two members of the tar are its .png",
        "a/empty": "its .png is empty",
        "a/json": "its .json cannot be read",
        "a/list": "its .json is no object",
        "a/deep": "its .json cannot be read",
        "a/blank": "its patient is blank",
        "a/long": "its .txt has 2,097,152 bytes",
        "a/README": "belongs to no sample",
        "links/hard": "a link or no regular file",
        "links/soft": "a link or no regular file",
        "links/pipe": "a link or no regular file",
        "zipped.tar.gz": "compressed, so that single samples cannot be read",
        "disguised.tar": "compressed, so that single samples cannot be read",
        "nothing.tar": "damaged or cut off at byte 0",
        "text.tar": "damaged or cut off at byte 0",
    }.items():
        assert words in found.pop(name), name
    assert found == {}


def test_sample_without_its_slide_is_named_where_others_have_one(tmp_path: Path) -> None:
    slides = {"0": "S1", "1": None, "2": " ", "3": "S2"}
    members = [
        member
        for key, slide in slides.items()
        for member in sample(key, int(key), cls=0, json={"patient": f"P{key}", "slide_id": slide})
    ]
    write_tar(tmp_path / "in" / "a.tar", members)
    bring_in(tmp_path / "in", tmp_path / "out")
    assert shades(tmp_path / "out") == {"a/0": 0, "a/3": 3}
    reason = "its slide_id is blank, which would be its slide"
    assert failures(tmp_path / "out") == {"a/1": reason, "a/2": reason}


@pytest.mark.parametrize("format", FORMATS[1:])
def test_members_with_holes_are_refused(tmp_path: Path, format: int) -> None:
    """As GNU tar writes them, with and without --format=posix."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "dense.png").write_bytes(picture(3))
    with (folder / "holes.png").open("wb") as stream:
        stream.write(picture(4))
        stream.seek(2**20)
        stream.write(picture(5))
    kind = "gnu" if format == tarfile.GNU_FORMAT else "posix"
    (tmp_path / "in").mkdir()
    command = ["tar", "--sparse", f"--format={kind}", "-C", str(folder), "-cf", str(tmp_path / "in" / "a.tar"), "."]
    subprocess.run(command, check=True)
    contents = read_tar(tmp_path / "in" / "a.tar")
    assert [one.key for one in contents.samples] == ["dense"]
    assert [(name, "with holes" in reason) for name, reason in contents.problems] == [("holes", True)]


@settings(max_examples=examples(30), deadline=None)
@given(data=st.data())
def test_a_tar_cut_anywhere_gives_its_whole_samples_and_says_so(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = write_tar(folder / "a.tar", [member for number in range(5) for member in sample(f"{number}", number)])
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        ends = {one.offset_data + one.size: number for number, one in enumerate(tar)}
    used = max(ends) + -max(ends) % tarfile.BLOCKSIZE
    cut = data.draw(st.integers(0, used + tarfile.BLOCKSIZE - 1))
    whole.write_bytes(content[:cut])
    found = read_tar(whole)
    assert [one.key for one in found.samples] == [f"{number}" for end, number in ends.items() if end <= cut]
    assert [name for name, _ in found.problems] == ["a.tar"]
    for one in found.samples:
        assert content[one.offset : one.offset + one.size] == picture(int(one.key))


def test_a_damaged_header_ends_what_is_read_of_a_tar_and_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [member for number in range(3) for member in sample(f"{number}", number)])
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    content = bytearray(path.read_bytes())
    content[second.offset + 10] ^= 0xFF
    path.write_bytes(content)
    found = read_tar(path)
    assert [one.key for one in found.samples] == ["0"]
    assert found.problems == [
        ("a.tar", f"damaged or cut off at byte {second.offset}: samples before that are taken, what follows is not")
    ]


@pytest.mark.parametrize("size", [-512, -513, -1024])  # back to this header, and before it
def test_a_size_below_zero_ends_what_is_read_of_a_tar(tmp_path: Path, size: int) -> None:
    write_tar(tmp_path / "in" / "a.tar", patient_samples(range(2)))
    header = bytearray(tarfile.TarInfo("n.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with (tmp_path / "in" / "a.tar").open("r+b") as stream:
        stream.seek(6 * 1024)  # behind two samples of three members each, of two blocks
        stream.write(header)
    assert bring_in(tmp_path / "in", tmp_path / "out").tiles == 2
    assert failures(tmp_path / "out") == {
        "a.tar": "damaged or cut off at byte 6144: samples before that are taken, what follows is not"
    }


@pytest.mark.parametrize("padding", [0, 3 * 2**20])
def test_what_follows_the_end_of_a_tar_is_told(tmp_path: Path, padding: int) -> None:
    whole = write_tar(tmp_path / "a.tar", patient_samples(range(2)))
    first = whole.read_bytes() + bytes(padding)
    whole.write_bytes(first)
    assert read_tar(whole).problems == []
    second = write_tar(tmp_path / "b.tar", patient_samples(range(2, 4))).read_bytes()
    whole.write_bytes(first + second)
    found = read_tar(whole)
    assert [one.key for one in found.samples] == ["000000", "000001"]
    [(name, reason)] = found.problems
    assert name == "a.tar"
    assert reason.startswith(f"a second tar follows its end, from byte {len(first)} on, and is not read: keep")
    whole.write_bytes(first + b"\0" * 700 + b"notes")
    [(_, reason)] = read_tar(whole).problems
    assert reason.startswith(f"something that is no tar follows its end, from byte {len(first) + 512} on")


def test_the_same_sample_in_two_tars_counts_once_and_another_of_its_key_too(tmp_path: Path) -> None:
    facts = {"cls": 0, "json": {"patient": "P"}}
    write_tar(tmp_path / "in" / "a.tar", [*sample("000", 1, **facts), *sample("001", 2, **facts)])
    write_tar(tmp_path / "in" / "b.tar", [*sample("000", 1, **facts), *sample("001", 3, **facts)])
    bring_in(tmp_path / "in", tmp_path / "out")
    assert shades(tmp_path / "out") == {"a/000": 1, "a/001": 2, "b/001": 3}
    assert failures(tmp_path / "out") == {"b/000": "the same key and image are in a.tar: one of them is taken"}


def test_one_of_several_images_can_be_named(tmp_path: Path) -> None:
    members = [("0.tile.png", picture(1)), ("0.mask.png", picture(2)), ("0.cls", b"0")]
    write_tar(tmp_path / "in" / "a.tar", members)
    bring_in(tmp_path / "in", tmp_path / "out", columns=TableColumns(image="tile.png"), key_pattern="(?P<patient>.)")
    assert shades(tmp_path / "out") == {"a/0": 1}


def test_headers_of_images_are_parsed_when_asked(tmp_path: Path) -> None:
    facts = {"cls": b"0", "json": b'{"patient": "P"}'}
    broken = [("1.png", b"no picture"), *((f"1.{name}", text) for name, text in facts.items())]
    write_tar(tmp_path / "in" / "a.tar", [*sample("0", cls=0, json={"patient": "P"}), *broken])
    assert bring_in(tmp_path / "in", tmp_path / "out").tiles == 2
    bring_in(tmp_path / "in", tmp_path / "checked", check_images=True)
    assert failures(tmp_path / "checked") == {"a/1": "its header is not that of a PNG or JPEG image"}


def test_sizes_of_images_are_compared_when_headers_are_parsed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [(f"{name}.{kind}", data) for name, size in (("0", 32), ("1", 40)) for kind, data in
               (("png", picture(1, size)), ("cls", b"0"), ("json", b'{"patient": "P"}'))]  # fmt: skip
    write_tar(tmp_path / "in" / "a.tar", members)
    bring_in(tmp_path / "in", tmp_path / "out")
    assert read_info(tmp_path / "out").tile_size_px == 32
    with caplog.at_level("INFO"):
        bring_in(tmp_path / "in", tmp_path / "checked", check_images=True)
    assert read_info(tmp_path / "checked").tile_size_px is None
    assert "images differ in size: 32 x 32 px (a/0), 40 x 40 px (a/1)" in caplog.text


def test_a_tar_replaced_since_the_import_is_refused_and_followed_by_the_next(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bring_in(tars, out)
    write_tar(tars / "part-000001.tar", patient_samples(range(20, 30)))
    with pytest.raises(InputError, match=r"part-000001.tar was replaced: it has \d+ bytes, \d+ when it was imported"):
        TileDataset(out)
    bring_in(tars, out)
    assert sorted(shades(out).values()) == [*range(4), *range(8, 12), *range(20, 30)]
    (tars / "part-000002.tar").unlink()
    with pytest.raises(InputError, match=r"part-000002.tar: No such file"):
        TileDataset(out)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"key_pattern": "("}, "--key-pattern '\\(' is no regular expression"),
        ({"key_pattern": "(?P<tile>.)"}, r"has the groups \['tile'\], expected some of \(\?P<patient>"),
        ({"columns": TableColumns(patient="who")}, "no column 'who'"),
        ({"columns": TableColumns(label="what")}, "no column 'what'"),
        ({"mpp": 40.0 * 40}, "--mpp is 1600"),
        ({"classes": None}, "nothing says which of '0' and '1' is the positive class"),
        ({"classes": ["x", "y"], "columns": TableColumns(label="patient_id")}, "is named for the label and"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tars: Path, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bring_in(tars, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_samples_of_nobody_say_how_to_name_the_patient(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", sample("000", cls=0))
    with pytest.raises(InputError, match=r"--patient-column.*--key-pattern.*--labels.*has \['cls', '__key__'\]"):
        bring_in(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match=r"neither a folder with \.tar files nor one of them"):
        bring_in(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"holds no \.tar file"):
        bring_in(tmp_path / "bare", tmp_path / "out")


def test_data_of_every_row_is_what_the_tar_holds(tars: Path, tmp_path: Path) -> None:
    bring_in(tars, tmp_path / "out")
    info = read_info(tmp_path / "out")
    for row in read_manifest(tmp_path / "out").itertuples():
        data = read_member(image_root(tmp_path / "out", info), row.shard, row.offset, row.size)
        assert data == picture(int(row.sample_id[-6:]))
