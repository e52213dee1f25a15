"""Which files of a folder are slides, which belong to one, and which are named."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_manifest
from kdml_med.tables.names import UNREAD_SUFFIXES, slide_name
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.slide import SlideError
from kdml_med.wsi.sources import find_slides, list_files, name_problem, printable
from kdml_med.wsi.tiler import tile_slides
from tests.examples import examples
from tests.wsi.test_tiler import contents
from tests.wsi.vendor_slides import picture, write_dicom, write_mirax, write_tiff, write_vms

OPTIONS = TilingOptions(tile_size_px=112)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "S"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root, *inputs):
    result = find_slides(list(inputs) or [root], root.parent / "out")
    return [path.relative_to(root).as_posix() for path in result.slides], dict(result.problems), result


def test_linked_folders_are_searched_and_loops_are_not(root, tmp_path):
    touch(
        root / "a.svs",
        root / "deep" / "b.svs",
        tmp_path / "elsewhere" / "c.svs",
        tmp_path / "elsewhere" / "d" / "e.svs",
    )
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "deep" / "up").symlink_to(root)
    (root / "deep" / "self").symlink_to(root / "deep" / "self")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere" / "d")
    slides, problems, _ = found(root)
    assert slides == ["a.svs", "deep/b.svs", "link/c.svs", "link/d/e.svs"]
    assert list(problems) == ["deep/self"]


def test_file_that_links_lead_to_twice_is_one_slide(root):
    touch(root / "store" / "a.svs", root / "z" / "b.svs")
    (root / "links").mkdir()
    (root / "links" / "a.svs").symlink_to(root / "store" / "a.svs")
    (root / "links" / "anonymous.svs").symlink_to(root / "z" / "b.svs")
    slides, problems, _ = found(root)
    assert slides == ["store/a.svs", "z/b.svs"]
    assert problems == {"links/anonymous.svs": "is the same file as b.svs, which is taken"}
    assert found(root, root, root / "store" / "a.svs")[0] == slides


def test_broken_link_and_closed_folder_are_named(root, monkeypatch):
    touch(root / "a.svs", root / "closed" / "b.svs")
    (root / "c.svs").symlink_to("/nowhere/c.svs")
    (root / "batch2").symlink_to("/nowhere")
    (root / "notes.txt").symlink_to("/nowhere")
    listed = os.scandir

    def scandir(path):
        if path == root / "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("kdml_med.wsi.sources.os.scandir", scandir)
    slides, problems, _ = found(root)
    assert slides == ["a.svs"]
    assert sorted(problems) == ["batch2", "c.svs", "closed"]
    assert "link to /nowhere/c.svs, which is not there" in problems["c.svs"]
    assert "Permission denied" in problems["closed"]


def test_file_that_may_not_be_read_costs_one_line(root, monkeypatch):
    touch(root / "a.svs", root / "b.svs")
    monkeypatch.setattr("kdml_med.wsi.sources.os.access", lambda path, mode: path.name != "b.svs")
    slides, problems, _ = found(root)
    assert (slides, problems) == (["a.svs"], {"b.svs": "cannot be read: permission denied"})


@pytest.mark.parametrize(
    "name", [".Trash-0", ".snapshot", "@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information"]
)
def test_folders_of_the_system_are_not_searched(root, name):
    touch(root / "a.svs", root / name / "files" / "a.svs", root / "deep" / name / "b.svs", root / "._a.svs")
    slides, problems, _ = found(root)
    assert (slides, problems) == (["a.svs"], {})


def test_slide_of_several_files_is_one_slide(root):
    touch(root / "m.mrxs", root / "m" / "Data0000.dat", root / "m" / "cover.jpg", root / "n" / "x.svs")
    for name in ("p1", "p10"):
        write_vms(root / f"{name}.vms", picture(1280)[:640])
    slides, problems, result = found(root)
    assert slides == ["m.mrxs", "n/x.svs", "p1.vms", "p10.vms"]
    assert (problems, result.left_out) == ({}, [])
    assert [name for _, name in list_files(root / "p1.vms")] == [
        "p1.vms",
        "p1_image.jpg",
        "p1_macro.jpg",
        "p1_map2.jpg",
    ]


def test_vms_index_is_read_and_not_guessed(root):
    touch(root / "1.jpg", root / "2.jpg", root / "p_other.svs")
    (root / "p.vmu").write_bytes(
        b"[Uncompressed Virtual Microscope Specimen]\r\nImageFile = 1.jpg \r\nMapFile=2.jpg\r\nX=../../etc\r\n"
    )
    assert found(root)[0] == ["p.vmu", "p_other.svs"]
    assert [name for _, name in list_files(root / "p.vmu")] == ["p.vmu", "1.jpg", "2.jpg"]


def test_dicom_folder_is_one_slide_named_after_it(root):
    small = picture(300)
    write_dicom(root / "case1", small, series="1.2.1")
    write_dicom(root / "case2", small, series="1.2.2")
    (root / "case2" / "level1.dcm").rename(root / "case2" / "without_suffix")
    write_dicom(root / "flat", small, series="1.2.3", prefix="a_")
    write_dicom(root / "flat", small, series="1.2.4", prefix="b_")
    touch(root / "flat" / "broken.dcm")
    slides, problems, _ = found(root)
    assert slides == ["case1", "case2", "flat/a_level0.dcm", "flat/b_level0.dcm"]
    assert list(problems) == ["flat/broken.dcm"]
    assert [name for _, name in list_files(root / "case1")] == ["level0.dcm", "level1.dcm"]
    assert [name for _, name in list_files(root / "flat" / "a_level0.dcm")] == ["a_level0.dcm", "a_level1.dcm"]
    assert find_slides([root / "case1"], root / "out").slides == [root / "case1"]


def test_pictures_of_slides_beside_them_are_no_slides(root):
    pictures = ["x_mask.png", "x-thumbnail.jpg", "x_preview.jpeg", "X_overview.png", "x_macro.jpg", "x_label.png"]
    pictures += ["x.svs_mask.png", "mask_x.tif", "x_label2.bmp", "x.png", "x annotations.png"]
    touch(root / "x.svs", root / "y_mask.svs", *(root / "deep" / name for name in pictures))
    slides, problems, result = found(root)
    assert (slides, problems) == (["x.svs", "y_mask.svs"], {})
    assert sorted(name for name, _ in result.left_out) == sorted(f"deep/{name}" for name in pictures)


def test_plain_images_among_slides_are_slides_only_where_they_are_named(root, tmp_path):
    root.mkdir()
    write_tiff(root / "a.tif", picture(600))
    for folder in ("", "fields"):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(picture(600, 1)).save(root / folder / f"field{folder}.png")
    report = tile_slides([root], tmp_path / "mixed", TilingOptions(tile_size_px=112, assume_mpp=0.25), progress=False)
    assert report.done == 1
    assert [name for name, _ in report.failures] == ["field.png", "fields/fieldfields.png"]
    assert "name it or a folder of images as an input" in report.failures[0][1]
    assert found(root, root / "a.tif", root / "field.png", root / "fields")[0] == [
        "a.tif",
        "field.png",
        "fields/fieldfields.png",
    ]
    assert found(root / "fields")[0] == ["fieldfields.png"]


def test_plain_tiff_does_not_make_plain_images_strangers(root):
    root.mkdir()
    Image.fromarray(picture(64)).save(root / "a.tif")
    Image.fromarray(picture(64)).save(root / "b.png")
    assert found(root)[0] == ["a.tif", "b.png"]


BAD_NAMES = [
    "M\udcfcller.svs",
    "a" * 251 + ".svs",
    " a.svs",
    "a .svs",
    "a.svs ",
    "line\nbreak.svs",
    "tab\t.svs",
    "b\\a.svs",
]


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name != "a.svs "])
def test_bad_name_costs_one_line_and_not_the_run(root, tmp_path, name):
    root.mkdir()
    write_tiff(root / "good.tif", picture(600))
    shutil.copy(root / "good.tif", root / name)
    report = tile_slides([root, root / name], tmp_path / "out", OPTIONS, progress=False)
    assert (report.done, {reason[-9:] for _, reason in report.failures}) == (1, {"rename it"})
    written = pd.read_csv(tmp_path / "out" / "failures.csv")["input"].tolist()
    assert written == [printable(name)] * 2
    assert set(read_manifest(tmp_path / "out")["slide_id"]) == {"good"}


@settings(max_examples=examples(200))
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=30).map(lambda text: text + ".svs"))
def test_names_that_are_taken_can_be_written_and_read_back(name):
    assert printable(name).isprintable()
    if name_problem(name) is None:
        slide_id = slide_name(name)
        assert slide_id == slide_id.strip() == slide_id.encode().decode()
        assert len(slide_id.splitlines()) == 1


def test_files_of_kinds_that_are_not_read_are_named(root):
    touch(root / "a.svs", root / "notes.txt", *(root / f"x{suffix}" for suffix in UNREAD_SUFFIXES))
    slides, problems, result = found(root)
    assert slides == ["a.svs"]
    assert sorted(problems) == sorted(path.name for path in result.unread) == sorted(f"x{s}" for s in UNREAD_SUFFIXES)


@pytest.mark.parametrize("suffix", [".btf", ".ptif", ".qptiff"])
def test_other_suffixes_of_tiff_are_read(root, tmp_path, suffix):
    root.mkdir()
    write_tiff(root / f"a{suffix}", picture(600), bigtiff=suffix == ".btf")
    report = tile_slides([root], tmp_path / "out", OPTIONS, progress=False)
    assert (report.done, report.failures) == (1, [])


def test_two_slides_of_one_name_stop_the_run_and_are_both_named(root):
    touch(root / "a" / "x.svs", root / "b" / "x.ndpi")
    with pytest.raises(InputError, match=r"a/x\.svs and .*b/x\.ndpi would both be slide 'x'"):
        found(root)


def test_slide_whose_link_broke_leaves_the_tables_but_is_not_deleted(root, tmp_path):
    root.mkdir()
    write_tiff(tmp_path / "store.tif", picture(600))
    write_tiff(root / "b.tif", picture(600, 1))
    (root / "a.tif").symlink_to(tmp_path / "store.tif")
    out = tmp_path / "out"
    tile_slides([root], out, OPTIONS, progress=False)
    before = contents(out)
    (tmp_path / "store.tif").rename(tmp_path / "away.tif")
    report = tile_slides([root], out, OPTIONS, progress=False)
    assert [name for name, _ in report.failures] == ["a.tif"]
    assert set(read_manifest(out)["slide_id"]) == {"b"}
    (tmp_path / "away.tif").rename(tmp_path / "store.tif")
    assert tile_slides([root], out, OPTIONS, progress=False).failures == []
    assert contents(out) == before


def test_all_that_a_folder_holds_can_be_named(root):
    root.mkdir()
    pixels = picture(512)
    write_vms(root / "v.vms", pixels)
    write_mirax(root / "m.mrxs", pixels)
    write_dicom(root / "d", pixels)
    assert found(root, *sorted(root.iterdir()))[:2] == (["d", "m.mrxs", "v.vms"], {})
    assert found(root, *sorted((root / "d").iterdir()), root / "d")[:2] == (["d/level0.dcm"], {})
    assert found(root, root / "d", root / "d" / "level1.dcm")[:2] == (["d"], {})
    assert found(root, root / "v.vms", root)[0] == ["v.vms", "d", "m.mrxs"]
    assert found(root, root / "d", root / "d")[:2] == (["d"], {})


@pytest.mark.parametrize("lost", ["folder", "m/Slidedat.ini", "m/Index.dat", "m/Data0000.dat"])
def test_mirax_slide_without_all_of_its_files_is_refused_and_its_picture_is_not_tiled(root, tmp_path, lost):
    root.mkdir()
    write_mirax(root / "m.mrxs", picture(512))
    shutil.rmtree(root / "m") if lost == "folder" else (root / lost).unlink()
    options = TilingOptions(tile_size_px=32, assume_mpp=0.25)
    report = tile_slides([root / "m.mrxs"], tmp_path / "out", options, progress=False)
    assert (report.done, [name for name, _ in report.failures]) == (0, ["m.mrxs"])
    assert str(tmp_path) not in report.failures[0][1]


def test_list_of_files_on_dicom_media_is_no_slide(root):
    write_dicom(root, picture(512))
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\4\0\0\0\0\0\0\0")
    slides, problems, result = found(root)
    assert (slides, problems) == (["."], {})
    open_slide(result.slides[0]).close()


def test_data_of_a_mirax_slide_without_its_file_are_named(root):
    touch(root / "a.svs")
    write_mirax(root / "m.mrxs", picture(512))
    (root / "m.mrxs").unlink()
    assert "whose .mrxs file is not beside it" in found(root)[1]["m"]
    assert list(found(root, root / "m")[1]) == ["m"]


def test_folder_of_a_kind_that_is_not_read_is_named(root):
    touch(root / "a.svs", root / "b.ome.zarr" / "0" / "0")
    assert list(found(root)[1]) == list(found(root, root / "b.ome.zarr")[1]) == ["b.ome.zarr"]


def test_what_would_never_answer_is_named_and_not_opened(root, tmp_path):
    write_dicom(root / "d", picture(512))
    for path in (root / "a.svs", root / "d" / "a"):
        os.mkfifo(path)
    slides, problems, result = found(root)
    assert (slides, list(problems)) == (["d"], ["a.svs"])
    with pytest.raises(SlideError, match="'a' beside it is a pipe"):
        open_slide(result.slides[0])
    with pytest.raises(InputError, match="a pipe or device"):
        find_slides([root / "a.svs"], tmp_path / "out")


def test_hard_link_to_a_slide_is_no_second_one(root):
    touch(root / "a.svs", root / "c.svs")
    (root / "b.svs").hardlink_to(root / "a.svs")
    (root / "d").mkdir()
    (root / "d" / "a.svs").hardlink_to(root / "a.svs")
    (root / "e.svs").symlink_to(root / "c.svs")
    expected = {
        "b.svs": "is the same file as a.svs, which is taken",
        "e.svs": "is the same file as c.svs, which is taken",
    }
    assert found(root)[:2] == (["a.svs", "c.svs"], expected)
    assert found(root, *(root / f"{name}.svs" for name in "abce"))[:2] == (["a.svs", "c.svs"], expected)


def test_tiles_of_an_earlier_run_among_the_inputs_are_no_slides(root):
    root.mkdir()
    Image.fromarray(picture(512)).save(root / "a.png")
    for name in ("first", "second"):
        options = TilingOptions(tile_size_px=112, assume_mpp=0.25)
        report = tile_slides([root], root / name, options, progress=False)
        assert (report.done, report.failures, report.left_out) == (1, [], [])
    with pytest.raises(InputError, match=r"--out is .* one of the inputs"):
        tile_slides([root], root, options, progress=False)


def test_picture_with_no_name_but_its_kind_is_left_out_beside_slides_only(root):
    touch(root / "a.svs", root / "project" / "data" / "1" / "thumbnail.jpg", root / "project" / "data" / "1" / "x.jpg")
    slides, problems, result = found(root)
    assert (slides, list(problems), len(result.left_out)) == (["a.svs"], ["project/data/1/x.jpg"], 1)
    assert found(root / "project")[0] == ["data/1/thumbnail.jpg", "data/1/x.jpg"]


def test_blank_behind_the_suffix_is_not_passed_over(root):
    touch(root / "a.svs", root / "b.svs ")
    assert list(found(root)[1]) == ["b.svs "]


def test_folder_with_nothing_to_read_is_refused(root):
    touch(root / "notes.txt")
    with pytest.raises(InputError, match="holds no slide"):
        found(root)


def test_vms_and_dicom_slides_are_tiled(root, tmp_path):
    root.mkdir()
    pixels = picture(1280)
    write_vms(root / "v.vms", pixels)
    write_dicom(root / "d", pixels)
    report = tile_slides([root], tmp_path / "out", OPTIONS, progress=False)
    assert (report.done, report.failures) == (2, [])
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["file_name"].tolist() == ["d", "v.vms"]
    counts = read_manifest(tmp_path / "out").groupby("slide_id").size()
    assert counts["d"] == counts["v"] > 4
    assert tile_slides([root], tmp_path / "out", OPTIONS, progress=False).skipped == 2
    np.testing.assert_allclose(read_manifest(tmp_path / "out")["mpp"], 0.5)
