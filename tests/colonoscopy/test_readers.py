from __future__ import annotations

import pytest

from kdml_med.colonoscopy.annotations import find_format
from kdml_med.colonoscopy.boxes import BoxTable
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.readers import FORMATS, AnnotationFormat
from kdml_med.colonoscopy.sources import SourceIndex, find_sources
from kdml_med.errors import InputError
from tests.colonoscopy.pictures import save


def read_nothing(path, files):
    return BoxTable()


def test_a_file_that_may_be_of_two_formats_is_refused_until_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", AnnotationFormat(read_nothing, (".json", ".toy")))
    (tmp_path / "boxes.json").touch()
    with pytest.raises(InputError, match=r"may be of several formats, \['coco', 'toy'\]"):
        find_format(tmp_path / "boxes.json", [], FrameOptions())
    assert find_format(tmp_path / "boxes.json", [], FrameOptions(annotation_format="toy")) == "toy"


def test_a_file_of_no_format_is_refused_with_all_that_could_be(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", AnnotationFormat(read_nothing, (".toy",)))
    (tmp_path / "boxes.md").touch()
    with pytest.raises(InputError, match=r"expected a \.json \(coco\) or \.csv \(csv\) or \.toy \(toy\) file"):
        find_format(tmp_path / "boxes.md", [], FrameOptions())
    with pytest.raises(InputError, match=r"--format is 'json', expected one of \['auto', .*'toy'\]"):
        FrameOptions(annotation_format="json")


def test_files_of_each_format_with_a_file_for_each_image_find_the_image(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", AnnotationFormat(read_nothing, (".toy",), folder=True))
    image = save(tmp_path / "clip" / "a.png")
    index = SourceIndex(find_sources([tmp_path], []).sources)
    beside = [suffix for kind in FORMATS.values() if kind.folder for suffix in kind.suffixes]
    assert {".xml", ".txt", ".toy"} < set(beside)
    for suffix in beside:
        assert [source.path for source, _ in index.find(f"clip/a{suffix}")] == [image], suffix
    assert index.find("clip/a.json") == [], "one file for all images is not named like an image"


@pytest.mark.parametrize("name", [name for name, kind in FORMATS.items() if kind.folder])
def test_a_folder_has_only_files_of_its_format_hidden_ones_left_out(tmp_path, name):
    kind = FORMATS[name]
    wanted = [tmp_path / "a" / f"2{kind.suffixes[0]}", tmp_path / f"1{kind.suffixes[0].upper()}"]
    others = [tmp_path / ".a" / f"3{kind.suffixes[0]}", tmp_path / "4.md", *(tmp_path / name for name in kind.ignored)]
    for path in (*wanted, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert kind.files(tmp_path) == sorted(wanted)
