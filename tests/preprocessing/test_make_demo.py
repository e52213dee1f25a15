import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdml_med.demo import clips
from kdml_med.demo.pyramid import write_svs
from kdml_med.demo.slides import NOTICE, render_slide
from kdml_med.errors import InputError
from kdml_med.programs.make_demo import DemoTask
from kdml_med.programs.make_demo import make_demo as program


def make_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocessing.make_demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_program_writes_a_cohort_and_says_what_it_cannot_prove(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = make_demo("--task", "msi", "--out", str(out), "--patients", "5", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert NOTICE in done.stdout
    assert NOTICE in (out / "README.txt").read_text()
    assert len(pd.read_csv(out / "labels.csv")) == len(list((out / "slides").glob("DEMO-*.svs"))) == 5
    # A patient's slide follows from the seed and the patient alone.
    write_svs(tmp_path / "alone.svs", render_slide(0, 3)[0], mpp=0.5, app_mag=20)
    assert (tmp_path / "alone.svs").read_bytes() == (out / "slides" / "DEMO-0004-01.svs").read_bytes()


def test_too_few_patients_exit_with_2_and_a_sentence(tmp_path: Path) -> None:
    done = make_demo("--out", str(tmp_path / "demo"), "--patients", "2")
    assert done.returncode == 2
    assert "at least 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_writes_clips_and_says_what_they_cannot_prove(tmp_path: Path) -> None:
    out = tmp_path / "clips"
    done = make_demo("--task", "polyp", "--out", str(out), "--sequences", "6", "--frames", "2", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert clips.NOTICE in done.stdout
    assert clips.NOTICE in (out / "README.txt").read_text()
    assert set(pd.read_csv(out / "annotations.csv").image) == {
        path.relative_to(out / "frames").as_posix() for path in (out / "frames").rglob("*.jpg")
    }


@pytest.mark.parametrize("arguments", [("polyp", "--patients"), ("msi", "--sequences"), ("msi", "--frames")])
def test_an_option_of_the_other_task_is_refused(tmp_path: Path, arguments: tuple[str, str]) -> None:
    task, option = arguments
    with pytest.raises(InputError, match=option):
        program(out=tmp_path / "demo", task=DemoTask(task), **{option.strip("-"): 12})
    assert not (tmp_path / "demo").exists()


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    done = make_demo("--task", "slides", "--out", str(tmp_path / "demo"))
    assert done.returncode != 0
    assert "msi" in done.stderr
    assert not (tmp_path / "demo").exists()
