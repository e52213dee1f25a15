"""Files of images and of masks as pixels; whatever would be a guess is refused by name."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import PIL.Image
from PIL.Image import Image as Picture
from scipy import ndimage

from kdml_med.colonoscopy.boxes import FrameError, boxes_of_mask
from kdml_med.colonoscopy.field import Image, Mask
from kdml_med.colonoscopy.jpeg import check_jpeg

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = (0, 1)  # some recorders write 0 for "nothing known", and viewers show such pictures as they are
_BITS_PER_SAMPLE = 258  # TIFF tag
_PNG_DEPTH_AT = 24  # bytes from the start of the file, in its first chunk
# Decoders stumble over damaged headers in all these ways.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, struct.error),
    *(zlib.error, MemoryError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning),
)

_VOC_VOID = (224, 224, 192)  # colour of the rim around objects in VOC masks; neither object nor background
_HALF_WHITE = 127
_LEAST_WHITE = 100  # some sets write 128 for polyps, and JPEG loses a little
_FULL_WHITE = 192  # from here on white means 255
_FEW_LEVELS = 8  # a mask with smooth edges or JPEG noise has more
_LABEL_SIDE, _EVEN_SIDE = 3, 16
_NOISE = 24  # how far JPEG noise leads away from black and white over more than a pixel or two
_SAFE_JPEG_STEP = 8  # coarsest step of a JPEG's mean brightness in which 1 differs from 0
_WHOLE = 0.95  # share of the picture from which a box says nothing
_WHOLE_SIDE = 0.99
_MOST_AREAS = 50
_FIELD_SHARE, _HOLE_SHARE = 0.25, 0.01
_EXPECTED = "expected polyps white on black, or 1 on 0; save it so, as an 8-bit PNG without transparency"


def read_image(path: Path) -> Image:
    """Decode an image file.

    Returns:
        uint8, [height, width, 3], RGB, rows as stored.

    Raises:
        FrameError: it is missing, empty, damaged anywhere or cut short, has several pages, more than 8 bits per
            channel, transparent parts, or an EXIF rotation (tools do not agree whether boxes are drawn before or
            after it).
    """
    with _quiet():
        image = _decode(path)
        alpha = _transparency(image)
        if alpha is not None and (alpha < 255).any():
            raise FrameError(
                "parts of it are transparent, and what lies there is not known; save it without transparency"
            )
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> Mask:
    """Decode a mask of polyps.

    White on black, or 1 on 0, in the grey levels, in one colour or in the transparency alone. White begins at 128, so
    that smooth edges and JPEG noise do not matter. What a threshold would guess at is refused: see ``Raises``.

    Returns:
        [height, width], True on polyps.

    Raises:
        FrameError: it cannot be read; has other grey levels, several colours, or areas of grey; its colours and its
            transparency say different things; it is a JPEG so dark or so coarse that 1 on 0 would be lost in it; or its
            white reaches around or across the picture, as in an inverted mask or one with a white rim.
    """
    try:
        with _quiet():
            image = _decode(path)
            plane, levels = _mask_plane(image)
        mask = _threshold(plane, image, levels)
        _check_shape(mask)
    except FrameError as error:
        raise FrameError(f"its mask {path.name}: {error}") from error
    return mask


def _quiet() -> warnings.catch_warnings[None]:
    """Pillow's doubts about sizes are errors here; those about metadata beside sound pixels do not matter."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _decode(path: Path) -> Picture:
    """The image with all of its pixels decoded.

    Pillow fills what it cannot decode of a JPEG with grey and does not compare the checksums of a PNG, so both are
    looked through a second time.
    """
    try:
        data = path.read_bytes()
        if not data:
            raise FrameError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_kind(image, data)
            if image.format == "PNG":
                PIL.Image.open(io.BytesIO(data), formats=_FORMATS).verify()
            image.load()
    except FrameError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise FrameError("not a JPEG, PNG, TIFF or BMP image, or its header is damaged") from error
    except _DAMAGE as error:
        raise FrameError(f"cannot be read: {error}") from error
    if image.format == "JPEG":
        check_jpeg(data)
    return image


def _check_kind(image: Picture, data: bytes) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise FrameError(f"it has {pages} pages, expected one image; split it")
    bits: int = 8
    if image.format == "PNG":
        bits = data[_PNG_DEPTH_AT]
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    if bits > 8:
        raise FrameError(f"it has {bits} bits per channel, expected 8 bits; convert it")
    if image.mode not in _MODES:
        raise FrameError(f"its pixels are of type {image.mode}, expected 8 bits per channel; convert it")
    if image.getexif().get(_ORIENTATION, 1) not in _UPRIGHT:
        raise FrameError("its EXIF data turn it, which leaves open what boxes refer to; save it upright")


def _transparency(image: Picture) -> Image | None:
    """Alpha channel, [height, width], 255 where opaque; None where the image has none."""
    if not image.has_transparency_data:
        return None
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _mask_plane(image: Picture) -> tuple[Image, int]:
    """Grey levels of a mask, [height, width], and how many different values the file has."""
    colours: Image = np.asarray(image.convert("RGB"))
    alpha = _transparency(image)
    if alpha is not None and not alpha.any():
        raise FrameError(f"all of it is transparent: {_EXPECTED}")
    if alpha is not None and np.ptp(alpha) > 0:
        shown = colours[alpha > 0]
        if np.ptp(shown, axis=0).any():
            raise FrameError(f"both its colours and its transparency vary: {_EXPECTED}")
        return alpha, len(np.unique(alpha))
    plane: Image = _one_colour(colours, lossless=image.format != "JPEG")
    stored = np.asarray(image) if image.mode == "P" else plane
    if np.ptp(plane) == 0 and np.ptp(stored) > 0:
        raise FrameError(f"its palette gives all of its {len(np.unique(stored))} values the same colour: {_EXPECTED}")
    return plane, len(np.unique(plane))


def _one_colour(colours: Image, *, lossless: bool) -> Image:
    """The brightest channel of each pixel; refuses several colours, which may be of several classes."""
    void = (colours == _VOC_VOID).all(axis=2) & lossless
    if void.any():
        colours = np.where(void[:, :, None], np.uint8(0), colours)
        if not colours.any():
            raise FrameError(f"it has nothing but the colour of undecided pixels {_VOC_VOID}: {_EXPECTED}")
    plane: Image = colours.max(axis=2)
    bright = colours > plane.max() // 2
    codes = bright @ np.array([1, 2, 4])
    # A pixel or two of another colour is the edge of a JPEG; what is left without its edge is an area.
    areas = [
        code for code in np.unique(codes[codes > 0]) if ndimage.binary_erosion(codes == code, np.ones((3, 3))).any()
    ]
    if len(areas) > 1:
        raise FrameError(f"it has {len(areas)} colours, which may be of several classes: {_EXPECTED}")
    return plane


def _threshold(plane: Image, image: Picture, levels: int) -> Mask:
    """Where a mask is white."""
    lowest, top = int(plane.min()), int(plane.max())
    if image.format == "JPEG" and top < _LEAST_WHITE:
        step = image.quantization[0][0]  # type: ignore[attr-defined]
        if top == 0 and step <= _SAFE_JPEG_STEP:
            return np.zeros(plane.shape, np.bool_)
        raise FrameError(
            f"a JPEG with grey levels from {lowest} to {top}, in which polyps may be lost: {_EXPECTED}, also where it "
            "shows none"
        )
    if top <= 1:
        return np.asarray(plane > 0)
    if top < _LEAST_WHITE:
        raise FrameError(f"it has grey levels up to {top}: {_EXPECTED}")
    lower, upper = top // 4, top - top // 4
    bands = [(_NOISE, lower - 1, 5), (lower, upper, 5)]
    if top >= _FULL_WHITE or image.format != "JPEG":  # else the top is noise, and white less by no one knows how much
        bands += [(upper + 1, top - _NOISE, 5), (_NOISE, top - _NOISE, 9)]
    for low, high, side in bands:
        if _has_area((plane >= low) & (plane <= high), side):
            raise FrameError(f"it has areas of grey between {low} and {high}: {_EXPECTED}")
    # Of a few levels each is a label; else what is exactly even over two blocks of a JPEG is one.
    lossless = levels <= _FEW_LEVELS and image.format != "JPEG"
    even = _even_levels(plane, _LABEL_SIDE if lossless else _EVEN_SIDE)
    if len(even) > 2 or (lossless and any(0 < level < top for level in even)):
        raise FrameError(f"it has the levels {even}: {_EXPECTED}")
    return np.asarray(plane > (_HALF_WHITE if top >= _FULL_WHITE else top // 2))


def _even_levels(plane: Image, side: int) -> list[int]:
    """Levels that fill a square of this side somewhere."""
    flat = ndimage.maximum_filter(plane, side) == ndimage.minimum_filter(plane, side)
    return [int(level) for level in np.unique(plane[flat])]


def _has_area(region: npt.NDArray[np.bool_], side: int) -> bool:
    """Whether a square of this side fits into a region; it does not into an edge."""
    return bool(region.any() and ndimage.binary_erosion(region, np.ones((side, side))).any())


def _check_shape(mask: Mask) -> None:
    """Refuse white that goes around the picture or along a side: the background of an inverted mask, or a rim."""
    sides = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    full = [name for name, side in sides.items() if side.mean() >= _WHOLE_SIDE]
    advice = f"it may be inverted or have a white rim: {_EXPECTED}"
    if full:
        raise FrameError(f"white runs along its edge ({', '.join(full)}): {advice}")
    boxes = boxes_of_mask(mask)
    if len(boxes) > _MOST_AREAS:
        raise FrameError(f"it has {len(boxes)} separate white areas, as where grey was turned into dots: {_EXPECTED}")
    for xmin, ymin, xmax, ymax in boxes:
        if (xmax - xmin) * (ymax - ymin) >= _WHOLE * mask.size:
            raise FrameError(f"its white reaches from edge to edge, so that the box would be the picture: {advice}")
    filled = ndimage.binary_fill_holes(mask)
    if filled.mean() >= _FIELD_SHARE and (filled & ~mask).mean() >= _HOLE_SHARE:
        raise FrameError(f"its white has holes: {advice}")
