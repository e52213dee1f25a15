"""A whole generated cohort on disk: slides, label table, and the truth behind them.

demo.json                  settings; the folder can only be completed with the same ones
README.txt                 what this is and what it cannot prove
labels.csv                 patient, slide, MSIStatus
slides/<slide>.svs         pyramidal slides in Aperio's layout
truth/<slide>.json         phenotype, pen and blur geometry, local truth
truth/<slide>_tissue.png   tissue mask, 255 inside, one pixel per ``tissue.COARSE`` level-0 pixels
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from kdml_med.demo import artefacts, phenotype, tissue
from kdml_med.demo.fields import block_mean
from kdml_med.demo.folder import check_numbers, claim_folder, make_missing
from kdml_med.demo.pyramid import write_svs
from kdml_med.storage.files import write_atomically, write_table, writing

GENERATOR_VERSION = 2
"""Raise whenever the same seed gives other pictures."""
SIZE_PX = 2048
APP_MAG = 20
PATIENTS = 80
"""Of a cohort, unless others are asked for."""
FEWEST_PATIENTS = 4
LABELS_FILE = "labels.csv"
NOTICE = (
    "This cohort is generated. It proves that the plumbing works, from slides to a report; "
    "it proves nothing about the accuracy of any model on real tissue."
)


def slide_id(index: int) -> str:
    """Name of the only slide of the patient with this zero-based index."""
    return f"{phenotype.patient_id(index)}-01"


def write_demo_cohort(
    out_dir: Path, *, patients: int = PATIENTS, seed: int = 0, workers: int = 0, progress: bool = True
) -> Path:
    """Write a cohort with one slide per patient, half of them MSI-H; finish it if it was begun before.

    The bytes depend on ``seed`` and the patient's number only. With more than one worker, processes are spawned, so a
    script that calls this needs the usual ``if __name__ == "__main__"`` guard.

    Args:
        out_dir: folder to create or to complete.
        patients: number of patients, at least 4.
        seed: of the cohort, 0 or more.
        workers: processes; 0 takes all cores.
        progress: show a bar on standard error.

    Returns:
        ``out_dir``.

    Raises:
        InputError: a number is out of range, or the folder holds something else or another cohort.
    """
    out_dir = Path(out_dir)
    why = "both classes must reach every split"
    check_numbers("--patients", patients, FEWEST_PATIENTS, why, seed=seed, workers=workers)
    settings = {"generator": GENERATOR_VERSION, "patients": patients, "seed": seed, "task": "msi"}
    claim_folder(out_dir, settings, _readme(settings))
    parts = [(out_dir, seed, index) for index in range(patients)]
    make_missing(_write_slide, parts, _is_complete, unit="slide", workers=workers, progress=progress)
    rows = [(phenotype.patient_id(i), slide_id(i), phenotype.patient_label(seed, i)) for i in range(patients)]
    write_table(out_dir / LABELS_FILE, pd.DataFrame(rows, columns=["patient", "slide", "MSIStatus"]))
    return out_dir


def render_slide(
    seed: int, index: int, size_px: int = SIZE_PX
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], dict[str, Any]]:
    """Paint one patient's slide.

    Args:
        seed: of the cohort.
        index: of the patient, zero-based.
        size_px: side of the slide, level-0 pixels, a multiple of ``tissue.COARSE``.

    Returns:
        Picture, uint8 [rows, columns, 3] RGB; tissue mask, bool [rows, columns] / ``tissue.COARSE``; the truth that
        goes into the JSON file.
    """
    tissue_seed, scan_seed, layout_seed, artefact_seed, sensor_seed = phenotype.patient_seed(seed, index).spawn(5)
    patient = phenotype.draw_phenotype(phenotype.patient_label(seed, index), tissue_seed, scan_seed)
    painted = tissue.paint_tissue(patient, size_px, np.random.default_rng(layout_seed))
    image = _scan(painted, patient, np.random.default_rng(sensor_seed))
    mask = block_mean(painted.mask, tissue.COARSE) >= 0.5

    rng = np.random.default_rng(artefact_seed)
    pen = artefacts.draw_pen(rng, mask, tissue.COARSE, tissue.MPP)
    blur = artefacts.draw_blur(rng, mask, tissue.COARSE, tissue.MPP)
    artefacts.apply_blur(image, blur)
    artefacts.apply_pen(image, pen)
    truth = {
        "generated": True,
        "patient": phenotype.patient_id(index),
        "slide": slide_id(index),
        "size_px": size_px,
        "mpp": tissue.MPP,
        "tissue_mask_downsample": tissue.COARSE,
        "phenotype": asdict(patient),
        "pen": artefacts.describe(pen),
        "blur": artefacts.describe(blur),
        "local": tissue.local_truth(painted),
    }
    return image, mask, truth


def _scan(painted: tissue.Tissue, patient: phenotype.Phenotype, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn stain amounts into a picture: Beer–Lambert, the scanner's white and tone curve, sensor noise."""
    image = np.empty((*painted.mask.shape, 3), dtype=np.uint8)
    noise = rng.standard_normal(painted.mask.shape, dtype=np.float32)
    for channel in range(3):
        density = painted.hematoxylin * np.float32(patient.hematoxylin[channel])
        density += painted.eosin * np.float32(patient.eosin[channel])
        # gamma bends the tone curve between black and the scanner's white, so glass keeps its colour.
        grey = np.float32(patient.white[channel]) * np.exp(-np.float32(patient.gamma) * density)
        # One noise field, shifted per channel: as good as three for the eye and a third of the time.
        grey += 1.3 * np.roll(noise, 17 * channel, axis=0)
        image[..., channel] = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    return image


def _slide_files(out_dir: Path, index: int) -> tuple[Path, Path, Path]:
    """Paths of the slide, its truth and its tissue mask."""
    name = slide_id(index)
    return (
        out_dir / "slides" / f"{name}.svs",
        out_dir / "truth" / f"{name}.json",
        out_dir / "truth" / f"{name}_tissue.png",
    )


def _is_complete(out_dir: Path, _seed: int, index: int) -> bool:
    return all(path.is_file() for path in _slide_files(out_dir, index))


def _write_slide(out_dir: Path, seed: int, index: int) -> int:
    """Render and write one slide with its truth; each file appears only when whole. Returns the index."""
    slide_path, truth_path, mask_path = _slide_files(out_dir, index)
    image, mask, truth = render_slide(seed, index)
    png = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(png, format="PNG")
    write_atomically(mask_path, png.getvalue())
    write_atomically(truth_path, (json.dumps(truth, sort_keys=True, indent=1) + "\n").encode())
    with writing(slide_path) as temporary:
        write_svs(temporary, image, mpp=tissue.MPP, app_mag=APP_MAG)
    return index


def _readme(settings: dict[str, Any]) -> str:
    return (
        f"{NOTICE}\n\n"
        f"Made by: python -m preprocessing.make_demo --task msi --out DIR --patients {settings['patients']} "
        f"--seed {settings['seed']}\n\n"
        "labels.csv                 patient, slide, MSIStatus (MSI-H or MSS)\n"
        f"slides/<slide>.svs         {SIZE_PX} x {SIZE_PX} px at {tissue.MPP} um/px, Aperio layout\n"
        "truth/<slide>.json         the patient's parameters, pen and blur geometry (level-0 pixels), local truth\n"
        f"truth/<slide>_tissue.png   tissue mask, 255 inside, one pixel per {tissue.COARSE} level-0 pixels\n"
    )
