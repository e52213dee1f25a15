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


def write_ndpi(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """Hamamatsu: a TIFF of two levels and a macro picture, told apart by the power of the lens in a tag."""
    with tifffile.TiffWriter(path) as tiff:
        for factor, lens in ((1, 40.0), (4, 10.0), (16, -1.0)):
            level, density = np.asarray(Image.fromarray(picture).reduce(factor)), 10_000 / mpp / factor
            tiff.write(
                level,
                photometric="rgb",
                compression="jpeg",
                rowsperstrip=level.shape[0],
                metadata=None,
                resolution=(density, density),
                resolutionunit="CENTIMETER",
                extratags=[
                    (271, "s", 0, "Hamamatsu", True),
                    (65420, "I", 1, 1, True),  # says that it is NDPI
                    (65421, "f", 1, lens, True),
                    (65424, "i", 1, 0, True),  # focal plane
                ],
            )


def write_dicom(
    folder: Path,
    picture: Pixels,
    *,
    mpp: float = 0.25,
    mpp_y: float | None = None,
    series: str = "1.2.3.4",
    prefix: str = "",
) -> None:
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
        measures.PixelSpacing = [(mpp_y or mpp) * factor / 1000, mpp * factor / 1000]
        groups.PixelMeasuresSequence = [measures]
        file.SharedFunctionalGroupsSequence = [groups]
        file.PixelData = encapsulate(frames)
        file["PixelData"].is_undefined_length = True
        pydicom.dcmwrite(folder / f"{prefix}level{number}.dcm", file, enforce_file_format=True)


def write_scn(
    path: Path,
    picture: Pixels,
    mpp: float = 0.25,
    second: Pixels | None = None,
    corner_px: tuple[int, int] = (4, 4),
) -> None:
    """Leica: a BigTIFF with a macro picture and two levels of each region, laid out by the XML of its first page.

    The first region begins at ``corner_px``, (x, y) from the corner of the glass, the second, of the same size, where
    the first ends. The bounds, as OpenSlide calls them, are around all regions.
    """
    height, width = picture.shape[:2]
    macro, half = (np.asarray(Image.fromarray(picture).reduce(factor)) for factor in (16, 4))
    nm = [round(side * mpp * 1000) for side in (width, height)]
    glass = [2 * side for side in nm]  # the macro picture shows all of it

    def image(name: str, lens: float, levels: list[tuple[Pixels, int]], view: list[int], corner: list[int]) -> str:
        full = levels[0][0].shape
        dimensions = "".join(
            f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{r}" ifd="{ifd}"/>'
            for r, (level, ifd) in enumerate(levels)
        )
        return (
            f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            f'<device model="generated" version="1"/><pixels sizeX="{full[1]}" sizeY="{full[0]}">{dimensions}</pixels>'
            f'<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{corner[0]}" offsetY="{corner[1]}" spacingZ="0"/>'
            f"<scanSettings><objectiveSettings><objective>{lens}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.75</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    corner = [round(place * 1000 * mpp) for place in corner_px]
    pages, more = [macro, picture, half], ""
    if second is not None:
        pages += [second, np.asarray(Image.fromarray(second).reduce(4))]
        end = [place + side for place, side in zip(corner, nm, strict=True)]
        more = image("second", 40, [(second, 3), (pages[4], 4)], nm, end)
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">'
        f'<collection name="generated" uuid="urn:uuid:2" sizeX="{glass[0]}" sizeY="{glass[1]}"><barcode></barcode>'
        f"{image('macro', 0.6, [(macro, 0)], glass, [0, 0])}"
        f"{image('image', 40, [(picture, 1), (half, 2)], nm, corner)}{more}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate(pages):
            tiff.write(
                level,
                **TILED,
                resolution=(10_000 / mpp, 10_000 / mpp),
                resolutionunit="CENTIMETER",
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


def write_philips(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """Philips: a TIFF pyramid whose XML names the pixel spacing of each level; coarse levels fill whole tiles."""

    def attribute(name: str, value: str, group: str = "0x0028") -> str:
        return f'<Attribute Name="{name}" Group="{group}" Element="0x0030" PMSVR="IString">{value}</Attribute>'

    def level(number: int) -> str:
        spacing = mpp / 1000 * 2**number
        return (
            '<DataObject ObjectType="PixelDataRepresentation">'
            + attribute("DICOM_PIXEL_SPACING", f"&quot;{spacing}&quot; &quot;{spacing}&quot;")
            + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(number))
            + "</DataObject>"
        )

    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage">'
        + attribute("PIM_DP_IMAGE_TYPE", "WSI", "0x301D")
        + attribute("DICOM_PIXEL_SPACING", f"&quot;{mpp / 1000}&quot; &quot;{mpp / 1000}&quot;")
        + '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IDataObjectArray"><Array>{level(0)}{level(1)}</Array></Attribute></DataObject></Array></Attribute>'
        "</DataObject>"
    )
    half = np.asarray(Image.fromarray(picture).reduce(2))
    filled = np.full((-(-half.shape[0] // 512) * 512, -(-half.shape[1] // 512) * 512, 3), 255, np.uint8)
    filled[: half.shape[0], : half.shape[1]] = half
    options = {"photometric": "rgb", "tile": (512, 512), "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, **options, description=xml, software="Philips DP v1.0")
        tiff.write(filled, **options, software="Philips DP v1.0", subfiletype=1)


def write_ventana(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """Ventana: a BigTIFF with an overview, and levels whose descriptions and XML tell how its areas join."""
    height, width = picture.shape[:2]
    tile = 256
    columns, rows = width // tile, height // tile
    scan = f'<iScan ScanRes="{mpp}" Magnification="40" UnitNumber="1" ScannerModel="generated"/>'

    def number(row: int, column: int) -> int:
        """Of a tile: rows count from the bottom, and every second one is numbered backwards."""
        return row * columns + (column if row % 2 == 0 else columns - 1 - column) + 1

    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{way}" Tile1="{number(row, column)}" '
        f'Tile2="{number(row + up, column + right)}" OverlapX="0" OverlapY="0"/>'
        for way, right, up in (("RIGHT", 1, 0), ("UP", 0, 1))
        for row in range(rows - up)
        for column in range(columns - right)
    )
    info = (
        f'<EncodeInfo Ver="2"><SlideInfo><ServerDirectory/></SlideInfo><SlideStitchInfo><ImageInfo AOIScanned="1" '
        f'AOIIndex="0" NumRows="{rows}" NumCols="{columns}" Width="{tile}" Height="{tile}" Pos-X="0" Pos-Y="0">'
        f'{joints}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    macro, half = (np.asarray(Image.fromarray(picture).reduce(factor)) for factor in (16, 2))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        xmp = 700

        def extra(text: str) -> list[tuple[int, str, int, bytes, bool]]:
            return [(xmp, "B", len(text.encode()), text.encode(), True)]

        tiff.write(macro, photometric="rgb", metadata=None, description="Label_Image", extratags=extra(scan))
        for place, level in enumerate((picture, half)):
            tiff.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                metadata=None,
                compression="jpeg",
                description=f"level={place} mag={40 / 2**place:g} quality=95",
                extratags=extra(info) if place == 0 else (),
            )


def write_mirax(path: Path, picture: Pixels, mpp: float = 0.25) -> None:
    """MIRAX: an empty index file, and a folder with settings, an index of the pictures and the pictures."""
    side = 256
    count = picture.shape[0] // side
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(jpeg(picture[:64, :64]))
    identifier = "ABCDEF0123456789ABCDEF0123456789"
    sections = ""
    data = bytearray(b"01.02" + identifier.encode() + b"000")
    levels: list[list[tuple[int, int, int]]] = []
    for level in range(2):
        reduced = np.asarray(Image.fromarray(picture).reduce(2**level))
        entries = []
        for row in range(count // 2**level):
            for column in range(count // 2**level):
                part = np.ascontiguousarray(reduced[row * side : (row + 1) * side, column * side : (column + 1) * side])
                encoded = jpeg(part)
                # Pictures are numbered by their place on level 0.
                entries.append((row * 2**level * count + column * 2**level, len(data), len(encoded)))
                data += encoded
        levels.append(entries)
        sections += (
            f"[LEVEL{level}]\nOVERLAP_X = 0\nOVERLAP_Y = 0\nMICROMETER_PER_PIXEL_X = {mpp * 2**level}\n"
            f"MICROMETER_PER_PIXEL_Y = {mpp * 2**level}\nIMAGE_FORMAT = JPEG\nIMAGE_FILL_COLOR_BGR = 16777215\n"
            f"DIGITIZER_WIDTH = {side}\nDIGITIZER_HEIGHT = {side}\nIMAGE_CONCAT_FACTOR = {0 if level == 0 else 1}\n"
        )
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {identifier}\nIMAGENUMBER_X = {count}\nIMAGENUMBER_Y = {count}\n"
        "OBJECTIVE_MAGNIFICATION = 20\nCAMERA_IMAGE_DIVISIONS_PER_SIDE = 1\n"
        "[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 0\nINDEXFILE = Index.dat\nHIER_0_NAME = Slide zoom level\n"
        "HIER_0_COUNT = 2\nHIER_0_VAL_0_SECTION = LEVEL0\nHIER_0_VAL_1_SECTION = LEVEL1\n"
        f"[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n{sections}"
    )
    # Index: pointer to the list of levels; there a pointer for each; behind it a zero and a pointer to its only page.
    start = len(b"01.02" + identifier.encode()) + 8
    pointers, pages = b"", b""
    for entries in levels:
        place = start + 4 * len(levels) + len(pages)
        pointers += struct.pack("<i", place)
        pages += struct.pack("<4i", 0, place + 8, len(entries), 0)
        pages += b"".join(struct.pack("<4i", number, offset, length, 0) for number, offset, length in entries)
    head = b"01.02" + identifier.encode() + struct.pack("<2i", start, 0)
    (folder / "Index.dat").write_bytes(head + pointers + pages)
