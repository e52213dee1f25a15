"""Detections as annotations for a person to correct in an annotation tool, with the images that they are about.

``images/`` has the frames, those of a video as ``images/<video>/<number>.jpg``; the files about them are those of
``kdml_med.deploy.polyps.correction_files``. ``prepare_frames`` reads all of them again, with images/ or with the source
itself as its input. What was corrected is never written over: ``check_untouched`` refuses a folder that holds anything
but what was written there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image as Pillow

from kdml_med.colonoscopy.boxes import Box, FrameError
from kdml_med.colonoscopy.readers import FORMATS
from kdml_med.colonoscopy.video import VideoCutShortError, is_video, iterate_video
from kdml_med.data.frames import FrameDataset
from kdml_med.deploy.polyps.annotate import SourceSize
from kdml_med.deploy.polyps.correction_files import IMAGES_DIR, CorrectionImage, annotation_files
from kdml_med.errors import InputError
from kdml_med.keys import DetectionColumn
from kdml_med.metrics.box_matching import BOX_COLUMNS
from kdml_med.program import progress_bar
from kdml_med.storage.files import source_fingerprint, write_atomically, write_if_changed, write_json, writing
from kdml_med.storage.manifest import read_member
from kdml_med.storage.reading import read_json
from kdml_med.storage.walking import walk_folder
from kdml_med.tables.names import IMAGE_SUFFIXES, same_name_form

CORRECTIONS_DIR = "corrections"

_RECORD_FILE = "written.json"
_JPEG_QUALITY = 95
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff\ufffe\uffff]")
"""No XML file can hold it, or tools take it for the border of a folder."""
_NO_IMAGES = frozenset(Path(name).stem.casefold() for name in FORMATS["yolo"].ignored)
"""A YOLO file of such a name is not about an image."""


@dataclass(frozen=True)
class CorrectionReport:
    """What was written.

    Attributes:
        images: that annotations were written for.
        boxes: in them.
        image_bytes: of the image files; 0 without any.
    """

    images: int
    boxes: int
    image_bytes: int


def check_untouched(folder: Path) -> None:
    """Make sure that nothing is lost when the files of an earlier run are replaced.

    Raises:
        InputError: a file there was not written by this program, or was changed since.
    """
    if not folder.is_dir():
        return
    known = _read_record(folder).get("files", {})
    for path in walk_folder(folder).files:
        name = path.relative_to(folder).as_posix()
        if name == _RECORD_FILE:
            continue
        if name not in known or (known[name] is not None and known[name] != _digest(path.read_bytes())):
            what = "was changed since it was written" if name in known else "was not written by this program"
            raise InputError(
                f"{path} {what}, and may be a correction: move the folder {folder} elsewhere, or leave --corrections "
                "out."
            )


def write_corrections(
    folder: Path,
    dataset: FrameDataset,
    images: Sequence[CorrectionImage],
    formats: Sequence[str],
    *,
    network: str,
    threshold: float,
    fps: float,
    with_images: bool = True,
) -> CorrectionReport:
    """Write annotation files, and the images beside them; an interrupted call goes on with the images that are missing.

    Args:
        folder: for the files, see ``check_untouched``.
        dataset: the frames.
        images: from ``list_images``.
        formats: of ``CORRECTION_FORMATS``.
        network: whose boxes they are, for the record.
        threshold: of that network, likewise.
        fps: frames per second that were taken from videos.
        with_images: False leaves the images out.

    Raises:
        InputError: a file cannot be written, or was changed meanwhile.
    """
    check_untouched(folder)
    key = _key_of(dataset, images) if with_images else ""
    before = _read_record(folder) if folder.is_dir() else {}
    planned = [f"{IMAGES_DIR}/{image.name}" for image in images] if with_images else []
    about: dict[str, Any] = {"network": network, "threshold": threshold}
    annotations = [name for name, _ in annotation_files(images, formats, **about)]
    keep = {*annotations, *(planned if before.get("key") == key else [])}
    for name in before.get("files", {}):
        if name not in keep:
            (folder / name).unlink(missing_ok=True)
    _remove_empty(folder)
    files: dict[str, str | None] = dict.fromkeys([*planned, *annotations])
    write_json(folder / _RECORD_FILE, {"key": key, "files": files})
    if with_images:
        images = _write_images(folder / IMAGES_DIR, dataset, images, fps)
    for name, data in annotation_files(images, formats, **about):
        write_if_changed(folder / name, data)
        files[name] = _digest(data)
    write_json(folder / _RECORD_FILE, {"key": key, "files": files})
    return CorrectionReport(
        len(images), sum(len(image.boxes) for image in images), sum((folder / name).stat().st_size for name in planned)
    )


def list_images(
    dataset: FrameDataset,
    found: pd.DataFrame,
    boxes: pd.DataFrame,
    paths: Mapping[str, Path],
    sizes: Mapping[str, SourceSize],
    *,
    network: str,
    threshold: float,
) -> list[CorrectionImage]:
    """The frames of a dataset as images to correct, with the boxes of one network from its threshold on.

    A box with a side of less than a pixel is left out.

    Args:
        dataset: the frames.
        found: columns of ``DetectionColumn``, pixels of the stored frames.
        boxes: the same, from ``kdml_med.deploy.polyps.frames.boxes_in_source``.
        paths: of the sources, by name; empty for a dataset folder, whose stored frames are the images then.
        sizes: of the sources, likewise; one without a size cannot be read now, and its frames are left out.
        network: whose boxes are taken.
        threshold: of that network.
    """
    rows = dataset.rows
    table = boxes if paths else found
    table = table[(table["network"] == network) & (table["score"] >= threshold)]
    own: dict[str, list[tuple[Box, float]]] = {}
    for name, score, *box in table[[DetectionColumn.SAMPLE_ID, "score", *BOX_COLUMNS]].itertuples(index=False):
        own.setdefault(name, []).append(((box[0], box[1], box[2], box[3]), float(score)))
    images = []
    taken: set[str] = set()
    columns = rows[["sample_id", "source", "frame_index", "width", "height"]]
    for place, (sample, source, index, width, height) in enumerate(columns.itertuples(index=False)):
        path = paths.get(source)
        if path is not None and source not in sizes:
            continue
        number = int(index) if path is not None and is_video(path) else None
        size = SourceSize(int(width), int(height)) if path is None else sizes[source]
        if path is None:
            name = f"{_without_image_suffix(sample)}{_stored_suffix(dataset, place)}"
        else:
            name = source if number is None else f"{source}/{number:06}.jpg"
        inside = ((_inside(box, size), score) for box, score in own.get(sample, ()))
        kept = tuple((box, score) for box, score in inside if box[2] - box[0] >= 1 and box[3] - box[1] >= 1)
        images.append(CorrectionImage(_free_name(name, taken), place, path, number, size, kept))
    return images


def _inside(box: Box, size: SourceSize) -> Box:
    xmin, ymin, xmax, ymax = (round(float(edge), 2) for edge in box)
    return max(0.0, xmin), max(0.0, ymin), min(float(size.width), xmax), min(float(size.height), ymax)


def _without_image_suffix(name: str) -> str:
    stem, point, suffix = name.rpartition(".")
    return stem if point and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def _stored_suffix(dataset: FrameDataset, place: int) -> str:
    return ".png" if _stored_bytes(dataset, place).startswith(b"\x89PNG") else ".jpg"


def _stored_bytes(dataset: FrameDataset, place: int) -> bytes:
    row = dataset.rows.iloc[place]
    return read_member(dataset.root, row["shard"], int(row["offset"]), int(row["size"]))


def _free_name(name: str, taken: set[str]) -> str:
    """A name that every format can hold, and whose stem no other image has: files about it go by that alone."""
    parts = [part for part in _UNWRITABLE.sub("_", name).split("/") if part not in ("", ".", "..")]
    stem, _, suffix = "/".join(parts).rpartition(".")
    if stem.rpartition("/")[2].casefold() in _NO_IMAGES:
        stem += "_"
    if same_name_form(stem).casefold() in taken:
        stem += f"-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    taken.add(same_name_form(stem).casefold())
    return f"{stem}.{suffix}"


def _key_of(dataset: FrameDataset, images: Sequence[CorrectionImage]) -> str:
    """What tells these image files from those of other sources."""
    sources = {str(image.source): image.source for image in images if image.source is not None}
    content: list[Any] = [str(source_fingerprint(path, name)) for name, path in sorted(sources.items())]
    for image in images:
        origin: Any = str(image.source)
        if image.source is None:
            origin = _digest(_stored_bytes(dataset, image.row))
        content.append([image.name, origin, image.frame_index])
    return _digest(json.dumps(content).encode(errors="surrogatepass"))


def _write_images(
    folder: Path, dataset: FrameDataset, images: Sequence[CorrectionImage], fps: float
) -> list[CorrectionImage]:
    """Write the image files that are missing; images know their size afterwards, which can change within a video."""
    written = []
    videos: dict[Path, list[CorrectionImage]] = {}
    with progress_bar(len(images), what="writing images", unit="image") as bar:
        for image in images:
            if image.source is not None and image.frame_index is not None:
                videos.setdefault(image.source, []).append(image)
                continue
            target = folder / image.name
            if not target.is_file():
                if image.source is None:
                    write_atomically(target, _stored_bytes(dataset, image.row))
                else:
                    data = _read_source(image.source)
                    with writing(target) as temporary:
                        temporary.write_bytes(data)
            written.append(image)
            bar.update()
        for path, own in videos.items():
            written += _write_frames(folder, path, own, fps, bar.update)
    return sorted(written, key=lambda image: image.row)


def _read_source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Run the same command again.") from error


def _write_frames(
    folder: Path, video: Path, images: Sequence[CorrectionImage], fps: float, on_frame: Callable[[], object]
) -> Iterator[CorrectionImage]:
    wanted = {image.frame_index: image for image in images}
    missing = {index for index, image in wanted.items() if not (folder / image.name).is_file()}
    for index, image in wanted.items():
        if index not in missing:
            with Pillow.open(folder / image.name) as picture:
                yield replace(image, size=SourceSize(*picture.size))
            on_frame()
    if not missing:
        return
    try:
        for number, pixels in iterate_video(video, fps):
            if number in missing:
                stream = io.BytesIO()
                Pillow.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
                write_atomically(folder / wanted[number].name, stream.getvalue())
                yield replace(wanted[number], size=SourceSize(pixels.shape[1], pixels.shape[0]))
                on_frame()
                missing.discard(number)
    except VideoCutShortError:
        pass  # failures.csv of the frames says so
    except FrameError as error:
        raise InputError(f"{video}: {error}. Run the same command again.") from error
    if missing:
        raise InputError(f"{video} has other frames than before: was it changed meanwhile? Run the same command again.")


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD_FILE
    if not path.is_file():
        return {}
    return read_json(path, remedy=f"Move the folder {folder} elsewhere.")


def _remove_empty(folder: Path) -> None:
    for path in sorted((path for path in folder.glob("**/*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
