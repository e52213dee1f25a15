"""What the second run into a folder does when slides, their names or their labels are not those of the first."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kdml_med.errors import InputError
from kdml_med.storage import files
from kdml_med.storage.manifest import read_info, read_manifest
from kdml_med.storage.shards import sidecar_path
from kdml_med.wsi import cutter, tiler
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.slide import SlideError
from kdml_med.wsi.sources import list_files
from kdml_med.wsi.tiler import tile_slides
from tests.synthetic_slides import write_slide
from tests.wsi.test_tiler import Match, Table, contents

OPTIONS = TilingOptions(tile_size_px=112)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three slides of one size and three contents; two of them have the same number of bytes, too."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        write_slide(folder / f"{seed}.svs", width=1200, height=1000, seed=seed)
    longest = max(path.stat().st_size for path in folder.iterdir())
    for path in folder.iterdir():
        with path.open("ab") as stream:
            stream.write(bytes(longest - path.stat().st_size))
    return folder


@pytest.fixture
def slides(pictures, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, seed in (("a", 0), ("b", 1)):
        shutil.copy(pictures / f"{seed}.svs", folder / f"{name}.svs")
    return folder


def tile(inputs, out, options=OPTIONS, **more):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return tile_slides(inputs, out, options, progress=False, **more)


def same_as_fresh(inputs, out, **more):
    tile(inputs, out.with_name("fresh"), **more)
    return contents(out) == contents(out.with_name("fresh"))


def test_slide_replaced_under_its_name_is_tiled_anew(slides, pictures, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    state = (slides / "a.svs").stat()
    shutil.copy(pictures / "2.svs", slides / "a.svs")
    os.utime(slides / "a.svs", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (slides / "a.svs").stat().st_size == state.st_size
    report = tile(slides, out)
    assert (report.done, report.skipped, report.remade) == (1, 1, {"a": "a.svs has changed"})
    assert same_as_fresh(slides, out)


def test_replaced_slide_that_cannot_be_used_leaves_nothing_of_the_old_one(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    (slides / "a.svs").write_bytes(b"no slide any more")
    report = tile(slides, out)
    assert [name for name, _ in report.failures] == ["a.svs"]
    assert set(read_manifest(out)["slide_id"]) == {"b"}
    assert same_as_fresh(slides, out)


def test_second_batch_of_the_same_names_from_another_folder_is_never_taken_for_the_first(slides, pictures, tmp_path):
    out, batch = tmp_path / "out", tmp_path / "batch"
    tile(slides, out)
    before = contents(out)
    batch.mkdir()
    shutil.copy(pictures / "2.svs", batch / "a.svs")
    with pytest.raises(InputError, match=r"holds what is not among the inputs of this run: b\."):
        tile(batch, out)
    with pytest.raises(InputError, match=r"holds a already.*a\.svs has changed.*give the input another name"):
        tile(batch, out, keep=True)
    with pytest.raises(InputError, match="would both be slide 'a'"):
        tile([slides, batch], out)
    assert contents(out) == before
    shutil.copy(pictures / "0.svs", batch / "b.svs")
    assert set(tile(batch, out).remade) == {"a", "b"}
    assert same_as_fresh(batch, out)


def test_same_slides_in_another_folder_and_of_another_time_are_finished(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    before = contents(out)
    moved = tmp_path / "archive" / "2024"
    moved.mkdir(parents=True)
    for path in slides.iterdir():
        shutil.copyfile(path, moved / path.name)
        os.utime(moved / path.name, ns=(7, 7))
    assert tile(tmp_path / "archive", out).skipped == 2
    assert contents(out) == before


def test_renamed_slide_is_refused_until_it_is_said_what_becomes_of_the_old_one(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    (slides / "b.svs").rename(slides / "c.svs")
    with pytest.raises(InputError, match=r"of this run: b\."):
        tile(slides, out)
    assert tile(slides, out, force=True).done == 1
    assert not (out / "thumbnails" / "b.jpg").exists()
    assert same_as_fresh(slides, out)


def test_further_slides_join_those_that_are_kept_though_their_files_are_gone(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides / "a.svs", out)
    (slides / "a.svs").rename(tmp_path / "a.svs")
    report = tile(slides, out, keep=True)
    assert (report.done, report.skipped, report.kept) == (1, 0, 1)
    assert same_as_fresh([tmp_path / "a.svs", slides / "b.svs"], out)


def test_changed_label_table_changes_rows_and_no_tile(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out, labels=Table({"a": Match("P1", "MSI"), "b": Match("P2", "MSS")}))
    shards = {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")}
    table = Table({"a": Match("P1", "MSS"), "b": Match("P3", "MSS", "north")})
    report = tile(slides, out, labels=table)
    assert (report.done, report.remade) == (0, {})
    rows = read_manifest(out)[["slide_id", "patient_id", "label"]].drop_duplicates().to_numpy().tolist()
    assert rows == [["a", "P1", "MSS"], ["b", "P3", "MSS"]]
    assert {path.name: path.read_bytes() for path in (out / "shards").glob("*.tar")} == shards
    assert same_as_fresh(slides, out, labels=table)


def test_resolution_of_the_label_table_decides_tiles_where_the_header_has_none(slides, tmp_path):
    write_slide(slides / "silent.svs", width=1200, height=1000, mpp=None)
    matches = {name: Match(name, "MSI") for name in ("a", "b", "silent")}
    out = tmp_path / "out"
    tile(slides, out, labels=Table(matches, {"silent": 0.25}))
    table = Table(matches, {"silent": 0.3, "a": 0.2501})  # the header of a goes before
    report = tile(slides, out, labels=table)
    assert report.remade == {"silent": "the label table gave 0.25 µm/px, now 0.3"}
    assert same_as_fresh(slides, out, labels=table)
    with pytest.raises(InputError, match=r"'silent' is kept .* now 0\.4: name it among the inputs too"):
        tile([slides / "a.svs", slides / "b.svs"], out, labels=Table(matches, {"silent": 0.4}), keep=True)
    assert "now none" in tile(slides, out, labels=Table(matches)).remade["silent"]
    assert set(read_manifest(out)["slide_id"]) == {"a", "b"}


def test_label_table_that_comes_to_contradict_a_header_takes_the_slide_out_until_it_is_corrected(slides, tmp_path):
    out, matches = tmp_path / "out", {name: Match(name, "MSI") for name in "ab"}
    tile(slides, out, labels=Table(matches))
    before, wrong = contents(out), Table(matches, {"a": 0.5})
    report = tile(slides, out, labels=wrong)
    assert [name for name, _ in report.failures] == ["a.svs"]
    assert "says 0.25 µm/px, the label table 0.5" in report.failures[0][1]
    assert set(read_manifest(out)["slide_id"]) == {"b"}
    assert tile(slides, tmp_path / "fresh", labels=wrong).failures == report.failures
    assert tile(slides, out, labels=Table(matches)).done == 0
    assert contents(out) == before


def fail_to_read(monkeypatch, name, code):
    """Let a file of this name give an error of the system when it is opened for hashing."""
    opened = Path.open

    def opening(path, mode="r", *more, **options):
        if path.name == name and mode == "rb":
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", opening)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("keep", [False, True])
def test_slide_that_cannot_be_read_any_more_keeps_its_tiles_and_is_named(slides, tmp_path, monkeypatch, code, keep):
    out = tmp_path / "out"
    tile(slides, out)
    before = contents(out)
    with monkeypatch.context() as broken:
        fail_to_read(broken, "a.svs", code)
        report = tile(slides, out, keep=keep)
    reason = f"cannot be read: {os.strerror(code)}; its tiles of an earlier run stay"
    assert (report.done, report.skipped, report.remade, report.failures) == (0, 2, {}, [("a.svs", reason)])
    changed = {name for name, data in contents(out).items() if data != before[name]}
    assert changed == {"failures.csv"}
    assert reason in (out / "failures.csv").read_text()
    report = tile(slides, out)
    assert (report.done, report.skipped, report.failures) == (0, 2, [])
    assert contents(out) == before


def test_slide_that_cannot_be_read_and_was_never_tiled_fails_alone(slides, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        fail_to_read(broken, "a.svs", errno.EIO)
        broken.setattr(cutter, "open_slide", refuse_to_open)
        report = tile(slides / "a.svs", out)
    assert (report.done, [name for name, _ in report.failures]) == (0, ["a.svs"])
    assert tile(slides, out).done == 2
    assert same_as_fresh(slides, out)


def refuse_to_open(path, **options):
    raise SlideError("cannot be opened")


def test_resolution_that_was_assumed_gives_way_to_the_label_table(slides, tmp_path):
    write_slide(slides / "silent.svs", width=1200, height=1000, mpp=None)
    matches, options = {"silent": Match("P", "MSI")}, replace(OPTIONS, assume_mpp=0.25)
    out = tmp_path / "out"
    tile(slides / "silent.svs", out, options, labels=Table(matches))
    report = tile(slides / "silent.svs", out, options, labels=Table(matches, {"silent": 0.3}))
    assert report.remade == {"silent": "0.25 µm/px was assumed, now the label table gives 0.3"}


def test_large_slides_are_told_apart_by_their_time_unless_all_bytes_are_hashed(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    sampled, full = tmp_path / "sampled", tmp_path / "full"
    tile(slides, sampled)
    tile(slides, full, full_hash=True)
    assert read_info(full).options["full_hash"]
    assert tile(slides, sampled).skipped == 2
    os.utime(slides / "a.svs", ns=(7, 7))
    before = contents(sampled)
    assert "another time" in tile(slides, sampled).remade["a"]
    changed = {name for name, data in contents(sampled).items() if data != before[name]}
    assert changed == {"shards/a.times.json"}  # the same slide after all: times are no part of the result
    assert tile(slides, full, full_hash=True).skipped == 2
    assert not list(full.rglob("*.times.json"))
    with pytest.raises(InputError, match="full_hash = True, this run has False"):
        tile(slides, full)


def test_folder_of_an_earlier_version_is_made_anew_and_says_so(slides, tmp_path):
    out = tmp_path / "out"
    tile(slides, out)
    before = contents(out)
    for name in "ab":
        path = sidecar_path(out, name)
        table = pq.read_table(path)
        record = json.loads(table.schema.metadata[b"kdml_med.record"])
        assert record.pop("origin")["sources"][0][:2] == [f"{name}.svs", (slides / f"{name}.svs").stat().st_size]
        old = table.replace_schema_metadata({b"kdml_med.record": json.dumps(record).encode()})
        pq.write_table(old, path)
    report = tile(slides, out)
    assert report.done == 2
    assert set(report.remade.values()) == {"an earlier version did not record what it was made from"}
    assert contents(out) == before


def test_files_beside_a_slide_belong_to_it(tmp_path):
    for name in ("m.mrxs", "m/Data0.dat", "v.vms", "v(1,0).jpg", "w.vms", "s/1.dcm", "s/2.dcm", "x.svs", "x.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("[Virtual Microscope Specimen]\nImageFile(1,0)=v(1,0).jpg\n" if name == "v.vms" else "x")
    found = {
        name: [file for _, file in list_files(tmp_path / name)] for name in ("m.mrxs", "v.vms", "s/1.dcm", "x.svs")
    }
    assert found == {
        "m.mrxs": ["m.mrxs", "m/Data0.dat"],
        "v.vms": ["v.vms", "v(1,0).jpg"],
        "s/1.dcm": ["1.dcm", "2.dcm"],
        "x.svs": ["x.svs"],
    }


def test_failing_slide_does_not_take_the_manifest_of_the_others_away(slides, tmp_path):
    (slides / "cut.svs").write_bytes((slides / "a.svs").read_bytes()[:9000])
    out = tmp_path / "out"
    tile(slides, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert tile(slides, out).failures[0][0] == "cut.svs"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times


def test_file_that_shrinks_while_it_is_read_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("abc"):
        write_slide(tmp_path / "in" / f"{name}.svs", seed=seed)
    read_overview = cutter.read_overview

    def read_and_shrink(slide, *mpp):
        if slide.path.name == "b.svs":
            os.truncate(slide.path, 5_000)
        return read_overview(slide, *mpp)

    monkeypatch.setattr(cutter, "read_overview", read_and_shrink)
    report = tile_slides([tmp_path / "in"], tmp_path / "out", TilingOptions(tile_size_px=112), progress=False)
    assert (report.done, [name for name, _ in report.failures]) == (2, ["b.svs"])


def test_slides_that_an_earlier_version_tiled_by_other_rules_are_made_anew_and_not_kept_among_new_ones(
    slides, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    tile(slides / "b.svs", out)
    before = contents(out)
    monkeypatch.setattr(tiler, "PIXEL_RULES", tiler.PIXEL_RULES + 1)
    with pytest.raises(InputError, match=r"'b' is kept .* by other rules"):
        tile(slides / "a.svs", out, keep=True)
    assert contents(out) == before
    report = tile(slides, out)
    assert list(report.remade) == ["b"]
    assert "another version" in report.remade["b"]
