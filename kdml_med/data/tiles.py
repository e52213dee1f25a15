"""Tiles of a dataset folder as a PyTorch dataset, seeded sample by sample."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import simplejpeg
import torch
from monai.transforms import Randomizable
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from kdml_med.errors import InputError
from kdml_med.keys import BatchKey
from kdml_med.manifest import SLIDES_FILE, DatasetInfo, image_root, read_info, read_manifest, read_member
from kdml_med.splits import assign_splits, read_splits
from kdml_med.wsi.shards import read_stain_fits
from kdml_med.wsi.stain import StainFit, normalise_stains

logger = logging.getLogger(__name__)

UNLABELLED = -1
STAINS = ("none", "macenko")
NO_EPOCH = 0


def decode_image(data: bytes, *, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode JPEG, PNG or any other format that Pillow reads.

    Args:
        data: encoded image.
        where: what to call it in an error.

    Returns:
        uint8, [height, width, 3], RGB.

    Raises:
        InputError: the bytes are no image.
    """
    try:
        if simplejpeg.is_jpeg(data):
            decoded: np.ndarray[Any, np.dtype[np.uint8]] = simplejpeg.decode_jpeg(data, colorspace="RGB")
            return decoded
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports a broken PNG chunk as a SyntaxError, and a header with absurd sizes as a bomb.
        raise InputError(f"{where} cannot be decoded as an image: {error}.") from error


def image_to_tensor(image: np.ndarray[Any, np.dtype[np.uint8]], size_px: int | None) -> Tensor:
    """Resize an image to a square and scale it to 0..1.

    Args:
        image: uint8, [height, width, 3].
        size_px: side of the result; None keeps the size. Reduction is anti-aliased.

    Returns:
        float32, [3, height, width].
    """
    if size_px is not None and image.shape[:2] != (size_px, size_px):
        image = np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC))
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255.0)


class TileDataset(Dataset[dict[str, Any]]):
    """Tiles of one split of a dataset folder, or of the whole folder.

    Random transforms are seeded for each sample from (seed, epoch, position), so that a sample does not depend on the
    number of workers, on the order of reading, or on whether the run was interrupted before. The epoch comes with the
    index, from ``EpochSampler``.

    Args:
        dataset_dir: dataset folder, see ``kdml_med.manifest``.
        split: "train", "val" or "test"; None takes every tile, labelled or not (inference).
        fold: number of the test fold where splits.csv holds folds.
        transform: MONAI transform on a dictionary with ``BatchKey`` keys; None for none.
        image_size: side in pixels that tiles are resized to; None keeps the stored size.
        stain: "macenko" normalises stains with the slide's own matrix from slides.csv, unless the tiles are stored
            normalised; "none" takes them as they are stored.
        seed: of the random transforms.

    Attributes:
        tiles: the manifest rows behind the samples, in sample order.
        classes: class names in index order, the last one positive.
        stain: the normalisation that the pixels come with, "none" or "macenko".

    Raises:
        InputError: the folder breaks its contract, its splits leak, the split has no labelled tiles, or a slide has no
            stain matrix.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str | None = None,
        *,
        fold: int | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        image_size: int | None = None,
        stain: str = "none",
        seed: int = 0,
    ) -> None:
        if stain not in STAINS:
            raise InputError(f"stain must be one of {', '.join(STAINS)}, got {stain!r}.")
        self.dataset_dir = Path(dataset_dir)
        self.info: DatasetInfo = read_info(self.dataset_dir)
        self.tiles = select_tiles(self.dataset_dir, self.info, split, fold)
        self.classes = list(self.info.classes)
        self.transform = transform
        self.image_size = image_size
        self.seed = seed
        self.split = split
        self.root = image_root(self.dataset_dir, self.info)
        index = {name: position for position, name in enumerate(self.classes)}
        self.labels: list[int] = [index.get(label, UNLABELLED) for label in self.tiles["label"]]
        stored = self.info.options.get("stain", "none")
        self.stain = "macenko" if "macenko" in (stain, stored) else "none"
        self._stain_fits = {} if self.stain == stored else self._read_stain_fits()

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Stored pixels of a tile: uint8, [height, width, 3]."""
        row = self.tiles.iloc[index]
        data = read_member(self.root, row["shard"], int(row["offset"]), int(row["size"]))
        image = decode_image(data, where=f"tile {row['sample_id']!r} in {self.root / row['shard']}")
        fit = self._stain_fits.get(row["slide_id"])
        return image if fit is None else normalise_stains(image, fit)

    def _read_stain_fits(self) -> dict[str, StainFit]:
        path = self.dataset_dir / SLIDES_FILE
        fits = read_stain_fits(path) if path.is_file() else {}
        missing = sorted(set(self.tiles["slide_id"]) - set(fits))
        if missing:
            raise InputError(
                f"{path} has no stain matrix for {len(missing)} slides, first {missing[0]!r}: its stains could "
                "not be told apart, or the tiles were imported. Normalisation cannot be had for this dataset."
            )
        return fits

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (NO_EPOCH, index)
        row = self.tiles.iloc[position]
        sample: dict[str, Any] = {
            BatchKey.IMAGE.value: image_to_tensor(self.read(position), self.image_size),
            BatchKey.LABEL.value: self.labels[position],
            BatchKey.SAMPLE_ID.value: row["sample_id"],
            BatchKey.SLIDE_ID.value: row["slide_id"],
            BatchKey.PATIENT_ID.value: row["patient_id"],
        }
        if self.transform is None:
            return sample
        if isinstance(self.transform, Randomizable):
            digest = hashlib.sha256(f"{self.seed}/{epoch}/{row['sample_id']}".encode()).digest()
            self.transform.set_random_state(seed=int.from_bytes(digest[:4], "little"))
        return self.transform(sample)

    def class_weights(self) -> list[float]:
        """Weight of each class, inverse to its number of tiles, with mean 1 over the tiles."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return [float(len(self.labels) / (len(self.classes) * count)) if count else 0.0 for count in counts]


def select_tiles(dataset_dir: Path, info: DatasetInfo, split: str | None, fold: int | None) -> pd.DataFrame:
    """Manifest rows of a split, or all of them; either way the splits, where there are any, must not leak."""
    manifest = read_manifest(dataset_dir)
    if split is None:
        if info.splits is not None:
            read_splits(dataset_dir, manifest, info)
        return manifest
    assigned = assign_splits(dataset_dir, manifest, info, fold=fold)
    tiles: pd.DataFrame = manifest[(assigned == split).to_numpy()]
    if tiles.empty:
        raise InputError(f"split {split!r} of {dataset_dir} has no tiles; present: {sorted(set(assigned))}.")
    labelled: pd.DataFrame = tiles[tiles["label"].notna()].reset_index(drop=True)
    unknown = labelled[~labelled["label"].isin(info.classes)]
    if len(unknown):
        row = unknown.iloc[0]
        raise InputError(
            f"tile {row['sample_id']!r} of patient {row['patient_id']!r} has label {row['label']!r}, expected one of "
            f"{info.classes}: make the dataset again."
        )
    if labelled.empty:
        raise InputError(
            f"split {split!r} of {dataset_dir} has no labelled tiles: make the dataset with a label table."
        )
    if len(labelled) < len(tiles):
        logger.info("split %s: %d tiles without a label are left out", split, len(tiles) - len(labelled))
    return labelled


class EpochSampler(DistributedSampler[Any]):
    """Shuffled (epoch, index) pairs, drawn from (seed, epoch) alone.

    It is a ``DistributedSampler`` because MONAI's engines tell those the epoch, and so that several processes share an
    epoch. With one process it deals out everything.

    Args:
        dataset: gives the length and, for balancing, ``labels``.
        seed: of the order.
        balance: draw every class equally often, with replacement.
        samples_per_epoch: length of an epoch; None for the size of the dataset.
        num_replicas: processes that share the epoch; None asks torch.distributed, 1 where that is not in use.
        rank: number of this process.
    """

    def __init__(
        self,
        dataset: TileDataset,
        *,
        seed: int = 0,
        balance: bool = False,
        samples_per_epoch: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if num_replicas is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            num_replicas = torch.distributed.get_world_size() if distributed else 1
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.total = samples_per_epoch or len(dataset)
        self.num_samples = -(-self.total // num_replicas)
        self.weights: Tensor | None = None
        if balance:
            weights = torch.tensor(dataset.class_weights(), dtype=torch.float64)
            self.weights = weights[torch.tensor(dataset.labels)]

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        wanted = self.num_samples * self.num_replicas
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.weights is not None:
            order = torch.multinomial(self.weights, wanted, replacement=True, generator=generator)
        else:
            rounds = -(-wanted // size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:wanted]
        return iter([(self.epoch, index) for index in order[self.rank :: self.num_replicas].tolist()])

    def __len__(self) -> int:
        return self.num_samples


class TileLoader(DataLoader[dict[str, Any]]):
    """Data loader of tiles: shuffled, balanced and with random transforms for training, in order otherwise.

    Args:
        dataset: tiles to load.
        batch_size: tiles in a batch.
        training: shuffle by ``EpochSampler``; the last incomplete batch is left out if it would hold a single tile,
            which batch norm cannot take.
        seed, balance, samples_per_epoch: see ``EpochSampler``.
        num_workers: reading processes.
    """

    def __init__(
        self,
        dataset: TileDataset,
        *,
        batch_size: int,
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
            num_workers=num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )
