"""Measure whether a heat map of generated slides is hot where the phenotype of the positive class was painted.

    python -m tests.benchmarks.check_heatmap_truth --tiles OUT/tiles.parquet --cohort COHORT [--dataset DATASET]

What was painted is recorded for cells of 112 µm (``kdml_med.demo.tissue.local_truth``). A logistic regression of the
label on the three painted properties, over the cells of all patients that are not measured, says which cells look more
like MSI-H than like MSS. In slides of MSI-H patients these are "inside", the others "outside"; measured is how well the
predicted probability tells tiles inside from tiles outside: AUROC over all tiles, and mean of the slides' own, which
a difference between slides cannot raise. With ``--dataset`` only patients of its test split are measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = ["lymphocytes", "mucin", "glands"]
POSITIVE = "MSI-H"
LEAST_TISSUE = 0.5


@dataclass(frozen=True)
class TruthReport:
    """How hot the painted region is.

    Attributes:
        slides: of the positive class that were measured, with tiles inside and outside.
        inside: tiles in cells that look more like the positive class.
        outside: the other tiles of these slides.
        auroc: over all of them.
        slide_auroc: mean over the slides of their own.
    """

    slides: int
    inside: int
    outside: int
    auroc: float
    slide_auroc: float


def read_cells(cohort: Path) -> pd.DataFrame:
    """Painted properties of every cell with tissue: slide_id, patient, label, row, column, cell_px and ``FEATURES``."""
    parts = []
    for slide in pd.read_csv(cohort / "labels.csv").itertuples():
        local = json.loads((cohort / "truth" / f"{slide.slide}.json").read_text())["local"]
        tissue = np.array(local["tissue_fraction"])
        row, column = np.nonzero(tissue >= LEAST_TISSUE)
        found = {"slide_id": slide.slide, "patient": slide.patient, "label": slide.MSIStatus, "row": row}
        found |= {"column": column, "cell_px": local["cell_px"]}
        found["lymphocytes"] = np.log(50 + np.array(local["lymphocytes_per_mm2"])[row, column])
        found["mucin"] = np.array(local["mucin_fraction"])[row, column]
        found["glands"] = np.array(local["gland_regularity"])[row, column]
        parts.append(pd.DataFrame(found))
    return pd.concat(parts, ignore_index=True)


def painted_evidence(cells: pd.DataFrame, measured: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Log-odds that a cell is of a patient of the positive class, fitted on the cells that are not measured."""
    model = make_pipeline(StandardScaler(), LogisticRegression())
    rest = cells[~measured]
    model.fit(rest[FEATURES], rest["label"] == POSITIVE)
    odds: npt.NDArray[np.float64] = model.decision_function(cells[FEATURES])
    return odds


def measure(tiles: pd.DataFrame, cells: pd.DataFrame, patients: set[str], column: str) -> TruthReport:
    """Compare predicted tiles with painted cells.

    Args:
        tiles: of tiles.parquet.
        cells: from ``read_cells``.
        patients: that are measured.
        column: of the probability.
    """
    measured = cells["patient"].isin(patients).to_numpy()
    cells = cells.assign(evidence=painted_evidence(cells, measured))[measured & (cells["label"] == POSITIVE)]
    centre = tiles[["x_l0", "y_l0"]].add(tiles["size_l0"] / 2, axis=0)
    cell_px = int(cells["cell_px"].iloc[0])
    place = (centre // cell_px).astype(int).set_axis(["column", "row"], axis=1)
    found = tiles[["slide_id", column]].join(place).merge(cells, on=["slide_id", "row", "column"])
    found["inside"] = found["evidence"] > 0
    found = found[found.groupby("slide_id")["inside"].transform("nunique") == 2]
    own = [roc_auc_score(group["inside"], group[column]) for _, group in found.groupby("slide_id")]
    inside = int(found["inside"].sum())
    return TruthReport(
        len(own), inside, len(found) - inside, roc_auc_score(found["inside"], found[column]), float(np.mean(own))
    )


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="tiles.parquet of a prediction")
    parser.add_argument("--cohort", type=Path, required=True, help="generated slides with truth/")
    parser.add_argument("--dataset", type=Path, help="dataset folder of the training: measure its test patients")
    parser.add_argument("--network", default="ensemble")
    options = parser.parse_args()
    tiles, cells = pd.read_parquet(options.tiles), read_cells(options.cohort)
    patients = set(cells["patient"])
    if options.dataset:
        splits = pd.read_csv(options.dataset / "splits.csv")
        patients = set(splits.loc[splits["split"] == "test", "patient_id"])
    patients &= set(tiles["slide_id"].map(dict(zip(cells["slide_id"], cells["patient"], strict=True))))
    report = measure(tiles, cells, patients, f"probability_{options.network}")
    print(
        f"{report.slides} slides with {POSITIVE}, {report.inside} tiles inside and {report.outside} outside of the "
        f"painted region: AUROC {report.auroc:.3f}, mean of the slides {report.slide_auroc:.3f} (generated data)"
    )


if __name__ == "__main__":
    main()
