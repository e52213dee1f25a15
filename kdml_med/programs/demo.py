"""Everything on generated data, one command after the other, as a newcomer would type them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from kdml_med.cli import run_command
from kdml_med.demo.clips import ANNOTATIONS_FILE, VIDEO
from kdml_med.demo.dataset import FRACTIONS, FRAME_SIZE_PX, LEAST_BOX_PX, MPP, TILE_SIZE_PX, TILES_PER_SLIDE
from kdml_med.demo.slides import LABELS_FILE
from kdml_med.errors import ExitCode
from kdml_med.keys import Split
from kdml_med.programs.make_demo import DemoTask, make_demo
from kdml_med.splits import assign_splits, has_splits
from kdml_med.storage.manifest import read_info, read_manifest

_TINY_PATIENTS, _TINY_TILES, _TINY_SEQUENCES, _TINY_FRAMES = 8, 6, 12, 4
_TINY_TRAINING = ["--version", "tiny", "--max-epochs", "1"]
# The smallest networks, and more epochs than the default that are shorter: curves, in minutes.
_SLIDES_TRAINING = ["--version", "tiny", "--max-epochs", "8", "--tiles-per-epoch", "400"]

Words = list[str]


def demo(
    task: Annotated[
        DemoTask, Option(help="msi: slides with MSI-H and MSS patients; polyp: colonoscopy-like clips.")
    ] = DemoTask.MSI,
    out: Annotated[Path, Option(help="Folder for everything; the same one again goes on.")] = Path("demo"),
    data_only: Annotated[bool, Option("--data-only", help="Stop before the training.")] = False,
    tiny: Annotated[
        bool,
        Option("--tiny", help="Few patients, small networks and one epoch: whether it runs, in a minute or two."),
    ] = False,
) -> ExitCode:
    """Generate data with known truth, prepare it, train, evaluate, predict something from its file, write the report.

    Takes 2 to 5 minutes for slides and 3 to 9 for clips on two cores. It proves plumbing, never accuracy.
    """
    settings = (
        {"patients": _TINY_PATIENTS} if task is DemoTask.MSI else {"sequences": _TINY_SEQUENCES, "frames": _TINY_FRAMES}
    )
    raw = out / ("slides" if task is DemoTask.MSI else "clips")
    make_demo(raw, task, **(settings if tiny else {}))
    prepare, learn = (_tiles, _learn_slides) if task is DemoTask.MSI else (_frames, _learn_clips)
    for words in prepare(out, raw, tiny=tiny):
        _step(words, _in_own_process)
    if data_only:
        return ExitCode.OK
    for words in learn(out, raw, tiny=tiny):
        _step(words, run_command)  # one process for all, which loads the libraries once
    print("\nNext:\n")
    for words in _next(out, task):
        print(f"  kdml-med {shlex.join(words)}")
    print(f"\nAll of it is in {out}. Picture of the prediction: {_picture(out, task)}")
    print(f"Report: {_run(out, task) / 'report.html'}")
    return ExitCode.OK


def _step(words: Words, run: Callable[[Words], int]) -> None:
    """Run one command, and say which."""
    print(f"\n$ kdml-med {shlex.join(words)}", flush=True)
    if code := run(words):
        raise typer.Exit(code)  # it has said why


def _in_own_process(words: Words) -> int:
    """Run a command that sets up its process for many small ones, with a thread each."""
    return subprocess.run([sys.executable, "-m", "kdml_med.cli", *words], check=False).returncode


def _tiles(out: Path, raw: Path, *, tiny: bool) -> Iterator[Words]:
    tiles = str(out / "tiles")
    yield [
        "tile", str(raw / "slides"), "--labels", str(raw / LABELS_FILE), "--out", tiles, "--mpp", str(MPP),
        "--tile-size", str(TILE_SIZE_PX), "--limit-tiles", str(_TINY_TILES if tiny else TILES_PER_SLIDE),
        "--workers", "2", "--synthetic",
    ]  # fmt: skip
    if not has_splits(out / "tiles"):
        yield ["split", tiles, "--fractions", *(f"{share:g}" for share in FRACTIONS)]


def _frames(out: Path, raw: Path, *, tiny: bool) -> Iterator[Words]:
    yield [
        "frames", str(raw / "frames"), "--annotations", str(raw / ANNOTATIONS_FILE), "--out", str(out / "frames"),
        "--size", str(FRAME_SIZE_PX), "--min-box", f"{LEAST_BOX_PX:g}", "--synthetic",
    ]  # fmt: skip


def _learn_slides(out: Path, raw: Path, *, tiny: bool) -> Iterator[Words]:
    run = str(_run(out, DemoTask.MSI))
    yield ["train", str(out / "tiles"), "--run", run, *(_TINY_TRAINING if tiny else _SLIDES_TRAINING)]
    yield ["evaluate", run]
    slide = raw / "slides" / f"{_test_slide(out / 'tiles')}.svs"
    yield ["predict", run, str(slide), "--out", str(out / "prediction")]
    yield ["report", run]


def _learn_clips(out: Path, raw: Path, *, tiny: bool) -> Iterator[Words]:
    run = str(_run(out, DemoTask.POLYP))
    yield ["train", str(out / "frames"), "--run", run, *(_TINY_TRAINING if tiny else [])]
    yield ["evaluate", run]
    yield ["predict", run, str(raw / "videos" / VIDEO), "--out", str(out / "detections"), "--annotate"]
    yield ["report", run]


def _run(out: Path, task: DemoTask) -> Path:
    return out / ("run" if task is DemoTask.MSI else "polyps")


def _test_slide(tiles: Path) -> str:
    """A slide of the positive class that no training has seen."""
    manifest, info = read_manifest(tiles), read_info(tiles)
    test = assign_splits(tiles, manifest, info) == Split.TEST
    return str(manifest["slide_id"][test & (manifest["label"] == info.classes[-1])].iloc[0])


def _picture(out: Path, task: DemoTask) -> Path:
    """What shows the prediction to a person."""
    if task is DemoTask.MSI:
        return out / "prediction" / "slides" / _test_slide(out / "tiles") / "heatmap.png"
    return out / "detections" / f"{Path(VIDEO).stem}.annotated.mp4"


def _next(out: Path, task: DemoTask) -> list[Words]:
    run, mine = str(_run(out, task)), "my"
    if task is DemoTask.MSI:
        own = [["tile", "SLIDES", "--labels", "labels.csv", "--out", f"{mine}/tiles"], ["split", f"{mine}/tiles"]]
        data = f"{mine}/tiles"
    else:
        own = [["frames", "IMAGES", "--annotations", "BOXES", "--out", f"{mine}/frames"]]
        data = f"{mine}/frames"
    return [
        ["export", run, "--out", str(out / "exported")],
        *own,
        ["train", data, "--run", f"{mine}/run"],
    ]
