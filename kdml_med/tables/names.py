"""Names of slides and images, and what they tell."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

SLIDE_SUFFIXES = [
    *(".svs", ".svslide", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".czi"),
    *(".png", ".jpg", ".jpeg", ".bmp"),
]
"""Suffixes of files that are tiled where a folder is named. How files are read is in ``kdml_med.wsi.opening``."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
"""Suffixes of frames, and of masks of what they show."""
NAMED_SUFFIXES = (".dcm", ".btf", ".isyntax", ".webp", ".tar")
"""Further suffixes that tables write behind names. Many DICOM files make one slide: name one of them explicitly."""
_TCGA_PATIENT = re.compile(r"^TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}", re.IGNORECASE)


def slide_name(text: str) -> str:
    """Name of a slide without the folders before it (of either system) and without an image suffix."""
    name = PurePosixPath(text.strip().replace("\\", "/")).name
    # Only known suffixes are cut off: in "TCGA-AA-3672-01Z-00-DX1.23748e80-…" the part after the point belongs to it.
    stem, point, suffix = name.rpartition(".")
    if not point or f".{suffix.lower()}" not in (*SLIDE_SUFFIXES, *NAMED_SUFFIXES):
        return name
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def is_barcode(name: str) -> bool:
    """Whether a name begins with a TCGA barcode of a patient."""
    return _TCGA_PATIENT.match(name) is not None


def tcga_site(patient_id: str) -> str | None:
    """Tissue source site of a TCGA barcode (its second field), or None for any other id."""
    found = _TCGA_PATIENT.match(patient_id)
    return found.group(1).upper() if found else None
