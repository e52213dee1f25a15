"""Datasets and transforms."""

from kdml_med.data.frames import FrameDataset, PlaceFrame, RandPlaceFrame
from kdml_med.data.samples import ManifestDataset, SampleLoader
from kdml_med.data.sampling import EpochSampler
from kdml_med.data.tiles import TileDataset
from kdml_med.data.transforms import NormalizeColourd, RandColourJitterd, RandStainJitterd

__all__ = [
    "EpochSampler",
    "FrameDataset",
    "ManifestDataset",
    "NormalizeColourd",
    "PlaceFrame",
    "RandColourJitterd",
    "RandPlaceFrame",
    "RandStainJitterd",
    "SampleLoader",
    "TileDataset",
]
