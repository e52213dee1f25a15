"""Names of slides and images, and what they tell."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
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
UNREAD_PICTURES = (
    *(".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jfif", ".jpe", ".tga", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".dcm", ".dicom", ".psd", ".svg", ".exr", ".npy", ".npz", ".mat", ".nii", ".gz"),
)
"""Suffixes of pictures, and of what may hold some, that are not read as frames."""
UNREAD_VIDEOS = (
    *(".flv", ".f4v", ".vob", ".3gp", ".3g2", ".ogv", ".mxf", ".asf", ".m2v", ".mpe", ".divx", ".rm", ".rmvb", ".dv"),
    *(".h264", ".264", ".h265", ".hevc", ".dav"),
)
NAMED_SUFFIXES = (".dcm", ".isyntax", ".webp", ".tar")
"""Further suffixes that tables write behind names."""
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SPACE = re.compile(r"[^\S\n]")
_TCGA_NORMAL = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-1[0-9](?![0-9])", re.IGNORECASE)
_HYPHENS = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_TCGA_PATIENT = re.compile(r"^TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}", re.IGNORECASE)
_TCGA_SLIDE = re.compile(
    r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-[0-9]{2}[A-Z]-[0-9]{2}-(?:DX|[BMT]S)(?:[0-9]+|[A-Z])(?![A-Z0-9])"
    r"(?:\.[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}(?![A-Z0-9]))?",
    re.IGNORECASE,
)
_TCGA_ANYWHERE = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def same_name_form(text: str) -> str:
    """A name, id or cell as it is compared: what looks the same is the same.

    Letters with marks are single characters (Unicode NFC: Macs write file names in another form), every kind of space
    is a plain one, marks of direction and breaks of no width are taken out, and nothing invisible is around the text.
    """
    if text.isascii() and text.isprintable():
        return text.strip()  # nearly all names: a folder may hold a million
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", _INVISIBLE.sub("", text)))
    first = next((i for i, letter in enumerate(text) if _shows(letter)), len(text))
    last = next((i for i in range(len(text), first, -1) if _shows(text[i - 1])), first)
    return text[first:last]


def _shows(letter: str) -> bool:
    return not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Cc")


def slide_name(text: str) -> str:
    """Name of a slide without the folders before it (of either system) and without an image suffix, in one form."""
    name = PurePosixPath(same_name_form(text).replace("\\", "/")).name
    # Only known suffixes are cut off: in "TCGA-AA-3672-01Z-00-DX1.23748e80-…" the part after the point belongs to it.
    stem, point, suffix = name.rpartition(".")
    if not point or f".{suffix.lower()}" not in (*SLIDE_SUFFIXES, *NAMED_SUFFIXES):
        return name
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def plain_hyphens(text: str) -> str:
    """Text with compatible characters (Unicode NFKC) and every kind of hyphen as the plain ones."""
    return _HYPHENS.sub("-", unicodedata.normalize("NFKC", text))


def similar_form(text: str) -> str:
    """A name without what a careless hand changes: case, the kind of hyphen, the number of spaces."""
    return " ".join(plain_hyphens(text).casefold().split())


def folders_of(path: str) -> list[str]:
    """The folders of a path of either system, in one form; what precedes the last ".." is unknown, so left out."""
    parts = same_name_form(path).replace("\\", "/").split("/")[:-1]
    start = max((place + 1 for place, part in enumerate(parts) if part == ".."), default=0)
    return [part for part in parts[start:] if part not in ("", ".")]


def is_absolute(path: str) -> bool:
    """Whether a path of either system starts at the top."""
    return path.startswith(("/", "\\")) or re.match(r"[A-Za-z]+:", path) is not None


def folders_agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of folders are the same from the end, as far as both go."""
    return all(a == b for a, b in zip(reversed(one), reversed(other), strict=False))


def is_tcga_normal(name: str) -> bool:
    """Whether a name holds a TCGA barcode of a normal sample: the two digits of the sample type are 10 to 19.

    Source:
        GDC, TCGA code tables, sample type codes: 01 to 09 tumours, 10 to 19 normal tissue or blood, 20 to 29 controls.
    """
    return _TCGA_NORMAL.search(name) is not None


def is_barcode(name: str) -> bool:
    """Whether a name begins with a TCGA barcode of a patient."""
    return _TCGA_PATIENT.match(name) is not None


def slide_keys(name: str) -> list[str]:
    """Names that a table of slides may have for one, the best first: tables often leave the UUID of a TCGA file out."""
    return [name, name.split(".")[0]] if is_barcode(name) else [name]


def other_barcode(name: str, patient_id: str) -> str | None:
    """The TCGA patient whose barcode a name holds, where the patient is said to be another one of TCGA."""
    named, said = _TCGA_ANYWHERE.findall(name), _TCGA_PATIENT.match(patient_id)
    known = {barcode.upper() for barcode in named}
    return named[0] if named and said and said.group().upper() not in known else None


def tcga_patient(name: str) -> str | None:
    """TCGA barcode of the patient that a name begins with, or None."""
    found = _TCGA_PATIENT.match(name)
    return found.group() if found else None


def tcga_slide(name: str) -> str | None:
    """TCGA barcode of the slide that a name begins with, and the UUID behind it as in names of files; None without.

    Source:
        GDC, TCGA barcode: patient, sample type and vial, portion, slide (DX1, TS1, BSA, …).
    """
    found = _TCGA_SLIDE.match(name)
    return found.group() if found else None


def tcga_site(patient_id: str) -> str | None:
    """Tissue source site of a TCGA barcode (its second field), or None for any other id."""
    found = _TCGA_PATIENT.match(patient_id)
    return found.group(1).upper() if found else None
