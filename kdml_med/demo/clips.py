"""A whole generated cohort of colonoscopy-like sequences on disk, with the truth behind them.

demo.json                       settings; the folder can only be completed with the same ones
README.txt                      what this is and what it cannot prove
annotations.csv                 image, xmin, ymin, xmax, ymax, sequence, polyp, patient; one row per box
frames/<sequence>/<number>.jpg  the frames
masks/<sequence>/<number>.png   number of the polyp that each pixel shows, 0 for none
truth/<sequence>.json           polyps and blurred frames
videos/demo_clip.mp4            a sequence of its own, to try inference on a video; demo_clip.csv holds its boxes
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from kdml_med.colonoscopy.video import write_video
from kdml_med.demo.camera import HEIGHT_PX, WIDTH_PX
from kdml_med.demo.endoscope import View
from kdml_med.demo.folder import check_numbers, claim_folder, make_missing
from kdml_med.demo.sequences import Sequence, draw_sequence, render_frame
from kdml_med.errors import InputError
from kdml_med.storage.files import write_atomically, write_table

GENERATOR_VERSION = 1
"""Raise whenever the same seed gives other pictures."""
SEQUENCES, FRAMES = 36, 12
"""Sequences of a cohort, and frames of each, unless others are asked for."""
FRAMES_PER_SECOND = 10
VIDEO_LENGTH = 3
"""Frames of the video for each frame of a sequence; it takes the same way more slowly."""
FEWEST_SEQUENCES, FEWEST_FRAMES = 6, 2
JPEG_QUALITY = 92
ANNOTATIONS_FILE = "annotations.csv"
VIDEO = "demo_clip.mp4"
EDGES = ["xmin", "ymin", "xmax", "ymax"]
COLUMNS = ["image", *EDGES, "sequence", "polyp", "patient"]
PALETTE = [(0, 0, 0), (255, 255, 255), (255, 200, 0)]
"""Colours of the masks in an image viewer; the pixel values are 0, 1 and 2."""
NOTICE = (
    "These clips are generated. They prove that the plumbing works, from frames to a report; "
    "they prove nothing about the accuracy of any model on real colonoscopies."
)

# Of six sequences, four have polyps; of their four patients, two have two sequences, and one has no polyp at all.
_PATTERN = ((0, "A", True), (0, "B", False), (1, "A", True), (2, "A", False), (3, "A", True), (3, "B", True))


class Role(NamedTuple):
    """What a sequence is for.

    Attributes:
        sequence: its name.
        patient: whom it was taken from.
        polyps: how many are on the wall.
    """

    sequence: str
    patient: str
    polyps: int


def sequence_role(seed: int, index: int) -> Role:
    """Name, patient and polyps of a sequence; depends on the seed and the zero-based index only."""
    block, place = divmod(index, len(_PATTERN))
    patient, letter, positive = _PATTERN[place]
    name = f"DEMO-{4 * block + patient + 1:04d}"
    draw = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, index)))
    return Role(f"{name}-{letter}", name, (1 if draw.random() < 0.65 else 2) if positive else 0)


def write_demo_clips(
    out_dir: Path,
    *,
    sequences: int = SEQUENCES,
    frames: int = FRAMES,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Write sequences of frames, two thirds of them with polyps, and a video; finish them if they were begun before.

    The bytes depend on ``seed``, ``frames`` and the sequence's number only. With more than one worker, processes are
    spawned, so a script that calls this needs the usual ``if __name__ == "__main__"`` guard.

    Args:
        out_dir: folder to create or to complete.
        sequences: number of sequences, at least 6.
        frames: number of frames in each, at least 2; with fewer than a dozen the camera makes large steps.
        seed: see ``kdml_med.demo.slides.write_demo_cohort``.
        workers: likewise.
        progress: likewise.

    Returns:
        ``out_dir``.

    Raises:
        InputError: a number is out of range, or the folder holds something else or another cohort.
    """
    out_dir = Path(out_dir)
    why = "sequences with and without polyps must reach every split"
    check_numbers("--sequences", sequences, FEWEST_SEQUENCES, why, seed=seed, workers=workers)
    if not FEWEST_FRAMES <= frames <= 9999:
        raise InputError(f"--frames is {frames}, expected {FEWEST_FRAMES} to 9999.")
    settings = {
        "frames": frames,
        "generator": GENERATOR_VERSION,
        "seed": seed,
        "sequences": sequences,
        "task": "polyp",
    }
    claim_folder(out_dir, settings, _readme(settings))
    parts = [(out_dir, seed, index, frames) for index in range(-1, sequences)]
    make_missing(_write_clip, parts, _is_complete, unit="clip", workers=workers, progress=progress)
    rows = [row for index in range(sequences) for row in _annotate(out_dir, sequence_role(seed, index), frames)]
    write_table(out_dir / ANNOTATIONS_FILE, _table(rows))
    return out_dir


def sequence_of(seed: int, index: int, frames: int = FRAMES) -> Sequence:
    """The sequence with this zero-based index, ready to be rendered."""
    own = np.random.SeedSequence(seed, spawn_key=(3, index))
    return draw_sequence(own, frames=frames, polyps=sequence_role(seed, index).polyps)


def mask_boxes(mask: npt.NDArray[np.uint8]) -> dict[int, tuple[int, int, int, int]]:
    """Bounds of each polyp of a mask.

    Args:
        mask: uint8, [rows, columns], polyp numbers, 0 for none.

    Returns:
        (xmin, ymin, xmax, ymax) in pixels by polyp number, half open: xmax is one past the last column.
    """
    boxes = {}
    for number in np.unique(mask[mask > 0]):
        rows, columns = np.nonzero(mask == number)
        boxes[int(number)] = (
            int(columns.min()),
            int(rows.min()),
            int(columns.max()) + 1,
            int(rows.max()) + 1,
        )
    return boxes


def _write_clip(out_dir: Path, seed: int, index: int, frames: int) -> int:
    """Render and write one sequence, or the video for index -1. Returns the index."""
    if index < 0:
        _write_video(out_dir, seed, VIDEO_LENGTH * frames)
        return index
    role, sequence = sequence_role(seed, index), sequence_of(seed, index, frames)
    view = View.of(sequence.field)
    visible: dict[int, int] = {polyp.number: 0 for polyp in sequence.scene.polyps}
    for number in range(frames):
        image, mask = render_frame(sequence, view, number)
        for found in mask_boxes(mask):
            visible[found] += 1
        write_atomically(_frame_path(out_dir, role.sequence, number), _jpeg(image))
        write_atomically(_mask_path(out_dir, role.sequence, number), _png(mask))
    # Written last: its presence says that the sequence is whole.
    text = json.dumps(_truth(role, sequence, visible), sort_keys=True, indent=1) + "\n"
    write_atomically(_truth_path(out_dir, role.sequence), text.encode())
    return index


def _write_video(out_dir: Path, seed: int, count: int) -> None:
    """Write the clip that no training frame is taken from, and its boxes by frame number."""
    sequence = draw_sequence(np.random.SeedSequence(seed, spawn_key=(4,)), frames=count, polyps=1)
    view = View.of(sequence.field)
    frames: list[npt.NDArray[np.uint8]] = []
    rows: list[tuple[Any, ...]] = []
    for number in range(count):
        image, mask = render_frame(sequence, view, number)
        frames.append(image)
        boxes = mask_boxes(mask)
        rows += [(VIDEO, number, *box) for box in boxes.values()] or [(VIDEO, number, *[None] * 4)]
    table = pd.DataFrame(rows, columns=["video", "frame", *EDGES])
    write_table(out_dir / "videos" / "demo_clip.csv", table.astype(dict.fromkeys(EDGES, "Int64")))
    write_video(out_dir / "videos" / VIDEO, frames, rate=FRAMES_PER_SECOND, quality=18)


def _annotate(out_dir: Path, role: Role, frames: int) -> list[tuple[Any, ...]]:
    """Rows of the annotation table, read from the masks on disk, so that the two cannot disagree."""
    rows: list[tuple[Any, ...]] = []
    for number in range(frames):
        image = f"{role.sequence}/{number + 1:04d}.jpg"
        with Image.open(_mask_path(out_dir, role.sequence, number)) as mask:
            boxes = mask_boxes(np.asarray(mask))
        for polyp, box in boxes.items():
            rows.append((image, *box, role.sequence, f"{role.sequence}-{polyp}", role.patient))
        if not boxes:
            rows.append((image, *[None] * 4, role.sequence, None, role.patient))
    return rows


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(EDGES, "Int64"))


def _truth(role: Role, sequence: Sequence, visible: dict[int, int]) -> dict[str, Any]:
    return {
        "generated": True,
        "patient": role.patient,
        "sequence": role.sequence,
        "picture_px": [sequence.field.left, sequence.field.top, sequence.field.right, sequence.field.bottom],
        "corner_px": sequence.field.corner,
        "polyps": [
            {
                "polyp": f"{role.sequence}-{polyp.number}",
                "mask_value": polyp.number,
                "shape": polyp.shape.value,
                "largest_diameter_mm": round(2 * float(polyp.radii.max()), 2),
                "visible_frames": visible[polyp.number],
            }
            for polyp in sequence.scene.polyps
        ],
        "blurred_frames": [number + 1 for number, motion in enumerate(sequence.motions) if motion.length_px > 0],
    }


def _frame_path(out_dir: Path, sequence: str, number: int) -> Path:
    return out_dir / "frames" / sequence / f"{number + 1:04d}.jpg"


def _mask_path(out_dir: Path, sequence: str, number: int) -> Path:
    return out_dir / "masks" / sequence / f"{number + 1:04d}.png"


def _truth_path(out_dir: Path, sequence: str) -> Path:
    return out_dir / "truth" / f"{sequence}.json"


def _is_complete(out_dir: Path, seed: int, index: int, frames: int) -> bool:
    if index < 0:
        return (out_dir / "videos" / VIDEO).is_file() and (out_dir / "videos" / "demo_clip.csv").is_file()
    name = sequence_role(seed, index).sequence
    paths = [path(out_dir, name, number) for path in (_frame_path, _mask_path) for number in range(frames)]
    return all(path.is_file() for path in (_truth_path(out_dir, name), *paths))


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _png(mask: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([value for colour in PALETTE for value in colour])
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _readme(settings: dict[str, Any]) -> str:
    return (
        f"{NOTICE}\n\n"
        f"Made by: python -m preprocessing.make_demo --task polyp --out DIR --sequences {settings['sequences']} "
        f"--frames {settings['frames']} --seed {settings['seed']}\n\n"
        "annotations.csv                 one row per box, and one with empty boxes for a frame without a polyp;\n"
        "                                images relative to frames/; boxes in pixels, xmax and ymax one past the end\n"
        f"frames/<sequence>/<number>.jpg  {WIDTH_PX} x {HEIGHT_PX} px, {settings['frames']} in each sequence\n"
        "masks/<sequence>/<number>.png   polyp of each pixel: the end of its name in annotations.csv, 0 for none\n"
        "truth/<sequence>.json           shape and size of the polyps, field of view, blurred frames\n"
        f"videos/demo_clip.mp4            {VIDEO_LENGTH * settings['frames']} frames of another sequence, "
        "its boxes in demo_clip.csv\n"
    )
