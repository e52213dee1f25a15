import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.errors import ExitCode
from kdml_med.program import run
from kdml_med.storage.manifest import read_manifest
from preprocessing.tile_slides import main
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
    assert "4 slides tiled, 0 were finished before, 0 with problems" in done.stdout


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
    assert "2 slides tiled, 2 were finished before" in done.stdout
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
    assert "1 slides that were not named are kept" in call(tmp_path / "in" / "a.svs", *arguments, "--keep").stdout
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
