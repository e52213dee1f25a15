"""Whether networks that are trained in bfloat16 are as accurate as in float32, on real tiles and frames.

    KDML_MED_DATA=FOLDER python -m tests.benchmarks.check_precision --out DIR [--data glas kvasir] [--seeds 0 1 2] \
        [--version v1]

The cohorts of docs/plans are trained with KD + ML in both precisions, with the same seeds and on the same folds, and
compared pair by pair. Another version than theirs starts from random weights. What is done already in DIR is not done
again. Both sets take about half an hour for two seeds on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.experiments.comparison import comparison_table, summary_table
from kdml_med.experiments.plan import read_plan
from kdml_med.experiments.results import collect
from tests.benchmarks.racing import describe_machine

PLANS = Path(__file__).parents[2] / "docs" / "plans"
WEIGHTS = "weights/mobilenet_v2_features.imagenet.fp16.safetensors"
ARMS = {"float32": "fp32", "bfloat16": "bf16"}


def prepare_glas(data: Path, out: Path) -> None:
    """Tiles of fields, five folds of patients; as in docs/results.md."""
    fields = data / "histology" / "glas"
    labels = ["--labels", str(fields / "labels.csv"), "--label-level", "slide", "--label-column", "grade"]
    resolution = ["--assume-mpp", "0.62", "--mpp", "1.4", "--tile-size", "96"]
    _program("tile", str(fields / "images"), *labels, "--positive", "malignant", "--out", str(out), *resolution)
    _program("split", str(out), "--folds", "5", "--seed", "0")


def prepare_kvasir(data: Path, out: Path) -> None:
    """Frames with boxes: the 200 of ``val`` test, every tenth of the others validates; as in docs/results.md."""
    frames = data / "polyp" / "kvasir-seg"
    boxes = pd.read_csv(frames / "boxes.csv")
    others = boxes.loc[boxes["split"] == "train", "image"].drop_duplicates()
    split = dict.fromkeys(others, "train") | dict.fromkeys(others.iloc[::10], "val")
    boxes["split"] = boxes["image"].map(split).fillna("test")
    table = out.with_suffix(".csv")
    boxes.to_csv(table, index=False)
    specks = (3,)  # some boxes are specks, which are left out and told
    _program("frames", str(frames / "images"), "--annotations", str(table), "--out", str(out), allowed=specks)


@dataclass(frozen=True)
class Source:
    """A public set.

    Attributes:
        plan: file in docs/plans whose settings are used.
        prepare: makes the dataset folder.
        evaluations: what is tested; None for what the plan says.
    """

    plan: str
    prepare: Callable[[Path, Path], None]
    evaluations: dict[str, Any] | None = None


SOURCES = {
    "glas": Source("glas.json", prepare_glas),
    "kvasir": Source("kvasir.json", prepare_kvasir, {"kvasir": {"split": "test"}}),
}


def _program(*words: str, allowed: Sequence[int] = ()) -> None:
    code = subprocess.run([sys.executable, "-m", "kdml_med.cli", *words], check=False).returncode
    if code and code not in allowed:
        raise SystemExit(code)  # it has said why


def write_plan(
    name: str, source: Source, data: Path, out: Path, seeds: Sequence[int], version: str | None = None
) -> Path:
    """The plan of both arms, beside the results; with another version than the plan's, from random weights."""
    content = json.loads((PLANS / source.plan).read_text())
    settings = content["settings"] | {"initial_weights": str(data / WEIGHTS)}
    if version is not None:
        settings = {key: value for key, value in settings.items() if key not in ("initial_weights", "frozen_stages")}
        content["versions"] = [version]
    arms = [{"name": arm, "like": "kdml", "settings": {"precision": precision}} for arm, precision in ARMS.items()]
    content |= {"name": f"{content['name']}: precision", "dataset_dir": str(out / name), "settings": settings}
    content |= {"arms": arms, "reference": "bfloat16", "seeds": list(seeds)}
    if source.evaluations is not None:
        content["evaluations"] = source.evaluations
    path = out / f"{name}.json"
    path.write_text(json.dumps(content, indent=4))
    return path


def results_of(out: Path, name: str, version: str | None) -> Path:
    """Folder of the results of a set and a version."""
    return out / "_".join(["results", name, *([version] if version else [])])


def print_comparison(name: str, plan_file: Path, results_dir: Path) -> None:
    """Figures of both precisions and their paired difference."""
    plan = read_plan(plan_file)
    results = collect(plan, results_dir)
    figures = summary_table(results).set_index(["version", "evaluation", "role", "metric", "arm"])
    for row in comparison_table(results).itertuples():
        shown = []
        for arm in ARMS:
            figure = figures.loc[(row.version, row.evaluation, row.role, row.metric, arm)]
            shown.append(f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})")
        difference = f"{row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f}) | {row.p_value:.2f}"
        units = f"{row.units} {row.unit}s, {row.seeds} seeds"
        print(f"| {name} | {row.version} | {row.role} | {row.metric} | {' | '.join(shown)} | {difference} | {units} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of datasets and results")
    parser.add_argument("--data", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--version", help="cohort, such as v1; unless given, that of the plan")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()
    if "KDML_MED_DATA" not in os.environ:
        raise SystemExit("KDML_MED_DATA does not name the folder of the research data: there is nothing to train on.")
    data, out = Path(os.environ["KDML_MED_DATA"]).resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    plans = {}
    for name in arguments.data:
        source = SOURCES[name]
        if not (out / name / "splits.csv").exists():
            source.prepare(data, out / name)
        plans[name] = write_plan(name, source, data, out, arguments.seeds, arguments.version)
        run = [sys.executable, "-m", "kdml_med.experiments", "run", str(plans[name])]
        subprocess.run(
            [*run, "--out", str(results_of(out, name, arguments.version)), "--jobs", str(arguments.jobs)], check=True
        )
    print(f"{describe_machine()}\n")
    arms = " | ".join(ARMS)
    print(f"| data | version | role | figure | {arms} | bfloat16 − float32 | p | of |\n" + "|---" * 9 + "|")
    for name, plan in plans.items():
        print_comparison(name, plan, results_of(out, name, arguments.version))


if __name__ == "__main__":
    main()
