"""Annotation files about images, laid out so that annotation tools take them as they are.

    coco.json                                     COCO: CVAT ("COCO 1.0"), Label Studio, pycocotools
    labels/, obj.data, obj.names, train.txt       YOLO: CVAT ("YOLO 1.1")
    labels/, classes.txt                          YOLO: Label Studio
    labels/, data.yaml                            YOLO: Ultralytics
    Annotations/, ImageSets/, labelmap.txt        Pascal VOC: CVAT ("PASCAL VOC 1.1")

CVAT names an image by the path that it was uploaded under, so names are paths below images/ everywhere.

Sources:
    https://docs.cvat.ai/docs/dataset_management/formats/, format-coco, format-yolo and format-voc;
    https://github.com/HumanSignal/label-studio-sdk, converter/imports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdml_med.colonoscopy.boxes import Box, FrameBoxes
from kdml_med.colonoscopy.coco import format_coco
from kdml_med.colonoscopy.formats import format_voc, format_yolo
from kdml_med.deploy.polyps.annotate import SourceSize
from kdml_med.words import RESEARCH_ONLY

CORRECTION_FORMATS = ("coco", "yolo", "voc")
IMAGES_DIR = "images"

_LABELS_DIR = "labels"
_VOC_DIR, _VOC_LIST, _VOC_CLASSES = "Annotations", "ImageSets/Main/train.txt", "labelmap.txt"
_CLASS = "polyp"


@dataclass(frozen=True)
class CorrectionImage:
    """An image that is to be looked at again.

    Attributes:
        name: path below images/, "/" as separator.
        row: of the dataset.
        source: file that it is or is a frame of; None where the stored frame is taken.
        frame_index: of the frame of a video, else None.
        size: of the image.
        boxes: with their scores, its pixels.
    """

    name: str
    row: int
    source: Path | None
    frame_index: int | None
    size: SourceSize
    boxes: tuple[tuple[Box, float], ...]

    @property
    def stem(self) -> str:
        """The name without its suffix, which files about it have too."""
        return self.name.rpartition(".")[0]

    @property
    def annotation(self) -> FrameBoxes:
        """As ``kdml_med.colonoscopy.formats`` takes it."""
        boxes = tuple(box for box, _ in self.boxes)
        return FrameBoxes(self.name, boxes, width=self.size.width, height=self.size.height)


def annotation_files(
    images: Sequence[CorrectionImage], formats: Sequence[str], *, network: str, threshold: float
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of some formats.

    Args:
        images: what they are about.
        formats: of ``CORRECTION_FORMATS``.
        network: whose boxes they are, for the record.
        threshold: of that network, likewise.
    """
    if "coco" in formats:
        content = _coco(images, network, threshold)
        yield "coco.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    if "yolo" in formats:
        yield "classes.txt", f"{_CLASS}\n".encode()
        yield "data.yaml", f"train: {IMAGES_DIR}\nval: {IMAGES_DIR}\nnames:\n  0: {_CLASS}\n".encode()
        yield "obj.names", f"{_CLASS}\n".encode()
        yield "obj.data", b"classes = 1\ntrain = train.txt\nnames = obj.names\nbackup = backup/\n"
        # CVAT looks for the text file beside the image that is named, and does not need the image.
        yield "train.txt", "".join(f"{_LABELS_DIR}/{image.name}\n" for image in images).encode()
        for image in images:
            yield f"{_LABELS_DIR}/{image.stem}.txt", format_yolo(image.annotation, *image.size).encode()
    if "voc" in formats:
        yield _VOC_CLASSES, f"# label:color_rgb:parts:actions\n{_CLASS}:::\n".encode()
        yield _VOC_LIST, "".join(f"{image.stem}\n" for image in images).encode()
        for image in images:
            yield f"{_VOC_DIR}/{image.stem}.xml", _voc(image)


def _coco(images: Sequence[CorrectionImage], network: str, threshold: float) -> dict[str, Any]:
    """COCO with everything that tools ask for: they take a missing list for another kind of file."""
    content = format_coco(image.annotation for image in images)
    scores = [score for image in images for _, score in image.boxes]
    for annotation, score in zip(content["annotations"], scores, strict=True):
        annotation["bbox"] = [round(side, 2) for side in annotation["bbox"]]
        annotation |= {"area": round(annotation["area"], 2), "segmentation": [], "score": round(score, 4)}
    description = f"{RESEARCH_ONLY}. Detections of {network} with scores from {threshold:.3f}, not corrected."
    return content | {
        "info": {"description": description},
        "licenses": [],
        "categories": [{"id": 1, "name": _CLASS, "supercategory": ""}],
    }


def _voc(image: CorrectionImage) -> bytes:
    """Pascal VOC in whole pixels, which is what its pixel numbers are, with the elements that tools ask for."""
    width, height = image.size
    whole = []
    for xmin, ymin, xmax, ymax in image.annotation.boxes:
        left, top = min(round(xmin), width - 1), min(round(ymin), height - 1)
        whole.append((left, top, max(left + 1, round(xmax)), max(top + 1, round(ymax))))
    folder, _, name = f"{IMAGES_DIR}/{image.name}".rpartition("/")
    root = ElementTree.fromstring(format_voc(replace(image.annotation, image=name, boxes=tuple(whole))))
    element = ElementTree.Element("folder")
    element.text = folder
    root.insert(0, element)
    element = ElementTree.Element("segmented")
    element.text = "0"
    root.insert(3, element)
    for found in root.iterfind("object"):
        for place, (tag, text) in enumerate((("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")), start=1):
            element = ElementTree.Element(tag)
            element.text = text
            found.insert(place, element)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"
