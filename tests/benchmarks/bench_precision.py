"""What bfloat16 and channels-last memory gain in training, network by network: the table behind ``--precision auto``.

    python -m tests.benchmarks.bench_precision

prints one row for each network and size of images: forward and backward pass in float32 as it comes, and the time of
the other ways as a share of that. Processor time of one thread; the ways take turns, and of each the shortest of the
rounds counts, so that it can run on a machine that does something else, too. ``--isa avx2`` keeps torch from newer
instructions, as on an older processor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from kdml_med.engines.precision import Arithmetic, choose_arithmetic, measure_steps
from kdml_med.networks import build_network

WAYS = (
    Arithmetic("fp32", "contiguous"),
    Arithmetic("fp32", "channels_last"),
    Arithmetic("bf16", "contiguous"),
    Arithmetic("bf16", "channels_last"),
)
CLASSIFIERS: dict[str, Any] = {
    "ResNet-50": "resnet50",
    "ResNet-18": "resnet18",
    "ResNet-10": "resnet10",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV2 to block 13": {"name": "mobilenet_v2", "last_block": 13},
    "EfficientNet-Lite0": "efficientnet_lite0",
    "EfficientNet-Lite2": "efficientnet_lite2",
    "EfficientNet-Lite0 to block 11": {"name": "efficientnet_lite0", "last_block": 11},
    "ConvNet, width 48": {"name": "convnet", "width": 48},
    "ConvNet, width 16": {"name": "convnet", "width": 16},
}
DETECTORS: dict[str, Any] = {
    "RetinaNet, ResNet-50, width 128": {"name": "retinanet", "body": "resnet50", "width": 128},
    "RetinaNet, ResNet-18": {"name": "retinanet", "body": "resnet18"},
    "RetinaNet, ResNet-10, width 32, 2 convolutions": {
        "name": "retinanet", "body": "resnet10", "width": 32, "head_convs": 2,
    },
    "RetinaNet, MobileNetV2": {"name": "retinanet"},
    "RetinaNet, MobileNetV2, width 96, 2 convolutions": {"name": "retinanet", "width": 96, "head_convs": 2},
    "RetinaNet, MobileNetV2, 2 convolutions": {"name": "retinanet", "head_convs": 2},
    "RetinaNet, EfficientNet-Lite0": {"name": "retinanet", "body": "efficientnet_lite0"},
    "RetinaNet, EfficientNet-Lite2, width 96": {"name": "retinanet", "body": "efficientnet_lite2", "width": 96},
}  # fmt: skip
BATCH = {32: 16, 64: 16, 96: 16, 128: 16, 160: 8, 192: 8, 224: 8, 256: 4}
ISA = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def cases(only: str | None) -> Iterator[tuple[str, Any, int, int]]:
    """Name, spec, classes and side of what is measured."""
    for group, classes, sides in (
        (CLASSIFIERS, 2, (32, 64, 96, 128, 160, 192, 224)),
        (DETECTORS, 1, (64, 128, 192, 256)),
    ):
        for name, spec in group.items():
            if only is None or only in name:
                yield from ((name, spec, classes, side) for side in sides)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="part of the names of networks")
    parser.add_argument("--isa", choices=["avx2"], help="instructions that torch may use; those there are by default")
    options = parser.parse_args()
    if options.isa and any(os.environ.get(name) != value for name, value in ISA.items()):
        # Read when torch is loaded.
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], os.environ | ISA)
    torch.set_num_threads(options.threads)
    print("| network | side, px | batch | float32, ms | " + " | ".join(map(str, WAYS[1:])) + " | `auto` |")
    print("|---|---|---|---|" + "---|" * len(WAYS), flush=True)
    for name, spec, classes, side in cases(options.only):
        network, batch = build_network(spec, num_classes=classes), BATCH[side]
        batch = batch if classes == 2 else min(batch, 8)
        seconds = measure_steps(
            {name: network}, WAYS, device="cpu", batch_size=batch, size=(side, side), rounds=options.rounds,
            clock=time.process_time,
        )[name]  # fmt: skip
        base = seconds[WAYS[0]]
        shares = " | ".join(f"{seconds[way] / base:.2f}" for way in WAYS[1:])
        chosen = choose_arithmetic(network, device="cpu", side_px=side).precision
        print(f"| {name} | {side} | {batch} | {base * 1e3:.0f} | {shares} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
