"""Names of slides and images, and what they tell."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes of images that are tiled where a folder holds nothing but such images, or where they are named."""
SLIDE_SUFFIXES = [
    *(".svs", ".svslide", ".tif", ".tiff", ".btf", ".ptif", ".qptiff"),
    *(".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".czi"),
    *PLAIN_SUFFIXES,
]
"""Suffixes of files that are tiled where a folder is named. How files are read is in ``kdml_med.wsi.opening``; DICOM,
where many files make one slide, is in ``kdml_med.wsi.sources``."""
UNREAD_SUFFIXES = (
    *(".isyntax", ".i2syntax", ".vsi", ".kfb", ".tmap", ".sdpc", ".mdsx", ".lif", ".lsm", ".zvi", ".afi"),
    *(".jp2", ".j2k", ".jpx", ".webp", ".gif", ".zarr", ".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"),
    *(".part", ".partial", ".crdownload"),
)
"""Suffixes of slides, images, archives and unfinished downloads that are not read, and are named where they lie."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
"""Suffixes of frames, and of masks of what they show."""
NAMED_SUFFIXES = (".dcm", ".isyntax", ".webp", ".tar")
"""Further suffixes that tables write behind names."""
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
