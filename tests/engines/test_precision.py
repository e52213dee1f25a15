"""Which precision the rule takes, and how it is measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kdml_med.engines import precision as module
from kdml_med.engines.precision import Arithmetic, Kind, choose_arithmetic, kind_of, measure_steps, ways_to_compute
from kdml_med.errors import InputError
from kdml_med.networks import build_network
from kdml_med.networks.devices import check_precision, native_types
from tests.networks.tiny import TinyNet

SAFE = Arithmetic("fp32", "channels_last")
SHORT = Arithmetic("bf16", "channels_last")


def let_compute(monkeypatch: pytest.MonkeyPatch, *types: str) -> None:
    monkeypatch.setattr(module, "native_types", lambda _device: frozenset(types))
    monkeypatch.setattr(module, "processor", lambda: "model: 17; vendor_id\t: AuthenticAMD")


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("resnet50", Kind.DENSE),
        ("mobilenet_v2", Kind.SEPARABLE),
        ("efficientnet_lite0", Kind.OTHER),
        ({"name": "retinanet", "body": "resnet18"}, Kind.DENSE),
        ({"name": "retinanet"}, Kind.SEPARABLE),
    ],
)
def test_the_kind_of_a_network_is_that_of_its_convolutions(spec: Any, kind: Kind) -> None:
    assert kind_of(build_network(spec, num_classes=1)) is kind


def test_a_network_without_convolutions_was_not_measured() -> None:
    assert kind_of(nn.Linear(2, 2)) is Kind.OTHER


@pytest.mark.parametrize("spec", ["resnet10", "mobilenet_v2", {"name": "retinanet", "body": "resnet10"}], ids=str)
def test_without_types_of_its_own_a_processor_stays_in_float32(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch)
    assert choose_arithmetic(build_network(spec, num_classes=1), device="cpu", side_px=224) == SAFE


def test_the_rule_turns_at_the_size_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch, "bf16")
    monkeypatch.setattr(module, "_BFLOAT16_FROM_PX", {Kind.DENSE: 96})
    resnet, mobilenet = (build_network(name, num_classes=2) for name in ("resnet10", "mobilenet_v2"))
    detector = build_network({"name": "retinanet", "body": "resnet10"}, num_classes=1)
    chosen = [choose_arithmetic(resnet, device="cpu", side_px=size) for size in (0, 95, 96, 500)]
    assert chosen == [SAFE, SAFE, SHORT, SHORT]
    assert choose_arithmetic(detector, device="cpu", side_px=96) == SHORT
    assert choose_arithmetic(mobilenet, device="cpu", side_px=500) == SAFE, "nothing was measured"
    assert choose_arithmetic(nn.Linear(2, 2), device="cpu", side_px=500) == SAFE


def test_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch, "bf16")
    resnet, mobilenet = (build_network(name, num_classes=2) for name in ("resnet10", "mobilenet_v2"))
    assert [choose_arithmetic(resnet, device="cpu", side_px=size) for size in (31, 32, 224)] == [SAFE, SHORT, SHORT]
    assert [choose_arithmetic(mobilenet, device="cpu", side_px=size) for size in (96, 191, 192)] == [SAFE, SAFE, SHORT]


@pytest.mark.parametrize("maker", ["vendor_id\t: GenuineIntel", "", "arm"])
@pytest.mark.parametrize("spec", ["resnet10", "mobilenet_v2"])
def test_processors_of_other_makers_stay_in_float32(spec: str, maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch, "bf16")
    network = build_network(spec, num_classes=2)
    assert choose_arithmetic(network, device="cpu", side_px=224) == SHORT
    monkeypatch.setattr(module, "processor", lambda: maker)
    assert choose_arithmetic(network, device="cpu", side_px=224) == SAFE
    assert SHORT in ways_to_compute("cpu"), "it can still be measured, and asked for"


def test_larger_kernels_of_one_channel_were_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch, "bf16")
    network = build_network("efficientnet_lite0", num_classes=2)
    assert choose_arithmetic(network, device="cpu", side_px=256) == SAFE


@pytest.mark.parametrize(("types", "precision"), [(("fp16",), "fp16"), (("fp16", "bf16"), "bf16")])
def test_a_gpu_computes_in_what_it_has(types: Any, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    let_compute(monkeypatch, *types)
    network = build_network("resnet10", num_classes=2)
    assert choose_arithmetic(network, device="cuda:0", side_px=0) == Arithmetic(precision, "channels_last")
    assert ways_to_compute("cuda")[0] == Arithmetic("fp32", "contiguous")
    assert {way.precision for way in ways_to_compute("cuda")} == {"fp32", *types}


@pytest.mark.parametrize(("capability", "types"), [((7, 5), {"fp16"}), ((8, 0), {"fp16", "bf16"})])
def test_types_of_gpus_follow_from_their_capability(
    capability: Any, types: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert native_types("cuda") == types
    check_precision("fp16", "cuda")
    if "bf16" not in types:
        with pytest.raises(InputError, match="precision bf16 is not for device 'cuda': use --precision fp16"):
            check_precision("bf16", "cuda")


@pytest.mark.parametrize(("bf16", "amx", "types"), [(0, 0, set()), (1, 0, {"bf16"}), (0, 1, {"bf16"})])
def test_types_of_processors_follow_from_their_instructions(
    bf16: bool, amx: bool, types: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert native_types("cpu") == types
    check_precision("bf16", "cpu")
    check_precision("fp32", "cpu")


@pytest.mark.parametrize(("precision", "device"), [("fp16", "cpu"), ("fp16", "mps"), ("bf16", "mps")])
def test_what_a_device_cannot_do_is_refused(precision: str, device: str) -> None:
    with pytest.raises(InputError, match=f"precision {precision} .*{device}"):
        check_precision(precision, device)


def test_the_shortest_of_several_turns_counts() -> None:
    ways = [Arithmetic("fp32", "contiguous"), Arithmetic("bf16", "channels_last")]
    # A turn that does not count, then three; each way is begun and ended, one after the other.
    durations = [9.0, 9.0, 3.0, 5.0, 2.0, 7.0, 4.0, 6.0]

    def times() -> Iterator[float]:
        now = 0.0
        for duration in durations:
            yield now
            now += duration
            yield now

    ticking = times()
    network = TinyNet(2)
    before = copy.deepcopy(network.state_dict())
    measured = measure_steps(
        {"student_0": network}, ways, device="cpu", batch_size=2, size=(8, 12), rounds=3, clock=lambda: next(ticking)
    )
    assert measured == {"student_0": {ways[0]: 2.0, ways[1]: 5.0}}
    assert next(ticking, None) is None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())


def test_detectors_are_measured_like_classifiers() -> None:
    detector = build_network(
        {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}, num_classes=1
    )
    ways = ways_to_compute("cpu")
    measured = measure_steps({"teacher": detector}, ways, device="cpu", batch_size=1, size=(64, 64), rounds=1)
    assert set(measured["teacher"]) == set(ways)
    assert all(0 < seconds < float("inf") for seconds in measured["teacher"].values())
