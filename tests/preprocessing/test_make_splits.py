import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdml_med.errors import InputError
from kdml_med.programs.make_splits import command
from kdml_med.splits import assign_splits
from kdml_med.storage.manifest import DatasetInfo, manifest_table, read_info, read_manifest, write_info, write_manifest


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocessing.make_splits", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [
        {
            "sample_id": f"{patient}/{tile}",
            "patient_id": f"{patient:03}",
            "slide_id": f"s{patient}",
            "label": "MSI" if patient % 2 else "MSS",
            "site": f"h{patient % 5}",
            "shard": f"{patient}.tar",
            "offset": tile,
            "size": 1,
        }
        for patient in range(20)
        for tile in range(3)
    ]
    write_manifest(tmp_path / "manifest.parquet", manifest_table(rows))
    write_info(tmp_path, DatasetInfo(classes=["MSS", "MSI"]))
    return tmp_path


def test_program_freezes_once_and_prints_a_table(dataset: Path) -> None:
    first = run(dataset)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split()[:4] == ["split", "patients", "MSI", "MSS"]
    before = (dataset / "splits.csv").read_bytes()
    command(dataset)
    refused = run(dataset, "--seed", 1)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert (dataset / "splits.csv").read_bytes() == before
    command(dataset, fractions=(0.5, 0.2, 0.3), force=True)
    info = read_info(dataset)
    assert info.splits is not None
    assert info.splits["fractions"] == [0.5, 0.2, 0.3]


def test_program_makes_folds_and_keeps_sites(dataset: Path) -> None:
    command(dataset, folds=3, site_preserved=True)
    manifest = read_manifest(dataset)
    assigned = assign_splits(dataset, manifest, read_info(dataset), fold=2)
    assert (assigned.groupby(manifest["site"]).nunique() == 1).all()


def test_program_freezes_a_table_of_the_user(dataset: Path) -> None:
    patients = sorted(set(read_manifest(dataset)["patient_id"]))
    table = pd.DataFrame({"patient_id": patients, "split": ["train"] * 10 + ["val"] * 5 + ["test"] * 5})
    path = dataset / "splits.csv"
    table.iloc[1:].to_csv(path, index=False)
    with pytest.raises(InputError, match="1 patient of the manifest is not in"):
        command(dataset, from_table=path)
    assert read_info(dataset).splits is None
    table.to_csv(path, index=False)
    command(dataset, from_table=path)
    info = read_info(dataset)
    assert info.splits is not None
    assert info.splits["mode"] == "table"
    with pytest.raises(InputError, match="leave out the options"):
        command(dataset, from_table=path, folds=3)


def rewritten(text: str, how: str) -> bytes:
    """A table as a spreadsheet program or an editor would save it."""
    if how == "semicolons of Excel":
        return b"\xef\xbb\xbf" + text.replace(",", ";").replace("\n", "\r\n").encode()
    if how == "blank lines and blanks":
        return text.replace(",", " , ").replace("\n", "\n\n").encode()
    return text.encode()


@pytest.mark.parametrize("how", ["as it is", "semicolons of Excel", "blank lines and blanks"])
def test_splits_of_a_table_saved_by_other_programs_are_frozen(dataset: Path, tmp_path: Path, how: str) -> None:
    command(dataset)
    before = (dataset / "splits.csv").read_bytes()
    table = tmp_path / "edited.csv"
    table.write_bytes(rewritten(before.decode(), how))
    command(dataset, from_table=table, force=True)
    assert (dataset / "splits.csv").read_bytes() == before


def test_what_is_asked_for_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    for wrong in ({"seed": -1}, {"folds": 2}, {"fractions": (float("nan"),) * 3}):
        with pytest.raises(InputError, match="expected"):
            command(tmp_path / "nowhere", **wrong)
