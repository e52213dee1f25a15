"""One loader of one checkout as a process that takes part in a race; see ``bench_loading``.

Run as a file, with PYTHONPATH naming the checkout, so that nothing but ``racing`` comes from this one.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from pathlib import Path

from monai.bundle import ConfigParser
from racing import take_part

import kdml_med

BUNDLES = {"msi": ("msi_kdml", "tiles_per_epoch"), "polyp": ("polyp_kdml", "frames_per_epoch")}


def _loading(arguments: argparse.Namespace) -> Callable[[], float]:
    """The training loader that the checkout's config describes, one epoch; the first batch is not counted."""
    name, length = BUNDLES[arguments.task]
    parser = ConfigParser()
    parser.read_config(Path(kdml_med.__file__).parents[1] / "bundles" / name / "configs" / "train.json")
    parser["dataset_dir"] = str(arguments.dataset)
    parser["num_workers"] = arguments.workers
    parser["batch_size"] = arguments.batch
    parser[length] = arguments.items + arguments.batch
    batches = iter(parser.get_parsed_content("train#dataloader"))
    next(batches)

    def work() -> float:
        nonlocal batches
        count = sum(len(batch["image"]) for batch in batches)
        del batches
        gc.collect()  # reading processes end, so that their time is known
        return count

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=BUNDLES)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--items", type=int, required=True)
    take_part(_loading(parser.parse_args()))


if __name__ == "__main__":
    main()
