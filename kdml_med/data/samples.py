"""Rows of a dataset folder as samples, seeded one by one, and the order and batches that they come in."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _BaseDataLoaderIter

from kdml_med.data.images import Pixels
from kdml_med.data.reading import ImageSource, Positions, ShardReader
from kdml_med.data.sampling import EpochSampler
from kdml_med.data.selection import select_rows
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey
from kdml_med.program import hold_interrupts
from kdml_med.storage.columns import code_of
from kdml_med.storage.manifest import DatasetInfo, DatasetKind, image_root, read_info

logger = logging.getLogger(__name__)

UNLABELLED = -1
NO_EPOCH = 0


class ManifestDataset(Dataset[dict[str, Any]]):
    """Rows of a manifest as samples: one split of a dataset folder, or the whole folder.

    Random transforms are seeded for each sample from (seed, epoch, sample_id), so that a sample does not depend on the
    number of workers, on the order of reading, or on whether the run was interrupted before. The epoch comes with the
    index, from ``EpochSampler``.

    Args:
        dataset_dir: dataset folder, see ``kdml_med.storage.manifest``.
        split: "train", "val" or "test"; None takes every row, labelled or not (inference).
        fold: number of the test fold where splits.csv holds folds.
        transform: MONAI transform on a dictionary with ``BatchKey`` keys; None for none.
        seed: of the random transforms.

    Attributes:
        rows: the manifest rows behind the samples, in sample order.
        classes: class names in index order, the last one positive.
        labels: int64, [samples], class index of each; -1 without a label.
        source: where their pixels are read from.

    Raises:
        InputError: the folder breaks its contract or holds another kind of rows, its splits leak, or the split has no
            labelled rows.
    """

    kind: ClassVar[DatasetKind]
    columns: ClassVar[Collection[str]]
    """Of the manifest, that ``rows`` has."""

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str | None = None,
        *,
        fold: int | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset_dir = Path(dataset_dir)
        self.info: DatasetInfo = read_info(self.dataset_dir)
        if self.info.kind != self.kind:
            raise InputError(f"{dataset_dir} is a dataset of {self.info.kind}, this task needs {self.kind}.")
        self.rows = select_rows(self.dataset_dir, self.info, split, fold, self.columns)
        self.classes = list(self.info.classes)
        self.transform = transform
        self.seed = seed
        self.split = split
        self.root = image_root(self.dataset_dir, self.info)
        self.source: ImageSource = ShardReader(self.root, self.rows, self.kind.row)
        self.labels: npt.NDArray[np.int64] = code_of(self.rows["label"], self.classes, unknown=UNLABELLED)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, positions: Positions) -> None:
        """Leave only the rows at these positions, in this order."""
        kept = np.asarray(positions, np.intp)
        self.rows = self.rows.iloc[kept].reset_index(drop=True)
        self.labels = self.labels[kept]
        self.source = self.source.select(kept)

    def read(self, index: int) -> Pixels:
        """Stored pixels of a row: uint8, [height, width, 3]; not to be written to."""
        return self.source.read(index)

    @abstractmethod
    def sample(self, position: int) -> dict[str, Any]:
        """The sample of a row before the transform."""

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (NO_EPOCH, index)
        sample = self.sample(position)
        if self.transform is None:
            return sample
        if isinstance(self.transform, Randomizable):
            digest = hashlib.sha256(f"{self.seed}/{epoch}/{sample[BatchKey.SAMPLE_ID]}".encode()).digest()
            self.transform.set_random_state(seed=int.from_bytes(digest[:4], "little"))
        return self.transform(sample)

    def class_weights(self) -> list[float]:
        """Weight of each class, inverse to its number of rows, with mean 1 over the rows."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [float(len(self.labels) / (len(self.classes) * count)) if count else 0.0 for count in counts]


def collate_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch of samples; boxes, of which every image has its own number, stay a list."""
    boxes = [sample[BatchKey.LABEL] for sample in samples]
    if not isinstance(boxes[0], Tensor):
        batch: dict[str, Any] = default_collate(list(samples))
        return batch
    rest: dict[str, Any] = default_collate(
        [{key: sample[key] for key in sample if key != BatchKey.LABEL} for sample in samples]
    )
    return rest | {BatchKey.LABEL.value: boxes}


class SampleLoader(DataLoader[dict[str, Any]]):
    """Data loader of tiles or frames: shuffled, balanced and with random transforms for training, in order otherwise.

    Args:
        dataset: samples to load.
        batch_size: samples in a batch.
        batches: positions of the samples of each batch, where these are not to follow each other by ``batch_size``.
        training: shuffle by ``EpochSampler``; the last incomplete batch is left out if it would hold a single sample,
            which batch norm cannot take.
        seed: see ``EpochSampler``.
        balance: likewise.
        samples_per_epoch: likewise.
        num_workers: reading processes.
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
        num_workers: int = 0,
    ) -> None:
        sampler = None
        drop_last = False
        if training:
            sampler = EpochSampler(dataset, seed=seed, balance=balance, samples_per_epoch=samples_per_epoch)
            drop_last = len(sampler) % batch_size == 1 and len(sampler) > 1
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=num_workers,
            drop_last=drop_last,
            collate_fn=collate_samples,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )

    def __iter__(self) -> _BaseDataLoaderIter:
        """Batches; what goes wrong in a reading process speaks to a person as it does in this one."""
        if not self.num_workers:
            return super().__iter__()
        with hold_interrupts():
            return _Batches(super().__iter__())  # type: ignore[return-value]


class _Batches:
    """Batches of an iterator over processes, whose errors torch hands on with the traceback in their text."""

    def __init__(self, batches: _BaseDataLoaderIter) -> None:
        self._batches = batches

    def __iter__(self) -> _Batches:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except InputError as error:
            raise InputError(_last_message(str(error))) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise InputError(
                "a process that reads samples was ended from outside, probably for want of memory: use fewer "
                "--num_workers or a smaller --batch_size; the same command goes on."
            ) from error


def _last_message(text: str) -> str:
    """What the error itself said at the end of a traceback."""
    return text.rpartition(f"{InputError.__name__}: ")[2].strip()
