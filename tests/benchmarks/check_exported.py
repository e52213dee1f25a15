"""Whether exported files give the figures that the evaluation of their run wrote down, judged by others.

    python -m tests.benchmarks.check_exported RUN DATA --out OUT [--networks student_0 …] [--formats onnx …]

Every network of a run is exported in every format by ``kdml-med export``. Each file then answers the stored images of
the test split in a process that has neither this library nor (for ONNX) torch, and scikit-learn or pycocotools say how
good the answers are. Files of floating point have to give the figures of ``evaluation_test/metrics.json``; int8 is
another model, whose figures stand beside. Ends with 1 where a figure is another one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import roc_auc_score

from kdml_med.data import FrameDataset, TileDataset
from kdml_med.keys import NetworkName, Task
from kdml_med.runs import RunDescription

FORMATS = ("onnx", "torchscript", "onnx-int8")
TOLERANCE = 1e-4
"""Of a figure: pairs of nearly equal scores may change places."""
_ALONE = """
import sys
import numpy as np
path, images, out = sys.argv[1:]
images = [image[None] for image in np.load(images).values()]
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    answers = [session.run(None, {"image": image}) for image in images]
    assert "torch" not in sys.modules
else:
    import torch
    module = torch.jit.load(path)
    with torch.inference_mode():
        answers = [module(torch.from_numpy(image)) for image in images]
    answers = [[a.numpy() for a in (answer if isinstance(answer, tuple) else [answer])] for answer in answers]
assert not {"kdml_med", "monai"} & set(sys.modules)
np.savez(out, **{f"{place}_{number}": a for place, answer in enumerate(answers) for number, a in enumerate(answer)})
"""


def export(run: Path, data: Path, network: str, format: str, out: Path) -> Path:
    """Export by the command, and give the path of the file."""
    words = ["export", run, "--network", network, "--format", format, "--data", data, "--out", out, "--no-speed"]
    command = [sys.executable, "-m", "kdml_med.cli", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr}")
    return out / json.loads((out / "model.json").read_text())["file"]


def answer(path: Path, images: Path) -> Iterator[list[np.ndarray]]:
    """What a file says about each image, asked from a process without this library."""
    out = path.with_suffix(".answers.npz")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", _ALONE, path, images, out], cwd=path.parent, env=clean, check=True)
    with np.load(out) as found:
        outputs = 1 + max(int(name.split("_")[1]) for name in found)
        for place in range(len(found) // outputs):
            yield [found[f"{place}_{number}"] for number in range(outputs)]


def tile_figures(path: Path, images: Path, tiles: TileDataset, level: str) -> dict[str, float]:
    """AUROC of tiles and of patients or slides (mean probability) by scikit-learn."""
    table = tiles.rows.assign(label=tiles.labels, probability=[given[0][0, -1] for given in answer(path, images)])
    groups = table.groupby(f"{level}_id").agg({"label": "first", "probability": "mean"})
    return {
        "tile auroc": float(roc_auc_score(table["label"], table["probability"])),
        f"{level} auroc": float(roc_auc_score(groups["label"], groups["probability"])),
    }


def frame_figures(path: Path, images: Path, frames: FrameDataset) -> dict[str, float]:
    """AP, AP50 and AP75 by pycocotools."""

    def coco(rows: list[tuple[int, float, list[float]]]) -> COCO:
        made = COCO()
        annotations = [
            {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "score": score, "area": w * h,
             "bbox": [x, y, w, h]}
            for number, (image, score, (x, y, w, h)) in enumerate(rows, 1)
        ]  # fmt: skip
        made.dataset = {"images": [{"id": image} for image in range(len(frames))], "categories": [{"id": 1}]}
        made.dataset["annotations"] = annotations
        made.createIndex()
        return made

    def rows(image: int, boxes: np.ndarray, scores: np.ndarray) -> list[tuple[int, float, list[float]]]:
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        return [(image, float(score), side) for score, side in zip(scores, sides.tolist(), strict=True)]

    truth = [row for image in range(len(frames)) for row in rows(image, *_annotated(frames, image))]
    found = [row for image, given in enumerate(answer(path, images)) for row in rows(image, *given[:2])]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco(truth), coco(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(("ap", "ap50", "ap75"), map(float, judge.stats[:3]), strict=True))


def _annotated(frames: FrameDataset, image: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.asarray(frames.boxes(image), dtype=np.float64).reshape(-1, 4)
    return boxes, np.ones(len(boxes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    options = parser.parse_args()
    run = RunDescription.read(options.run)
    students = [name for name in run.names if name != NetworkName.TEACHER]
    networks = options.networks or [*run.names, *(["ensemble"] if len(students) > 1 else [])]
    detection = run.task is Task.DETECTION
    dataset = (FrameDataset if detection else TileDataset)(options.data, "test", fold=run.fold)
    if not detection and (run.aggregation != "mean" or run.stain != "none"):
        raise SystemExit("the judge takes means of tiles as they are stored.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    images = out / "images.npz"
    np.savez(images, **{f"{place:06}": dataset.read(place) for place in range(len(dataset))})
    metrics = json.loads((options.run / "evaluation_test/metrics.json").read_text())["networks"]
    wrong = 0
    print(f"{len(dataset)} images of the test split: metrics.json -> file alone, difference", flush=True)
    for network in networks:
        own = metrics[network]
        for format in options.formats:
            path = export(options.run, options.data, network, format, out / f"{network}_{format}")
            if isinstance(dataset, FrameDataset):
                figures = frame_figures(path, images, dataset)
                expected = {name: own[name] for name in figures}
            else:
                figures = tile_figures(path, images, dataset, str(run.level))
                expected = {name: own[name.split()[0]]["auroc"] for name in figures}
            for name, figure in figures.items():
                difference = figure - expected[name]
                fails = format != "onnx-int8" and abs(difference) > TOLERANCE
                wrong += fails
                cells = [f"{network:10} {format:12} {name:14}", f"{expected[name]:.6f} -> {figure:.6f}"]
                print(*cells, f"{difference:+.6f}", "WRONG" if fails else "", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
