"""Tiles of a dataset folder as samples for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdml_med.data.images import Pixels, resize_square
from kdml_med.data.samples import ManifestDataset
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey
from kdml_med.storage.manifest import SLIDES_FILE, TILE_COLUMNS, DatasetKind
from kdml_med.words import counted
from kdml_med.wsi.shards import read_stain_fits
from kdml_med.wsi.stain import StainFit, normalise_stains

STAINS = ("none", "macenko")
UNUSED_COLUMNS = ("background_fraction", "pen_fraction", "sharpness")
"""Of the manifest, that nothing needs after tiling. ``read_manifest`` has them."""


class TileDataset(ManifestDataset):
    """Tiles with a class each.

    Args:
        dataset_dir: see ``ManifestDataset``.
        split: likewise.
        image_size: side in pixels that tiles are resized to; None keeps the stored size.
        stain: "macenko" normalises stains with the slide's own matrix from slides.csv, unless the tiles are stored
            normalised; "none" takes them as they are stored.
        **settings: fold, transform and seed, see ``ManifestDataset``.

    Attributes:
        stain: the normalisation that the pixels come with, "none" or "macenko".

    Raises:
        InputError: see ``ManifestDataset``; or a slide has no stain matrix.
    """

    kind = DatasetKind.TILES
    columns = tuple(name for name in TILE_COLUMNS.names if name not in UNUSED_COLUMNS)

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str | None = None,
        *,
        image_size: int | None = None,
        stain: str = "none",
        **settings: Any,
    ) -> None:
        if stain not in STAINS:
            raise InputError(f"stain must be one of {', '.join(STAINS)}, got {stain!r}.")
        super().__init__(dataset_dir, split, **settings)
        self.image_size = image_size
        stored = self.info.options.get("stain", "none")
        self.stain = "macenko" if "macenko" in (stain, stored) else "none"
        self._stain_fits = {} if self.stain == stored else self._read_stain_fits()

    def read(self, index: int) -> Pixels:
        """Pixels of a tile, stains normalised if asked for: uint8, [height, width, 3]."""
        image = super().read(index)
        if not self._stain_fits:
            return image
        return normalise_stains(image, self._stain_fits[self.rows["slide_id"].array[index]])

    def _read_stain_fits(self) -> dict[str, StainFit]:
        path = self.dataset_dir / SLIDES_FILE
        fits = read_stain_fits(path) if path.is_file() else {}
        missing = sorted(set(self.rows["slide_id"].unique()) - set(fits))
        if missing:
            raise InputError(
                f"{path} has no stain matrix for {counted(len(missing), 'slide')}, first {missing[0]!r}: its stains "
                "could not be told apart, or the tiles were imported. Normalisation cannot be had for this dataset."
            )
        return fits

    def sample(self, position: int) -> dict[str, Any]:
        """Image and label of a tile."""
        image = resize_square(self.read(position), self.image_size)
        return {BatchKey.IMAGE.value: image, BatchKey.LABEL.value: int(self.labels[position])}
