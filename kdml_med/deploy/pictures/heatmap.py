"""Where in a slide the networks see what: heat maps as pictures, as an image layer and as shapes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from kdml_med.deploy.pictures.geojson import write_shapes
from kdml_med.deploy.pictures.layer import write_layer
from kdml_med.deploy.pictures.lettering import FAINT, INK, PAPER, font, line_height, wrap, write_lines
from kdml_med.deploy.pictures.raster import (
    DIFFERENCE,
    HEAT,
    Plane,
    choose_pitch,
    colour_of,
    colours,
    rasterise,
    within,
)
from kdml_med.storage.files import naming, write_if_changed
from kdml_med.words import GENERATED_PICTURE, RESEARCH_ONLY
from kdml_med.wsi.slide import Bounds

HEATMAP_FILE = "heatmap.png"
DISAGREEMENT_FILE = "disagreement.png"
LAYER_FILE = "heatmap.ome.tiff"
SHAPES_FILE = "tiles.geojson"

PANEL_PX, _LEAST_PANEL_PX = 1100, 420
"""The longest side of a slide on a picture: larger ones are reduced to the one, smaller ones enlarged to the other."""
_LEAST_WIDTH_PX = 720
_MARGIN_PX, _GAP_PX = 24, 16
_FRAME = (200, 200, 200)
_COVER = 0.65
"""How much of a pixel is colour; the rest is the slide, in grey, so that stains do not mix with the scale."""


@dataclass(frozen=True, kw_only=True)
class SlidePicture:
    """A slide, and what the networks said of its tiles.

    Attributes:
        slide_id: any text.
        overview: uint8, [height, width, 3], RGB; the whole slide, reduced by ``downsample``.
        downsample: level-0 pixels per pixel of the overview.
        width_l0: of the slide, level-0 pixels.
        height_l0: likewise.
        mpp: micrometres per level-0 pixel.
        tiles: columns x_l0, y_l0, size_l0 (level-0 pixels, may be fractions), probability (of the positive class) and
            disagreement (NaN, or the column is absent, with one student).
        classes: names; the last one is the positive class.
        network: whose probabilities these are.
        synthetic: the slide or the training data are generated.
        outlines: of regions that the tissue was restricted to, each float, [points, 2], (x, y), level-0 pixels.
        bounds: part of the plane that was scanned, which QuPath shows as if it were all; None where it is all. All
            places here are those on the plane.
    """

    slide_id: str
    overview: npt.NDArray[np.uint8]
    downsample: float
    width_l0: int
    height_l0: int
    mpp: float
    tiles: pd.DataFrame
    classes: list[str]
    network: str
    synthetic: bool
    outlines: Sequence[npt.NDArray[np.float64]] = ()
    bounds: Bounds | None = None

    @property
    def differs(self) -> bool:
        """Whether disagreement of students is known."""
        return "disagreement" in self.tiles and bool(self.tiles["disagreement"].notna().any())


@dataclass(frozen=True)
class _Scale:
    """What colours mean on one map."""

    column: str
    title: str
    note: str
    colours: str
    highest: float


def write_maps(folder: Path, picture: SlidePicture) -> list[str]:
    """Write heatmap.png, disagreement.png (where there is one), heatmap.ome.tiff and tiles.geojson.

    The pictures show the whole plane. The layer and the shapes are for QuPath: they begin where ``bounds`` do.

    Args:
        folder: made when absent; a disagreement.png of an earlier prediction goes where there is none now.
        picture: of the slide; without tiles only the slide is shown.

    Returns:
        Names of the files that were written.

    Raises:
        InputError: a file cannot be written.
    """
    probability = f"Probability of {picture.classes[-1]}"
    _write_map(folder / HEATMAP_FILE, picture, _Scale("probability", probability, "", HEAT, 1.0))
    written = [HEATMAP_FILE]
    if picture.differs:
        most = float(picture.tiles["disagreement"].max())
        highest = next((end for end in (0.1, 0.2, 0.5) if most <= end), 1.0)
        note = "Largest difference between the students' probabilities: where they differ, do not trust."
        _write_map(
            folder / DISAGREEMENT_FILE, picture, _Scale("disagreement", "Disagreement", note, DIFFERENCE, highest)
        )
        written.append(DISAGREEMENT_FILE)
    else:
        with naming(folder / DISAGREEMENT_FILE):
            (folder / DISAGREEMENT_FILE).unlink(missing_ok=True)
    shown = _as_shown(picture)
    _write_layer(folder / LAYER_FILE, shown, probability)
    about = {"slide_id": picture.slide_id, "network": picture.network, "classes": picture.classes, "use": RESEARCH_ONLY}
    about |= {"caution": GENERATED_PICTURE} if picture.synthetic else {}
    write_shapes(folder / SHAPES_FILE, shown.tiles, slide_id=picture.slide_id, classes=picture.classes, about=about)
    return [*written, LAYER_FILE, SHAPES_FILE]


def _as_shown(picture: SlidePicture) -> SlidePicture:
    """Size and tiles as QuPath has them: of the part that was scanned, and from its corner."""
    bounds = picture.bounds
    if bounds is None:
        return picture
    places = {"x_l0": picture.tiles["x_l0"] - bounds.x_l0, "y_l0": picture.tiles["y_l0"] - bounds.y_l0}
    return replace(
        picture, tiles=picture.tiles.assign(**places), width_l0=bounds.width_l0, height_l0=bounds.height_l0, bounds=None
    )


def _write_layer(path: Path, picture: SlidePicture, probability: str) -> None:
    pitch = choose_pitch(picture.tiles, picture.width_l0, picture.height_l0)
    shape = math.ceil(picture.height_l0 / pitch), math.ceil(picture.width_l0 / pitch)
    tiles = within(picture.tiles, shape, pitch)
    columns = {probability: "probability"} | ({"Disagreement of students": "disagreement"} if picture.differs else {})
    channels = {name: rasterise(tiles, column, shape, (pitch, pitch)) for name, column in columns.items()}
    description = f"{RESEARCH_ONLY}. Network: {picture.network}. NaN: no tile."
    description += f" {GENERATED_PICTURE}" if picture.synthetic else ""
    write_layer(path, channels, pixel_um=pitch * picture.mpp, name=picture.slide_id, description=description)


@dataclass(frozen=True)
class _Sizes:
    """Sizes of what stands around the panels, pixels; larger on larger pictures, which are shown reduced."""

    title: int
    text: int
    bar_width: int
    bar_height: int
    scale_bar: int

    @classmethod
    def of(cls, width: int) -> _Sizes:
        """For a picture of this width."""
        text = min(22, max(14, round(width / 75)))
        return cls(round(1.4 * text), text, 21 * text, round(1.2 * text), 13 * text)

    @property
    def legend(self) -> int:
        """Height of the legend."""
        return 2 * line_height(self.text) + self.bar_height + 6


def _write_map(path: Path, picture: SlidePicture, scale: _Scale) -> None:
    """The slide beside (or above) the slide with its map, and what the colours mean."""
    slide, to_l0 = _scaled(picture)
    plane = rasterise(picture.tiles, scale.column, (slide.height, slide.width), to_l0)
    panels = [slide, colour_slide(slide, plane, scale.colours, scale.highest)]
    for panel in panels:
        _draw_outlines(panel, picture, to_l0)
    stacked = slide.width > 1.3 * slide.height
    width = slide.width if stacked else 2 * slide.width + _GAP_PX
    width = max(width, _LEAST_WIDTH_PX)
    sizes = _Sizes.of(width)
    head = _heading(picture, scale, width, sizes)
    head_px = sum(len(lines) * line_height(size) for lines, size, _ in head)
    body_px = 2 * slide.height + _GAP_PX if stacked else slide.height
    height = 2 * (_MARGIN_PX + _GAP_PX) + head_px + body_px + sizes.legend
    canvas = Image.new("RGB", (width + 2 * _MARGIN_PX, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = _MARGIN_PX
    for lines, size, bold in head:
        y = write_lines(draw, (_MARGIN_PX, y), lines, size, bold=bold, fill=INK if bold else FAINT)
    x, y = _MARGIN_PX, y + _GAP_PX
    for panel in panels:
        canvas.paste(panel, (x, y))
        draw.rectangle((x - 1, y - 1, x + panel.width, y + panel.height), outline=_FRAME)
        x, y = (x, y + panel.height + _GAP_PX) if stacked else (x + panel.width + _GAP_PX, y)
    y = height - _MARGIN_PX - sizes.legend
    _draw_scale_bar(draw, (_MARGIN_PX, y), picture.mpp * to_l0[0], sizes)
    _draw_colour_bar(canvas, (_MARGIN_PX + width - sizes.bar_width - sizes.text, y), scale, sizes)
    sink = io.BytesIO()
    canvas.save(sink, "PNG", compress_level=1)  # of tissue, more effort gains 3 % of the bytes
    write_if_changed(path, sink.getvalue())


def _heading(picture: SlidePicture, scale: _Scale, width: int, sizes: _Sizes) -> list[tuple[list[str], int, bool]]:
    """Lines above the map: text, size and whether they are bold."""
    count = int(picture.tiles[scale.column].notna().sum())
    facts = f"{scale.title} · network: {picture.network} · {count:,} tile{'s' * (count != 1)}, no colour elsewhere"
    facts += "; only inside of the line" if picture.outlines else ""
    lines = [(picture.slide_id, sizes.title, True), (facts, sizes.text, False)]
    lines += [(note, sizes.text, False) for note in (scale.note, f"{RESEARCH_ONLY}.") if note]
    lines += [(GENERATED_PICTURE, sizes.text, True)] if picture.synthetic else []
    return [(wrap(text, size, width, bold=bold), size, bold) for text, size, bold in lines]


def _scaled(picture: SlidePicture) -> tuple[Image.Image, tuple[float, float]]:
    """The slide as it is shown, and level-0 pixels per shown pixel, (x, y)."""
    height, width = picture.overview.shape[:2]
    longest = max(height, width)
    factor = min(PANEL_PX, max(_LEAST_PANEL_PX, longest)) / longest
    size = max(1, round(width * factor)), max(1, round(height * factor))
    slide = Image.fromarray(picture.overview).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return slide, (picture.downsample * width / size[0], picture.downsample * height / size[1])


def colour_slide(slide: Image.Image, plane: Plane, shades: str, highest: float) -> Image.Image:
    """The slide in grey below the colours of values.

    Args:
        slide: as it is shown.
        plane: values, of the same size.
        shades: name of the colours, see ``kdml_med.deploy.pictures.raster``.
        highest: value that has the last of them.
    """
    grey = np.asarray(slide.convert("L"), np.float32)
    below = np.repeat((255 - 0.75 * (255 - grey))[..., None], 3, axis=2)
    cover = np.where(np.isnan(plane), 0, _COVER)[..., None]
    mixed = below * (1 - cover) + colour_of(plane, shades, highest) * cover
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _draw_outlines(panel: Image.Image, picture: SlidePicture, to_l0: tuple[float, float]) -> None:
    """Regions as dark lines on a light rim, which are seen on every colour."""
    draw = ImageDraw.Draw(panel)
    for colour, width in ((PAPER, 5), (INK, 2)):
        for ring in picture.outlines:
            corners = [tuple(point) for point in (ring / to_l0).tolist()]
            draw.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")


def _draw_scale_bar(draw: ImageDraw.ImageDraw, place: tuple[int, int], um_per_px: float, sizes: _Sizes) -> None:
    """A bar of a round length, and the length."""
    length_um = round_length(sizes.scale_bar * um_per_px)
    x, y = place
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    draw.text((x, y), text, fill=INK, font=font(sizes.text))
    y += line_height(sizes.text) + 2
    end, thick = x + round(length_um / um_per_px), sizes.text // 3
    draw.rectangle((x, y + thick, end, y + 2 * thick - 1), fill=INK)
    for tick in (x, end):
        draw.rectangle((tick, y, tick + 1, y + 3 * thick - 1), fill=INK)


def round_length(longest: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return next(step * power for step in (5.0, 2.0, 1.0) if step * power <= longest or step == 1)


def _draw_colour_bar(canvas: Image.Image, place: tuple[int, int], scale: _Scale, sizes: _Sizes) -> None:
    """What colours mean, as they look on a light ground, with ticks."""
    draw, (x, y) = ImageDraw.Draw(canvas), place
    title = wrap(scale.title, sizes.text, sizes.bar_width, lines=1)
    write_lines(draw, (x, y), title, sizes.text)
    y += line_height(sizes.text) + 2
    shades = colours(scale.colours)[np.arange(sizes.bar_width) * 255 // (sizes.bar_width - 1)]
    seen = np.rint(shades * _COVER + 255 * (1 - _COVER)).astype(np.uint8)
    canvas.paste(Image.fromarray(np.tile(seen, (sizes.bar_height, 1, 1))), (x, y))
    draw.rectangle((x - 1, y - 1, x + sizes.bar_width, y + sizes.bar_height), outline=FAINT)
    letters, below = font(sizes.text - 1), y + sizes.bar_height
    for part in range(5):
        at = x + round(part / 4 * (sizes.bar_width - 1))
        draw.line((at, below, at, below + 4), fill=INK)
        text = f"{scale.highest * part / 4:.3g}"
        draw.text((at - letters.getlength(text) / 2, below + 4), text, fill=INK, font=letters)
