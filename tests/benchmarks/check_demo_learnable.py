"""Measure how hard the generated cohort is: for the truth, for plain colour, and for a small network.

    python -m tests.benchmarks.check_demo_learnable --seeds 0 1 2 --repeats 2

For each cohort seed: tile and patient AUROC of a logistic regression on the true local phenotype, and on the mean
colour of a tile (both cross-validated over patients), then of a ResNet-18 trained from nothing on 112 µm tiles of 40
patients and tested on 24 others. Wanted: truth 0.80–0.92 per tile and above 0.95 per patient, each property alone
clearly below that; colour, which glands, mucin and nuclei change, at most about 0.8 per patient; network 0.75–0.85
per tile and 0.9 or more per patient.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pandas as pd
import torch
from monai.networks.nets import resnet18
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdml_med.demo.artefacts import PenStroke, pen_mask
from kdml_med.demo.fields import block_mean
from kdml_med.demo.slides import write_demo_cohort

TRAIN_PATIENTS = 40
TEST_PATIENTS = 24


@dataclass
class Tiles:
    """All tissue tiles of a cohort: pixels [n, side, side, 3], labels, patient numbers and true features [n, 3]."""

    pixels: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int64]
    patient: npt.NDArray[np.int64]
    truth: npt.NDArray[np.float64]


def cut_tiles(cohort: Path, side_px: int, least_tissue: float = 0.5, most_pen: float = 0.1) -> Tiles:
    """Cut the cells of the recorded local truth, so that tiles and true features match.

    Tiles with more than ``most_pen`` under ink are left out, as a tiler's quality check does; blurred ones stay.
    """
    pixels, label, patient, truth = [], [], [], []
    for number, row in enumerate(pd.read_csv(cohort / "labels.csv").itertuples()):
        slide = openslide.OpenSlide(cohort / "slides" / f"{row.slide}.svs")
        truth_of_slide = json.loads((cohort / "truth" / f"{row.slide}.json").read_text())
        local = truth_of_slide["local"]
        cell, cells = local["cell_px"], len(local["tissue_fraction"])
        ink = pen_mask([PenStroke(**stroke) for stroke in truth_of_slide["pen"]], truth_of_slide["size_px"])
        pen = block_mean(ink[: cells * cell, : cells * cell], cell)
        for i, j in np.argwhere((np.array(local["tissue_fraction"]) >= least_tissue) & (pen <= most_pen)):
            region = slide.read_region((int(j) * cell, int(i) * cell), 0, (cell, cell)).convert("RGB")
            pixels.append(np.asarray(region.resize((side_px, side_px), Image.Resampling.BOX)))
            label.append(int(row.MSIStatus == "MSI-H"))
            patient.append(number)
            density = np.log(50 + local["lymphocytes_per_mm2"][i][j])
            truth.append((density, local["mucin_fraction"][i][j], local["gland_regularity"][i][j]))
    return Tiles(np.stack(pixels), np.array(label), np.array(patient), np.array(truth))


def aurocs(score: npt.NDArray[np.float64], tiles: Tiles, chosen: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Tile and patient AUROC of the chosen tiles; a patient's score is the mean."""
    frame = pd.DataFrame({"patient": tiles.patient, "label": tiles.label, "score": score})[chosen]
    grouped = frame.groupby("patient").mean()
    return roc_auc_score(frame.label, frame.score), roc_auc_score(grouped.label, grouped.score)


def linear_aurocs(features: npt.NDArray[np.float64], tiles: Tiles) -> tuple[float, float]:
    """Logistic regression on tile features, six folds over patients."""
    score = np.zeros(len(features))
    for train, test in GroupKFold(6).split(features, tiles.label, tiles.patient):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        score[test] = model.fit(features[train], tiles.label[train]).decision_function(features[test])
    return aurocs(score, tiles, np.ones(len(score), dtype=bool))


def choose_patients(tiles: Tiles, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training and test patients, both classes balanced up to rounding."""
    numbers, first = np.unique(tiles.patient, return_index=True)
    by_class = [rng.permutation(numbers[tiles.label[first] == value]) for value in (0, 1)]
    half = TEST_PATIENTS // 2
    test = np.concatenate([by_class[0][: TEST_PATIENTS - half], by_class[1][:half]])
    train = np.concatenate(
        [
            by_class[0][TEST_PATIENTS - half :][: TRAIN_PATIENTS // 2],
            by_class[1][half:][: TRAIN_PATIENTS // 2],
        ]
    )
    return train, test


def as_batch(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """float32 [n, 3, side, side], roughly centred."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.6) / 0.25


def network_aurocs(tiles: Tiles, steps: int, seed: int) -> tuple[float, float]:
    """Train a ResNet-18 from nothing with flips, Adam 1e-3 and batches of 32; test on the other patients."""
    rng = np.random.default_rng(seed)
    train, test = choose_patients(tiles, rng)
    torch.manual_seed(seed)
    network = resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, conv1_t_stride=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    pool = np.flatnonzero(np.isin(tiles.patient, train))
    for _ in range(steps):
        index = rng.choice(pool, 32, replace=False)
        image = as_batch(tiles.pixels[index])
        flips = [axis for axis in (2, 3) if rng.random() < 0.5]
        loss = torch.nn.functional.cross_entropy(network(image.flip(flips)), torch.from_numpy(tiles.label[index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    chosen = np.isin(tiles.patient, test)
    score = np.zeros(len(tiles.label))
    with torch.inference_mode():
        parts = [network(as_batch(part)) for part in np.array_split(tiles.pixels[chosen], 8)]
        score[chosen] = torch.cat(parts).softmax(1)[:, 1].numpy()
    return aurocs(score, tiles, chosen)


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="cohort seeds")
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=2, help="splits and trainings per cohort; 0 trains nothing")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--side", type=int, default=64, help="pixels per 112 µm tile")
    options = parser.parse_args()
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            cohort = write_demo_cohort(Path(folder), patients=options.patients, seed=seed, progress=False)
            took = time.perf_counter() - start
            tiles = cut_tiles(cohort, options.side)
        count = np.bincount(tiles.patient)
        print(
            f"cohort {seed}: {took:.0f} s; tiles per slide {count.min()}..{count.max()}, median {np.median(count):.0f}"
        )
        print("  truth    tile {:.3f} patient {:.3f}".format(*linear_aurocs(tiles.truth, tiles)))
        for name, column in (("lymphocytes", 0), ("mucin", 1), ("glands", 2)):
            print(
                f"    {name:12s}" + "tile {:.3f} patient {:.3f}".format(*linear_aurocs(tiles.truth[:, [column]], tiles))
            )
        print("  colour   tile {:.3f} patient {:.3f}".format(*linear_aurocs(tiles.pixels.mean((1, 2)), tiles)))
        for repeat in range(options.repeats):
            start = time.perf_counter()
            tile, patient = network_aurocs(tiles, options.steps, repeat)
            print(
                f"  network {repeat} tile {tile:.3f} patient {patient:.3f} ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
