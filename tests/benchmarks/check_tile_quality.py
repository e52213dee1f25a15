"""How true stored tiles are to the slide, before a change and after it.

    python -m tests.benchmarks.check_tile_quality --before FOLDER [SLIDE…] [--assume-mpp NAME MPP]…

Slides are tiled by `kdml-med tile` of another checkout and of this one, without loss and with the default JPEG, and
compared with a reference: the tile's square decoded in full by OpenSlide and reduced by a separable Lanczos filter (a =
3) in float64. Without SLIDE, those under KDML_MED_DATA/wsi are taken, where that is set. Slides are generated besides:
JPEG 4:2:2 and 4:4:4, and both kinds of JPEG 2000. PSNR is over all pixels of all tiles that both have. The second table
says what encoders lose of the lossless tiles of this checkout.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pandas as pd
import simplejpeg
from PIL import Image

from tests.benchmarks.large_slides import write_large_slide
from tests.synthetic_slides import tissue_picture, write_layout

GENERATED = ("JPEG YCbCr 4:2:2", "JPEG RGB 4:4:4", "JPEG 2000 RGB", "JPEG 2000 YCbCr")
ENCODERS = ((97, "444"), (95, "444"), (90, "444"), (95, "420"), (90, "420"))
SCORES = ("tissue_fraction", "background_fraction", "pen_fraction", "sharpness")
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".dcm")
_LOBES = 3
_ROUNDING = 1e-12

Floats = npt.NDArray[np.float64]


def lanczos_weights(start: float, size: float, available: int, wanted: int) -> Floats:
    """Weights of a Lanczos reduction along one axis, [wanted, available]; each row sums to 1.

    Args:
        start: of the interval that is reduced, source pixels.
        size: of it.
        available: source pixels; the filter sees nothing beyond them.
        wanted: pixels that come out.
    """
    scale = max(size / wanted, 1.0)
    centres = start + (np.arange(wanted) + 0.5) * size / wanted
    x = (np.arange(available) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(x) < _LOBES, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def reference_tile(slide: openslide.OpenSlide, x_l0: int, y_l0: int, size_l0: float, wanted: int) -> Floats:
    """The tile as a full decode and a float filter give it, [wanted, wanted, 3], 0..255."""
    side = int(np.ceil(size_l0))
    square = np.asarray(slide.read_region((x_l0, y_l0), 0, (side, side)).convert("RGB"), np.float64)
    weights = lanczos_weights(0.0, size_l0, side, wanted)
    return np.clip(np.einsum("ay,yxc,bx->abc", weights, square, weights, optimize=True), 0, 255)


@dataclass
class Error:
    """Squared differences from the reference."""

    squares: float = 0.0
    count: int = 0

    def add(self, tile: npt.NDArray[Any], reference: Floats) -> None:
        self.squares += float(np.square(tile - reference).sum())
        self.count += reference.size

    def psnr(self) -> float:
        """Decibels; infinite without any difference but rounding."""
        mean = self.squares / max(self.count, 1)
        return float(10 * np.log10(255**2 / mean)) if mean > _ROUNDING else float("inf")


def tile_slide(checkout: Path, slide: Path, out: Path, options: Sequence[str]) -> pd.DataFrame:
    """Tile a slide by a checkout; returns its manifest, with origins as the index.

    Raises:
        subprocess.CalledProcessError: the command failed; its output has the reason.
    """
    command = [sys.executable, "-m", "kdml_med.cli", "tile", str(slide), "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout, env=environment)
    return pd.read_parquet(out / "manifest.parquet").set_index(["x_l0", "y_l0"])


def read_tile(folder: Path, row: Any) -> npt.NDArray[np.uint8]:
    """Pixels of a stored tile, uint8, [height, width, 3]."""
    with (folder / row["shard"]).open("rb") as stream:
        stream.seek(row["offset"])
        return np.asarray(Image.open(io.BytesIO(stream.read(row["size"]))).convert("RGB"))


@dataclass
class Comparison:
    """One slide by both checkouts."""

    name: str
    mpp: float
    counts: tuple[int, int]
    same_places: bool
    psnr: dict[tuple[str, str], float]
    scores: dict[str, float]
    encoders: dict[tuple[int, str], float]
    bytes_per_tile: dict[tuple[int, str], float]


def compare(slide: Path, name: str, before: Path, after: Path, options: Sequence[str], mpp: float) -> Comparison:
    """Tile a slide four times, and compare each with the reference."""
    with tempfile.TemporaryDirectory() as folder:
        made: dict[tuple[str, str], tuple[Path, pd.DataFrame]] = {}
        for version, checkout in (("before", before), ("after", after)):
            for image_format in ("png", "jpeg"):
                out = Path(folder, version, image_format)
                wanted = ["--format", image_format, "--mpp", str(mpp), *options]
                made[version, image_format] = out, tile_slide(checkout, slide, out, wanted)
        tables = {version: made[version, "png"][1] for version in ("before", "after")}
        common = tables["before"].index.intersection(tables["after"].index)
        errors = {key: Error() for key in made}
        encoded = {encoder: Error() for encoder in ENCODERS}
        sizes = dict.fromkeys(ENCODERS, 0)
        with openslide.OpenSlide(slide) as source:
            for place in common:
                size_l0 = float(tables["after"].loc[place, "size_l0"])
                tiles = {key: read_tile(out, table.loc[place]) for key, (out, table) in made.items()}
                reference = reference_tile(source, *place, size_l0, len(tiles["after", "png"]))
                for key, tile in tiles.items():
                    errors[key].add(tile, reference)
                for encoder in ENCODERS:
                    data = simplejpeg.encode_jpeg(
                        np.ascontiguousarray(tiles["after", "png"]), encoder[0], "RGB", encoder[1]
                    )
                    sizes[encoder] += len(data)
                    encoded[encoder].add(simplejpeg.decode_jpeg(data), reference)
    shared = {score: [tables[version].loc[common, score] for version in ("before", "after")] for score in SCORES}
    return Comparison(
        name=name,
        mpp=mpp,
        counts=(len(tables["before"]), len(tables["after"])),
        same_places=set(tables["before"].index) == set(tables["after"].index),
        psnr={key: error.psnr() for key, error in errors.items()},
        scores={score: _largest_difference(score, *values) for score, values in shared.items()},
        encoders={encoder: error.psnr() for encoder, error in encoded.items()},
        bytes_per_tile={encoder: size / max(len(common), 1) for encoder, size in sizes.items()},
    )


def _largest_difference(score: str, before: pd.Series, after: pd.Series) -> float:
    """Largest difference of a score; for the sharpness, which has no upper end, relative to the earlier one."""
    difference = (after - before).abs()
    return float((difference / before.clip(lower=1e-9) if score == "sharpness" else difference).max())


def print_comparisons(done: Sequence[Comparison]) -> None:
    """Both tables."""
    print(
        "| slide | µm/px | tiles before → after | same places | lossless, dB | default JPEG, dB | "
        "tissue | background | pen | sharpness |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for one in done:
        decibels = (f"{_say(one.psnr['before', kind])} → {_say(one.psnr['after', kind])}" for kind in ("png", "jpeg"))
        scores = [f"{one.scores[score]:.3f}" for score in SCORES[:3]] + [f"{one.scores['sharpness']:.0%}"]
        cells = [one.name, f"{one.mpp:g}", f"{one.counts[0]} → {one.counts[1]}", "yes" if one.same_places else "**no**"]
        print("| " + " | ".join([*cells, *decibels, *scores]) + " |")
    print("\n| slide | µm/px | " + " | ".join(f"q{quality} {_colour(kind)}" for quality, kind in ENCODERS) + " |")
    print("|---|---|" + "---|" * len(ENCODERS))
    for one in done:
        cells = [f"{one.encoders[e]:.1f} dB, {one.bytes_per_tile[e] / 1024:.0f} KiB" for e in ENCODERS]
        print("| " + " | ".join([one.name, f"{one.mpp:g}", *cells]) + " |")


def _colour(kind: str) -> str:
    return ":".join(kind)


def _say(decibels: float) -> str:
    return "exact" if np.isinf(decibels) else f"{decibels:.1f}"


def generated_slides(folder: Path) -> Iterator[tuple[Path, str]]:
    """The slide of the other benches, smaller, and slides of each layout with one picture; and what to call them."""
    scan = folder / "scan.svs"
    write_large_slide(scan, 4000, 3800)
    yield scan, "generated, 40×, JPEG YCbCr 4:2:2 at 0.252 µm/px"
    picture = tissue_picture(2400, 1900)
    for layout in GENERATED:
        path = folder / f"{layout.lower().replace(' ', '_').replace(':', '')}.{'tiff' if '4:2:2' in layout else 'svs'}"
        write_layout(path, layout, picture)
        yield path, f"generated, {layout}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--before", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--after", type=Path, default=Path(), help="checkout; this one by default")
    parser.add_argument("--assume-mpp", nargs=2, action="append", default=[], metavar=("NAME", "MPP"))
    parser.add_argument(
        "--mpp", type=float, nargs="+", default=[0.5, 0.6], help="of the tiles; one comparison for each"
    )
    arguments = parser.parse_args()
    assumed = dict(arguments.assume_mpp)
    slides = [(path, path.name) for path in arguments.slides]
    if not slides and "KDML_MED_DATA" in os.environ:
        found = sorted(Path(os.environ["KDML_MED_DATA"], "wsi").glob("*"))
        slides = [(path, path.name) for path in found if path.suffix in SUFFIXES]
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for path, name in [*slides, *generated_slides(Path(folder))]:
            options = ["--assume-mpp", assumed[path.name]] if path.name in assumed else []
            for mpp in arguments.mpp:
                print(f"{name}, {mpp} µm/px", file=sys.stderr)
                try:
                    done.append(
                        compare(
                            path.resolve(), name, arguments.before.resolve(), arguments.after.resolve(), options, mpp
                        )
                    )
                except subprocess.CalledProcessError as error:
                    print(f"{name}: {(error.stderr or error.stdout).strip().splitlines()[-1]}", file=sys.stderr)
    print_comparisons(done)


if __name__ == "__main__":
    main()
