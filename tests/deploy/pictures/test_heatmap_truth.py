"""The benchmark that compares heat maps with what was painted, on predictions whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdml_med.demo.slides import write_demo_cohort
from tests.benchmarks.check_heatmap_truth import measure, painted_evidence, read_cells


@pytest.mark.slow
def test_a_map_of_the_truth_is_hot_where_it_should_be_and_noise_is_not(tmp_path: Path) -> None:
    cohort = write_demo_cohort(tmp_path, patients=8, workers=1, progress=False)
    cells = read_cells(cohort)
    patients = {"DEMO-0001", "DEMO-0002", "DEMO-0003", "DEMO-0004"}
    evidence = painted_evidence(cells, cells["patient"].isin(patients).to_numpy())
    side = cells["cell_px"].iloc[0]
    tiles = pd.DataFrame({"slide_id": cells["slide_id"], "x_l0": cells["column"] * side, "y_l0": cells["row"] * side})
    tiles = tiles.assign(size_l0=float(side), truth=evidence, reverse=-evidence)
    tiles["noise"] = np.random.default_rng(0).random(len(tiles))
    found = {name: measure(tiles, cells, patients, name) for name in ("truth", "reverse", "noise")}
    assert (found["truth"].auroc, found["truth"].slide_auroc, found["reverse"].auroc) == (1, 1, 0)
    assert found["noise"].auroc == pytest.approx(0.5, abs=0.2)
    assert found["truth"].slides == 2
    positive = cells["patient"].isin(patients) & (cells["label"] == "MSI-H")
    assert found["truth"].inside + found["truth"].outside == positive.sum()
