"""Datasets and transforms."""

from kdml_med.data.tiles import EpochSampler, TileDataset, TileLoader
from kdml_med.data.transforms import NormalizeColourd, RandStainJitterd

__all__ = ["EpochSampler", "NormalizeColourd", "RandStainJitterd", "TileDataset", "TileLoader"]
