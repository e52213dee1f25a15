"""Scripts in examples/, run as they are."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fsspec
import pytest

from kdml_med.errors import ExitCode
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.tiler import tile_slides
from tests.bundles.conftest import REPOSITORY
from tests.colonoscopy.pictures import contents
from tests.synthetic_slides import write_slide

SCRIPT = REPOSITORY / "examples" / "tile_object_store.py"
OPTIONS = TilingOptions(tile_size_px=64)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    found = importlib.util.spec_from_file_location("tile_object_store", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(3):
        write_slide(folder / f"s{number}.svs", width=900, height=700, seed=number)
    return folder


def test_slides_of_an_object_store_give_the_folder_of_local_ones(
    example: ModuleType, slides: Path, tmp_path: Path
) -> None:
    tile_slides([slides], tmp_path / "local", OPTIONS, progress=False)
    store = fsspec.filesystem("memory")
    store.put(str(slides), "/archive", recursive=True)
    (tmp_path / "cut.svs").write_bytes((slides / "s0.svs").read_bytes()[:9000])
    store.put_file(str(tmp_path / "cut.svs"), "/archive/deeper/cut.svs")
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    failed = example.tile_object_store("memory://archive", scratch, out, OPTIONS, at_a_time=2)
    assert list(failed) == ["cut.svs"]
    different = {name for name, data in contents(tmp_path / "local").items() if contents(out)[name] != data}
    assert different == {"failures.csv"}
    assert "cut.svs" in (out / "failures.csv").read_text()  # which the slides of later groups do not take away
    assert not scratch.exists()
    write_slide(tmp_path / "cut.svs", width=900, height=700, seed=3)
    store.put_file(str(tmp_path / "cut.svs"), "/archive/deeper/cut.svs")
    assert example.tile_object_store("memory://archive", scratch, out, OPTIONS) == {}
    tile_slides([slides, tmp_path / "cut.svs"], tmp_path / "local", OPTIONS, progress=False)
    assert contents(out) == contents(tmp_path / "local")


def test_slides_that_share_a_name_are_named_and_left_out(example: ModuleType, slides: Path, tmp_path: Path) -> None:
    shutil.copytree(slides, tmp_path / "store" / "a")
    (tmp_path / "store" / "b").mkdir()
    shutil.copy(slides / "s1.svs", tmp_path / "store" / "b" / "s0.svs")
    failed = example.tile_object_store(f"file://{tmp_path / 'store'}", tmp_path / "scratch", tmp_path / "out", OPTIONS)
    assert {Path(path).parent.name for path in failed} == {"a", "b"}
    assert {Path(path).name for path in failed} == {"s0.svs"}
    assert all("another slide has this name" in reason for reason in failed.values())
    assert sorted(path.stem for path in (tmp_path / "out" / "shards").glob("*.tar")) == ["s1", "s2"]


def test_the_script_is_run_as_its_first_lines_say(slides: Path, tmp_path: Path) -> None:
    words = [f"file://{slides}", str(tmp_path / "scratch"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    assert len(list((tmp_path / "out" / "shards").glob("*.tar"))) == 3
