from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fire.parser import DefaultParseValue

from kdml_med.bundle.knobs import Stage
from kdml_med.bundle.running import run_config
from kdml_med.errors import InputError
from kdml_med.keys import Task
from tests.kills import REPOSITORY
from tests.synthetic_frames import write_frame_dataset
from tests.synthetic_tiles import write_tile_dataset

CONFIGS = Path("bundles/msi_kdml/configs")
POLYP_CONFIGS = Path("bundles/polyp_kdml/configs")
SMALL_DETECTOR = "{'name': 'retinanet', 'body': 'mobilenet_v2', 'last_block': 13, 'width': 16, 'head_convs': 1}"
SMALL_NETWORKS = [
    "--teacher",
    "{'name': 'mobilenet_v2', 'last_block': 3}",
    "--students",
    "[{'name': 'mobilenet_v2', 'last_block': 2}, {'name': 'mobilenet_v2', 'last_block': 2}]",
]


def bundle_command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", *map(str, words)]


def run_bundle(*words: str | Path, cwd: Path = REPOSITORY, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m monai.bundle …` as a person would, from the repository root."""
    # One thread: the networks are so small that more only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        bundle_command(*words), cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def run_here(*words: str | Path) -> Any:
    """Do in this process what `python -m monai.bundle run …` does: faster, where only the files are looked at."""
    command, *rest = map(str, words)
    assert command == "run"
    settings = {
        name.removeprefix("--"): DefaultParseValue(value) for name, value in zip(rest[::2], rest[1::2], strict=True)
    }
    files = str(settings.pop("config_file"))
    stage: Stage = "inference" if "inference" in files else "evaluate" if "evaluate" in files else "train"
    return run_config(Task.DETECTION if "polyp" in files else Task.CLASSIFICATION, stage, **settings)


def refused(*words: str | Path) -> str:
    """What `python -m monai.bundle run …` says of words that need a correction."""
    with pytest.raises(InputError) as caught:
        run_here(*words)
    said = str(caught.value)
    assert "\n" not in said
    return said


def train_words(dataset: Path, run_dir: Path, *more: str) -> list[str | Path]:
    return [
        "run", "--config_file", CONFIGS / "train.json", "--dataset_dir", dataset, "--run_dir", run_dir,
        "--batch_size", "8", "--max_epochs", "2", *SMALL_NETWORKS, *more,
    ]  # fmt: skip


def polyp_words(dataset: Path, run_dir: Path, *more: str | Path) -> list[str | Path]:
    return [
        "run", "--config_file", POLYP_CONFIGS / "train.json", "--dataset_dir", dataset, "--run_dir", run_dir,
        "--image_size", "64", "--batch_size", "4", "--max_epochs", "2", "--teacher", SMALL_DETECTOR,
        "--students", f"[{SMALL_DETECTOR}, {SMALL_DETECTOR}]", *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset folder of frames: four sequences, half of them for training."""
    return write_frame_dataset(tmp_path_factory.mktemp("frames") / "frames", frames=6)


@pytest.fixture(scope="session")
def trained_detectors(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the training command for polyps."""
    run_dir = tmp_path_factory.mktemp("polyp_runs") / "trained"
    result = run_bundle(*polyp_words(frames, run_dir))
    (run_dir / "screen.txt").write_text(result.stdout)
    return run_dir


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tile_dataset(tmp_path_factory.mktemp("dataset") / "tiles")


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the training command."""
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    result = run_bundle(*train_words(dataset, run_dir))
    (run_dir / "screen.txt").write_text(result.stdout)
    return run_dir


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
