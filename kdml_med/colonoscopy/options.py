"""Settings of a preparation of frames: everything that decides which frames are stored, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.errors import InputError
from kdml_med.keys import Split

ImageFormat = Literal["jpeg", "png"]
SequenceSource = Literal["auto", "column", "folder", "none"]
Unlisted = Literal["unlabelled", "negative", "skip"]
AUTO = "auto"


@dataclass(frozen=True)
class FrameOptions:
    """Settings of a preparation.

    Attributes:
        size_px: longest side of a stored frame, pixels; smaller frames keep their size.
        image_format: "jpeg" or "png".
        jpeg_quality: 1 to 100; colour is never subsampled.
        crop: cut off the black border around the field of view.
        mask_overlays: paint text and insets outside the field of view black.
        min_box_px: boxes with a side shorter than this, in pixels of the stored frame, are specks and dropped.
        fps: frames per second taken from a video; 0 takes every frame.
        unlisted: what a frame is that the annotations do not mention: "unlabelled", "negative", or left out ("skip").
        sequence_from: what tells which frames belong together: a "column" of the annotations, the "folder" they lie in,
            "none", or "auto": the column where there is one, else folders where there are several. Whatever is chosen,
            a video without a column is one sequence.
        split: every frame goes to this split (data from elsewhere that only test); None for none or that of a column.
        polyp_classes: names of the annotated classes that are polyps; empty for all of them.
        annotation_format: one of ``kdml_med.colonoscopy.readers.FORMATS``; "auto" tells by what is there.
    """

    size_px: int = 384
    image_format: ImageFormat = "jpeg"
    jpeg_quality: int = 95
    crop: bool = True
    mask_overlays: bool = True
    min_box_px: float = 10.0
    fps: float = 5.0
    unlisted: Unlisted = "unlabelled"
    sequence_from: SequenceSource = "auto"
    split: str | None = None
    polyp_classes: tuple[str, ...] = ()
    annotation_format: str = AUTO

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            InputError: naming the option, its value and what is expected.
        """
        ranges: list[tuple[str, float, float, float]] = [
            ("size", self.size_px, 32, 8192),
            ("jpeg-quality", self.jpeg_quality, 1, 100),
            ("min-box", self.min_box_px, 0, 8192),
            ("fps", self.fps, 0, 1000),
        ]
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise InputError(f"--{name} is {value}, expected {low} to {high}.")
        choices: list[tuple[str, str | None, tuple[str | None, ...]]] = [
            ("image-format", self.image_format, get_args(ImageFormat)),
            ("unlisted", self.unlisted, get_args(Unlisted)),
            ("sequence-from", self.sequence_from, get_args(SequenceSource)),
            ("split", self.split, (None, *(split.value for split in Split))),
            ("format", self.annotation_format, (AUTO, *FORMATS)),
        ]
        for name, word, known in choices:
            if word not in known:
                raise InputError(f"--{name} is {word!r}, expected one of {[k for k in known if k]}.")

    @property
    def suffix(self) -> str:
        """File suffix of stored frames."""
        return "jpg" if self.image_format == "jpeg" else "png"
