"""Frames that belong to no sequence, in a second run: none goes unasked, and further ones join those that are kept."""

import itertools

import pytest

from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_manifest
from tests.colonoscopy.pictures import contents, save

PLAIN = FrameOptions(crop=False, size_px=32)


@pytest.fixture(autouse=True)
def two_to_a_shard(monkeypatch):
    monkeypatch.setattr("kdml_med.colonoscopy.planning._LOOSE_FRAMES", 2)


@pytest.fixture
def save_all(tmp_path):
    """Writes images of these names, each of its own pixels, into a folder."""

    def write(folder, names):
        for name in names:
            save(tmp_path / folder / f"{name}.bmp", seed=sum(name.encode()))
        return tmp_path / folder

    return write


def prepare(inputs, out, annotations=None, options=PLAIN, **more):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return prepare_frames(inputs, out, options, annotations, progress=False, **more)


def stored(out):
    """Names of the images by shard."""
    manifest = read_manifest(out)
    return {
        shard.removeprefix("shards/").removesuffix(".tar"): "".join(name.removesuffix(".bmp") for name in own)
        for shard, own in manifest.groupby("shard", observed=True)["sample_id"]
    }


def same_as_fresh(inputs, out):
    prepare(inputs, out.with_name("fresh"))
    return contents(out) == contents(out.with_name("fresh"))


@pytest.mark.parametrize("gone", ["a", "e", "de"])  # of a shard that fills up from the next, and of the last one
def test_frames_that_are_not_named_any_more_are_refused_before_anything_is_written(save_all, tmp_path, gone):
    images, out = save_all("in", "abcde"), tmp_path / "out"
    prepare(images, out)
    before = contents(out)
    for name in gone:
        (images / f"{name}.bmp").unlink()
    with pytest.raises(InputError, match=rf"holds what is not among the inputs of this run: {gone[0]}\.bmp.*--force"):
        prepare(images, out)
    assert contents(out) == before
    prepare(images, out, force=True)
    assert same_as_fresh(images, out)


def test_frames_of_another_folder_do_not_take_the_place_of_those_that_are_stored(save_all, tmp_path):
    out = tmp_path / "out"
    prepare(save_all("one", "abc"), out)
    before = contents(out)
    with pytest.raises(InputError, match=r"of this run: a\.bmp, b\.bmp, c\.bmp\. Name all inputs in one run"):
        prepare(save_all("two", "defg"), out)
    assert contents(out) == before


def test_frames_may_move_to_another_shard_and_have_another_name(save_all, tmp_path):
    images, out = save_all("in", "bcde"), tmp_path / "out"
    prepare(images, out)
    save_all("in", "a")
    prepare(images, out)
    assert stored(out) == {"frames-0000": "ab", "frames-0001": "cd", "frames-0002": "e"}
    (images / "e.bmp").rename(images / "z.bmp")
    prepare(images, out)
    assert same_as_fresh(images, out)


def test_a_frame_is_gone_though_another_one_has_its_pixels(save_all, tmp_path):
    images, out = save_all("in", "ab"), tmp_path / "out"
    (images / "b.bmp").write_bytes((images / "a.bmp").read_bytes())
    prepare(images, out)
    (images / "b.bmp").unlink()
    with pytest.raises(InputError, match=r"of this run: b\.bmp\."):
        prepare(images, out)


def test_what_could_not_be_used_may_go(save_all, tmp_path):
    images, out = save_all("in", "abc"), tmp_path / "out"
    (images / "a.bmp").write_bytes(b"no picture")
    prepare(images, out)
    (images / "a.bmp").unlink()
    prepare(images, out)
    assert stored(out) == {"frames-0000": "bc"}


def test_images_of_a_sequence_that_is_called_like_a_numbered_shard_may_go(save_all, tmp_path):
    images, out = save_all("in", ["frames-0000/a", "frames-0000/b", "other/c"]), tmp_path / "out"
    prepare(images, out)
    (images / "frames-0000" / "a.bmp").unlink()
    assert list(prepare(images, out).remade) == ["frames-0000"]


def test_further_frames_go_behind_those_that_are_kept_and_all_can_be_named_again(save_all, tmp_path):
    first, out = save_all("one", "bcd"), tmp_path / "out"
    prepare(first, out)
    second = save_all("two", "aef")
    report = prepare(second, out, keep=True)
    assert (report.done, report.kept) == (2, 2)
    parts = {"frames-0000": "bc", "frames-0001": "d", "frames-0002": "ae", "frames-0003": "f"}
    assert stored(out) == parts
    before = contents(out)
    assert prepare(second, out, keep=True).done == 0
    assert prepare(save_all("both", "abcdef"), out, keep=True).finished == 4
    assert contents(out) == before
    prepare(tmp_path / "both", out)
    assert same_as_fresh(tmp_path / "both", out)


def test_a_run_that_keeps_frames_goes_on_wherever_it_was_cut_off(save_all, tmp_path):
    out = tmp_path / "out"
    prepare(save_all("one", "bcd"), out)
    second = save_all("two", "aefgh")
    prepare(second, out, keep=True)
    before, new = contents(out), ["frames-0002", "frames-0003", "frames-0004"]
    for count in (1, 2):
        for lost in itertools.combinations(new, count):
            for name in lost:
                (out / "shards" / f"{name}.parquet").unlink()
            (out / "manifest.parquet").unlink()
            assert prepare(second, out, keep=True).done == count
            assert contents(out) == before


def test_a_frame_that_is_kept_is_neither_replaced_nor_stored_twice(save_all, tmp_path):
    out = tmp_path / "out"
    prepare(save_all("one", "ab"), out)
    before = contents(out)
    with pytest.raises(InputError, match=r"called b\.bmp already, in the shard frames-0000, which is kept: leave it"):
        prepare(save_all("two", "bc"), out, keep=True)
    save(tmp_path / "one" / "a.bmp", seed=1)
    with pytest.raises(InputError, match=r"holds frames-0000 already.*a\.bmp has changed"):
        prepare(tmp_path / "one", out, keep=True)
    assert contents(out) == before


def looked_at(tmp_path, *names):
    path = tmp_path / "table.csv"
    path.write_text("image,xmin,ymin,xmax,ymax\n" + "".join(f"{name},,,,\n" for name in names))
    return path


def test_frames_that_are_left_out_because_the_table_lists_them_no_more_are_refused(save_all, tmp_path):
    images, out = save_all("in", "ab"), tmp_path / "out"
    options = FrameOptions(crop=False, size_px=32, unlisted="skip")
    prepare(images, out, looked_at(tmp_path, "a", "b"), options)
    with pytest.raises(InputError, match=r"of this run: a\.bmp\."):
        prepare(images, out, looked_at(tmp_path, "b"), options)


def test_frames_that_failures_csv_names_may_go(save_all, tmp_path):
    images, out = save_all("in", "ab"), tmp_path / "out"
    prepare(images, out, looked_at(tmp_path, "a", "b"))
    misspelt = looked_at(tmp_path, "b")
    misspelt.write_text(misspelt.read_text() + "A,60,40,100,90\n")  # may be meant for a.bmp
    report = prepare(images, out, misspelt)
    assert stored(out) == {"frames-0000": "b"}
    assert "a.bmp" in dict(report.failures)
