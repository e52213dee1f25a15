"""Whether the wheel alone does everything: built from the repository, installed elsewhere, run from an empty folder.

python -m tests.wheel

Packages that the wheel needs are those of the environment that runs this: they are put on the path of the new one,
which therefore downloads nothing. The new one knows kdml_med from the wheel only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Whatever else lies in the repository must not get into the wheel by accident.
SOURCES = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "kdml_med", "preprocessing", "bundles"]
_WHERE = """
import importlib.util, pathlib, kdml_med
home = pathlib.Path(kdml_med.__file__).parent
assert home.is_relative_to(pathlib.Path({site!r})), home
assert importlib.util.find_spec("preprocessing") is None, "a package called preprocessing was installed"
for name in ("py.typed", "__init__.pyi", "bundles/msi_kdml/configs/train.json", "bundles/polyp_kdml/LICENSE"):
    assert (home / name).is_file(), name
from kdml_med.bundle.running import bundle_dir
assert bundle_dir("detection") == home / "bundles/polyp_kdml"
"""
# A config that is named to MONAI keeps its default folders out of the package.
_DEFAULTS = """
import warnings, pathlib
from monai.bundle import ConfigWorkflow
from kdml_med.bundle.running import bundle_dir
config = str(bundle_dir("classification") / "configs/train.json")
found = ConfigWorkflow(config_file=config, logging_file=False, init_id="run_dir").initialize()
assert found == [str(pathlib.Path.cwd() / "runs/train")], found
"""
WRITTEN = [
    "demo/run/metrics.json",
    "demo/run/evaluation_test/metrics.json",
    "demo/run/report.html",
    "demo/prediction/patients.csv",
    "demo/prediction/tiles.parquet",
]


def main() -> None:
    """Build, install, run; raises where anything is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="kdml_med_wheel_") as folder:
        wheel = build_wheel(Path(folder))
        python = install(wheel, Path(folder) / "venv")
        try_it(python, Path(folder) / "empty")
    _say("the wheel does it all")


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that nothing of an earlier build gets into it."""
    source = folder / "source"
    source.mkdir(parents=True)
    leave = shutil.ignore_patterns("__pycache__", "data", "runs", "*.egg-info")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            # The library has a room called data; the bundles have a folder of that name that is not to be copied.
            shutil.copytree(path, source / name, ignore=leave if name == "bundles" else None)
        else:
            shutil.copy(path, source / name)
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    _say(f"built {wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB")
    return wheel


def install(wheel: Path, venv: Path) -> Path:
    """Install into a new environment that sees the packages of this one; returns its Python."""
    _run([sys.executable, "-m", "venv", "--without-pip", venv], wheel.parent)
    python = venv / "bin" / "python"
    site = _site(python)
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    words = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], wheel.parent)
    return python


def try_it(python: Path, empty: Path) -> None:
    """Everything from an empty folder: generate, tile, split, train, evaluate, predict, report, export."""
    empty.mkdir()
    site = _site(python)
    before = _files(site)
    _run([python, "-c", _WHERE.format(site=str(site))], empty)
    _say("kdml_med comes from the wheel, with types and bundles and without a package called preprocessing")
    command = python.with_name("kdml-med")
    _run([command, "--version"], empty)
    _run([command, "demo", "--tiny"], empty)
    _run([command, "report", "demo/run"], empty)
    _run([command, "export", "demo/run", "--out", "exported"], empty)
    _run([command, "export", "demo/run", "--format", "monai-bundle", "--out", "bundle"], empty)
    missing = [name for name in WRITTEN if not (empty / name).is_file()]
    assert not missing, missing
    assert list((empty / "exported").rglob("*.onnx")), "no model was exported"
    _run([python, "-c", _DEFAULTS], empty)
    assert _files(site) == before, f"something was written into the package: {sorted(_files(site) - before)[:3]}"


def _site(python: Path) -> Path:
    words = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    return Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())


def _files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return set(found)


def _run(words: Sequence[str | Path], cwd: Path) -> None:
    """Run a program that sees neither the repository nor what this process was told about it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    shown = " ".join(str(word) if "\n" not in str(word) else "…" for word in words)
    assert result.returncode == 0, (
        f"{shown} ended with {result.returncode}:\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
