from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.fakes import REPOSITORY
from tests.synthetic_tiles import write_tile_dataset

TINY = {"name": "tests.networks.tiny.TinyNet"}
EPOCHS = 3
# One step per epoch: the losses of the first epoch are those of the initial weights on the first batch.
SETTINGS = {
    "teacher": TINY | {"width": 6},
    "students": [TINY, TINY],
    "max_epochs": EPOCHS,
    "batch_size": 8,
    "tiles_per_epoch": 8,
    "num_workers": 0,
}
IMPOSSIBLE = {"name": "impossible", "settings": {"optimizer#betas": [2.0, 2.0]}}


@dataclass
class Study:
    """A plan file and the results folder of the command that ran it."""

    plan: Path
    out: Path
    code: int = 0
    screen: str = ""

    def cell(self, arm: str) -> Path:
        return self.out / "cells" / "tiny" / arm / "seed0"


def write_plan(path: Path, dataset: Path, **content: Any) -> Path:
    base = {
        "name": "tiny networks",
        "bundle": "bundles/msi_kdml",
        "dataset_dir": str(dataset),
        "versions": ["tiny"],
        "arms": ["kd_offline", "kd_online", IMPOSSIBLE],
        "reference": "kd_online",
        "seeds": [0],
        "settings": SETTINGS,
        "keep_checkpoints": True,
    }
    path.write_text(json.dumps(base | content))
    return path


def run_words(plan: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kdml_med.experiments", "run", str(plan), "--out", str(out), *more]


def run_experiments(plan: Path, out: Path, *more: str) -> Study:
    """Run a plan as a person would, from the repository root."""
    result = subprocess.run(
        run_words(plan, out, *more), cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    return Study(plan, out, result.returncode, result.stdout + result.stderr)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A plan that was run to its end, one training after the other; one of its arms cannot be trained."""
    folder = tmp_path_factory.mktemp("study")
    dataset = write_tile_dataset(folder / "tiles")
    return run_experiments(write_plan(folder / "plan.json", dataset), folder / "results")
