"""Detections frame by frame in chunks that are stored as they are finished, so that an interrupted run goes on.

The name of a chunk's file has a hash of everything that decides what is in it: weights, settings, and the bytes of its
frames. What another run, other weights, other settings or other frames gave therefore has another name and is never
taken. Batches are the same however often the work was cut off, and with them, on a CPU, the last bit of every score.
A chunk holds frames of one video or of images, never of both or of two videos: what was found in a video stays when
another one is laid beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from tqdm import tqdm

from kdml_med.colonoscopy.video import is_video
from kdml_med.data.frames import FrameDataset
from kdml_med.data.samples import SampleLoader
from kdml_med.errors import InputError
from kdml_med.handlers.detection import CohortDetections
from kdml_med.keys import BatchKey, NetworkName, network_order
from kdml_med.program import progress_bar
from kdml_med.storage.files import write_parquet
from kdml_med.storage.manifest import read_member

CHUNKS_DIR = "detecting"
CHUNK_FRAMES = 256
"""About ten seconds of a small network on a CPU: what an interruption costs at most."""

_KEY_LETTERS = 16
_PROBE_PX = (61, 83)


class Found(NamedTuple):
    """What networks found in the frames of a dataset."""

    boxes: pd.DataFrame
    """Columns of ``DetectionColumn``, pixels of the stored frames."""
    networks: list[str]
    """Those that answered, also where they found nothing."""


@dataclass(frozen=True)
class _Chunk:
    """Some frames of one video or of images, and the file for what is found in them."""

    positions: npt.NDArray[np.intp]
    path: Path


def detect_frames(evaluator: Evaluator, folder: Path, facts: Mapping[str, Any]) -> Found:
    """Run an evaluator on the frames of its loader, apart from the chunks that are stored already.

    Args:
        evaluator: a ``DetectionEvaluator``; its data loader has a ``FrameDataset`` and does not shuffle.
        folder: for the chunks; those of other weights, settings or frames are deleted at the end.
        facts: what decides the detections beside weights, frames and what the evaluator says, JSON types.

    Raises:
        InputError: there is no frame, one is damaged, a chunk cannot be written, or a network answers with something
            that is no number.
    """
    dataset: FrameDataset = evaluator.data_loader.dataset
    if not len(dataset):
        raise InputError(f"{dataset.dataset_dir} holds no frames: prepare some, or name another --dataset_dir.")
    chunks = _plan_chunks(evaluator, folder, facts)
    stored = {chunk.path: table for chunk in chunks if (table := _read_chunk(chunk.path)) is not None}
    pending = [chunk for chunk in chunks if chunk.path not in stored]
    done = len(dataset) - sum(len(chunk.positions) for chunk in pending)
    with progress_bar(len(dataset), what="detecting", unit="frame", done=done) as bar:
        if pending:
            _detect_chunks(evaluator, dataset, pending, bar)
    for chunk in pending:
        table = _read_chunk(chunk.path)  # as the others were: a table in memory may differ from one in a file
        if table is None:
            raise InputError(f"{chunk.path} was written and cannot be read: is the disk damaged?")
        stored[chunk.path] = table
    for path in folder.glob("*"):
        if path not in stored:
            path.unlink(missing_ok=True)
    tables = [stored[chunk.path] for chunk in chunks]
    filled = [table for table in tables if len(table)] or tables[:1]
    names = sorted([*evaluator.network.names, NetworkName.ENSEMBLE.value], key=network_order)
    return Found(pd.concat(filled, ignore_index=True), names)


def _plan_chunks(evaluator: Evaluator, folder: Path, facts: Mapping[str, Any]) -> list[_Chunk]:
    dataset, batch_size = evaluator.data_loader.dataset, evaluator.data_loader.batch_size
    settings = _hash_settings(evaluator, facts)
    frames = max(1, CHUNK_FRAMES // batch_size) * batch_size  # whole batches: a frame is always in the same one
    chunks = []
    for group in _group_frames(dataset.rows):
        for start in range(0, len(group), frames):
            positions = group[start : start + frames]
            key = hashlib.sha256(f"{settings} {_hash_frames(dataset, positions)}".encode()).hexdigest()
            chunks.append(_Chunk(positions, folder / f"{key[:_KEY_LETTERS]}.parquet"))
    return chunks


def _group_frames(rows: pd.DataFrame) -> list[npt.NDArray[np.intp]]:
    """Positions of the frames of each video, and of all images, in the order of the rows."""
    videos = {name: name if is_video(name) else "" for name in rows["source"].unique()}
    numbers, _ = pd.factorize(rows["source"].map(videos))
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]


def _hash_settings(evaluator: Evaluator, facts: Mapping[str, Any]) -> str:
    device = torch.device(evaluator.state.device)
    names = ("fusion", "score_threshold", "iou_threshold", "max_detections", "amp")
    content = {name: getattr(evaluator, name, None) for name in names} | {
        "facts": dict(facts),
        "batch_size": evaluator.data_loader.batch_size,
        "device": device.type,
        "weights": hash_parameters(evaluator.network),
        "input": _hash_input(evaluator.data_loader.dataset),
        "libraries": {name: version(name) for name in ("kdml_med", "torch", "monai", "pillow", "numpy")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_parameters(network: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_input(dataset: FrameDataset) -> str:
    """What a network is handed for a frame of noise: it changes with the size and every step of the preprocessing."""
    noise = np.random.default_rng(0).integers(0, 256, (*_PROBE_PX, 3), dtype=np.uint8)
    sample: dict[str, Any] = {BatchKey.IMAGE.value: noise, BatchKey.LABEL.value: np.zeros((0, 4), np.float32)}
    image = torch.as_tensor((dataset.transform or dict)(sample)[BatchKey.IMAGE])
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()).hexdigest()


def _hash_frames(dataset: FrameDataset, positions: npt.NDArray[np.intp]) -> str:
    digest = hashlib.sha256()
    rows = dataset.rows.iloc[positions]
    columns = ["sample_id", "sequence_id", "patient_id", "shard", "offset", "size"]
    for sample, sequence, patient, shard, offset, size in rows[columns].itertuples(index=False):
        digest.update(json.dumps([sample, sequence, patient, int(size)]).encode())
        try:
            digest.update(read_member(dataset.root, shard, int(offset), int(size)))
        except InputError:
            digest.update(b"unreadable")  # and so this chunk is never finished; who detects in it says why
    return digest.hexdigest()


def _read_chunk(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path) if path.is_file() else None
    except (OSError, ValueError, pa.ArrowException):
        return None  # damaged since; it is made again


def _detect_chunks(evaluator: Evaluator, dataset: FrameDataset, chunks: Sequence[_Chunk], bar: tqdm[Any]) -> None:
    whole = evaluator.data_loader
    batches = [
        chunk.positions[start : start + whole.batch_size].tolist()
        for chunk in chunks
        for start in range(0, len(chunk.positions), whole.batch_size)
    ]
    loader = SampleLoader(dataset, batches=batches, num_workers=whole.num_workers)
    with evaluator.add_event_handler(Events.ITERATION_COMPLETED, _StoreChunks(chunks, bar)):
        try:
            evaluator.data_loader, evaluator.state.epoch_length = loader, len(loader)
            evaluator.run()
        except FloatingPointError as error:
            raise InputError(str(error)) from error
        finally:
            evaluator.data_loader, evaluator.state.epoch_length = whole, len(whole)


class _StoreChunks:
    """Collects what an evaluator finds, and stores each chunk when its last frame was looked at."""

    def __init__(self, chunks: Sequence[_Chunk], bar: tqdm[Any]) -> None:
        self._pending, self._bar = list(chunks), bar
        self._collector, self._frames = CohortDetections(), 0

    def __call__(self, engine: Engine) -> None:
        self._collector.collect(engine)
        frames = len(engine.state.batch[BatchKey.SAMPLE_ID])
        self._frames += frames
        if self._frames == len(self._pending[0].positions):
            write_parquet(self._pending.pop(0).path, self._collector.table())
            self._collector.reset()
            self._frames = 0
        self._bar.update(frames)
