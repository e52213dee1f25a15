"""What the second run into a folder does when images, their names, masks or tables are not those of the first."""

import os
import shutil

import pandas as pd
import pytest

from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.colonoscopy.report import describe_report
from kdml_med.errors import InputError
from kdml_med.splits import assign_splits, freeze_splits
from kdml_med.storage import files
from kdml_med.storage.manifest import DatasetKind, read_info, read_manifest
from kdml_med.storage.shards import ShardRecord, read_record, write_record
from tests.colonoscopy.pictures import contents, save, save_mask, save_video

PLAIN = FrameOptions(crop=False)


@pytest.fixture
def clips(tmp_path):
    """Two sequences of two frames each with their masks; bitmaps, so that all are of one size."""
    for name in ("s1/1", "s1/2", "s2/1", "s2/2"):
        save(tmp_path / "images" / f"{name}.bmp", seed=sum(name.encode()))
        save_mask(tmp_path / "masks" / f"{name}.bmp", [(60, 40, 100, 90)])
    return tmp_path / "images"


def prepare(inputs, out, *, masks=True, **more):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    known = inputs[0].parent / "masks" if masks else None
    return prepare_frames(inputs, out, PLAIN, known, progress=False, **more)


def same_as_fresh(inputs, out, **more):
    prepare(inputs, out.with_name("fresh"), **more)
    return contents(out) == contents(out.with_name("fresh"))


def replaced(path, write):
    """Write a file again; its size and time stay."""
    state = path.stat()
    write(path)
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_mask_corrected_without_changing_its_size_or_time_makes_its_shard_anew(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out)
    replaced(tmp_path / "masks" / "s2" / "1.bmp", lambda path: save_mask(path, [(70, 40, 110, 90)]))
    report = prepare(clips, out)
    assert (report.done, report.finished, report.remade) == (1, 1, {"s2": "mask s2/1.bmp has changed"})
    boxes = read_manifest(out).set_index("sample_id")["boxes"]
    assert [list(box) for box in boxes["s2/1.bmp"]] == [[70, 40, 110, 90]]
    assert "made anew: s2 (mask s2/1.bmp has changed)" in describe_report(report, out)
    assert same_as_fresh(clips, out)


def test_image_replaced_under_its_name_makes_its_shard_anew(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out)
    replaced(clips / "s1" / "2.bmp", lambda path: save(path, seed=99))
    assert prepare(clips, out).remade == {"s1": "s1/2.bmp has changed"}
    assert same_as_fresh(clips, out)


@pytest.mark.parametrize("name", ["s1/2.bmp", "mask s1/2.bmp"])
def test_frames_of_a_file_that_cannot_be_read_any_more_stay_and_it_is_named(clips, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    prepare(clips, out)
    before, taken = contents(out), files.source_fingerprint

    def fail(path, own, **options):
        return (
            files.Fingerprint(own, -1, "unreadable: Stale file handle") if own == name else taken(path, own, **options)
        )

    with monkeypatch.context() as broken:
        broken.setattr(files, "source_fingerprint", fail)
        report = prepare(clips, out)
    reason = "s1: cannot be read: Stale file handle; the frames of an earlier run stay"
    assert (report.done, report.remade, report.failures) == (0, {}, [(name, reason)])
    assert {path for path, data in contents(out).items() if data != before[path]} == {"failures.csv"}
    assert prepare(clips, out).failures == []
    assert contents(out) == before


def test_renamed_further_and_missing_images_make_their_shard_anew(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out, masks=False)
    (clips / "s1" / "2.bmp").rename(clips / "s1" / "3.bmp")
    assert prepare(clips, out, masks=False).remade == {"s1": "s1/3.bmp is new"}
    assert read_manifest(out)["sample_id"].tolist() == ["s1/1.bmp", "s1/3.bmp", "s2/1.bmp", "s2/2.bmp"]
    (clips / "s1" / "3.bmp").unlink()
    save(clips / "s2" / "0.bmp", seed=5)
    assert prepare(clips, out, masks=False).remade == {
        "s1": "s1/3.bmp is not among its inputs any more",
        "s2": "s2/0.bmp is new",
    }
    assert same_as_fresh(clips, out, masks=False)


def test_second_batch_of_the_same_names_from_another_folder_is_never_taken_for_the_first(clips, tmp_path):
    out, batch = tmp_path / "out", tmp_path / "more" / "images"
    prepare(clips, out)
    before = contents(out)
    save(batch / "s1" / "1.bmp", seed=50)
    save(batch / "s3" / "1.bmp", seed=51)
    save_mask(batch.parent / "masks" / "s1" / "1.bmp", [(60, 40, 100, 90)])
    with pytest.raises(InputError, match=r"holds what is not among the inputs of this run: s2\."):
        prepare(batch, out)
    with pytest.raises(InputError, match=r"holds s1 already.*s1/1\.bmp has changed.*--keep replaces nothing"):
        prepare(batch, out, keep=True)
    assert contents(out) == before
    report = prepare(batch, out, force=True)
    assert (report.done, list(report.remade)) == (2, ["s1"])
    assert same_as_fresh(batch, out)


def test_same_frames_in_another_folder_and_of_another_time_are_finished(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out)
    before = contents(out)
    moved = tmp_path / "archive"
    for part in ("images", "masks"):
        shutil.copytree(tmp_path / part, moved / part, copy_function=shutil.copyfile)
    for path in moved.rglob("*.bmp"):
        os.utime(path, ns=(7, 7))
    assert prepare(moved / "images", out).finished == 2
    assert contents(out) == before


def test_run_that_changes_nothing_touches_nothing(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out)
    for path in out.rglob("*"):
        os.utime(path, ns=(7, 7))
    prepare(clips, out)
    assert {path.stat().st_mtime_ns for path in out.rglob("*")} == {7}


HEADER = "image,xmin,ymin,xmax,ymax,sequence,patient,split\n"


def table(tmp_path, *rows):
    path = tmp_path / "boxes.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_changed_table_makes_the_shards_anew_that_it_is_about(clips, tmp_path):
    out, rows = tmp_path / "out", ["s1/1,60,40,100,90,s1,A,train", "s2/1,60,40,100,90,s2,B,test"]
    prepare_frames([clips], out, PLAIN, table(tmp_path, *rows), progress=False)
    changed = table(tmp_path, rows[0], rows[1].replace(",B,", ",C,"))
    report = prepare_frames([clips], out, PLAIN, changed, progress=False, force=True)  # other patients: other splits
    assert report.remade == {"s2": "what is known about it has changed"}
    assert set(read_manifest(out)["patient_id"]) == {"A", "C"}


def test_kept_frames_keep_their_split_beside_those_that_join(clips, tmp_path):
    out = tmp_path / "out"
    rows = ["s1/1,60,40,100,90,s1,A,train", "s2/1,60,40,100,90,s2,B,test"]
    prepare_frames([clips / "s1"], out, PLAIN, table(tmp_path, rows[0].replace("s1/1", "1")), progress=False)
    with pytest.raises(InputError, match=r"an input called 1\.bmp already, in the shard s1, which is kept"):
        prepare_frames(
            [clips / "s2"], out, PLAIN, table(tmp_path, rows[1].replace("s2/1", "1")), progress=False, keep=True
        )
    # One patient more means other splits than those frozen.
    report = prepare_frames([clips], out, PLAIN, table(tmp_path, rows[1]), progress=False, keep=True, force=True)
    assert (report.done, report.kept) == (1, 1)
    manifest = read_manifest(out)
    assert dict(zip(manifest["sample_id"], assign_splits(out, manifest, read_info(out)), strict=True)) == {
        "1.bmp": "train",
        "s2/1.bmp": "test",
    }


@pytest.fixture
def split_clips(clips, tmp_path):
    """Three sequences of three patients in a dataset with their splits, and the rows of the table."""
    save(clips / "s3" / "1.bmp", seed=3)
    rows = ["s1/1,60,40,100,90,s1,A,train", "s2/1,60,40,100,90,s2,B,test", "s3/1,60,40,100,90,s3,C,val"]
    prepare_frames([clips], tmp_path / "out", PLAIN, table(tmp_path, *rows), progress=False)
    return rows


@pytest.mark.parametrize("keep", [False, True])
def test_a_patient_who_joins_frozen_splits_is_refused_before_anything_is_written(clips, tmp_path, split_clips, keep):
    out = tmp_path / "out"
    before = contents(out)
    save(clips / "s4" / "1.bmp", seed=4)
    row = "1,60,40,100,90,s4,D,train"
    inputs = [clips / "s4"] if keep else [clips]
    more = table(tmp_path, row) if keep else table(tmp_path, *split_clips, f"s4/{row}")
    with pytest.raises(InputError, match=r"has no split for 'D', which joins in this run \(1 such\).*pass --force"):
        prepare_frames(inputs, out, PLAIN, more, progress=False, keep=keep)
    assert contents(out) == before
    prepare_frames(inputs, out, PLAIN, more, progress=False, keep=keep, force=True)
    manifest = read_manifest(out)
    parts = assign_splits(out, manifest, read_info(out))
    assert dict(zip(manifest["patient_id"], parts, strict=True)) == {
        "A": "train",
        "B": "test",
        "C": "val",
        "D": "train",
    }


def test_a_patient_who_leaves_frozen_splits_is_refused_before_anything_is_written(clips, tmp_path, split_clips):
    out = tmp_path / "out"
    before = contents(out)
    changed = table(tmp_path, *split_clips[:2], split_clips[2].replace(",C,val", ",B,test"))
    with pytest.raises(InputError, match=r"has 'C' in val, of which nothing is left in this run"):
        prepare_frames([clips], out, PLAIN, changed, progress=False)
    assert contents(out) == before


def test_frames_of_patients_whose_split_is_frozen_may_join(clips, tmp_path, split_clips):
    save(clips / "s4" / "1.bmp", seed=4)
    more = table(tmp_path, *split_clips, "s4/1,60,40,100,90,s4,C,val")
    assert prepare_frames([clips], tmp_path / "out", PLAIN, more, progress=False).done == 1
    assert len(assign_splits(tmp_path / "out", read_manifest(tmp_path / "out"), read_info(tmp_path / "out"))) == 4


def test_a_patient_whose_frames_cannot_be_used_does_not_count_as_one_who_joins(clips, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (clips / "s2" / "1.bmp").write_bytes(b"no picture")
    rows = ["s1/1,60,40,100,90,s1,A,train", "s2/1,60,40,100,90,s2,B,test"]
    known = table(tmp_path, *rows)
    prepare_frames([clips], out, PLAIN, known, progress=False)
    before = contents(out)
    assert prepare_frames([clips], out, PLAIN, known, progress=False).finished == 2
    changed = table(tmp_path, rows[0], rows[1].replace("60,", "70,"))  # its shard is made anew, as empty as it was
    assert list(prepare_frames([clips], out, PLAIN, changed, progress=False).remade) == ["s2"]
    assert contents(out)["splits.csv"] == before["splits.csv"]
    save(clips / "s2" / "1.bmp", seed=2)  # that it can be read now is not known before
    with pytest.raises(InputError, match=r"splits\.csv holds other splits"):
        prepare_frames([clips], out, PLAIN, changed, progress=False)
    assert not (out / "manifest.parquet").exists()
    assert contents(out)["splits.csv"] == before["splits.csv"]
    prepare_frames([clips], out, PLAIN, changed, progress=False, force=True)
    assert len(assign_splits(out, read_manifest(out), read_info(out))) == 2


@pytest.fixture
def drawn(clips, tmp_path):
    """A dataset whose splits no table tells, with one more sequence that cannot be read yet."""
    (clips / "s3").mkdir()
    (clips / "s3" / "1.bmp").write_bytes(b"no picture")
    prepare(clips, tmp_path / "out", masks=False)
    splits = pd.DataFrame({"patient_id": ["s1", "s2"], "split": ["train", "test"]})
    freeze_splits(tmp_path / "out", splits, mode="fractions", seed=0)
    return tmp_path / "out"


@pytest.mark.parametrize("keep", [False, True])
def test_a_sequence_that_joins_drawn_splits_is_refused_before_anything_is_written(clips, drawn, keep):
    before = contents(drawn)
    assert prepare(clips, drawn, masks=False).done == 0
    save(clips / "s4" / "1.bmp", seed=4)
    inputs = [clips / "s4", save(clips / "s5" / "2.bmp", seed=5).parent] if keep else [clips]
    with pytest.raises(
        InputError, match=r"has no split for 's4', which joins.*add it anyway pass --force.*another --out"
    ):
        prepare(inputs, drawn, masks=False, keep=keep)
    assert contents(drawn) == before
    assert prepare(inputs, drawn, masks=False, keep=keep, force=True).frames == 5 + keep


def test_a_sequence_that_leaves_drawn_splits_is_refused_before_anything_is_written(clips, drawn):
    before = contents(drawn)
    for name in ("1", "2"):
        (clips / "s2" / f"{name}.bmp").write_bytes(b"no picture")
    shutil.rmtree(clips / "s3")
    (drawn / "shards" / "s3.parquet").unlink()
    with pytest.raises(InputError, match=r"has 's2' in test, of which nothing is left in this run"):
        prepare(clips, drawn, masks=False)  # that it cannot be read is not known before
    assert not (drawn / "manifest.parquet").exists()
    assert contents(drawn)["splits.csv"] == before["splits.csv"]


def test_frames_join_a_sequence_whose_split_was_drawn(clips, drawn):
    save(clips / "s1" / "3.bmp", seed=6)
    prepare(clips, drawn, masks=False)
    assert len(assign_splits(drawn, read_manifest(drawn), read_info(drawn))) == 5


def test_no_manifest_is_written_beside_drawn_splits_of_others(clips, drawn):
    save(clips / "s3" / "1.bmp", seed=3)  # that it can be read now is not known before
    with pytest.raises(InputError, match=r"has no split for 's3', which joins in this run"):
        prepare(clips, drawn, masks=False)
    assert not (drawn / "manifest.parquet").exists()
    assert prepare(clips, drawn, masks=False, force=True).finished == 3


def test_frames_whose_split_is_not_known_are_not_kept_beside_official_splits(clips, tmp_path):
    out, rows = tmp_path / "out", ["s1/1,60,40,100,90,s1,A", "s2/1,60,40,100,90,s2,B,test"]
    path = table(tmp_path, rows[0])
    path.write_text(path.read_text().replace(",split", ""))
    prepare_frames([clips], out, PLAIN, path, progress=False)
    before = contents(out)
    with pytest.raises(InputError, match="keeps frames of 'A', whose split is not known"):
        prepare_frames([clips], out, PLAIN, table(tmp_path, rows[1]), progress=False, keep=True)
    assert contents(out) == before


def test_videos_are_told_apart_by_their_time_unless_all_bytes_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    video = save_video(tmp_path / "in" / "clip.avi", frames=10)
    for name in ("sampled", "full"):
        prepare(video, tmp_path / name, masks=False, full_hash=name == "full")
    os.utime(video, ns=(7, 7))
    assert "another time" in prepare(video, tmp_path / "sampled", masks=False).remade["clip.avi"]
    assert prepare(video, tmp_path / "full", masks=False, full_hash=True).finished == 1
    with pytest.raises(InputError, match="full_hash = False, this run has True"):
        prepare(video, tmp_path / "sampled", masks=False, full_hash=True)


def test_folder_of_an_earlier_version_is_made_anew_and_says_so(clips, tmp_path):
    out = tmp_path / "out"
    prepare(clips, out)
    before = contents(out)
    kind = DatasetKind.FRAMES
    for name in ("s1", "s2"):
        _, rows = read_record(out, name, ShardRecord, kind)
        write_record(out, name, ShardRecord(), rows.to_pylist(), kind)
    report = prepare(clips, out)
    assert report.done == 2
    assert set(report.remade.values()) == {"an earlier version did not record what it was made from"}
    assert contents(out) == before


def test_frames_that_were_made_by_other_rules_are_made_anew(clips, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("kdml_med.colonoscopy.preparing.READING_RULES", 0)  # as before they were counted
    prepare(clips, out)
    monkeypatch.undo()
    report = prepare(clips, out)
    reason = "another version of this program made it, which read such files by other rules"
    assert report.remade == {"s1": reason, "s2": reason}
    assert same_as_fresh(clips, out)
    assert prepare(clips, out).remade == {}
