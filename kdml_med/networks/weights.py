"""Start a network from published or own weights in a file, and refuse what does not fit."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdml_med.errors import InputError
from kdml_med.networks.mobilenet import MobileNetV2, torchvision_names
from kdml_med.networks.published import for_imagenet_colours
from kdml_med.networks.retinanet import RetinaNet

logger = logging.getLogger(__name__)

CLASSIFIER_PREFIXES = ("fc.", "classifier.", "_fc.")
SHORTENED_PREFIXES = ("features.", "_blocks.")

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_FOLDER = 0x10  # attribute of an entry of a zip archive, as MS-DOS has it


def load_on_cpu(path: Path) -> Any:
    """What ``torch.save`` wrote, without running any code of the file.

    Raises:
        Exception: nearly any; the file is damaged or another one.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch reads nothing of what is called a folder there, and takes for its numbers what lies in memory.
            if any(entry.external_attr & _FOLDER and entry.file_size for entry in archive.infolist()):
                raise ValueError(f"{path} holds tensors as folders")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_is_there(path: Path) -> None:
    """Refuse a file of weights that does not exist.

    Raises:
        InputError: it does not.
    """
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code of the file.

    Args:
        path: ``.safetensors``, or a file of ``torch.save`` with plain tensors (loaded with ``weights_only``).

    Raises:
        InputError: no such file, not readable as weights, or the file holds something else than named tensors.
    """
    path = Path(path)
    check_is_there(path)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_on_cpu(path)
    except Exception as error:  # a damaged file raises nearly anything, at length and with advice to run its code
        raise InputError(f"{path} cannot be read as weights: it was cut short, or is another file.") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} is not a plain state dict (names to tensors); export the network's state_dict().")
    for name, value in state.items():
        if not _is_plain(value):
            raise InputError(
                f"{path} is not a plain state dict: {name!r} is {_kind(value)}. Bring weights in float32 or float16."
            )
    check_finite(state, path)
    return dict(state)


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts on one device have the same names, and under each the same numbers."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is numbers in memory, with nothing beside them (scales, places) that gives them their sense."""
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    return dense and not (value.is_floating_point() and value.dtype not in _FLOATS)


def _kind(value: Tensor) -> str:
    layout = "" if value.layout is torch.strided else f", {str(value.layout).removeprefix('torch.')}"
    device = "" if value.device.type == "cpu" else f", on device {value.device.type}"
    return f"{str(value.dtype).removeprefix('torch.')}{layout}{device}"


def same_kind(found: Tensor, wanted: Tensor) -> bool:
    """Whether numbers mean the same in the other tensor: int8 weights without their scale are no float weights."""
    return found.is_floating_point() == wanted.is_floating_point() and found.is_complex() == wanted.is_complex()


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are no numbers: detectors would find nothing with them, without a word.

    Raises:
        InputError: names the file and the first such entry.
    """
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"{path}: the weights {name!r} are not finite: it is damaged, or of a training that went wrong. Bring "
                "back the file, or train again with a lower --learning_rate."
            )


def load_initial_weights(network: nn.Module, path: Path) -> list[str]:
    """Copy weights from a file into a network, by name.

    The classifier is left as it is where the file lacks it or has another number of classes. Layers of the file behind
    the end of a shortened body are left out. Everything else must fit, so that a network never starts half random.

    Args:
        network: changed in place; tensors are cast to its own dtype (fp16 files are fine).
        path: see ``read_state_dict``. Published weights that want other colours than ImageNet's are changed to
            them, see ``kdml_med.networks.published.for_imagenet_colours``; those of a MobileNetV2 may have the names
            of ``kdml_med.networks.mobilenet.torchvision_names``.

    Returns:
        Names of the network's own entries that the file did not fill (classifier only).

    Raises:
        InputError: entries of the body are missing in the file or have another shape, or the file has layers in the
            middle of the body that the network lacks.
    """
    source = for_imagenet_colours(read_state_dict(path))
    # A detector's weights are published for the classifier that its body was taken from.
    network = network.body if isinstance(network, RetinaNet) else network
    if isinstance(network, MobileNetV2):
        source = torchvision_names(source)
    target = network.state_dict()
    # Batch counters matter only to a batch norm with momentum=None, and published files often lack them.
    wanted = [name for name in target if not name.endswith("num_batches_tracked")]
    fitting = {name: source[name] for name in wanted if name in source and _fits(source[name], target[name])}
    unfilled = [name for name in wanted if name not in fitting]
    body = [name for name in unfilled if not name.startswith(CLASSIFIER_PREFIXES)]
    if body:
        name = body[0]
        found = f"shape {tuple(source[name].shape)}" if name in source else "nothing"
        if name in source and source[name].shape == target[name].shape:
            found += f" of {_kind(source[name])}"
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {len(body)} of {len(wanted)} entries, first {name!r}: "
            f"expected shape {tuple(target[name].shape)}, found {found}. Does the file belong to this architecture?"
        )
    surplus = [name for name in source if name not in target and _belongs_inside(name, network)]
    if surplus:
        raise InputError(
            f"{path} does not fit {type(network).__name__}: {len(surplus)} entries, first {surplus[0]!r}, have no "
            "place in it. Does the file belong to a deeper network?"
        )
    network.load_state_dict(fitting, strict=False)
    unused = len(set(source) - set(fitting))
    logger.info(
        "%s: %d entries loaded, %d left random, %d unused", Path(path).name, len(fitting), len(unfilled), unused
    )
    return unfilled


def _fits(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and same_kind(found, wanted)


def _belongs_inside(name: str, network: nn.Module) -> bool:
    """Whether an entry of a file lies within a part that the network has, other than behind a body cut short.

    A ResNet-34 holds every entry of a ResNet-18 in the same shape; only its surplus blocks tell them apart.
    """
    part = name.partition(".")[0]
    known = part in dict(network.named_children()) and not name.startswith(CLASSIFIER_PREFIXES)
    return known and not name.startswith(SHORTENED_PREFIXES) and not name.endswith("num_batches_tracked")
