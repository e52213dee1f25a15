"""From light to the stored frame: exposure, tone, motion blur, sensor noise, black border and overlay text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from kdml_med.demo.camera import HEIGHT_PX, WIDTH_PX
from kdml_med.demo.fields import BoolArray, FloatArray

UInt8Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Processor:
    """How one video processor turns light into a picture.

    Attributes:
        exposure: brightness that the automatic exposure aims at, 0 … 1.
        gamma: of the tone curve.
        black: grey level of the border, 0 … 255.
        noise: standard deviation, grey levels.
        softness_px: sigma of the lens, pixels.
        seconds: reading of the recorder's clock at the first frame.
    """

    exposure: float
    gamma: float
    black: int
    noise: float
    softness_px: float
    seconds: int


@dataclass(frozen=True)
class Motion:
    """Blur of one frame.

    Attributes:
        length_px: distance that the picture moves during the exposure; 0 for none.
        heading: direction, radians.
    """

    length_px: float
    heading: float


def draw_processor(rng: np.random.Generator) -> Processor:
    """Draw one processor."""
    return Processor(
        exposure=rng.uniform(0.62, 0.85),
        gamma=rng.uniform(1.4, 1.7),
        black=int(rng.integers(0, 14)),
        noise=rng.uniform(1.5, 3.5),
        softness_px=rng.uniform(0.55, 0.85),
        seconds=int(rng.integers(60, 1200)),
    )


def draw_motion(rng: np.random.Generator) -> Motion:
    """Draw whether and how a frame is blurred: one in six is."""
    length = rng.uniform(4, 9) if rng.random() < 1 / 6 else 0.0
    return Motion(float(length), float(rng.uniform(0, np.pi)))


def develop(
    light: FloatArray, inside: BoolArray, processor: Processor, motion: Motion, second: int, rng: np.random.Generator
) -> UInt8Image:
    """Make the stored frame.

    Args:
        light: float32, [3, n], linear RGB of the n pixels inside the field of view.
        inside: bool, [HEIGHT_PX, WIDTH_PX].
        processor: tone and border.
        motion: blur.
        second: reading of the clock in the overlay.
        rng: for the sensor's noise.

    Returns:
        uint8, [HEIGHT_PX, WIDTH_PX, 3], RGB.
    """
    # The exposure follows the brighter part of the picture, as the processor's does, so the dark lumen stays dark.
    gain = processor.exposure / max(float(np.percentile(light.max(axis=0), 75)), 1e-6)
    tone = (1 - np.exp(np.float32(-1.3 * gain) * light)) ** np.float32(1 / processor.gamma)
    picture = np.zeros((3, HEIGHT_PX, WIDTH_PX), dtype=np.float32)
    picture[:, inside] = 255 * tone
    picture = _blur(picture, motion)
    picture = ndimage.gaussian_filter(picture, (0, processor.softness_px, processor.softness_px), truncate=3.0)
    # One field for the three channels, shifted, slightly correlated between neighbours as after chroma filtering.
    noise = ndimage.uniform_filter(rng.standard_normal((HEIGHT_PX, WIDTH_PX), dtype=np.float32), 2) * 2
    for channel in range(3):
        picture[channel] += np.float32(processor.noise) * np.roll(noise, 5 * channel, axis=1)
    picture *= inside  # a crisp border: the mask is laid over the picture electronically
    picture = np.maximum(picture, np.float32(processor.black))
    frame = np.rint(np.clip(picture, 0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return _write_overlay(frame, second)


def _blur(picture: FloatArray, motion: Motion) -> FloatArray:
    """Mean of the picture along a line, float32 [3, HEIGHT_PX, WIDTH_PX]."""
    count = round(motion.length_px)
    if count < 2:
        return picture
    total = np.zeros_like(picture)
    for place in np.linspace(-0.5, 0.5, count) * motion.length_px:
        shift = (round(place * np.sin(motion.heading)), round(place * np.cos(motion.heading)))
        total += np.roll(picture, shift, axis=(1, 2))
    return total / np.float32(count)


def _write_overlay(frame: UInt8Image, second: int) -> UInt8Image:
    """Burn a name, a date and a clock into the margin, as recorders do."""
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    hours, minutes, seconds = second // 3600, second // 60 % 60, second % 60
    lines = ("DEMO", "01/01/2000", f"{hours:02d}:{minutes:02d}:{seconds:02d}")
    font = ImageFont.load_default(size=9)
    for number, line in enumerate(lines):
        pen.text((3, 14 + 12 * number), line, fill=(225, 225, 225), font=font)
    return np.asarray(image, dtype=np.uint8)
