"""Maps as OME-TIFF, read again by other means than those that wrote them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from kdml_med.deploy.pictures.layer import write_layer

NAMESPACE = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


def planes(height: int, width: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    first = generator.random((height, width)).astype(np.float32)
    first[: height // 3] = np.nan
    return {"Probability of MSI": first, "Disagreement": first / 2}


def write(folder: Path, height: int = 301, width: int = 530, name: str = "S1") -> Path:
    path = folder / "heatmap.ome.tiff"
    write_layer(path, planes(height, width), pixel_um=12.5, name=name, description="research & <only>")
    return path


def test_values_come_back_and_each_level_has_half_the_size(tmp_path: Path) -> None:
    with tifffile.TiffFile(write(tmp_path)) as file:
        (series,) = file.series
        assert (series.axes, series.dtype) == ("CYX", np.float32)
        assert [level.shape for level in series.levels] == [(2, 301, 530), (2, 151, 265), (2, 76, 133), (2, 38, 67)]
        assert all(level.keyframe.is_tiled for level in series.levels)
        assert len(file.pages[0].subifds) == 3, "the form of pyramids that OME-TIFF has"
        np.testing.assert_array_equal(series.asarray(), np.stack(list(planes(301, 530).values())))
        finest, half = series.levels[0].asarray()[0], series.levels[1].asarray()[0]
        assert half[120, 100] == pytest.approx(finest[240:242, 200:202].mean())
        assert np.isnan(half[:50]).all()


def test_the_description_says_size_channels_and_micrometres(tmp_path: Path) -> None:
    odd = "<script>alert('$x$')</script> & µ 中 \x01\n"
    with tifffile.TiffFile(write(tmp_path, name=odd)) as file:
        root = ElementTree.fromstring(file.pages[0].description)
    assert root.tag == f"{{{NAMESPACE['ome']}}}OME"
    pixels = root.find("ome:Image/ome:Pixels", NAMESPACE)
    assert pixels is not None
    sizes = {name: pixels.get(name) for name in ("SizeX", "SizeY", "SizeC", "SizeZ", "SizeT", "Type")}
    assert sizes == {"SizeX": "530", "SizeY": "301", "SizeC": "2", "SizeZ": "1", "SizeT": "1", "Type": "float"}
    for axis in "XY":
        assert (pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit")) == ("12.5", "µm")
    assert [channel.get("Name") for channel in pixels.findall("ome:Channel", NAMESPACE)] == list(planes(1, 1))
    image = root.find("ome:Image", NAMESPACE)
    assert image is not None
    assert image.get("Name") == odd.replace("\x01", r"\x01").replace("\n", r"\n")
    assert image.findtext("ome:Description", namespaces=NAMESPACE) == "research & <only>"


def test_the_same_planes_give_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    assert write(tmp_path, name="S2").read_bytes() != first


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (3, 128)])
def test_planes_of_any_form_are_written(tmp_path: Path, height: int, width: int) -> None:
    path = write(tmp_path, height, width)
    assert tifffile.imread(path).shape == (2, height, width)
    with openslide.OpenSlide(path) as slide:  # knows the file, and cannot show numbers that are no colours
        assert slide.dimensions == (width, height)
