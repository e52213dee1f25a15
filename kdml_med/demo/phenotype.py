"""What a generated patient's tissue and stain are like, drawn from the label and a seed.

The label shifts three tissue properties (lymphocytes, mucin, glands) and nothing else. Stain and scanner are drawn from
a stream of their own, so colour carries no label beyond what the three properties do to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdml_med.errors import InputError

RGB = tuple[float, float, float]

CLASSES = ("MSS", "MSI-H")
"""Values of the label column; the last one is the positive class."""

# How far patients of one label spread around it (the label moves them by ±1) before the three properties are derived:
# with all properties together, and each on its own. Most of it is on their own, so that no property decides alone.
# Counting lymphocytes is learned within a few steps and is not enough; a network that reads glands, too, is told from
# one that does not, and so is a late epoch from an early one.
PATIENT_SPREAD = 0.30
PROPERTY_SPREAD = 0.70
# How far one unit of the above moves each property: logarithm of the density, and log-odds of the two shares.
LYMPHOCYTES_PER_UNIT = 0.80
MUCIN_PER_UNIT = 0.50
GLANDS_PER_UNIT = 0.80

# Order matters: red, green, blue optical density of one unit of stain (natural logarithm), before jitter.
HEMATOXYLIN = (0.62, 0.72, 0.32)
EOSIN = (0.20, 0.80, 0.52)


@dataclass(frozen=True)
class Phenotype:
    """Properties of one patient; "median" and "typical" are over the places of the patient's tissue.

    Attributes:
        label: one of ``CLASSES``.
        lymphocytes_per_mm2: median density of tumour-infiltrating lymphocytes.
        mucin_fraction: typical share of the tissue's area in mucin pools.
        gland_regularity: typical share of glands that are well formed, 0..1.
        hematoxylin: optical density of one unit, (red, green, blue), natural logarithm.
        eosin: the same.
        white: the scanner's value for clear glass, (red, green, blue), grey levels.
        gamma: exponent of the scanner's tone curve.
    """

    label: str
    lymphocytes_per_mm2: float
    mucin_fraction: float
    gland_regularity: float
    hematoxylin: RGB
    eosin: RGB
    white: RGB
    gamma: float


def patient_id(index: int) -> str:
    """Name of the patient with this zero-based index."""
    return f"DEMO-{index + 1:04d}"


def patient_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Seed of everything about one patient; depends on nothing but the cohort's seed and the patient's index."""
    return np.random.SeedSequence(seed, spawn_key=(1, index))


def patient_label(seed: int, index: int) -> str:
    """Label of a patient: of each two neighbours one is MSI-H, which one is drawn.

    Deciding in pairs keeps the cohort balanced for every number of patients without the label of a patient depending
    on how many there are.
    """
    pair = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, index // 2)))
    first = int(pair.integers(2))
    return CLASSES[first if index % 2 == 0 else 1 - first]


def draw_phenotype(label: str, tissue_seed: np.random.SeedSequence, scan_seed: np.random.SeedSequence) -> Phenotype:
    """Draw one patient.

    Args:
        label: one of ``CLASSES``.
        tissue_seed: decides the three tissue properties.
        scan_seed: decides stain and scanner.

    Raises:
        InputError: the label is unknown.
    """
    if label not in CLASSES:
        raise InputError(f"label {label!r} is unknown; expected one of {list(CLASSES)}.")
    rng = np.random.default_rng(tissue_seed)
    # Cut at two standard deviations: rare extreme patients would make small test folds a lottery.
    patient = (1.0 if label == "MSI-H" else -1.0) + PATIENT_SPREAD * _cut_normal(rng, 1)[0]
    lymphocytes, mucin, glands = patient + PROPERTY_SPREAD * _cut_normal(rng, 3)
    (hematoxylin, eosin), white, gamma = _draw_scan(np.random.default_rng(scan_seed))
    return Phenotype(
        label=label,
        lymphocytes_per_mm2=float(np.exp(np.log(700.0) + LYMPHOCYTES_PER_UNIT * lymphocytes)),
        mucin_fraction=_logistic(-2.2 + MUCIN_PER_UNIT * mucin),
        gland_regularity=_logistic(0.4 - GLANDS_PER_UNIT * glands),
        hematoxylin=hematoxylin,
        eosin=eosin,
        white=white,
        gamma=gamma,
    )


def _draw_scan(rng: np.random.Generator) -> tuple[list[RGB], RGB, float]:
    """Stain vectors (hematoxylin, eosin; amounts ±8 %, hue by jitter of each channel), white and gamma."""
    stains = []
    for vector in (HEMATOXYLIN, EOSIN):
        jittered = np.array(vector) + rng.normal(0, 0.013, 3)
        amount = rng.uniform(0.92, 1.09) * np.linalg.norm(vector) / np.linalg.norm(jittered)
        stains.append(_triple(np.maximum(jittered, 0.03) * amount))
    white = np.clip(rng.uniform(236, 250) + rng.normal(0, 2.0, 3), 228, 254)
    return stains, _triple(white), round(float(rng.uniform(0.96, 1.05)), 4)


def _cut_normal(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Normal draws limited to ±2."""
    return np.clip(rng.standard_normal(size), -2.0, 2.0)


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def _triple(values: npt.NDArray[np.float64]) -> RGB:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue
