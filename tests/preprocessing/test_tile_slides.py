import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.errors import ExitCode
from kdml_med.program import run
from kdml_med.programs.tile_slides import main
from kdml_med.storage.manifest import read_info, read_manifest
from tests.synthetic_slides import tissue_picture, write_slide


def program(*arguments, **more):
    command = [sys.executable, "-m", "preprocessing.tile_slides", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


@pytest.fixture
def call(monkeypatch, capsys):
    """The program inside this process: quicker, for what does not depend on processes."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["tile_slides", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            run(main)
        return subprocess.CompletedProcess(arguments, exit_info.value.code, *capsys.readouterr())

    return run_main


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for number in range(4):
        write_slide(folder / f"TCGA-AA-000{number}-01Z-00-DX1.svs", width=1600, height=1400, seed=number)
    return folder


@pytest.fixture(scope="module")
def whole(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    done = program(slides, "--out", out, "--tile-size", 64)
    assert done.returncode == ExitCode.OK, done.stderr
    return out


def test_bar_shows_slides_and_tiles_on_standard_error(slides, tmp_path):
    done = program(slides, "--out", tmp_path / "out", "--tile-size", 224)
    assert "4/4" in done.stderr
    assert "tiles/s" in done.stderr
    assert "4 slides tiled, 0 finished before, 0 problems" in done.stdout


@pytest.mark.parametrize("after_files", [1, 5])
def test_run_killed_at_any_moment_goes_on_to_the_same_bytes(slides, whole, tmp_path, after_files):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "preprocessing.tile_slides", str(slides), "--out", str(out), "--tile-size", "64"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        if sum(path.is_file() for path in out.rglob("*")) >= after_files:
            break
        time.sleep(0.002)
    else:
        pytest.fail(f"the program ended or hung before {after_files} files")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.parquet").exists()  # it did die before the end
    done = program(slides, "--out", out, "--tile-size", 64)
    assert done.returncode == ExitCode.OK, done.stderr
    assert contents(out) == contents(whole)


def test_leftovers_of_every_stage_are_repaired(call, slides, whole, tmp_path):
    out = tmp_path / "out"
    assert call(slides, "--out", out, "--tile-size", 64).returncode == ExitCode.OK
    names = sorted(path.stem for path in (out / "shards").glob("*.tar"))
    (out / "shards" / f"{names[0]}.parquet").unlink()  # killed between the two renames
    (out / "shards" / f"{names[1]}.tar").unlink()
    (out / "shards" / f".{names[2]}.tar.part").write_bytes(b"half a tile")
    (out / "manifest.parquet").unlink()
    (out / ".slides.csv.part").write_text("slide_")
    done = call(slides, "--out", out, "--tile-size", 64)
    assert "2 slides tiled, 2 finished before" in done.stdout
    assert contents(out) == contents(whole)


def test_slide_that_fails_gives_its_own_exit_code_and_the_others_are_tiled(slides, tmp_path):
    (tmp_path / "cut.svs").write_bytes((slides / "TCGA-AA-0000-01Z-00-DX1.svs").read_bytes()[:9000])
    good = slides / "TCGA-AA-0001-01Z-00-DX1.svs"
    done = program(tmp_path / "cut.svs", good, "--out", tmp_path / "out")
    assert done.returncode == ExitCode.SOME_FAILED
    assert "cut.svs: " in done.stdout
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["input"].tolist() == ["cut.svs"]
    assert set(read_manifest(tmp_path / "out")["patient_id"]) == {"TCGA-AA-0001"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "kather-256um", "--mpp", "0.5"], "already decides --mpp"),
        (["--preset", "other"], "--preset is 'other'"),
        (["--assume-mpp", "896"], "--assume-mpp is 896"),
        (["--format", "gif"], "--format is 'gif'"),
        (["--label-column", "msi"], "--label-column needs --labels"),
        (["--labels", "absent.csv"], "absent.csv"),
        (["--tile-size", "64", "--mpp", "0.75"], "mpp = 0.5, this run has 0.75"),
    ],
)
def test_wrong_arguments_are_explained_without_a_traceback(call, slides, whole, arguments, message):
    before = contents(whole)
    done = call(slides, "--out", whole, *arguments)
    assert done.returncode == ExitCode.BAD_INPUT
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(whole) == before


def test_label_table_decides_patients_and_labels(call, slides, tmp_path):
    rows = ["patient,label"] + [f"TCGA-AA-000{n},{status}" for n, status in enumerate(["MSI-H", "MSS", ""])]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    done = call(slides, "--out", tmp_path / "out", "--labels", tmp_path / "labels.csv")
    assert done.returncode == ExitCode.SOME_FAILED, done.stderr
    labels = read_manifest(tmp_path / "out").groupby("patient_id")["label"].first().to_dict()
    assert labels == {"TCGA-AA-0000": "MSI", "TCGA-AA-0001": "MSS"}
    reasons = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("input")["reason"]
    assert "blank" in reasons["TCGA-AA-0002-01Z-00-DX1.svs"]
    assert "no row" in reasons["TCGA-AA-0003-01Z-00-DX1.svs"]


def test_replaced_slide_is_named_and_others_are_kept_or_deleted_as_the_option_says(call, slides, tmp_path):
    (tmp_path / "in").mkdir()
    for name, number in (("a", 0), ("b", 1)):
        shutil.copy(slides / f"TCGA-AA-000{number}-01Z-00-DX1.svs", tmp_path / "in" / f"{name}.svs")
    arguments = ["--out", tmp_path / "out", "--tile-size", 64, "--full-hash"]
    call(tmp_path / "in", *arguments)
    shutil.copy(slides / "TCGA-AA-0002-01Z-00-DX1.svs", tmp_path / "in" / "a.svs")
    assert "made anew: a (a.svs has changed)" in call(tmp_path / "in", *arguments).stdout
    refused = call(tmp_path / "in" / "a.svs", *arguments)
    assert (refused.returncode, "of this run: b." in refused.stderr) == (ExitCode.BAD_INPUT, True)
    assert "1 slide that was not named is kept" in call(tmp_path / "in" / "a.svs", *arguments, "--keep").stdout
    call(tmp_path / "in" / "a.svs", *arguments, "--force")
    assert set(read_manifest(tmp_path / "out")["slide_id"]) == {"a"}


def test_preset_gives_blocks_of_256_um(call, tmp_path):
    write_slide(tmp_path / "a.svs", width=3000, height=2600)
    done = call(tmp_path / "a.svs", "--out", tmp_path / "out", "--preset", "kather-256um")
    assert done.returncode == ExitCode.OK, done.stderr
    sides_um = read_manifest(tmp_path / "out")["size_l0"] * 0.25
    np.testing.assert_allclose(sides_um, 256, rtol=0.005)


def test_plain_images_take_the_stated_resolution(call, tmp_path):
    Image.fromarray(tissue_picture(900, 700)).save(tmp_path / "field.jpg", quality=95)
    assert call(tmp_path / "field.jpg", "--out", tmp_path / "a").returncode == ExitCode.SOME_FAILED
    done = call(tmp_path / "field.jpg", "--out", tmp_path / "b", "--assume-mpp", 0.5)
    assert done.returncode == ExitCode.OK
    assert (tmp_path / "b" / "thumbnails" / "field.jpg").is_file()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A slide that takes no time."""
    path = tmp_path_factory.mktemp("small") / "small.svs"
    write_slide(path, width=600, height=500)
    return path


@pytest.fixture
def tile(call, small, tmp_path):
    """Tile files of the given names with a table, in one dataset folder; output and failures."""

    def run_with(names, text, *arguments, fresh=True):
        if fresh:
            shutil.rmtree(tmp_path / "in", ignore_errors=True)
        for name in names:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            # Bytes of its own at the end: copies of one slide for two patients are refused.
            (tmp_path / "in" / name).write_bytes(small.read_bytes() + os.fsencode(name))
        (tmp_path / "labels.csv").write_text(text)
        done = call(
            tmp_path / "in",
            "--out",
            tmp_path / "out",
            "--labels",
            tmp_path / "labels.csv",
            "--tile-size",
            64,
            *arguments,
        )
        assert "Traceback" not in done.stderr
        if done.returncode == ExitCode.BAD_INPUT:
            return done, {}
        failures = pd.read_csv(tmp_path / "out" / "failures.csv", dtype=str)
        return done, dict(zip(failures["input"], failures["reason"], strict=True))

    return run_with


def test_slides_that_the_table_lists_and_that_are_not_there_are_named(tile):
    text = "patient,slide,label\nP1,a.svs,MSI\nP2,b.svs,MSS\nP3,c.svs,MSS\nP4,d.svs,\n"
    done, failures = tile(["a.svs", "c.zip", "c.xml"], text)
    assert done.returncode == ExitCode.SOME_FAILED
    assert failures.pop("b.svs") == "row 3 of labels.csv: no slide among the inputs"
    assert (
        "row 4 of labels.csv: no slide among the inputs; c.zip is there, which is not taken for a slide"
        in failures.pop("c.svs")
    )
    assert "is of a kind that is not read" in failures.pop("c.zip")
    assert failures == {}
    assert "rows of the label table without their slide: 2" in done.stdout
    assert "labels.csv: 4 rows: 1 used, 1 without a class, 2 without a file" in done.stdout


def test_patients_of_a_table_of_a_whole_archive_are_counted_and_named_and_no_failure(tile):
    rows = "".join(f"P{number},{'MSI' if number % 2 else 'MSS'}\n" for number in range(200))
    done, failures = tile(["P1_x.svs", "P10.svs"], "patient,label\n" + rows)
    assert (done.returncode, len(failures)) == (ExitCode.OK, 198)
    assert failures["P100"] == "row 102 of labels.csv: no slide of this patient among the inputs"
    assert "patients of the label table without a slide: 198" in done.stdout
    assert len(done.stdout.splitlines()) < 8
    done, _ = tile(["P1_x.svs", "P10.svs", "P2.isyntax"], "patient,label\n" + rows)
    assert done.returncode == ExitCode.SOME_FAILED  # a file that is there was not read
    assert "P2.isyntax: is of a kind that is not read" in done.stdout
    assert "197" in done.stdout  # and not among those of whom there is nothing


def test_slides_that_are_kept_are_not_absent(tile, tmp_path):
    text = "patient,slide,label\nP1,a,MSI\nP2,b,MSS\n"
    assert set(tile(["a.svs"], text)[1]) == {"b"}
    done, failures = tile(["b.svs"], text, "--keep")
    assert (done.returncode, failures) == (ExitCode.OK, {})
    assert read_info(tmp_path / "out").labels["rows"]["used"] == 2


def test_failures_stand_while_slides_are_added_until_their_input_is_named_again(tile, tmp_path):
    text = "patient,slide,label\nP1,a.svs,MSI\nP2,b.svs,MSS\nP3,broken.svs,MSS\nP4,late.svs,MSS\n"
    done, failures = tile(["a.svs", "c.svs", "x/d.zip"], text)
    assert set(failures) == {"b.svs", "broken.svs", "late.svs", "c.svs", "x/d.zip"}
    (tmp_path / "in" / "a.svs").unlink()
    (tmp_path / "in" / "c.svs").rename(tmp_path / "c.svs")
    (tmp_path / "in" / "broken.svs").write_bytes(b"no slide")
    done, failures = tile(["b.svs"], text, "--keep", fresh=False)
    assert done.returncode == ExitCode.SOME_FAILED
    assert set(failures) == {"broken.svs", "late.svs", "c.svs", "x/d.zip"}
    assert "1 row of earlier runs stands in" in done.stdout  # of c.svs: the folder with d.zip was named again
    done, failures = tile(["late.svs"], text, "--keep")
    assert set(failures) == {"broken.svs", "c.svs", "x/d.zip"}
    assert done.returncode == ExitCode.OK  # what is wrong is no problem of this run
    assert "3 rows of earlier runs stand in" in done.stdout
    labels = read_info(tmp_path / "out").labels["rows"]
    assert (labels["used"], labels["unusable"], labels["no_file"]) == (3, 1, 0)
    done, failures = tile(["broken.svs"], text, "--keep")
    assert set(failures) == {"c.svs", "x/d.zip"}
    done, failures = tile(["a.svs", "b.svs", "late.svs", "broken.svs"], text)
    assert failures == {}


@pytest.mark.parametrize(
    "by", ["patient,label\nP1,MSI\nP2,MSS\n", "patient,slide,label\nP1,\xfc/P1_a,MSI\nP2,P2_a,MSS\n"]
)
def test_names_that_are_not_utf8_end_no_run_with_a_label_table(tile, by):
    strange = os.fsdecode(b"\xfc")
    names = ["P2_a.svs", f"P1_{strange}.bak"] if "slide" not in by else ["P2_a.svs", f"{strange}/P1_a.svs"]
    done, failures = tile(names, by)
    assert done.returncode == ExitCode.SOME_FAILED
    assert "\\xfc" in " ".join(failures.values())


def test_screen_and_dataset_say_what_labels_were_made_of(tile, tmp_path):
    text = "patient,MSIStatus\nP1,MSI-H\nP2,MSI-L\nP3,MSS\nP4,indeterminate\n"
    done, _ = tile(["P1.svs", "P2.svs", "P3.svs"], text)
    for said in (
        "positive class MSI: 1 patient; MSS 2",
        "labels.csv: label from 'MSIStatus', patient from 'patient'",
        "labels.csv: 4 rows: 3 used, 1 without a class",
        "words: MSI-H → MSI (1), MSI-L → MSS (1), indeterminate → no class (1)",
    ):
        assert said in done.stdout
    before = contents(tmp_path / "out")
    assert read_info(tmp_path / "out").labels["patients"] == {"MSI": 1, "MSS": 2}
    tile(["P1.svs", "P2.svs", "P3.svs"], text)
    assert contents(tmp_path / "out") == before
    done, _ = tile(["P1.svs", "P2.svs", "P3.svs"], text.replace("MSI-L", "MSI"))
    assert done.returncode == ExitCode.OK
    assert read_info(tmp_path / "out").labels["patients"] == {"MSI": 2, "MSS": 1}
    tile(["P1.svs", "P2.svs", "P3.svs"], text)
    assert contents(tmp_path / "out") == before


def test_file_names_from_a_mac_meet_a_table_from_a_pc(tile, tmp_path):
    done, failures = tile([unicodedata.normalize("NFD", "Müller_A.svs")], "patient,label\nMüller,MSI\n")
    assert (done.returncode, failures) == (ExitCode.OK, {})
    assert set(read_manifest(tmp_path / "out")["patient_id"]) == {"Müller"}


def test_a_slide_of_another_folder_does_not_take_the_row(tile):
    text = "patient,slide,label\nP1,case1/1.svs,MSI\nP2,case2/2.svs,MSS\n"
    done, failures = tile(["case9/1.svs", "case2/2.svs"], text)
    assert done.returncode == ExitCode.SOME_FAILED
    assert "row 2 of the label table is about case1/1.svs" in failures["1.svs"]
    assert "1 used, 1 whose file could not be used" in done.stdout


@pytest.mark.parametrize("asked", [[], ["--tcga-normals"]])
def test_normal_tissue_takes_no_label_of_its_patient_unless_asked(tile, tmp_path, asked):
    names = ["TCGA-AA-3672-11A-01-TS1.svs", "TCGA-AA-3672-01A-01-TS1.svs"]
    _, failures = tile(names, "patient,label\nTCGA-AA-3672,MSI\n", *asked)
    assert list(failures) == ([] if asked else names[:1])
    assert set(read_manifest(tmp_path / "out")["slide_id"]) == {name[:-4] for name in names if asked or "-01A" in name}
    assert read_info(tmp_path / "out").labels.get("tcga_normals", False) == bool(asked)
    if not asked:
        assert "normal tissue" in failures[names[0]]
        text = f"patient,slide,label\nTCGA-AA-3672,{names[0]},MSS\nTCGA-AA-3672,{names[1]},MSI\n"
        shutil.rmtree(tmp_path / "out")
        assert tile(names, text, "--label-level", "slide")[1] == {}  # the row is about this very slide


def test_slide_whose_barcode_is_that_of_another_patient_is_left_out(tile):
    text = "patient,slide,label\nTCGA-AA-3672,TCGA-AA-3673-01A-01-TS1,MSI\n"
    _, failures = tile(["TCGA-AA-3673-01A-01-TS1.svs"], text)
    assert "says patient TCGA-AA-3672, its name says TCGA-AA-3673" in failures["TCGA-AA-3673-01A-01-TS1.svs"]


def test_folder_of_an_earlier_version_has_no_record_of_labels(tile, tmp_path):
    text = "patient,label\nP1,MSI\n"
    tile(["P1.svs"], text)
    file = tmp_path / "out" / "dataset.json"
    content = json.loads(file.read_text())
    del content["labels"]
    file.write_text(json.dumps(content))
    assert read_info(tmp_path / "out").labels is None
    assert tile(["P1.svs"], text)[0].returncode == ExitCode.OK
    assert read_info(tmp_path / "out").labels["table"] == "labels.csv"


def test_what_cannot_be_a_slide_is_no_slide_that_was_not_read(tile):
    beside = ["Thumbs.db", "P2.svs.md5", "P3.docx", "desktop.ini", "@eaDir/P4.btf", "__MACOSX/P5.btf"]
    text = "patient,label\n" + "".join(f"P{number},{'MSI' if number % 2 else 'MSS'}\n" for number in range(1, 6))
    done, failures = tile(["P1_x.svs", *beside], text)
    assert (done.returncode, len(failures)) == (ExitCode.OK, 4)


def test_the_words_of_most_rows_are_said_first(tile):
    words = ["MSI-L", "MSI-H", "dMMR", "pMMR", "MMRd", "MMRp", "stable", "nonMSIH", "msi-low", "unstable"]
    rows = "".join(f"P{number},{word}\n" for number, word in enumerate([*words, "unstable", "unstable", "MSI-L"]))
    done, _ = tile(["P1.svs"], "patient,label\n" + rows)
    assert "words: unstable → MSI (3), MSI-L → MSS (2), MMRd → MSI (1)" in done.stdout
    assert "and 2 more" in done.stdout
