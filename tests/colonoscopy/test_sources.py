from pathlib import Path

import pytest

from kdml_med.colonoscopy.sources import Source, SourceIndex, find_sources, natural_key
from kdml_med.errors import InputError
from tests.colonoscopy.pictures import save


def index(*names):
    return SourceIndex(Source(name, Path(name)) for name in names)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/1.jpg", ["a/1.jpg"]),
        ("a/1", ["a/1.jpg"]),
        ("a/1.png", ["a/1.jpg"]),
        ("/data/set/a/1.jpg", ["a/1.jpg"]),
        (r"set\a\1.jpg", ["a/1.jpg"]),
        ("1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("c/1.jpg", []),
        ("2", ["b/2.jpg"]),
        ("9", []),
        ("clip/12", ["clip.mp4@12"]),
        ("clip.mp4/0012.jpg", ["clip.mp4@12"]),
        ("clip/frame_0012.xml", ["clip.mp4@12"]),
        ("clip", []),
        ("a/12", []),
    ],
)
def test_names_find_their_source_and_never_another_folder(name, found):
    got = index("a/1.jpg", "b/1.jpg", "b/2.jpg", "clip.mp4").find(name)
    assert [s.name if number is None else f"{s.name}@{number}" for s, number in got] == found


def test_number_of_the_frame_can_stand_apart():
    ((source, number),) = index("x/clip.mp4").find("clip", 7)
    assert (source.name, number) == ("x/clip.mp4", 7)


def test_inputs_are_found_in_natural_order_without_output_masks_and_hidden_files(tmp_path):
    for name in ("in/f10.png", "in/f2.png", "in/.hidden/f3.png", "in/masks/f2.png", "in/out/f2.png", "in/deep/f1.png"):
        save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    found = find_sources([tmp_path / "in"], [tmp_path / "in" / "masks", tmp_path / "in" / "out"])
    assert [source.name for source in found.sources] == ["deep/f1.png", "f2.png", "f10.png"]
    assert natural_key("f2") < natural_key("f10") < natural_key("g1")


def test_a_file_that_is_named_twice_is_one_source(tmp_path):
    path = save(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "link.png").symlink_to(path)
    assert [source.name for source in find_sources([path.parent, path], []).sources] == ["in/1.png"]


def test_several_inputs_lead_with_their_name(tmp_path):
    first, second = save(tmp_path / "a" / "1.png").parent, save(tmp_path / "b" / "1.png").parent
    assert [source.name for source in find_sources([first, second], []).sources] == ["a/1.png", "b/1.png"]
    save(tmp_path / "c" / "a" / "1.png")
    with pytest.raises(InputError, match="would both be called"):
        find_sources([first, tmp_path / "c" / "a"], [])
    with pytest.raises(InputError, match="does not exist"):
        find_sources([tmp_path / "absent"], [])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="holds no image or video"):
        find_sources([tmp_path / "bare"], [])
