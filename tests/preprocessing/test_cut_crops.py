import sys

import pandas as pd
import pytest

from kdml_med.errors import ExitCode, InputError
from kdml_med.program import run
from kdml_med.programs.cut_crops import main
from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import read_info, read_manifest, write_info
from tests.synthetic_frames import write_frame_dataset


@pytest.fixture
def call(monkeypatch, capsys):
    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["cut_crops", *map(str, arguments), "--workers", "1"])
        with pytest.raises(SystemExit) as exit_info:
            run(main)
        return exit_info.value.code, *capsys.readouterr()

    return run_main


def test_crops_are_cut_counted_and_split_as_the_frames(call, tmp_path):
    frames = write_frame_dataset(tmp_path / "frames")
    how = ["--size", 16, "--per-polyp", 1, "--per-frame", 2, "--png", "--leave-out", "0,0,0.1,0.1"]
    code, out, _ = call(frames, "--out", tmp_path / "out", *how)
    assert code == ExitCode.OK
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["label"] == "polyp").sum() == 12  # one and two in the frames of each of four patients
    assert f"{len(manifest)} crops of 12 frames: " in out
    assert out.splitlines()[-1].split()[0] == "all"
    assert read_info(tmp_path / "out").options["left_out"] == [[0.0, 0.0, 0.1, 0.1]]


def test_a_damaged_frame_gives_its_own_exit_code(call, tmp_path):
    frames = write_frame_dataset(tmp_path / "frames")
    shard = frames / "shards" / "P0.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = call(frames, "--out", tmp_path / "out", "--size", 16)
    assert code == ExitCode.SOME_FAILED
    assert "1 problem, all in" in out
    assert "P0/2: cannot be read" in out


def test_splits_of_other_crops_are_named_where_a_forced_run_does_not_replace_them(call, tmp_path):
    frames = write_frame_dataset(tmp_path / "frames")
    (frames / "splits.csv").unlink()
    info = read_info(frames)
    info.splits = None
    write_info(frames, info)
    call(frames, "--out", tmp_path / "out", "--size", 16)
    splits = pd.DataFrame({"patient_id": ["P0"], "split": ["train"]})
    freeze_splits(tmp_path / "out", splits, mode="table", seed=None)
    assert call(frames, "--out", tmp_path / "out", "--size", 16)[0] == ExitCode.BAD_INPUT
    code, out, _ = call(frames, "--out", tmp_path / "out", "--size", 16, "--force")
    assert code == ExitCode.OK
    assert "NOTE: 3 patients of the manifest are not in" in out


def test_as_many_processes_cut_as_this_one_was_given_cores(tmp_path, monkeypatch):
    asked = []

    def cut(*_, workers, **__):
        asked.append(workers)
        raise InputError("enough")

    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    monkeypatch.setattr("kdml_med.programs.cut_crops.cut_crops", cut)
    with pytest.raises(InputError, match="enough"):
        main(tmp_path, tmp_path / "out")
    assert asked == [3]


@pytest.mark.parametrize("text", ["0,0,1", "a,b,c,d"])
def test_a_part_to_leave_out_is_four_numbers(call, tmp_path, text):
    code, _, error = call(tmp_path, "--out", tmp_path / "out", "--leave-out", text)
    assert code == ExitCode.BAD_INPUT
    assert f"--leave-out is '{text}', expected four numbers" in error
