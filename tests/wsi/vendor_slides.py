"""Small slides in the formats of vendors, as OpenSlide tells them apart, and small TIFFs of any kind."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.synthetic_slides import Pixels, tissue_picture

CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}  # 0.25 µm/px
TILED = {"photometric": "rgb", "tile": (256, 256), "metadata": None}


def write_tiff(
    path: Path, *pictures: Pixels, flags: tuple[int, ...] = (), bigtiff: bool = False, **options: Any
) -> None:
    """Write pages in this order, lossless and tiled unless told otherwise, at 0.25 µm/px."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        for number, picture in enumerate(pictures):
            kind = {"subfiletype": flags[number]} if flags else {}
            tiff.write(picture, **{**TILED, **CM, **kind, **options})


def change_tag(path: Path, code: int, value: Any, *, page: int = 0, dtype: int | None = None) -> None:
    """Overwrite the value of a tag; None takes the tag away."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[page].tags[code]
        if value is not None:
            tag.overwrite(value, **({} if dtype is None else {"dtype": dtype}))
            return
        offset = tag.offset
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(struct.pack("<H", 65_000))  # a private tag, which nobody reads


def jpeg(picture: Pixels, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", **{"quality": 92, "subsampling": 0, **options})
    return stream.getvalue()


def write_vms(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """Hamamatsu: an index, an image, a smaller copy of it and a macro picture."""
    stem, height, width = path.stem, *picture.shape[:2]
    (path.parent / f"{stem}_image.jpg").write_bytes(jpeg(picture, restart_marker_blocks=8))
    small = np.asarray(Image.fromarray(picture).reduce(4))
    (path.parent / f"{stem}_map2.jpg").write_bytes(jpeg(small, restart_marker_blocks=8))
    (path.parent / f"{stem}_macro.jpg").write_bytes(jpeg(np.asarray(Image.fromarray(picture).reduce(8))))
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        f"ImageFile={stem}_image.jpg\nMapFile={stem}_map2.jpg\nMacroImage={stem}_macro.jpg\nSourceLens=40\n"
        f"PhysicalWidth={round(width * mpp * 1000)}\nPhysicalHeight={round(height * mpp * 1000)}\n"
    )


def write_dicom(folder: Path, picture: Pixels, *, mpp: float = 0.25, series: str = "1.2.3.4", prefix: str = "") -> None:
    """DICOM: one file for each of two levels."""
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    folder.mkdir(parents=True, exist_ok=True)
    tile = 256
    for number, factor in enumerate((1, 4)):
        level = np.asarray(Image.fromarray(picture).reduce(factor))
        rows, columns = level.shape[:2]
        frames = []
        for top in range(0, rows, tile):
            for left in range(0, columns, tile):
                frame = np.full((tile, tile, 3), 255, np.uint8)
                part = level[top : top + tile, left : left + tile]
                frame[: part.shape[0], : part.shape[1]] = part
                frames.append(jpeg(frame))
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        # The series is named in a reference too, before its own place: of another one.
        reference = Dataset()
        reference.SeriesInstanceUID = "9.9.9"
        file.ReferencedSeriesSequence = [reference]
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.SeriesInstanceUID, file.StudyInstanceUID, file.Modality = series, "1.2.3", "SM"
        file.FrameOfReferenceUID = "1.2.5"
        file.ImageType = [
            "ORIGINAL" if number == 0 else "DERIVED",
            "PRIMARY",
            "VOLUME",
            "NONE" if number == 0 else "RESAMPLED",
        ]
        file.DimensionOrganizationType = "TILED_FULL"
        file.Rows = file.Columns = tile
        file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = rows, columns
        file.TotalPixelMatrixFocalPlanes = 1
        file.NumberOfOpticalPaths = 1
        file.NumberOfFrames = len(frames)
        file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "YBR_FULL_422", 0
        file.BitsAllocated = file.BitsStored = 8
        file.HighBit, file.PixelRepresentation = 7, 0
        measures, groups = Dataset(), Dataset()
        measures.PixelSpacing = [mpp * factor / 1000, mpp * factor / 1000]
        groups.PixelMeasuresSequence = [measures]
        file.SharedFunctionalGroupsSequence = [groups]
        file.PixelData = encapsulate(frames)
        file["PixelData"].is_undefined_length = True
        pydicom.dcmwrite(folder / f"{prefix}level{number}.dcm", file, enforce_file_format=True)


def write_scn(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """Leica: a BigTIFF with a macro picture and two levels, laid out by the XML of its first page."""
    height, width = picture.shape[:2]
    macro, half = (np.asarray(Image.fromarray(picture).reduce(factor)) for factor in (16, 4))
    nm = [round(side * mpp * 1000) for side in (width, height)]
    glass = [2 * side for side in nm]  # the macro picture shows all of it

    def image(name: str, lens: float, levels: list[tuple[Pixels, int]], view: list[int], corner: int) -> str:
        full = levels[0][0].shape
        dimensions = "".join(
            f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{r}" ifd="{ifd}"/>'
            for r, (level, ifd) in enumerate(levels)
        )
        return (
            f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            f'<device model="generated" version="1"/><pixels sizeX="{full[1]}" sizeY="{full[0]}">{dimensions}</pixels>'
            f'<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{corner}" offsetY="{corner}" spacingZ="0"/>'
            f"<scanSettings><objectiveSettings><objective>{lens}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.75</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">'
        f'<collection name="generated" uuid="urn:uuid:2" sizeX="{glass[0]}" sizeY="{glass[1]}"><barcode></barcode>'
        f"{image('macro', 0.6, [(macro, 0)], glass, 0)}"
        f"{image('image', 40, [(picture, 1), (half, 2)], nm, 1000)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate((macro, picture, half)):
            tiff.write(
                level,
                **TILED,
                **CM,  # of the tags, OpenSlide takes the resolution from the image and not from the macro picture
                compression="jpeg",
                description=xml if number == 0 else None,
                subfiletype=0 if number < 2 else 1,
            )


def ome_xml(width: int, height: int, **physical: str) -> str:
    """Header of an OME-TIFF of one RGB image."""
    words = " ".join(f'{name}="{value}"' for name, value in physical.items())
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeC="3" '
        f'SizeZ="1" SizeT="1" {words}><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def picture(side: int = 1344, seed: int = 0) -> Pixels:
    return tissue_picture(side, side, seed)
