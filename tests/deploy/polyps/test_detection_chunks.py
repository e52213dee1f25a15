"""Detections that are stored chunk by chunk, and runs that are cut off between."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Compose

from kdml_med.data import FrameDataset, NormalizeColourd, PlaceFrame, SampleLoader
from kdml_med.deploy.polyps import detection_chunks as chunks
from kdml_med.deploy.polyps.detection_chunks import Found, detect_frames, hash_parameters
from kdml_med.engines import DetectionEvaluator
from kdml_med.errors import InputError
from kdml_med.handlers import CohortDetections
from kdml_med.networks.cohort import Cohort
from tests.bundles.test_polyp_inference import BrightNetwork
from tests.synthetic_frames import write_frame_dataset

BATCH = 2


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_FRAMES", 5)  # two batches


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of six frames: of each a chunk of two batches, and one of one."""
    folder = tmp_path_factory.mktemp("frames") / "data"
    return write_frame_dataset(folder, splits={"P0": "train", "P2": "val"}, frames=6)


class Interrupting(torch.nn.Module):
    """A network that is interrupted, as by Ctrl-C, in a batch."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.left, self.calls = network, -1, 0

    def forward(self, image: torch.Tensor) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls += 1
        return self.network(image)


def evaluator(frames: Path, *, gain: float = 8.0, size: int = 128, batch: int = BATCH, **more: Any) -> Any:
    dataset = FrameDataset(frames, transform=Compose([PlaceFrame(size), NormalizeColourd(keys="image")]))
    network = Cohort({"student_0": Interrupting(BrightNetwork(gain=gain)), "student_1": BrightNetwork(gain=6.0)})
    loader = SampleLoader(dataset, batch_size=batch)
    return DetectionEvaluator(device="cpu", val_data_loader=loader, network=network, **more)


def calls(used: Any) -> int:
    return int(used.network.networks["student_0"].calls)


def detect(used: Any, folder: Path, **facts: Any) -> Found:
    return detect_frames(used, folder, facts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("batches", range(7))
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(frames: Path, tmp_path: Path, batches: int) -> None:
    whole = detect(evaluator(frames), tmp_path / "whole")
    cut = evaluator(frames)
    cut.network.networks["student_0"].left = batches
    folder = tmp_path / "cut"
    if batches < 6:
        with pytest.raises(KeyboardInterrupt):
            detect(cut, folder)
        assert not list(folder.glob(".*"))
    again = evaluator(frames)
    found = detect(again, folder)
    assert calls(again) == 6 - max(end for end in (0, 2, 3, 5) if end <= batches % 6)
    pd.testing.assert_frame_equal(found.boxes, whole.boxes, check_exact=True)
    assert len(found.boxes) > 0
    assert found.networks == ["student_0", "student_1", "ensemble"]
    assert contents(folder) == contents(tmp_path / "whole")


def test_the_chunks_are_all_that_one_run_of_the_evaluator_finds(frames: Path, tmp_path: Path) -> None:
    used = evaluator(frames, val_handlers=[CohortDetections()])
    used.run()
    found = detect(evaluator(frames), tmp_path).boxes
    order = ["network", "sample_id", "score", "xmin", "ymin", "xmax"]
    pd.testing.assert_frame_equal(
        found.sort_values(order, ignore_index=True),
        used.state.predictions.sort_values(order, ignore_index=True),
        check_dtype=False,
    )


@pytest.mark.parametrize(
    "other", [{"gain": 7.0}, {"size": 192}, {"batch": 3}, {"fusion": "boxes"}, {"score_threshold": 0.1}]
)
def test_what_others_found_is_neither_used_nor_kept(frames: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    first = evaluator(frames)
    detect(first, tmp_path)
    before = set(contents(tmp_path))
    again = evaluator(frames, **other)
    found = detect(again, tmp_path)
    assert calls(again) == 12 // other.get("batch", BATCH)
    assert not before & set(contents(tmp_path))
    pd.testing.assert_frame_equal(found.boxes, detect(evaluator(frames, **other), tmp_path / "alone").boxes)


def test_other_facts_are_another_run_and_the_same_ones_need_no_network(frames: Path, tmp_path: Path) -> None:
    for name, expected in (("a", 6), ("a", 0), ("b", 6)):
        used = evaluator(frames)
        detect(used, tmp_path, networks=name)
        assert calls(used) == expected


def test_only_the_chunk_whose_frames_changed_is_made_again(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect(evaluator(frames), tmp_path)
    before = set(contents(tmp_path))
    used = evaluator(frames)
    changed = used.data_loader.dataset.rows.iloc[1]  # in the first chunk of four
    read = chunks.read_member

    def read_other(root: Path, shard: str, offset: int, size: int) -> bytes:
        other = (shard, offset) == (changed["shard"], changed["offset"])
        return read(root, shard, offset, size) + (b"x" if other else b"")

    monkeypatch.setattr(chunks, "read_member", read_other)
    detect(used, tmp_path)
    assert calls(used) == 2
    assert len(before & set(contents(tmp_path))) == 3


@pytest.mark.parametrize("first", ["P0", "P2"])
def test_what_was_found_in_a_video_stays_when_another_comes_before_or_behind_it(
    frames: Path, tmp_path: Path, first: str
) -> None:
    alone, both = evaluator(frames), evaluator(frames)
    rows = alone.data_loader.dataset.rows
    alone.data_loader.dataset.keep(np.flatnonzero(rows["source"] == f"{first}.mp4"))
    detect(alone, tmp_path)
    found = detect(both, tmp_path)
    assert (calls(alone), calls(both)) == (3, 3)
    pd.testing.assert_frame_equal(found.boxes, detect(evaluator(frames), tmp_path / "both").boxes)


def test_images_share_batches_and_videos_do_not(frames: Path, tmp_path: Path) -> None:
    used = evaluator(frames, batch=4)
    rows = used.data_loader.dataset.rows
    images = np.arange(len(rows)) % 3 > 0  # a video lies between any two pairs of images
    rows["source"] = rows["source"].mask(images, rows["sample_id"] + ".png")
    found = detect(used, tmp_path)
    assert calls(used) == 4  # eight images, and two frames of each of two videos
    pd.testing.assert_frame_equal(
        found.boxes.sort_values(list(found.boxes.columns), ignore_index=True),
        detect(evaluator(frames), tmp_path / "videos").boxes.sort_values(list(found.boxes.columns), ignore_index=True),
    )


def in_folders(used: Any) -> Any:
    """An evaluator for which the frames of each video are numbered images in a folder."""
    rows = used.data_loader.dataset.rows
    rows["source"] = rows["sample_id"] + ".jpg"
    return used


def test_images_of_sequences_are_numbered_and_yet_no_videos() -> None:
    names = [f"S{sequence}/{number}.PNG" for sequence in range(3) for number in range(10)]
    films = ["a.MP4"] * 4 + ["b/a.mp4"] * 3
    rows = pd.DataFrame({"source": names + films, "frame_index": [*range(10)] * 3 + [*range(4), *range(3)]})
    groups = chunks._group_frames(rows)
    assert [group.tolist() for group in groups] == [[*range(30)], [*range(30, 34)], [*range(34, 37)]]


def test_batches_of_images_reach_over_sequences(frames: Path, tmp_path: Path) -> None:
    used = in_folders(evaluator(frames, batch=5))
    detect(used, tmp_path)
    assert calls(used) == 3  # five, five and two of the twelve images
    assert len(contents(tmp_path)) == 3


@pytest.mark.parametrize("cut_off", [3, -1])
def test_chunks_of_single_images_are_neither_used_nor_kept(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_off: int
) -> None:
    """As they were left by a run that took numbered images for videos, whether it was interrupted or finished."""
    whole = detect(in_folders(evaluator(frames)), tmp_path / "whole")
    folder = tmp_path / "earlier"
    first = in_folders(evaluator(frames))
    first.network.networks["student_0"].left = cut_off
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(chunks, "_group_frames", lambda rows: [np.array([place]) for place in range(len(rows))])
        detect(first, folder)
    assert len(contents(folder)) == cut_off % 13  # -1: all twelve
    again = in_folders(evaluator(frames))
    found = detect(again, folder)
    assert calls(again) == 6
    pd.testing.assert_frame_equal(found.boxes, whole.boxes, check_exact=True)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_damaged_chunk_is_made_again(frames: Path, tmp_path: Path) -> None:
    detect(evaluator(frames), tmp_path)
    whole = contents(tmp_path)
    path = tmp_path / sorted(whole)[1]
    path.write_bytes(path.read_bytes()[:50])
    used = evaluator(frames)
    detect(used, tmp_path)
    assert calls(used) == 2
    assert contents(tmp_path) == whole


def test_a_dataset_without_frames_is_refused(frames: Path, tmp_path: Path) -> None:
    used = evaluator(frames)
    used.data_loader.dataset.keep([])
    with pytest.raises(InputError, match="holds no frames"):
        detect(used, tmp_path)


def test_nothing_found_in_any_chunk(frames: Path, tmp_path: Path) -> None:
    found = detect(evaluator(frames, score_threshold=0.99999), tmp_path)
    assert found.boxes.empty
    assert found.networks == ["student_0", "student_1", "ensemble"]


def test_any_changed_weight_changes_the_hash() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(torch.bfloat16)
    seen = {hash_parameters(network)}
    for value in network.state_dict().values():
        with torch.no_grad():
            value.reshape(-1)[-1] += 1
        seen.add(hash_parameters(network))
    assert len(seen) == 1 + len(network.state_dict())
    assert hash_parameters(SimpleNamespace(state_dict=network.state_dict)) in seen  # type: ignore[arg-type]
    assert np.unique([len(one) for one in seen]).tolist() == [64]
