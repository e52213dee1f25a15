"""Paint H&E-like tissue as amounts of two stains on a level-0 grid.

Everything is laid out in micrometres and painted at ``MPP``. Fields that vary slowly live on a grid ``COARSE`` times
coarser and are interpolated. Arrays are indexed [row, col].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, special

from kdml_med.demo.fields import (
    BoolArray,
    FloatArray,
    IntArray,
    block_mean,
    ellipse_kernels,
    enlarge,
    smooth_noise,
    stamp,
)
from kdml_med.demo.glands import GlandPlan, paint_glands, plan_glands
from kdml_med.demo.phenotype import Phenotype

MPP = 0.5
"""Micrometres per level-0 pixel."""
COARSE = 8
"""Level-0 pixels per side of a cell of the coarse grid, which also is the downsample of the tissue mask."""
CELL_PX = 224
"""Side of a cell of the recorded local truth, level-0 pixels (112 µm)."""

# How strongly the three properties vary from place to place (sd of the same scales as in ``phenotype``).
LOCAL_LYMPHOCYTES = 0.85
LOCAL_MUCIN = 0.8
LOCAL_GLANDS = 1.2
LOCAL_SIGMA_UM = 60.0
# Sections differ in thickness from place to place; it also keeps a small network from knowing patients by colour.
THICKNESS_SPREAD = 0.11


@dataclass
class Tissue:
    """Painted tissue and what is known about it.

    Attributes:
        hematoxylin: float32, [rows, columns], units of stain.
        eosin: the same.
        mask: bool, [rows, columns], True inside an island's outline (mucin and lumina included).
        lymphocytes: int64, [n, 2], centres (row, col), level-0 pixels.
        mucin: bool, [rows, columns].
        regularity: float32, [rows, columns] / ``COARSE``: chance of a gland to be well formed at each place.
    """

    hematoxylin: FloatArray
    eosin: FloatArray
    mask: BoolArray
    lymphocytes: IntArray
    mucin: BoolArray
    regularity: FloatArray


def paint_tissue(phenotype: Phenotype, size_px: int, layout: np.random.Generator) -> Tissue:
    """Lay out and paint one slide's tissue.

    Args:
        phenotype: of the patient.
        size_px: side of the slide, level-0 pixels, a multiple of ``COARSE``.
        layout: generator that decides every position.
    """
    shape = (size_px, size_px)
    coarse = (size_px // COARSE, size_px // COARSE)
    outline = enlarge(_islands(layout, coarse), shape)
    outline += 0.02 * enlarge(smooth_noise(layout, (size_px // 4, size_px // 4), 2.5), shape)
    mask = outline > 0
    inner = ndimage.binary_erosion(block_mean(mask, COARSE) > 0.99, iterations=3)

    density, mucin_share, regularity = _local_properties(phenotype, layout, coarse)
    mucin_field = smooth_noise(layout, coarse, 26.0 / (MPP * COARSE)) - special.ndtri(1 - mucin_share)
    pools = enlarge(np.where(inner, mucin_field, -1.0).astype(np.float32), shape)
    mucin = pools > 0

    hematoxylin, eosin = _paint_stroma(layout, shape)
    free = inner & (block_mean(mucin, COARSE) < 0.2)
    plan = plan_glands(layout, free, regularity, cell_um=MPP * COARSE)
    lumen = paint_glands(layout, plan, hematoxylin, eosin, MPP)
    _paint_mucin(layout, hematoxylin, eosin, pools)
    _paint_fibroblasts(layout, hematoxylin, mask, _glandular(plan, coarse) | (block_mean(mucin, COARSE) > 0.5))
    lymphocytes = _place_lymphocytes(layout, density, mask & ~lumen, mucin)
    _paint_lymphocytes(layout, hematoxylin, lymphocytes)

    # Outlines fade over a few pixels, as a cut edge does.
    cover = np.clip(outline / 0.03 + 0.5, 0, 1)
    for stain in (hematoxylin, eosin):
        thickness = 1 + THICKNESS_SPREAD * smooth_noise(layout, coarse, LOCAL_SIGMA_UM / (MPP * COARSE))
        stain *= cover * enlarge(np.clip(thickness, 0.65, 1.35), shape)
    return Tissue(hematoxylin, eosin, mask, lymphocytes, mucin, regularity)


def local_truth(tissue: Tissue) -> dict[str, Any]:
    """What was really painted in each cell of ``CELL_PX``, row by row from the top left.

    Returns:
        ``cell_px`` and four nested lists [rows][columns]: tissue_fraction, lymphocytes_per_mm2 (per area of tissue),
        mucin_fraction (of the tissue), gland_regularity. Cells that the right or lower border cuts are left out.
    """
    cells = tissue.mask.shape[0] // CELL_PX
    side = cells * CELL_PX
    covered = block_mean(tissue.mask[:side, :side], CELL_PX)
    area_mm2 = np.maximum(covered, 1e-3) * (CELL_PX * MPP / 1000) ** 2
    placed = tissue.lymphocytes[np.all(tissue.lymphocytes < side, axis=1)] // CELL_PX
    counts = np.bincount(placed @ (cells, 1), minlength=cells * cells).reshape(cells, cells)
    mucin = block_mean(tissue.mucin[:side, :side], CELL_PX) / np.maximum(covered, 1e-3)
    regularity = block_mean(tissue.regularity[: side // COARSE, : side // COARSE], CELL_PX // COARSE)
    return {
        "cell_px": CELL_PX,
        "tissue_fraction": np.round(covered.astype(float), 4).tolist(),
        "lymphocytes_per_mm2": np.round(counts / area_mm2, 1).tolist(),
        "mucin_fraction": np.round(np.minimum(mucin, 1).astype(float), 4).tolist(),
        "gland_regularity": np.round(regularity.astype(float), 4).tolist(),
    }


def _islands(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    """Signed field, positive inside tissue: a few overlapping ellipses with wavy outlines, 38–52 % of the slide."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32) / np.float32(shape[0])
    field = np.full(shape, -10.0, dtype=np.float32)
    corners = rng.permutation(4)[: rng.integers(3, 5)]
    for corner in corners:
        centre_y, centre_x = 0.28 + 0.44 * (corner // 2), 0.28 + 0.44 * (corner % 2)
        centre_y, centre_x = centre_y + rng.uniform(-0.06, 0.06), centre_x + rng.uniform(-0.06, 0.06)
        radius_y, radius_x = rng.uniform(0.16, 0.26, 2)
        distance = np.hypot((y - centre_y) / radius_y, (x - centre_x) / radius_x)
        np.maximum(field, 1 - distance, out=field)
    field += 0.16 * smooth_noise(rng, shape, shape[0] / 22) + 0.05 * smooth_noise(rng, shape, shape[0] / 70)
    rim = np.minimum(np.minimum(y, 1 - y), np.minimum(x, 1 - x))
    field = np.minimum(field, 8 * (rim - 0.04))
    field -= np.quantile(field, 1 - rng.uniform(0.38, 0.52))
    labels, count = ndimage.label(field > 0)
    sizes = ndimage.sum_labels(np.ones(shape), labels, np.arange(1, count + 1))
    crumbs = np.isin(labels, 1 + np.flatnonzero(sizes < 0.005 * field.size))
    return np.where(crumbs, np.float32(-0.05), field).astype(np.float32)


def _local_properties(
    phenotype: Phenotype, rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lymphocytes per mm², mucin share and gland regularity at each place of the coarse grid."""
    sigma = LOCAL_SIGMA_UM / (MPP * COARSE)
    density = phenotype.lymphocytes_per_mm2 * np.exp(LOCAL_LYMPHOCYTES * smooth_noise(rng, shape, sigma))
    mucin = special.expit(special.logit(phenotype.mucin_fraction) + LOCAL_MUCIN * smooth_noise(rng, shape, sigma))
    glands = special.expit(special.logit(phenotype.gland_regularity) + LOCAL_GLANDS * smooth_noise(rng, shape, sigma))
    return density.astype(np.float32), mucin.astype(np.float32), glands.astype(np.float32)


def _paint_stroma(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Fibrous pink ground: two directions of fibres, blended from place to place."""
    half = (shape[0] // 2, shape[1] // 2)
    blend = special.expit(2 * smooth_noise(rng, (shape[0] // COARSE, shape[1] // COARSE), 8))
    blend = enlarge(blend.astype(np.float32), half)
    lying, standing = smooth_noise(rng, half, (1.2, 7)), smooth_noise(rng, half, (7, 1.2))
    fibres = enlarge(blend * lying + (1 - blend) * standing, shape)
    eosin = np.clip(0.50 + 0.13 * fibres, 0.12, None).astype(np.float32)
    hematoxylin = np.clip(0.10 + 0.03 * enlarge(smooth_noise(rng, half, 1.5), shape), 0, None).astype(np.float32)
    return hematoxylin, eosin


def _paint_mucin(rng: np.random.Generator, hematoxylin: FloatArray, eosin: FloatArray, pools: FloatArray) -> None:
    """Pale blue-grey pools with wisps; in place. ``pools`` is positive inside, full size."""
    cover = np.clip(pools / 0.06, 0, 1)
    wisps = enlarge(smooth_noise(rng, (pools.shape[0] // 4, pools.shape[1] // 4), (2.0, 5.0)), pools.shape)
    hematoxylin += cover * (np.clip(0.30 + 0.08 * wisps, 0.1, None) - hematoxylin)
    eosin += cover * (0.05 - eosin)


def _glandular(plan: GlandPlan, shape: tuple[int, int]) -> BoolArray:
    """Coarse map of the places that glands cover."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] * (COARSE * MPP)
    covered = np.zeros(shape, dtype=np.bool_)
    for (centre_y, centre_x), radius in zip(plan.centres_um, plan.radii_um, strict=True):
        covered |= (y - centre_y) ** 2 + (x - centre_x) ** 2 < (radius + 4) ** 2
    return covered


def _paint_fibroblasts(rng: np.random.Generator, canvas: FloatArray, mask: BoolArray, avoid: BoolArray) -> None:
    """Thin nuclei between the glands, 700 per mm²; in place."""
    expected = 700 * mask.size * (MPP / 1000) ** 2
    centres = rng.integers(0, mask.shape[0], (rng.poisson(expected), 2))
    rows, columns = centres.T
    centres = centres[mask[rows, columns] & ~avoid[rows // COARSE, columns // COARSE]]
    kernels = ellipse_kernels(13 / MPP, 3 / MPP, 12)
    stamp(canvas, centres, kernels, rng.integers(0, 12, len(centres)), rng.uniform(0.7, 1.0, len(centres)))


def _place_lymphocytes(rng: np.random.Generator, density: FloatArray, allowed: BoolArray, mucin: BoolArray) -> IntArray:
    """Positions from an inhomogeneous Poisson process; one in five of those that fall into mucin stays."""
    expected = density * (COARSE * MPP / 1000) ** 2
    cells = np.argwhere(np.ones(density.shape, dtype=np.bool_))
    cells = np.repeat(cells, rng.poisson(expected).ravel(), axis=0)
    centres = cells * COARSE + rng.integers(0, COARSE, cells.shape)
    rows, columns = centres.T
    stays = allowed[rows, columns] & (~mucin[rows, columns] | (rng.random(len(centres)) < 0.2))
    return np.asarray(centres[stays], dtype=np.int64)


def _paint_lymphocytes(rng: np.random.Generator, canvas: FloatArray, centres: IntArray) -> None:
    """Small round nuclei, the darkest thing on the slide; in place."""
    diameters = rng.integers(0, 3, len(centres))
    strength = rng.uniform(2.2, 2.8, len(centres))
    for index, diameter_um in enumerate((6.5, 7.2, 8.0)):
        kernels = ellipse_kernels(diameter_um / MPP, 0.92 * diameter_um / MPP, 1)
        chosen = diameters == index
        stamp(canvas, centres[chosen], kernels, np.zeros(chosen.sum(), dtype=np.int64), strength[chosen])
