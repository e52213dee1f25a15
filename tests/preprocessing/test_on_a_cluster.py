"""Slides and frames prepared by the workers of a Dask cluster: the same folders as by one machine."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdml_med.errors import ExitCode
from kdml_med.program import run
from kdml_med.programs import prepare_frames, tile_slides
from kdml_med.storage import folder as storage_folder
from kdml_med.workers import cluster as workers_cluster
from kdml_med.wsi import tiler
from tests.colonoscopy.pictures import contents, save, save_mask
from tests.synthetic_slides import write_slide
from tests.workers.test_cluster import REPOSITORY, Cluster, threads_as_workers

pytest.importorskip("distributed")

Call = Callable[..., subprocess.CompletedProcess[str]]
MAINS = {"tile": tile_slides.main, "frames": prepare_frames.main}
KINDS = sorted(MAINS)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A program inside this process."""

    def run_main(kind: str, *words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [kind, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run(MAINS[kind])
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run_main


def write_inputs(folder: Path, *, slides: int = 3, width: int = 1200, sequences: int = 4) -> Path:
    """Slides, one of them cut off, and sequences of frames with masks, one frame empty; settings for both programs."""
    for number in range(slides):
        write_slide(folder / "tile" / f"s{number}.svs", width=width, height=1000, seed=number)
    (folder / "tile" / "cut.svs").write_bytes((folder / "tile" / "s0.svs").read_bytes()[:9000])
    for number in range(sequences):
        for frame in range(2):
            save(folder / "frames" / f"q{number}" / f"{frame}.png", seed=100 * number + frame)
            save_mask(folder / "masks" / f"q{number}" / f"{frame}.png", [(60, 40, 100, 90)])
    (folder / "frames" / "q0" / "empty.png").write_bytes(b"")
    return folder


def words_for(kind: str, folder: Path) -> list[object]:
    return ["--tile-size", 64] if kind == "tile" else ["--annotations", folder / "masks"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    (root / "tile").mkdir()
    return write_inputs(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_makes_the_folder_of_one_machine(kind: str, call: Call, inputs: Path, tmp_path: Path) -> None:
    words = [inputs / kind, *words_for(kind, inputs)]
    here = call(kind, *words, "--out", tmp_path / "here", "--workers", 1)
    with threads_as_workers(2) as dask:
        there = call(kind, *words, "--out", tmp_path / "there", "--scheduler", dask.scheduler_address)
        again = call(kind, *words, "--out", tmp_path / "there", "--scheduler", dask.scheduler_address)
    assert (here.returncode, there.returncode) == (ExitCode.SOME_FAILED, ExitCode.SOME_FAILED), there.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert there.stdout.replace("there", "here") == here.stdout
    assert ("empty.png" if kind == "frames" else "cut.svs: ") in there.stdout
    assert "3 finished before" in again.stdout if kind == "tile" else again.returncode == ExitCode.SOME_FAILED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_remains")
def test_an_address_where_nobody_answers_ends_it_before_anything_is_written(
    kind: str, call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_cluster, "_CONNECT_TIMEOUT", "1s")
    done = call(
        kind, inputs / kind, *words_for(kind, inputs), "--out", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1"
    )
    assert done.returncode == ExitCode.BAD_INPUT
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: no Dask scheduler answers at 'tcp://127.0.0.1:1'")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_remains() -> Iterator[None]:
    """A client that could not connect is tidied up here: while another is being made, its tidying waits forever."""
    yield
    gc.collect()


def test_processes_here_and_workers_elsewhere_exclude_each_other(call: Call, inputs: Path, tmp_path: Path) -> None:
    done = call("frames", inputs / "frames", "--out", tmp_path, "--workers", 2, "--scheduler", "tcp://127.0.0.1:1")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "leave one out" in done.stderr


def test_workers_with_another_folder_of_the_same_name_are_noticed(
    call: Call, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_folder, "_SEEN_WITHIN_S", 0.2)
    monkeypatch.setattr(tiler, "cut_slide", lambda *_, **__: None)
    with threads_as_workers(1) as dask:
        done = call("tile", inputs / "tile", "--out", tmp_path / "out", "--scheduler", dask.scheduler_address)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "has to be the same folder on all machines" in done.stderr


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    dask = Cluster(tmp_path_factory.mktemp("cluster"), patient=True)
    yield dask
    dask.stop()


def kill_one_at_work(folder: Path, begun: Callable[[], bool]) -> str:
    """Kill a process that has an unfinished shard open, and give the name of what it had begun.

    It is stopped first: in the moment between looking and killing it could be done.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert begun()
        for opened in Path("/proc").glob("[0-9]*/fd/*"):
            pid, target = int(opened.parts[2]), _target(opened)
            if not target.startswith(f"{folder}/shards/") or not target.endswith(".part"):
                continue
            os.kill(pid, signal.SIGSTOP)
            if _target(opened) == target and Path(target).exists():
                os.kill(pid, signal.SIGKILL)
                return Path(target).name
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)
    pytest.fail("no worker was seen at work")


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # it ended, or belongs to somebody else
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_worker_had_begun_is_done_by_another(kind: str, started: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    (folder / "tile").mkdir(parents=True)
    write_inputs(folder, slides=5, width=6000, sequences=30)
    command = [sys.executable, "-m", "kdml_med.cli", kind, str(folder / kind), *map(str, words_for(kind, folder))]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    here = subprocess.run(
        [*command, "--out", str(tmp_path / "here")], capture_output=True, text=True, env=environment, check=False
    )
    there = subprocess.Popen(
        [*command, "--out", str(tmp_path / "there"), "--scheduler", started.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    begun = kill_one_at_work(tmp_path / "there", lambda: there.poll() is None)
    stdout, stderr = there.communicate(timeout=300)
    assert there.returncode == here.returncode == ExitCode.SOME_FAILED, stderr
    assert begun.startswith(".")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert stdout.replace("there", "here") == here.stdout
    if kind == "tile":
        assert _last_count(stderr) == _last_count(here.stderr)


def _last_count(bar: str) -> int:
    """Tiles looked at, as the bar says it last."""
    return int(bar.rpartition(" tiles, ")[0].rpartition(" ")[2])
