"""Settings of a tiling run: everything that decides the bytes of the tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kdml_med.errors import InputError
from kdml_med.wsi.grid import MAX_MPP, MIN_MPP

PIXEL_RULES = 1
"""Counted up when the same slide and options give other tiles: what an earlier version made is then made anew."""

ImageFormat = Literal["jpeg", "png"]
StainMode = Literal["none", "macenko"]
Reader = Literal["auto", "openslide"]


@dataclass(frozen=True)
class Preset:
    """A published tile geometry and its background rule."""

    mpp: float
    tile_size_px: int
    min_tissue: float
    max_background: float
    background_level: float


PRESETS = {
    # Zenodo record 2530835 (Kather et al. 2019): 224 px at 0.5 µm/px.
    "zenodo-112um": Preset(mpp=0.5, tile_size_px=224, min_tissue=0.05, max_background=0.5, background_level=220),
    # The scripts published with that paper: blocks of 256 µm, scaled to 224 px.
    "kather-256um": Preset(mpp=256 / 224, tile_size_px=224, min_tissue=0.05, max_background=0.5, background_level=220),
}
"""In both, half of the pixels with a mean of at least 220 make a tile background. The tissue mask then only spares
decoding bare glass."""


@dataclass(frozen=True)
class TilingOptions:
    """Settings of a tiling run.

    Attributes:
        mpp: micrometres per pixel of the stored tile.
        tile_size_px: side of the stored tile, pixels.
        image_format: "jpeg" or "png".
        jpeg_quality: 1 to 100; colour is never subsampled.
        stain: "macenko" stores normalised tiles, "none" the scanner's colours.
        min_tissue: share of the tile that the tissue mask must cover, 0..1.
        max_background: share of pixels as bright as glass above which a tile is rejected, 0..1.
        background_level: mean over the channels from which a pixel is as bright as glass, grey levels; on darker glass
            that of the glass is taken.
        max_pen: share of ink-coloured pixels above which a tile is rejected, 0..1.
        min_sharpness: variance of the Laplacian under which a tile is rejected as blurred, grey levels squared.
        assume_mpp: micrometres per level-0 pixel of slides whose header says nothing or nonsense.
        preset: name of the preset that the values came from.
        limit_tiles: at most so many tiles of each slide, drawn at random; None for all.
        seed: of that draw.
        reader: "auto" takes the fast reader where it fits, "openslide" never.
    """

    mpp: float = 0.5
    tile_size_px: int = 224
    image_format: ImageFormat = "jpeg"
    jpeg_quality: int = 97
    stain: StainMode = "none"
    min_tissue: float = 0.5
    max_background: float = 0.75
    background_level: float = 235.0
    max_pen: float = 0.1
    min_sharpness: float = 20.0
    assume_mpp: float | None = None
    preset: str | None = None
    limit_tiles: int | None = None
    seed: int = 0
    reader: Reader = "auto"

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            InputError: naming the option, its value and what is expected.
        """
        ranges: list[tuple[str, float | None, float, float]] = [
            ("mpp", self.mpp, 0.05, 32.0),
            ("tile-size", self.tile_size_px, 16, 4096),
            ("jpeg-quality", self.jpeg_quality, 1, 100),
            ("min-tissue", self.min_tissue, 0, 1),
            ("max-background", self.max_background, 0, 1),
            ("background-level", self.background_level, 1, 255),
            ("max-pen", self.max_pen, 0, 1),
            ("min-sharpness", self.min_sharpness, 0, 65_025),
            ("assume-mpp", self.assume_mpp, MIN_MPP, MAX_MPP),
            ("limit-tiles", self.limit_tiles, 1, 10**9),
        ]
        for name, value, low, high in ranges:
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name} is {value}, expected {low} to {high}.")
        for name, word, known in (
            ("format", self.image_format, get_args(ImageFormat)),
            ("stain", self.stain, get_args(StainMode)),
            ("reader", self.reader, get_args(Reader)),
            ("preset", self.preset, (None, *PRESETS)),
        ):
            if word not in known:
                raise InputError(f"--{name} is {word!r}, expected one of {[k for k in known if k]}.")

    @property
    def suffix(self) -> str:
        """File suffix of the tiles."""
        return "jpg" if self.image_format == "jpeg" else "png"


def geometry(
    preset: str | None,
    *,
    mpp: float | None,
    tile_size_px: int | None,
    min_tissue: float | None = None,
    max_background: float | None = None,
    background_level: float | None = None,
) -> dict[str, float | int | str | None]:
    """Options that a preset decides, or the values given; None stands for "not given".

    Returns:
        Keyword arguments of ``TilingOptions``.

    Raises:
        InputError: no such preset, or a resolution or size was given beside one.
    """
    defaults = TilingOptions()
    base = Preset(
        defaults.mpp, defaults.tile_size_px, defaults.min_tissue, defaults.max_background, defaults.background_level
    )
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"--preset is {preset!r}, expected one of {sorted(PRESETS)}.")
        for name, value in (("mpp", mpp), ("tile-size", tile_size_px)):
            if value is not None:
                raise InputError(f"--preset {preset} already decides --{name}: leave one of the two out.")
        base = PRESETS[preset]
    return {
        "preset": preset,
        "mpp": base.mpp if mpp is None else mpp,
        "tile_size_px": base.tile_size_px if tile_size_px is None else tile_size_px,
        "min_tissue": base.min_tissue if min_tissue is None else min_tissue,
        "max_background": base.max_background if max_background is None else max_background,
        "background_level": base.background_level if background_level is None else background_level,
    }
