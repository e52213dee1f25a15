from __future__ import annotations

from pathlib import Path

import pytest

from kdml_med.deploy.export import export_run
from tests.bundles.conftest import read_json


@pytest.mark.parametrize("network", ["student_1", "ensemble"])
def test_a_file_alone_reproduces_what_the_training_recorded(
    trained: Path, dataset: Path, tmp_path: Path, network: str
) -> None:
    report = export_run(trained, tmp_path, network=network, dataset_dir=dataset, split="val", measure_speed=False)
    figures = read_json(trained / "metrics.json")["networks"][network]
    recorded = report.parity["recorded"]
    assert recorded["largest_difference"] < 1e-5
    for level in ("tile", "patient"):
        assert recorded[f"{level}_auroc_exported"] == pytest.approx(figures[level]["auroc"], abs=1e-9)
        assert report.parity["auroc"][level]["exported_ci95"] == pytest.approx(figures[level]["auroc_ci95"])
