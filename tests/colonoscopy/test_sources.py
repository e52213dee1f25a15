import os
import unicodedata
from pathlib import Path, PurePath

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
        ("clip", ["clip.mp4"]),  # whatever frame
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


def names(found):
    return [source.name for source in found.sources]


def test_linked_folders_are_followed_once_and_loops_are_not(tmp_path):
    save(tmp_path / "in" / "p1" / "1.png")
    save(tmp_path / "archive" / "p2" / "2.png")
    links = {"a_link_to_p1": "in/p1", "p2": "archive/p2", "p2_again": "archive/p2", "itself": "in", "around": "."}
    for link, target in links.items():
        (tmp_path / "in" / link).symlink_to(tmp_path / target)
    (tmp_path / "archive" / "p2" / "back").symlink_to(tmp_path / "in")
    found = find_sources([tmp_path / "in"], [])
    assert (names(found), found.failures) == (["p1/1.png", "p2/2.png"], [])


def test_masks_are_found_without_comparing_every_picture_with_every_mask(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(100)]
    for path in (*names, *(f"masks/{name}" for name in names), *(f"{name[:-4]}_mask.png" for name in names[:50])):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    compared = []
    equal = PurePath.__eq__

    def count(one, other):
        compared.append(1)
        return equal(one, other)

    monkeypatch.setattr(PurePath, "__eq__", count)
    found = find_sources([tmp_path], [])
    monkeypatch.undo()
    assert [source.name for source in found.sources] == names
    assert {name: reason.split("(")[1].split(",")[0] for name, reason in found.failures} == {".": "50", "masks": "100"}
    assert len(compared) < 10 * 250


def test_trash_and_what_systems_store_beside_pictures_is_left_out(tmp_path):
    for folder in (".Trash-0", "@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "deep/.hidden", "deep"):
        save(tmp_path / folder / "1.png")
    save(tmp_path / "._1.png")
    assert names(find_sources([tmp_path], [])) == ["deep/1.png"]


def test_what_cannot_be_used_is_named(tmp_path):
    picture = save(tmp_path / "in" / "good.png")
    for name in ("a.gif", "b.webp", "c.HEIC", "film.flv", "notes.txt", "Thumbs.db", "boxes.xml"):
        (tmp_path / "in" / name).write_bytes(b"?")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/caf\xe9.png")).write_bytes(picture.read_bytes())
    found = find_sources([tmp_path / "in"], [])
    assert names(found) == ["good.png"]
    reasons = dict(found.failures)
    assert set(reasons) == {"a.gif", "b.webp", "c.HEIC", "film.flv", "gone.png", "caf\\xe9.png"}
    assert "which is not there" in reasons["gone.png"]
    assert "not UTF-8" in reasons["caf\\xe9.png"]
    assert reasons["film.flv"].endswith("convert it to MP4")
    for path in (tmp_path / "in").glob("*.png"):
        path.unlink()
    (tmp_path / "in" / "gone.png").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"4 of other kinds, such as a\.gif"):
        find_sources([tmp_path / "in"], [])


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_meet_in_whatever_form_their_accents_are_stored(forms):
    stored, given = (unicodedata.normalize(form, "Böhm/é 1.png") for form in forms)
    ((source, _),) = index(stored, "e 1.png").find(given)
    assert source.name == stored


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("café.png", ["café.png"]),
        ("cafÃ©.png", ["café.png"]),
        ("CAFE", ["café.png"]),
        ("a/frame 0012.xml", ["a/Frame_12.jpg"]),
        ("b/frame_12.jpg", []),
        ("frame_13", []),
        ("Clip-1/7", ["clip_1.mp4"]),
    ],
)
def test_a_name_that_fits_nothing_may_still_mean_what_is_spelt_alike(name, alike):
    sources = index("café.png", "a/Frame_12.jpg", "clip_1.mp4")
    assert [source.name for source in sources.find_alike(name)] == alike


def test_numbers_of_any_length_are_no_error():
    assert index("clip.mp4").find("clip/" + "9" * 5000) == []


@pytest.mark.parametrize("name", ["clip/frame_12.500", "clip/00:12", "clip/frame_0012_png.rf.0a1b2c3d67.jpg"])
def test_times_and_hashes_are_no_frame_numbers(name):
    index = SourceIndex([Source("clip.mp4", Path("clip.mp4"))])
    assert index.find("clip/frame_0012.png")[0][1] == 12
    assert index.find(name) == []


@pytest.mark.parametrize("name", ["in/a.jpg.xml", "a.jpg.txt", "a.jpg.png", "A/a.jpg.xml"])
def test_names_with_both_suffixes_fit_their_image_and_no_other(name):
    index = SourceIndex([Source("in/a.jpg", Path("a.jpg")), Source("in/b.jpg", Path("b.jpg"))])
    assert [source.name for source, _ in index.find(name)] == (["in/a.jpg"] if "A/" not in name else [])
