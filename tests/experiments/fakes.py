"""Trainings that take no time, for tests of who does them and when."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.experiments.plan import Cell, Plan, make_plan
from kdml_med.experiments.training import CELL_FILE, cell_record
from kdml_med.storage.files import write_json
from tests.data.folders import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
_CALLS = "calls.txt"
_TIMEOUT_S = 120.0


def small_plan(folder: Path, **content: Any) -> Plan:
    """A plan on a dataset that is sound and far too small."""
    tiles = write_dataset(folder / "tiles", {"a": ("train", "MSI", 1), "b": ("val", "MSS", 1), "c": ("test", "MSI", 1)})
    bundle = REPOSITORY / "bundles" / "msi_kdml"
    tiny = {"name": "tests.networks.tiny.TinyNet"}
    base = {
        "name": "a plan",
        "bundle": str(bundle),
        "dataset_dir": str(tiles),
        "versions": ["edge"],
        "arms": ["independent", "ml", "kdml"],
        "seeds": [0],
        "settings": {"teacher": tiny, "students": [tiny, tiny]},
    }
    return make_plan(base | content)


def fake_train(cell: Cell, plan: Plan, out: Path, *, script: Mapping[str, str] | None = None) -> str | None:
    """Do what the script says for the cell's arm: nothing, fail, raise, or end the process."""
    _note(out, "begin", cell)
    match (script or {}).get(cell.arm):
        case "fail":
            return "it was to fail"
        case "raise":
            raise ValueError("it was to raise\nin two lines")
        case "refuse":
            raise InputError("it was refused.")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash once" if calls(out, "begin").count(cell.arm) == 1:
            os._exit(1)
        case "meet":
            _wait_until(lambda: len(calls(out, "begin")) >= 2)
        case "outlive":
            # The other one has crashed as often as it may when its failure is written.
            _wait_until(
                lambda: (out / "failures.csv").is_file() and "its process ended" in (out / "failures.csv").read_text()
            )
    write_json(out / cell.path / CELL_FILE, cell_record(cell, plan))
    _note(out, "end", cell)
    return None


def _wait_until(happened: Any) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


def _note(out: Path, what: str, cell: Cell) -> None:
    with (out / _CALLS).open("a") as stream:
        stream.write(f"{what} {cell.arm} {os.getpid()}\n")


def calls(out: Path, what: str | None = None) -> list[str]:
    """What was noted: "begin kdml", ...; or only the arms that began, or ended."""
    lines = [line.split() for line in (out / _CALLS).read_text().splitlines()]
    return [f"{word} {arm}" if what is None else arm for word, arm, _ in lines if what in (None, word)]


def processes(out: Path) -> list[int]:
    """Process ids that began a cell, each once, in order."""
    return list(dict.fromkeys(int(line.split()[2]) for line in (out / _CALLS).read_text().splitlines()))
