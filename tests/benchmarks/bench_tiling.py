"""How fast slides become tiles: the codec's floor, the tiler, the plain OpenSlide loop, and other libraries.

    python -m tests.benchmarks.bench_tiling [--side 40003] [--rounds 3] [--peers PYTHON] [--cache DIR]

A 40× slide in Aperio's dialect is generated once: 40,003 × 38,011 px at 0.252 µm/px, 256 px JPEG tiles 4:2:2 of quality
70, levels 1/4/16, 39 % tissue. All methods make its tiles of 224 px at 0.5 µm/px and take turns within each round, each
in processes of its own that are measured from inside. Printed are the tables of docs/performance.md: medians over the
rounds, the aims, and the memory for a slide of 100,000 × 100,000 px.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.large_slides import write_large_slide
from tests.benchmarks.racing import Lap, RaceError, describe_machine, race, standing
from tests.benchmarks.tiling_methods import cut_reference, tile_places

ASPECT = 38_011 / 40_003
MPP = 0.252
LARGE_PX = 100_000
WARM_UP_PX = 2_500
_LIBRARIES = (
    "openslide-python",
    "openslide-bin",
    "simplejpeg",
    "imagecodecs",
    "opencv-python-headless",
    "numpy",
    "pillow",
)
_PEERS = {
    "cuCIM, batched reads": ("cucim", "cucim-cu12", 0.5),
    "libvips regions": ("pyvips", "pyvips", 0.5),
    "fastslide": ("fastslide", "fastslide", 0.5),
    "hs2p, cuCIM behind it": ("hs2p-cucim", "hs2p", 0.5),
    "hs2p, OpenSlide behind it": ("hs2p-openslide", "hs2p", 0.25),
    "tiatoolbox": ("tiatoolbox", "tiatoolbox", 0.25),
}
"""Name in the table: what ``tiling_peers`` calls it, its distribution, and the share of the tiles that it has to cut;
the rate does not depend on that, and the slow ones would take most of the time."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: in the table.
        key: for the aims; "" where none asks.
        command: arguments of ``tiling_methods``; of ``tiling_peers`` where ``peer``.
        spread_over: "parts" of the tiles, "threads" of one process, or "slides" of which each process has one.
        workers: numbers of workers to be measured with.
        floor: key of the floor that it is compared with.
        share: of the tiles that are cut.
        peer: distribution in the peers' environment; "" for the project's own.
    """

    name: str
    key: str
    command: Sequence[str]
    spread_over: str = "parts"
    workers: Sequence[int] = (1, 2)
    floor: str = "codec"
    share: float = 1.0
    peer: str = ""


METHODS = (
    Method("floor: each needed native tile decoded once, full size", "decode-full", ("floor", "--factor", "1")),
    Method("floor: the same at half size", "decode-half", ("floor",)),
    Method("**codec floor**: decoded at half size, tiles encoded (our JPEG)", "codec", ("floor", "--encode")),
    Method(
        "codec floor, PNG", "codec-png", ("floor", "--encode", "--encoder", "png"), floor="codec-png", workers=(1, 2)
    ),
    Method("**ours**, one slide, threads", "ours", ("ours",), "threads"),
    Method("**ours**, a slide for each process", "ours-slides", ("ours",), "slides", workers=(2,)),
    Method("ours, the whole command `kdml-med tile`", "ours-command", ("command",), "threads"),
    Method("ours, JPEG q90 4:2:0", "ours-plain", ("ours", "--encoder", "plain"), "threads"),
    Method("ours, PNG", "ours-png", ("ours", "--encoder", "png"), "threads", floor="codec-png"),
    Method(
        "ours, PNG, a slide for each process",
        "ours-png-slides",
        ("ours", "--encoder", "png"),
        "slides",
        workers=(2,),
        floor="codec-png",
    ),
    Method("OpenSlide + Pillow loop, our JPEG", "loop", ("loop",), share=0.5),
    Method("OpenSlide + Pillow loop, JPEG q90 4:2:0", "loop-plain", ("loop", "--encoder", "plain"), share=0.5),
    Method("OpenSlide + Pillow loop, PNG", "loop-png", ("loop", "--encoder", "png"), floor="codec-png", share=0.25),
    *(
        Method(f"{name}, JPEG q90 4:2:0", "", (command,), share=share, peer=distribution)
        for name, (command, distribution, share) in _PEERS.items()
    ),
)


@dataclass
class Course:
    """What all methods run on.

    Attributes:
        slides: the slide, and its copies under other names.
        tiles: reference dataset.
        places: the reference's tiles as CSV, for the peers.
        warm_up: small slide.
        out: folder to write to.
        peers: Python of the peers' environment; None without one.
    """

    slides: list[Path]
    tiles: Path
    places: Path
    warm_up: Path
    out: Path
    peers: Path | None
    why_not: dict[str, str] = field(default_factory=dict)

    def run(self, method: Method, workers: int) -> Lap:
        """One turn of a method; its output is removed again."""
        out = Path(tempfile.mkdtemp(dir=self.out))
        try:
            return race(
                [self._command(method, workers, number, out) for number in range(self._processes(method, workers))]
            )
        finally:
            shutil.rmtree(out)

    def _processes(self, method: Method, workers: int) -> int:
        return 1 if method.spread_over == "threads" else workers

    def _command(self, method: Method, workers: int, number: int, out: Path) -> list[str]:
        slide = self.slides[number if method.spread_over == "slides" else 0]
        common = ["--slide", str(slide), "--out", str(out), "--share", str(method.share), "--part", str(number)]
        if method.peer:
            assert self.peers is not None
            module, own = "tiling_peers", ["--places", str(self.places), "--parts", str(workers)]
            python = str(self.peers)
        else:
            module, python = "tiling_methods", sys.executable
            own = ["--tiles", str(self.tiles), "--warm-up", str(self.warm_up)]
            own += {
                "parts": ["--parts", str(workers)],
                "threads": ["--threads", str(workers)],
                "slides": [],
            }[method.spread_over]
        return [python, "-m", f"tests.benchmarks.{module}", *method.command, *common, *own]

    def version(self, distribution: str) -> str:
        """Installed version of a peer; "" when it is not there."""
        if self.peers is None or not self.peers.exists():
            return ""
        code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
        said = subprocess.run([self.peers, "-c", code], capture_output=True, text=True, check=False)
        return said.stdout.strip()


def cached_slide(cache: Path, width: int, height: int) -> Path:
    """The generated slide of a size, made when it is not there."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"generated_{width}x{height}.svs"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_large_slide(path, width, height, mpp=MPP)
    return path


def run_rounds(course: Course, methods: Sequence[Method], rounds: int) -> dict[tuple[str, int], list[Lap]]:
    """Laps by name of the method and number of workers; all take turns. A method that fails is not tried again."""
    laps: dict[tuple[str, int], list[Lap]] = {(m.name, workers): [] for m in methods for workers in m.workers}
    for number in range(rounds):
        for method in methods:
            if method.peer and method.name not in course.why_not and not course.version(method.peer):
                course.why_not[method.name] = "not installed"
            for workers in method.workers:
                if method.name in course.why_not:
                    continue
                print(f"round {number + 1}: {method.name}, {workers}", file=sys.stderr)
                try:
                    laps[method.name, workers].append(course.run(method, workers))
                except RaceError as error:
                    if not method.peer:
                        raise
                    course.why_not[method.name] = str(error)
    return laps


def print_table(course: Course, methods: Sequence[Method], laps: dict[tuple[str, int], list[Lap]]) -> None:
    """The table of all methods, a row for each number of workers."""
    standings = {key: standing(done) for key, done in laps.items() if done}
    names = {method.key: method.name for method in methods if method.key}
    print("| method | workers | tiles/s | spread | CPU s / 1,000 tiles | of the floor | × loop | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for method in methods:
        label = method.name
        if method.peer and course.version(method.peer):
            label = label.replace(",", f" {course.version(method.peer)},", 1)
        for workers in method.workers:
            own = standings.get((method.name, workers))
            if own is None:
                print(f"| {label} | {workers} | {course.why_not.get(method.name, 'not run')} | | | | | |")
                break
            floor = standings[names[method.floor], workers].rate
            loop = standings[names["loop-png" if method.floor == "codec-png" else "loop"], workers].rate
            peak = "–" if method.command[0] == "floor" else f"{own.peak_mib:.0f}"
            print(
                f"| {label} | {workers} | {own.rate:,.0f} | {own.spread:.0%} | {own.cpu_seconds:.2f} | "
                f"{own.rate / floor:.2f} | {own.rate / loop:.1f} | {peak} |"
            )


@dataclass(frozen=True)
class Aim:
    """What was wanted, and what was measured for it."""

    what: str
    wanted: float
    measured: float
    beside: str = ""


def aims(methods: Sequence[Method], laps: dict[tuple[str, int], list[Lap]]) -> list[Aim]:
    """The aims of the tiler with what was measured."""
    by_key = {
        (method.key, workers): standing(laps[method.name, workers])
        for method in methods
        for workers in method.workers
        if method.key and laps[method.name, workers]
    }

    def rate(key: str, workers: int) -> float:
        return by_key[key, workers].rate

    def ratio(key: str, other: str, workers: int) -> float:
        return rate(key, workers) / rate(other, workers)

    def scaling(key: str) -> float:
        return rate(key, 2) / rate(key, 1)

    def by_cpu(key: str, workers: int) -> str:
        return f"by CPU time {by_key['codec', workers].cpu_seconds / by_key[key, workers].cpu_seconds:.2f}"

    own = f"the floor itself {scaling('codec'):.2f}"
    found = []
    for workers in (1, 2):
        word = f"{workers} worker" + "s" * (workers > 1)
        found += [
            Aim(f"share of the codec floor, {word}", 0.8, ratio("ours", "codec", workers), by_cpu("ours", workers)),
            Aim(f"× the loop, each with JPEG q90 4:2:0, {word}", 5, ratio("ours-plain", "loop-plain", workers)),
            Aim(f"× the loop, each with our JPEG, {word}", 4, ratio("ours", "loop", workers)),
            Aim(f"whole command, × the loop with our JPEG, {word}", 3.5, ratio("ours-command", "loop", workers)),
            Aim(f"PNG, × the loop in PNG, {word}", 2.5, ratio("ours-png", "loop-png", workers)),
            Aim(
                f"PNG, × the loop for each CPU second, {word}",
                6,
                by_key["loop-png", workers].cpu_seconds / by_key["ours-png", workers].cpu_seconds,
            ),
        ]
    found += [
        Aim(
            "share of the codec floor, 2 slides by 2 processes",
            0.8,
            ratio("ours-slides", "codec", 2),
            by_cpu("ours-slides", 2),
        ),
        Aim("2 threads in one slide, × 1", 1.85, scaling("ours"), own),
        Aim("2 processes over 2 slides, × 1", 1.85, rate("ours-slides", 2) / rate("ours", 1), own),
        Aim("whole command, 2 workers × 1", 1.85, scaling("ours-command"), own),
    ]
    return found


def print_aims(found: Sequence[Aim]) -> None:
    """Each aim, the measurement and whether it was reached."""
    print("| aim | wanted | measured | reached |\n|---|---|---|---|")
    for aim in found:
        measured = f"{aim.measured:.2f}" + (f" ({aim.beside})" if aim.beside else "")
        print(f"| {aim.what} | ≥ {aim.wanted:g} | {measured} | {'yes' if aim.measured >= aim.wanted else 'no'} |")


def print_memory(course: Course, side_px: int) -> None:
    """Peak memory of the tiler on a very large slide, JPEG and PNG, with 1 and 2 threads."""
    print(
        f"| {side_px:,} × {side_px:,} px | tiles | tiles/s | peak MiB | under 400 MiB a worker |\n|---|---|---|---|---|"
    )
    for encoder in ("default", "png"):
        for threads in (1, 2):
            method = Method("memory", "", ("ours", "--encoder", encoder), "threads")
            print(f"memory: {encoder}, {threads}", file=sys.stderr)
            lap = course.run(method, threads)
            kind = "PNG" if encoder == "png" else "JPEG"
            word = f"{threads} thread" + "s" * (threads > 1)
            fits = "yes" if lap.peak_mib < 400 * threads else "no"
            print(
                f"| {kind}, {word} | {lap.items:,.0f} | {lap.items / lap.seconds:,.0f} | {lap.peak_mib:.0f} | {fits} |",
                flush=True,
            )


def _prepare(arguments: argparse.Namespace, out: Path) -> Course:
    height = round(arguments.side * ASPECT)
    slide = arguments.slide or cached_slide(arguments.cache, arguments.side, height)
    copy = out / f"again{slide.suffix}"
    copy.symlink_to(slide.resolve())
    tiles = out / "reference"
    count = cut_reference(slide, tiles)
    places = out / "places.csv"
    with places.open("w", newline="") as stream:
        csv.writer(stream).writerows(tile_places(tiles))
    print(f"{slide.name}: {count:,} tiles of 224 px at 0.5 µm/px.\n")
    warm_up = cached_slide(arguments.cache, WARM_UP_PX, WARM_UP_PX)
    return Course([slide, copy], tiles, places, warm_up, out, arguments.peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="a slide of JPEG tiles in place of the generated one")
    parser.add_argument("--side", type=int, default=40_003, help="width of the generated slide, pixels")
    parser.add_argument("--large", type=int, default=LARGE_PX, help="side of the slide for the memory; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="Python of an environment with tests/benchmarks/peers.txt")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="folder of the generated slides")
    parser.add_argument("--out", type=Path, help="folder for what the methods write, removed afterwards")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n")
    print(
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
        + f"; {arguments.rounds} rounds\n"
    )
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        course = _prepare(arguments, Path(folder))
        laps = run_rounds(course, METHODS, arguments.rounds)
        print_table(course, METHODS, laps)
        print()
        print_aims(aims(METHODS, laps))
        if arguments.large:
            print()
            course.slides = [cached_slide(arguments.cache, arguments.large, arguments.large)]
            print_memory(course, arguments.large)


if __name__ == "__main__":
    main()
