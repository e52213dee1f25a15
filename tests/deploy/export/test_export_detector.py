"""Detectors with everything inside, against the evaluation that they have to equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdml_med.data.frames import FrameDataset, PlaceFrame
from kdml_med.data.samples import SampleLoader
from kdml_med.data.transforms import NormalizeColourd
from kdml_med.deploy.export.detector import ExportedDetector, place_frames
from kdml_med.engines.detection import DetectionEvaluator
from kdml_med.keys import BatchKey, OutputKey
from kdml_med.networks.boxes import Candidates, suppress
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.retinanet import RetinaNet
from tests.examples import examples
from tests.synthetic_frames import write_frame_dataset

SIZE = (64, 128)
LENGTHS = st.integers(1, 150)


def detector(seed: int) -> RetinaNet:
    """Random weights that find something: the last layers of an untrained network are nearly zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RetinaNet(width=16, head_convs=1, last_block=13).eval()
        for layer in (network.detector.classification_head.cls_logits, network.detector.regression_head.bbox_reg):
            torch.nn.init.normal_(layer.weight, std=0.2)
            torch.nn.init.normal_(layer.bias, mean=-1.0, std=1.0)
    return network


@pytest.fixture(scope="module")
def networks() -> dict[str, RetinaNet]:
    return {"student_0": detector(0), "student_1": detector(1)}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frame_dataset(tmp_path_factory.mktemp("frames") / "data", frames=3, height=100, width=170)


@settings(max_examples=examples(40))
@given(st.tuples(LENGTHS, LENGTHS), st.integers(0, 2**32 - 1))
def test_frames_are_placed_to_the_byte(size: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = PlaceFrame(SIZE)({BatchKey.IMAGE: image, BatchKey.LABEL: np.zeros((0, 4), np.float32)})
    placed, scale, limits = place_frames(torch.from_numpy(image)[None], *SIZE)
    difference = (placed[0] / 255 - expected[BatchKey.IMAGE]).abs().max()
    # Where a frame is much higher than wide, Pillow reduces its height first and rounds in another order.
    assert difference == 0 if size[0] < 1.9 * size[1] else difference < 1.01 / 255
    assert scale == expected[BatchKey.SCALE]
    assert torch.equal(limits, torch.as_tensor(expected[BatchKey.FRAME_SIZE] * expected[BatchKey.SCALE]))


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (64, 128), (2048, 2048)])
def test_large_frames_are_placed_to_the_byte(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = PlaceFrame(SIZE)({BatchKey.IMAGE: image, BatchKey.LABEL: np.zeros((0, 4), np.float32)})
    assert torch.equal(place_frames(torch.from_numpy(image)[None], *SIZE)[0][0] / 255, expected[BatchKey.IMAGE])


@pytest.mark.parametrize("names", [["student_0"], ["student_0", "student_1"]])
def test_boxes_are_those_of_the_evaluation(networks: dict[str, RetinaNet], frames: Path, names: list[str]) -> None:
    def transform(sample: dict) -> dict:
        return NormalizeColourd(BatchKey.IMAGE)(PlaceFrame(SIZE)(sample))

    dataset = FrameDataset(frames, None, transform=transform)
    evaluator = DetectionEvaluator(
        device="cpu", val_data_loader=SampleLoader(dataset, batch_size=4), network=Cohort(networks)
    )
    module = ExportedDetector({name: networks[name] for name in names}, SIZE)
    compared = 0
    for batch, start in zip(SampleLoader(dataset, batch_size=4), range(0, len(dataset), 4), strict=True):
        with torch.inference_mode():
            answers = evaluator.network(batch[BatchKey.IMAGE])
            found = evaluator.answer(answers, batch)[OutputKey.DETECTIONS]["ensemble" if len(names) > 1 else names[0]]
            pixels = np.stack([dataset.read(start + place) for place in range(len(found))])
            boxes, scores, frame = module(torch.from_numpy(pixels))
        assert boxes.dtype == scores.dtype == torch.float32
        for number, one in enumerate(found):
            torch.testing.assert_close(boxes[frame == number], one.boxes, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(scores[frame == number], one.scores, rtol=1e-5, atol=1e-6)
            compared += len(one.scores)
    assert compared > 100


@settings(max_examples=examples(30))
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(0.02, 0.3))
def test_suppression_is_that_of_the_evaluation(seed: int, anchors: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(1, anchors, 2, generator=generator) * torch.tensor([128.0, 64.0])
    sides = torch.rand(1, anchors, 2, generator=generator) * 200 * size
    candidates = Candidates(torch.cat([low, low + sides], dim=2), torch.rand(1, anchors, generator=generator).square())

    class Answer(ExportedDetector):
        def candidates(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return candidates.boxes, candidates.scores

    boxes, scores, _ = Answer({}, SIZE)(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    expected = suppress(candidates, limits=torch.tensor([[128.0, 64.0]]))[0]
    assert torch.equal(boxes, expected.boxes)
    assert torch.equal(scores, expected.scores)
