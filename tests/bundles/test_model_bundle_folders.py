"""Folders that an export of a bundle may write to, and those that it leaves alone; no network is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdml_med.bundle import folders
from kdml_med.bundle.folders import BUNDLES
from kdml_med.bundle.model_bundle import write_model_bundle
from kdml_med.errors import InputError
from tests.clinical.answered import many, write_run
from tests.kills import REPOSITORY

REFUSED = "name another folder"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without weights: what is refused is refused before they are read."""
    return write_run(tmp_path / "run", many("V"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BUNDLES.values())
def test_a_bundle_that_trainings_read_is_not_written_over(run: Path, tmp_path: Path, name: str) -> None:
    out = shutil.copytree(REPOSITORY / "bundles" / name, tmp_path / "bundles" / name)
    before = contents(out)
    with pytest.raises(InputError, match=REFUSED):
        write_model_bundle(run, out)
    assert contents(out) == before


@pytest.mark.parametrize("name", BUNDLES.values())
def test_our_own_bundles_are_not_written_over_whatever_is_in_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in BUNDLES.values():
        shutil.copytree(REPOSITORY / "bundles" / each, tmp_path / "bundles" / each)
    monkeypatch.setattr(folders, "INSTALLED", tmp_path / "bundles")
    own = tmp_path / "bundles" / name
    mark = {"network_def": {"_target_": "kdml_med.deploy.model_network.traced_network"}}
    (own / "configs/inference.json").write_text(json.dumps(mark))  # as if an export had been there
    before = contents(own)
    link = tmp_path / "link"
    link.symlink_to(own)
    for out in (own, link, own / "configs" / ".."):
        with pytest.raises(InputError, match=f"own bundle, which every training reads: {REFUSED}"):
            write_model_bundle(run, out)
    assert contents(own) == before


@pytest.mark.parametrize(
    "inference",
    ["", "[]", "{}", '{"network_def": "$net"}', '{"network_def": {"_target_": "monai.networks.nets.UNet"}}'],
)
def test_bundles_of_other_people_are_not_written_over(run: Path, tmp_path: Path, inference: str) -> None:
    configs = tmp_path / "theirs" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text("{}")
    (configs / "inference.json").write_text(inference)
    with pytest.raises(InputError, match=REFUSED):
        write_model_bundle(run, tmp_path / "theirs")
    assert sorted(path.name for path in configs.iterdir()) == ["inference.json", "metadata.json"]
