import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from kdml_med.errors import ExitCode
from kdml_med.program import run
from kdml_med.programs.make_splits import command as make_splits
from kdml_med.programs.prepare_frames import main
from kdml_med.splits import assign_splits
from kdml_med.storage.manifest import read_info, read_manifest
from tests.colonoscopy.pictures import contents, save, save_mask


@pytest.fixture
def call(monkeypatch, capsys):
    """The program inside this process: quicker, for what does not depend on processes."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_frames", *map(str, arguments), "--workers", "1"])
        with pytest.raises(SystemExit) as exit_info:
            run(main)
        return subprocess.CompletedProcess(arguments, exit_info.value.code, *capsys.readouterr())

    return run_main


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten sequences of two frames, each with a polyp; one more without any."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(11):
        for frame in range(2):
            save(folder / "images" / f"s{number}" / f"{frame}.png", seed=100 * number + frame)
            boxes = [(60, 40, 100, 90)] if number < 10 else []
            save_mask(folder / "masks" / f"s{number}" / f"{frame}.png", boxes)
    return folder


def test_sequences_are_split_whole_though_only_one_has_no_polyp(call, clips, tmp_path):
    done = call(clips / "images", "--out", tmp_path / "out", "--annotations", clips / "masks")
    assert done.returncode == ExitCode.OK, done.stderr
    assert (
        "22 frames: 20 with polyps (20 boxes), 2 negative, 0 unlabelled; 11 sequences, patients not known"
        in done.stdout
    )
    assert "11 of 11 shards" in done.stderr
    assert "patients  " not in done.stdout
    assert done.stdout.split("before training\n")[0].count("patients") == 1
    assert done.stdout.splitlines()[-1].split() == ["all", "11", "1", "10", "22", "2", "20"]
    manifest = read_manifest(tmp_path / "out")
    parts = assign_splits(tmp_path / "out", manifest, read_info(tmp_path / "out"))
    assert set(parts) == {"train", "val", "test"}
    assert (parts.groupby(manifest["sequence_id"]).nunique() == 1).all()
    assert set(parts[manifest["label"] == "polyp"]) == {"train", "val", "test"}


def test_splits_can_be_left_for_later_and_made_by_their_own_program(call, clips, tmp_path):
    out = tmp_path / "out"
    call(clips / "images", "--out", out, "--annotations", clips / "masks", "--no-splits")
    assert not (out / "splits.csv").exists()
    make_splits(out, folds=5)
    again = call(clips / "images", "--out", out, "--annotations", clips / "masks")
    assert again.returncode == ExitCode.OK, again.stderr
    assert pd.read_csv(out / "splits.csv").columns.tolist() == ["patient_id", "fold"]


@pytest.fixture
def split(call, tmp_path):
    """Images and masks of three sequences with drawn splits, and the arguments that made the dataset."""
    for number in (1, 2, 3):
        _save_sequence(tmp_path, number)
    how = [tmp_path / "images", "--annotations", tmp_path / "masks", "--out", tmp_path / "out"]
    assert call(*how).returncode == ExitCode.OK
    return how


def _save_sequence(folder, number):
    save(folder / "images" / f"s{number}" / "1.png", seed=number)
    save_mask(folder / "masks" / f"s{number}" / "1.png", [(60, 40, 100, 90)])


def test_a_sequence_that_is_added_to_drawn_splits_changes_nothing_until_it_is_said_what_becomes_of_them(
    call, split, tmp_path
):
    before = contents(tmp_path / "out")
    _save_sequence(tmp_path, 4)
    for more in ([], ["--no-splits"]):
        refused = call(*split, *more)
        assert refused.returncode == ExitCode.BAD_INPUT
        assert "no split for 's4', which joins" in refused.stderr
        assert "pass --force" in refused.stderr
        assert contents(tmp_path / "out") == before
    done = call(*split, "--force")
    assert done.returncode == ExitCode.OK, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert len(assign_splits(tmp_path / "out", manifest, read_info(tmp_path / "out"))) == 4


def test_frozen_splits_of_others_are_named_where_a_forced_run_does_not_replace_them(call, split, tmp_path):
    _save_sequence(tmp_path, 4)
    done = call(*split, "--force", "--no-splits")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "NOTE: 1 sequence of the manifest is not in" in done.stdout
    make_splits(tmp_path / "out", folds=3, force=True)
    assert call(*split).returncode == ExitCode.OK


def test_folders_that_tell_the_sequences_are_named_with_what_to_do_if_they_are_none(call, clips, tmp_path):
    done = call(clips / "images", "--out", tmp_path / "out", "--annotations", clips / "masks", "--no-splits")
    told = "taken for sequences by their folders: s0, s1, s2, s3, s4 and 6 more; if they are none: --sequence-from none"
    assert told in done.stdout
    two = [clips / "images" / name for name in ("s0", "s1")]
    done = call(*two, "--out", tmp_path / "two", "--annotations", clips / "masks")
    assert "no splits: 3 parts need at least 3 sequences, there are 2. If the folders are no sequences" in done.stdout
    assert "--sequence-from none, and another --out" in done.stdout.split("no splits")[1]


def test_too_few_sequences_leave_the_frames_without_splits(call, clips, tmp_path):
    done = call(clips / "images" / "s0", "--out", tmp_path / "out", "--annotations", clips / "masks" / "s0")
    assert done.returncode == ExitCode.OK
    assert "NOTE: nothing tells which frames belong to one sequence" in done.stdout
    assert "no splits: 3 parts need at least 3 frames, there are 2" in done.stdout


def test_problems_give_their_own_exit_code(call, clips, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    save(tmp_path / "in" / "good.png")
    done = call(tmp_path / "in", "--out", tmp_path / "out", "--png", "--synthetic")
    assert done.returncode == ExitCode.SOME_FAILED
    assert "empty.png: the file is empty" in done.stdout
    assert read_info(tmp_path / "out").synthetic
    assert read_manifest(tmp_path / "out")["sample_id"].tolist() == ["good.png"]


def test_corrected_mask_is_named_and_others_are_kept_or_deleted_as_the_option_says(call, tmp_path):
    for name in "ab":
        save(tmp_path / "images" / name / "1.png", seed=ord(name))
        save_mask(tmp_path / "masks" / name / "1.png", [(60, 40, 100, 90)])
    how = ["--annotations", tmp_path / "masks", "--out", tmp_path / "out", "--full-hash", "--sequence-from", "folder"]
    call(tmp_path / "images", *how)
    save_mask(tmp_path / "masks" / "a" / "1.png", [(70, 40, 110, 90)])
    assert "made anew: a (mask a/1.png has changed)" in call(tmp_path / "images", *how).stdout
    (tmp_path / "images" / "b" / "1.png").unlink()
    refused = call(tmp_path / "images", *how)
    assert (refused.returncode, "of this run: b." in refused.stderr) == (ExitCode.BAD_INPUT, True)
    assert "1 shard of inputs that were not named is kept" in call(tmp_path / "images", *how, "--keep").stdout
    call(tmp_path / "images", *how, "--force")
    assert read_manifest(tmp_path / "out")["sample_id"].tolist() == ["a/1.png"]


def test_failures_stand_while_frames_are_added_until_their_input_is_named_again(call, tmp_path):
    for name in "ab":
        save(tmp_path / name / f"{name}.png", seed=ord(name))
    (tmp_path / "a" / "old.heic").write_bytes(b"?")
    how = ["--out", tmp_path / "out"]

    def failures() -> list[str]:
        return pd.read_csv(tmp_path / "out" / "failures.csv")["input"].tolist()

    assert call(tmp_path / "a", *how).returncode == ExitCode.SOME_FAILED
    assert failures() == ["old.heic"]
    added = call(tmp_path / "b", *how, "--keep")
    assert (added.returncode, failures()) == (ExitCode.OK, ["old.heic"])
    assert "1 row of earlier runs stands in" in added.stdout
    assert call(tmp_path / "a", *how, "--keep").returncode == ExitCode.SOME_FAILED
    assert failures() == ["old.heic"]
    (tmp_path / "a" / "old.heic").unlink()
    call(tmp_path / "a", tmp_path / "b", *how)
    assert failures() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "pdf"], "--format is 'pdf'"),
        (["--size", "8"], "--size is 8"),
        (["--annotations", "absent.csv"], "absent.csv does not exist"),
        (["--polyp-class", "adenoma"], "--polyp-class needs --annotations"),
        (["--sequence-from", "column"], "no sequence column"),
        (["--split", "dev"], "--split is 'dev'"),
    ],
)
def test_wrong_arguments_are_explained_without_a_traceback(call, clips, tmp_path, arguments, message):
    done = call(clips / "images", "--out", tmp_path / "out", *arguments)
    assert done.returncode == ExitCode.BAD_INPUT
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_run_killed_at_any_moment_goes_on_to_the_same_bytes(clips, tmp_path):
    arguments = [str(clips / "images"), "--annotations", str(clips / "masks"), "--workers", "2"]
    program = [sys.executable, "-m", "preprocessing.prepare_frames", *arguments]
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = subprocess.run([*program, "--out", str(whole)], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    process = subprocess.Popen([*program, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(out.glob("shards/*.parquet"))) < 2:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "splits.csv").exists()  # it did die before the end
    done = subprocess.run([*program, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    assert contents(out) == contents(whole)
