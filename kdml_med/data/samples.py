"""Rows of a dataset folder as samples, seeded one by one, and the order and batches that they come in."""

from __future__ import annotations

import hashlib
import logging
import traceback
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from monai.transforms import Randomizable
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from kdml_med.data.batches import Samples, collate_samples, finish_batch
from kdml_med.data.cache import NO_CACHE, with_cache
from kdml_med.data.drafts import Drafts, random_numbers, split_chain
from kdml_med.data.images import Pixels
from kdml_med.data.learners import deal_patients
from kdml_med.data.reading import ImageSource, Positions, ShardReader
from kdml_med.data.sampling import Dealt, EpochSampler
from kdml_med.data.selection import select_rows
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey
from kdml_med.program import hold_interrupts, mute_lost_receivers
from kdml_med.storage.columns import code_of
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, image_root, read_info

logger = logging.getLogger(__name__)

Index = int | Dealt
"""Position of a sample, alone or as ``EpochSampler`` deals it."""

UNLABELLED = -1
NO_EPOCH = 0


class ManifestDataset(Dataset[dict[str, Any]]):
    """Rows of a manifest as samples: one split of a dataset folder, or the whole folder.

    Random transforms are seeded for each sample from (seed, epoch, sample_id), and from how often it has come in the
    epoch before, so that a sample does not depend on the number of workers, on the order of reading, or on whether the
    run was interrupted before. Epoch and times come with the index, from ``EpochSampler``.

    Args:
        dataset_dir: dataset folder, see ``kdml_med.storage.manifest``.
        split: "train", "val" or "test"; None takes every row, labelled or not (inference).
        fold: number of the test fold where splits.csv holds folds.
        transform: MONAI transform on a dictionary with ``BatchKey`` keys; None for none.
        seed: of the random transforms.
        cache: keeps decoded pixels, see ``kdml_med.data.cache.with_cache``; samples are the same without.

    Attributes:
        rows: the manifest rows behind the samples, in sample order.
        classes: class names in index order, the last one positive.
        labels: int64, [samples], class index of each; -1 without a label.
        source: where their pixels are read from.
        finished_later: whether ``SampleLoader`` finishes batches, in another process or on another device.
        views: how often each sample of a batch comes, transformed by random numbers of its own each time.
        learners: int64, [samples], see ``deal_patients``; None where all students read all labels.

    Raises:
        InputError: the folder breaks its contract or holds another kind of rows, its splits leak, or the split has no
            labelled rows.
    """

    kind: ClassVar[DatasetKind]
    columns: ClassVar[Collection[str]]
    """Of the manifest, that ``rows`` has."""
    finishes: ClassVar[bool] = True
    """Whether images become float without any transform."""

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str | None = None,
        *,
        fold: int | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
        cache: str = NO_CACHE,
    ) -> None:
        self.dataset_dir = Path(dataset_dir)
        self.info: DatasetInfo = read_info(self.dataset_dir)
        if self.info.kind != self.kind:
            raise InputError(f"{dataset_dir} is a dataset of {self.info.kind}, this task needs {self.kind}.")
        self._rows = select_rows(self.dataset_dir, self.info, split, fold, self.columns)
        self.classes = list(self.info.classes)
        self.transform = transform
        self.seed = seed
        self.split = split
        self.finished_later = False
        self.views = 1
        self.learners: npt.NDArray[np.int64] | None = None
        self.root = image_root(self.dataset_dir, self.info)
        reader = ShardReader(self.root, self.rows, self.kind.row)
        self.source: ImageSource = with_cache(
            reader,
            self.rows,
            self.root,
            where=cache,
            dataset_dir=self.dataset_dir,
            part=(split or "all") + ("" if fold is None else f"-fold-{fold}"),
            what=self.kind.row,
        )
        self.labels: npt.NDArray[np.int64] = code_of(self.rows["label"], self.classes, unknown=UNLABELLED)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> pd.DataFrame:
        """The manifest rows; ``keep`` chooses among them, as pixels and labels have to follow."""
        return self._rows

    def keep(self, positions: Positions) -> None:
        """Leave only the rows at these positions, in this order."""
        kept = np.asarray(positions, np.intp)
        self._rows = self.rows.iloc[kept].reset_index(drop=True)
        self.labels = self.labels[kept]
        self.learners = None if self.learners is None else self.learners[kept]
        self.source = self.source.select(kept)

    def read(self, index: int) -> Pixels:
        """Stored pixels of a row: uint8, [height, width, 3]; not to be written to."""
        return self.source.read(index)

    @property
    def transform(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """What samples go through."""
        return self._transform

    @transform.setter
    def transform(self, transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> None:
        self._transform = transform
        self._quick, self._rest = split_chain(transform)

    @abstractmethod
    def sample(self, position: int) -> dict[str, Any]:
        """Image, uint8, [height, width, 3], and label of a row."""

    def __getitem__(self, index: Index) -> dict[str, Any]:
        return self.make([index])[0]

    def __getitems__(self, indices: Sequence[Index]) -> Samples:
        """Samples of a batch, made together; torch's loaders ask for them like this."""
        return self.make(indices, later=self.finished_later, views=self.views)

    def make(self, indices: Sequence[Index], *, later: bool = False, views: int = 1) -> Samples:
        """Samples, made together; each is what it would be alone.

        Args:
            indices: positions, (epoch, position), or (epoch, position, times that it has come in the epoch before).
            later: leave pixels and colours as they are, see ``Unfinished``, where nothing else is left to do.
            views: of each sample: first all samples in their first view, which is that of ``views=1``, then all in
                their second one, and so on.
        """
        dealt = [index if isinstance(index, tuple) else (NO_EPOCH, index) for index in indices]
        samples = self._samples([position for _, position, *_ in dealt])
        ids = [self._key(own[BatchKey.SAMPLE_ID], *index) for index, own in zip(dealt, samples, strict=True)]
        keys = [f"{own}/{view}" if view else own for view in range(views) for own in ids]
        # Pixels are read once: transforms put others in their place.
        drafts = Drafts([*samples, *(dict(own) for _ in range(1, views) for own in samples)])
        used = 0
        numbers = random_numbers(keys, sum(step.draws for step in self._quick))
        for step in self._quick:
            step.quick(drafts, numbers[:, used : used + step.draws])
            used += step.draws
        images = None
        if self.finishes or self._quick:
            unfinished = drafts.stack() if later and self._rest is None else None
            if unfinished is not None:
                return Samples(drafts.samples, unfinished, views)
            images = drafts.finish()
        if self._rest is None:
            return Samples(drafts.samples, images, views)
        finished = [self._finish(sample, key) for sample, key in zip(drafts.samples, keys, strict=True)]
        return Samples(finished, views=views)

    def _key(self, sample_id: str, epoch: int, _: int, times: int = 0) -> str:
        """What the random numbers of a sample follow from."""
        # With the epoch, as no sample_id can then be mistaken for that of another sample and a number.
        return f"{self.seed}/{epoch}+{times}/{sample_id}" if times else f"{self.seed}/{epoch}/{sample_id}"

    def _samples(self, positions: list[int]) -> list[dict[str, Any]]:
        """Samples of rows before the transform, with the names of the rows and of what they belong to."""
        names = [BatchKey.SAMPLE_ID.value, self.kind.group, BatchKey.PATIENT_ID.value]
        columns = [self.rows[name].array.take(positions).tolist() for name in names]
        if self.learners is not None:
            names.append(BatchKey.LEARNER.value)
            columns.append(self.learners[positions].tolist())
        found = zip(positions, zip(*columns, strict=True), strict=True)
        return [self.sample(position) | dict(zip(names, own, strict=True)) for position, own in found]

    def _finish(self, sample: dict[str, Any], key: str) -> dict[str, Any]:
        """One sample through the transforms that work on one sample at a time."""
        assert self._rest is not None
        if isinstance(self._rest, Randomizable):
            digest = hashlib.sha256(key.encode()).digest()
            self._rest.set_random_state(seed=int.from_bytes(digest[:4], "little"))
        finished: dict[str, Any] = self._rest(sample)
        return finished


class SampleLoader(DataLoader[dict[str, Any]]):
    """Data loader of tiles or frames: shuffled, balanced and with random transforms for training, in order otherwise.

    Args:
        dataset: samples to load.
        batch_size: samples in a batch, of all processes together.
        batches: positions of the samples of each batch, where these are not to follow each other by ``batch_size``.
        training: shuffle by ``EpochSampler``; the last incomplete batch is left out if it would hold a single sample.
        seed: see ``EpochSampler``.
        balance: likewise.
        samples_per_epoch: likewise.
        repeat_views: likewise.
        views: of each tile in a batch, whose images then are [batch, views, channels, height, width].
        students: that share the patients of the tiles, and read the labels of their own, see ``deal_patients``; None
            where all read all labels.
        num_workers: reading processes.
        processes: number of this process, from 0, and of all that share the samples. In training they share every
            batch, otherwise each has batches of its own, one after the other and those of the next process behind them.
        device: where batches are finished: a GPU is sent bytes and computes their values. None or "cpu": this process
            does, to which reading processes send bytes, too. The values are the same, on a GPU colour jitter of frames
            to the rounding of floats.

    Raises:
        InputError: there are fewer samples than processes, in a batch or in all; or too few patients for the students.
        ValueError: frames, whose boxes move with the image, are to come in several views, or to be shared out.
    """

    def __init__(
        self,
        dataset: ManifestDataset,
        *,
        batch_size: int = 1,
        batches: Sequence[Sequence[int]] | None = None,
        training: bool = False,
        seed: int = 0,
        balance: bool = False,
        samples_per_epoch: int | None = None,
        repeat_views: int | None = None,
        views: int = 1,
        students: int | None = None,
        num_workers: int = 0,
        processes: tuple[int, int] = (0, 1),
        device: str | torch.device | None = None,
    ) -> None:
        self.device = torch.device(device or "cpu")
        if views > 1 and dataset.kind is not DatasetKind.TILES:
            raise ValueError("several views are for tiles: boxes of frames would differ between them.")
        later = bool(num_workers) or self.device.type != "cpu"
        if students is not None and dataset.kind is not DatasetKind.TILES:
            raise ValueError("students share out the patients of tiles, not those of frames.")
        if later or views > 1 or students is not None:
            dataset = copy(dataset)
            dataset.finished_later, dataset.views = later, views
        if students is not None:
            patients = dataset.rows[BatchKey.PATIENT_ID].tolist()
            dataset.learners = deal_patients(patients, dataset.labels, dataset.classes, students, seed=seed)
        sampler = None
        rank, count = processes
        if training:
            sampler = EpochSampler(
                dataset,
                seed=seed,
                balance=balance,
                samples_per_epoch=samples_per_epoch,
                repeat_views=repeat_views,
                batch_size=batch_size,
                num_replicas=count,
                rank=rank,
            )
            batch_size = sampler.share
        elif count > 1:
            batches = _own_batches(len(dataset), batch_size, rank, count)
        super().__init__(
            dataset,
            batch_size=1 if batches is not None else batch_size,
            sampler=sampler,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate_samples,
            worker_init_fn=_begin_reading,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )

    def __iter__(self) -> _BaseDataLoaderIter:
        """Batches; what goes wrong in a reading process speaks to a person as it does in this one."""
        if isinstance(self.sampler, EpochSampler):
            # Seeds reading processes: what a transform draws beside its own numbers does not depend on earlier epochs.
            self.generator.manual_seed(self.sampler.epoch_seed)
        if not self.num_workers:
            return _Batches(super().__iter__(), self.device)  # type: ignore[return-value]
        with hold_interrupts():
            return _Batches(super().__iter__(), self.device)  # type: ignore[return-value]


def _begin_reading(worker: int) -> None:
    mute_lost_receivers()


def _own_batches(samples: int, batch_size: int, rank: int, count: int) -> list[range]:
    """Positions of the batches of one process among several, each of which has at least one."""
    if samples < count:
        raise InputError(f"{samples} samples cannot be shared by {count} processes: start fewer.")
    size = batch_size if -(-samples // batch_size) >= count else samples // count
    batches = [range(start, min(start + size, samples)) for start in range(0, samples, size)]
    return batches[rank * len(batches) // count : (rank + 1) * len(batches) // count]


class _Batches:
    """Batches of an iterator, finished; errors of processes, which torch hands on with the traceback in their text."""

    def __init__(self, batches: _BaseDataLoaderIter, device: torch.device) -> None:
        self._batches: Iterator[Any] = batches
        self._length, self._device = len(batches), device

    def __iter__(self) -> _Batches:
        return self

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Any:
        try:
            return finish_batch(next(self._batches), self._device)
        except InputError as error:
            self._end(error)
            raise InputError(_last_message(str(error))) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            self._end(error)
            raise InputError(
                "a process that reads samples was ended from outside, probably for want of memory: use fewer "
                "--num_workers or a smaller --batch_size; the same command goes on."
            ) from error

    def _end(self, error: Exception) -> None:
        """Let reading processes go while they can be told to.

        A frame of torch holds the error, and with it these batches, until garbage is collected. By then pipes may be
        closed before anything went through them, and every process is waited for in vain, for 5 s.
        """
        traceback.clear_frames(error.__traceback__)
        self._batches = iter(())


def _last_message(text: str) -> str:
    """What the error itself said at the end of a traceback."""
    return text.rpartition(f"{InputError.__name__}: ")[2].strip()
