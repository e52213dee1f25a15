"""The recipes of CONTRIBUTING.md, done as they say with a toy, up to a tiny training in this process.

Where a recipe says to edit a list, the test adds to that list, and to nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import run as run_bundle
from monai.utils import set_determinism
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdml_med.bundle import training
from kdml_med.bundle.kinds import number
from kdml_med.bundle.knobs import KNOBS, LOSSES, Knob
from kdml_med.bundle.settings import Settings
from kdml_med.colonoscopy import readers
from kdml_med.colonoscopy.boxes import BoxTable, FrameBoxes
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.preparing import prepare_frames
from kdml_med.data import FrameDataset, TileDataset
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.metrics import classification, detection_evaluation
from kdml_med.metrics.classification import ClassificationMetric
from kdml_med.networks import registry, weights
from kdml_med.runs import load_cohort
from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import read_manifest
from kdml_med.tables import names
from kdml_med.tables.labels import read_labels
from kdml_med.wsi import opening
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.slide import Level, Pixels, SlideError
from kdml_med.wsi.tiler import tile_slides
from tests.bundles.conftest import REPOSITORY, read_json
from tests.synthetic_frames import frame_pixels, write_frame_dataset
from tests.synthetic_slides import tissue_picture
from tests.synthetic_tiles import write_tile_dataset

# MONAI says of every config that it runs what it names.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

TINY = "tests.networks.tiny.TinyNet"
DETECTOR = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
SPLITS = ["train", "train", "val", "test"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tile_dataset(tmp_path_factory.mktemp("dataset") / "tiles")


@pytest.fixture
def add(request: pytest.FixtureRequest) -> Callable[[list[Any], Any], None]:
    """Adds to the front of a list until the test ends."""

    def add_to(items: list[Any], item: Any) -> None:
        items.insert(0, item)
        request.addfinalizer(lambda: items.remove(item))

    return add_to


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Trains for one epoch, as ``python -m monai.bundle run`` does."""

    def train_bundle(bundle: str, dataset: Path, **settings: Any) -> Path:
        run_dir, root = tmp_path / "run", REPOSITORY / "bundles" / bundle
        run_bundle(
            config_file=str(root / "configs" / "train.json"),
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(root),
            dataset_dir=str(dataset),
            run_dir=str(run_dir),
            **{"device": "cpu", "max_epochs": 1, "batch_size": 8, "version": "tiny"} | settings,
        )
        return run_dir

    yield train_bundle
    set_determinism(seed=None)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def train_tiles(train: Callable[..., Path]) -> Callable[..., Path]:
    def train_on(dataset: Path, **settings: Any) -> Path:
        return train("msi_kdml", dataset, **{"teacher": TINY, "students": [TINY, TINY]} | settings)

    return train_on


@pytest.fixture
def train_frames(train: Callable[..., Path]) -> Callable[..., Path]:
    def train_on(dataset: Path, **settings: Any) -> Path:
        cohort = {"teacher": DETECTOR, "students": [DETECTOR], "gamma": 0.0}
        return train("polyp_kdml", dataset, **cohort | {"image_size": 64} | settings)

    return train_on


class ToyNetwork(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image).relu().mean(dim=(2, 3)))


def test_recipe_for_a_network(
    monkeypatch: pytest.MonkeyPatch, tiles: Path, train_tiles: Callable[..., Path], tmp_path: Path
) -> None:
    monkeypatch.setitem(registry.ARCHITECTURES, "toy", ToyNetwork)
    monkeypatch.setattr(weights, "CLASSIFIER_PREFIXES", (*weights.CLASSIFIER_PREFIXES, "head."))
    published = ToyNetwork(num_classes=1000).state_dict()
    torch.save(published, tmp_path / "published.pt")
    run_dir = train_tiles(
        tiles, students=["toy", "toy"], initial_weights={"toy": str(tmp_path / "published.pt")}, learning_rate=1e-5
    )
    assert read_json(run_dir / "cohort.json")["networks"]["student_1"] == "toy"
    students = load_cohort(run_dir, students_only=True).eval()
    for student in students.networks.values():
        assert isinstance(student, ToyNetwork)
        change = (student.body.weight - published["body.weight"]).abs().max()
        assert 0 < change < 1e-3, "it has learned a little from where the published weights begin"
    assert students(torch.zeros(3, 3, 32, 32))["student_0"].shape == (3, 2)
    assert sorted(read_json(run_dir / "metrics.json")["networks"]) == ["ensemble", "student_0", "student_1", "teacher"]


class ToySlide:
    """A NumPy archive with pixels and micrometres per pixel; one level."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path) as content:
                self.pixels, self.header_mpp = content["pixels"], float(content["mpp"])
        except (OSError, ValueError, KeyError) as error:
            raise SlideError(f"cannot be read as a toy: {error}") from error
        self.header_source, self.header_problem, self.left_out = "toy.mpp", "", ""
        self.levels = [Level(self.pixels.shape[1], self.pixels.shape[0], 1.0)]

    def factors(self, level: int) -> tuple[int, ...]:
        return (1,)

    def read(self, level: int, factor: int, x_r: int, y_r: int, width_r: int, height_r: int) -> Pixels:
        return self.pixels[y_r : y_r + height_r, x_r : x_r + width_r]

    def clone(self) -> ToySlide:
        return self

    def close(self) -> None:
        pass


def open_toy(path: Path, fast: bool) -> ToySlide | None:
    return ToySlide(path) if path.suffix == ".toy" else None


def test_recipe_for_a_slide_format(add: Callable[..., None], train_tiles: Callable[..., Path], tmp_path: Path) -> None:
    add(opening.READERS, open_toy)
    add(names.SLIDE_SUFFIXES, ".toy")
    (tmp_path / "slides").mkdir()
    pictures = {f"P{number}": tissue_picture(320, 320, seed=number) for number in range(8)}
    for name, picture in pictures.items():
        with (tmp_path / "slides" / f"{name}.toy").open("wb") as stream:
            np.savez(stream, pixels=picture, mpp=2.0)
    (tmp_path / "slides" / "torn.toy").write_bytes(b"no archive")
    classes = ["MSS", "MSI"] * 4
    table = pd.DataFrame({"patient": [*pictures, "torn"], "slide": [*pictures, "torn"], "label": [*classes, "MSI"]})
    table.assign(slide=table["slide"] + ".toy").to_csv(tmp_path / "labels.csv", index=False)
    options = TilingOptions(mpp=2.0, tile_size_px=64, image_format="png", min_sharpness=0)
    dataset = tmp_path / "dataset"
    report = tile_slides(
        [tmp_path / "slides"], dataset, options, labels=read_labels(tmp_path / "labels.csv"), progress=False
    )
    assert report.done == 8
    assert [(name, reason[:24]) for name, reason in report.failures] == [("torn.toy", "cannot be read as a toy:")]
    splits = pd.DataFrame({"patient_id": list(pictures), "split": [split for split in SPLITS for _ in range(2)]})
    freeze_splits(dataset, splits, mode="table", seed=None)
    stored = TileDataset(str(dataset), "train")
    for index, row in enumerate(stored.rows.itertuples()):
        picture = pictures[row.slide_id][row.y_l0 : row.y_l0 + 64, row.x_l0 : row.x_l0 + 64]
        assert np.array_equal(stored.read(index), picture)
    assert read_json(train_tiles(dataset) / "metrics.json")["networks"]["ensemble"]["patient"]["n"] == 2


def read_toy(path: Path, files: Sequence[Path]) -> BoxTable:
    """A line for each image: its name, and four edges where it has a polyp."""
    frames = []
    for row, line in enumerate(path.read_text().splitlines(), start=1):
        name, *edges = line.split()
        boxes = (tuple(map(float, edges)),) if edges else ()
        frames.append(FrameBoxes(name, boxes, place=f"line {row}"))
    return BoxTable(frames)


def test_recipe_for_an_annotation_format(
    monkeypatch: pytest.MonkeyPatch, train_frames: Callable[..., Path], tmp_path: Path
) -> None:
    monkeypatch.setitem(readers.FORMATS, "toy", readers.AnnotationFormat(read_toy, (".toy",)))
    boxes = {
        f"s{clip}/{number}": [10 + number, 8, 40, 36] if number else None for clip in range(4) for number in range(3)
    }
    for seed, (name, box) in enumerate(boxes.items()):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame_pixels([box] if box else [], height=48, width=64, seed=seed)).save(path)
    lines = [" ".join(map(str, [f"{name}.png", *(box or [])])) for name, box in boxes.items()]
    (tmp_path / "polyps.toy").write_text("\n".join(lines))
    prepared = []
    for kind in ("auto", "toy"):
        options = FrameOptions(crop=False, mask_overlays=False, image_format="png", annotation_format=kind)
        report = prepare_frames(
            [tmp_path / "images"], tmp_path / kind, options, tmp_path / "polyps.toy", progress=False
        )
        assert (report.frames, report.polyps, report.boxes, report.failures) == (12, 8, 8, [])
        prepared.append(read_manifest(tmp_path / kind))
    pd.testing.assert_frame_equal(*prepared)
    sequences = sorted(prepared[0]["patient_id"].unique())
    splits = pd.DataFrame({"patient_id": sequences, "split": SPLITS})
    freeze_splits(tmp_path / "auto", splits, mode="table", seed=None)
    stored = FrameDataset(str(tmp_path / "auto"), "val")
    found = [stored.boxes(index).tolist() for index in range(3)]
    assert found == [[[float(edge) for edge in box]] if box else [] for box in list(boxes.values())[6:9]]
    metrics = read_json(train_frames(tmp_path / "auto") / "metrics.json")
    assert metrics["networks"]["ensemble"]["n_boxes"] == 2


def closeness(labels: Any, probabilities: Any) -> float:
    """How near probabilities are to the labels, 0 to 1."""
    return float(1 - np.abs(np.asarray(labels) - np.asarray(probabilities)).mean())


def test_recipe_for_a_metric(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiles: Path, train_tiles: Callable[..., Path]
) -> None:
    toy = ClassificationMetric(closeness, interval=True, chart=True, progress=True)
    monkeypatch.setitem(classification.METRICS, "closeness", toy)
    with caplog.at_level(logging.INFO):
        run_dir = train_tiles(tiles)
    figures = read_json(run_dir / "metrics.json")["networks"]
    table = pd.read_parquet(run_dir / "predictions.parquet")
    for network, rows in table.groupby("network"):
        expected = closeness(rows["label"], rows["probability"])
        assert figures[network]["tile"]["closeness"] == pytest.approx(expected)
        patients = rows.groupby("patient_id")[["label", "probability"]].mean()
        assert figures[network]["patient"]["closeness"] == pytest.approx(closeness(*patients.to_numpy().T))
        low, high = figures[network]["patient"]["closeness_ci95"]
        assert low <= figures[network]["patient"]["closeness"] <= high
        assert figures[network]["patient"].keys() - {"closeness", "closeness_ci95"} >= {"auroc", "auroc_ci95", "ece"}
        events = EventAccumulator(str(run_dir / "tensorboard" / str(network))).Reload()
        assert events.Scalars("val/tile_closeness")[-1].value == pytest.approx(expected, abs=1e-6)
        assert "val/patient_closeness" in events.Tags()["scalars"]
    assert f"tile closeness {figures['ensemble']['tile']['closeness']:.3f}" in caplog.text


def detections_per_frame(judged: detection_evaluation.Judged, weights: np.ndarray) -> dict[str, np.ndarray]:
    return {"detections_per_frame": weights @ judged.counts.detected / weights.sum(axis=1)}


def test_recipe_for_a_metric_of_detectors(
    add: Callable[..., None], train_frames: Callable[..., Path], tmp_path: Path
) -> None:
    add(detection_evaluation.FIGURES, detections_per_frame)
    add(detection_evaluation.CHARTS, "detections_per_frame")
    all_boxes = {"val_interval": 1, "validate#evaluator#score_threshold": 0.0}
    run_dir = train_frames(write_frame_dataset(tmp_path / "frames", frames=6), **all_boxes)
    for network, figures in read_json(run_dir / "metrics.json")["networks"].items():
        assert figures["n_detections"] > 0
        assert figures["n_frames"] == 6
        assert figures["detections_per_frame"] == pytest.approx(figures["n_detections"] / 6)
        assert len(figures["detections_per_frame_ci95"]) == 2
        events = EventAccumulator(str(run_dir / "tensorboard" / network)).Reload()
        assert events.Scalars("val/detections_per_frame")[-1].value == pytest.approx(figures["n_detections"] / 6)


def tone(logits: torch.Tensor) -> torch.Tensor:
    """Mean square of the logits: answers should not shout."""
    with torch.autocast(logits.device.type, enabled=False):
        return logits.float().square().mean()


class ToyLoss(ClassificationCohortLoss):
    """A further term for the students."""

    def __init__(self, *, tone_weight: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.tone_weight = tone_weight

    def term_weights(self, network: str) -> dict[str, float]:
        return super().term_weights(network) | {"tone": self.tone_weight}

    def forward(self, predictions: Mapping[str, torch.Tensor], target: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = super().forward(predictions, target)
        for name, logits in predictions.items():
            if name != "teacher" and self.tone_weight > 0:
                terms[f"{name}_tone"] = tone(logits)
                terms["loss"] = terms["loss"] + self.term_weights(name)["tone"] * terms[f"{name}_tone"]
        return terms


def build_toy_loss(settings: Settings) -> ToyLoss:
    return ToyLoss(tone_weight=0.1, **settings.part("loss"))


@pytest.mark.parametrize("where", ["library", "project"])
def test_recipe_for_a_loss(
    where: str, tiles: Path, train_tiles: Callable[..., Path], add: Callable[[list[Any], Any], None],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if where == "library":
        monkeypatch.setattr(training, "ClassificationCohortLoss", ToyLoss)
        add(KNOBS, Knob("tone_weight", number(0), help="weight of the tone", default=0.0, group=LOSSES, part="loss"))
        toy: dict[str, Any] = {"tone_weight": 0.1}
    else:
        toy = {"loss#_target_": "tests.test_recipes.build_toy_loss"}
    with caplog.at_level(logging.INFO):
        run_dir = train_tiles(tiles, tiles_per_epoch=8, **toy)  # a single batch
    recorded = read_json(run_dir / "settings.json")["knobs"]
    assert recorded.get("tone_weight") == (0.1 if where == "library" else None)
    losses = pd.read_csv(run_dir / "losses.csv")
    own = losses[losses["term"] == "tone"]
    assert own["network"].tolist() == ["student_0", "student_1"]
    assert own["weight"].tolist() == [0.1, 0.1]
    assert (own["value"] > 0).all()
    total = EventAccumulator(str(run_dir / "tensorboard" / "cohort")).Reload().Scalars("train/total_loss")
    assert [event.value for event in total] == pytest.approx([(losses["weight"] * losses["value"]).sum()], rel=1e-5)
    student = EventAccumulator(str(run_dir / "tensorboard" / "student_1")).Reload()
    assert student.Scalars("train/tone_loss")[0].value == pytest.approx(own["value"].iloc[1])
    assert f"student_1_tone {own['value'].iloc[1]:.3f}" in caplog.text
    assert "ensemble" in read_json(run_dir / "metrics.json")["networks"]


def test_a_toy_term_reaches_the_student_only_and_costs_nothing_with_weight_zero() -> None:
    logits = {name: torch.tensor([[0.5, -1.0]], requires_grad=True) for name in ("teacher", "student_0", "student_1")}
    target = torch.tensor([1])
    without = ClassificationCohortLoss()(logits, target)
    assert ToyLoss(tone_weight=0.0)(logits, target) == without
    further = ToyLoss(tone_weight=0.1)(logits, target)["loss"] - without["loss"]
    further.backward()
    assert logits["student_0"].grad is not None
    torch.testing.assert_close(logits["student_0"].grad, 0.1 * 2 * logits["student_0"].detach() / 2)
    assert logits["teacher"].grad.abs().max() < 1e-6
