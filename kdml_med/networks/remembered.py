"""What a frozen teacher has answered before, so that it need not answer to the same image again.

An answer depends on nothing but the network, the image and the arithmetic. Its key is a hash of the image as the
teacher sees it, after every transform: what another seed, another setting or an edited config changes is another image,
and an image that comes again, in another epoch or in another run, is known. The size of the batch is part of the
arithmetic: libraries add up in another order for another one, and round differently. The other images are not.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdml_med.keys import NetworkName
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.devices import native_types, processor
from kdml_med.networks.stages import answer_with_features

Bytes = npt.NDArray[np.uint8]

_KEY_BYTES = 16


class Records(Protocol):
    """Where answers are kept; ``kdml_med.storage.records.RecordStore`` is one."""

    def read(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Bytes]:
        """Which keys there are, bool [keys], and their records, uint8 [keys, size]."""

    def write(self, keys: Sequence[bytes], records: Bytes) -> None:
        """Keep records, uint8 [keys, size]."""


class RememberedTeacher:
    """Asks a frozen teacher only about batches with an image that it has not seen, in training and in evaluation.

    Args:
        open_records: called with a name, for what is answered under the same circumstances, and the bytes of a record.
        features: keep feature maps, too, which losses with links by features read; without, answers of detectors come
            without their pyramid.

    Attributes:
        asked: images that the teacher answered to.
        known: images of batches whose answers were all there.
    """

    def __init__(self, open_records: Callable[[str, int], Records], *, features: bool = False) -> None:
        self._open, self._features = open_records, features
        self._networks: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._opened: dict[str, tuple[_Layout, Records]] = {}
        self.asked = self.known = 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Copies of a cohort have one memory."""
        return self

    def attach(self, cohort: Cohort) -> None:
        """Answer for the teacher of a cohort from now on.

        Raises:
            ValueError: its teacher is not frozen.
        """
        if not cohort.frozen_teacher:
            raise ValueError("only the answers of a frozen teacher stay the same: name it by teacher_checkpoint.")
        cohort.remembered = self
        for part in cohort.networks[NetworkName.TEACHER].modules():  # a member of a committee may be loaded alone
            part.register_load_state_dict_post_hook(self._forget)

    def answer(self, teacher: nn.Module, called: Callable[[Tensor], Any], image: Tensor, strides: Sequence[int]) -> Any:
        """What the teacher answers.

        Args:
            teacher: in evaluation mode.
            called: what answers in its place; the teacher itself, or what it was compiled to.
            image: float, [batch, channels, height, width].
            strides: of the feature maps that are asked for.
        """
        circumstances = f"{self._circumstances(teacher, image, strides)} {called is teacher}"
        keys = _hash_images(image)
        if circumstances not in self._opened:  # nobody but the teacher knows what its answers look like
            layout = _Layout.of(self._ask(teacher, teacher, image[:1], strides))
            name = hashlib.sha256(f"{circumstances} {layout}".encode()).hexdigest()[:32]
            self._opened[circumstances] = layout, self._open(name, layout.size)
        layout, records = self._opened[circumstances]
        there, found = records.read(keys)
        if not there.all():
            # All of them: fewer would be a batch of another size.
            found = layout.pack(self._ask(teacher, called, image, strides))
            records.write([key for key, is_there in zip(keys, there, strict=True) if not is_there], found[~there])
            self.asked += len(keys)
        else:
            self.known += len(keys)
        return layout.unpack(found, image.device)

    def _ask(self, teacher: nn.Module, called: Callable[[Tensor], Any], image: Tensor, strides: Sequence[int]) -> Any:
        answer: Any = answer_with_features(teacher, image, strides) if strides else called(image)
        return answer if self._features or isinstance(answer, Tensor) else answer._replace(features=())

    def _circumstances(self, teacher: nn.Module, image: Tensor, strides: Sequence[int]) -> str:
        """All that an answer depends on but the image itself."""
        if teacher not in self._networks:
            self._networks[teacher] = _hash_network(teacher)
        kind = image.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if kind == "cpu":
            kinds = torch.backends.cpu.get_cpu_capability(), *sorted(native_types(kind)), processor()
            machine = f"{kinds} x {torch.get_num_threads()}"
        else:
            machine = torch.cuda.get_device_name(image.device)
        layouts = _is_channels_last(image), any(map(_is_channels_last, teacher.parameters()))
        arithmetic = [torch.__version__, kind, machine, autocast, image.dtype, *layouts]
        return " ".join(map(str, [self._networks[teacher], *arithmetic, tuple(image.shape), tuple(strides)]))

    def _forget(self, _part: nn.Module, _keys: Any) -> None:
        self._networks.clear()


class _Part(NamedTuple):
    """One tensor of an answer, without the images of the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    @property
    def size(self) -> int:
        """Bytes for an image."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Layout:
    """How answers are laid out in bytes.

    Attributes:
        kind: a tensor, or a named tuple of tensors whose last field are feature maps.
        parts: all tensors in order.
    """

    kind: type
    parts: tuple[_Part, ...]

    @property
    def size(self) -> int:
        """Bytes of the answer to one image."""
        return sum(part.size for part in self.parts)

    @classmethod
    def of(cls, answer: Any) -> _Layout:
        """The layout of answers like this one."""
        parts = [_Part(tuple(part.shape[1:]), part.dtype, _is_channels_last(part)) for part in _tensors(answer)]
        return cls(Tensor if isinstance(answer, Tensor) else type(answer), tuple(parts))

    def pack(self, answer: Any) -> Bytes:
        """uint8, [batch, size]."""
        rows = []
        for tensor, part in zip(_tensors(answer), self.parts, strict=True):
            ordered = tensor.permute(0, 2, 3, 1) if part.channels_last else tensor
            rows.append(ordered.detach().contiguous().flatten(1).view(torch.uint8))
        packed: Bytes = torch.cat(rows, dim=1).cpu().numpy()
        return packed

    def unpack(self, rows: Bytes, device: torch.device) -> Any:
        """The answer of these bytes."""
        tensors = []
        for part, own in zip(
            self.parts, torch.from_numpy(rows).split([part.size for part in self.parts], 1), strict=True
        ):
            flat = own.contiguous().view(part.dtype).to(device)
            if part.channels_last:
                channels, height, width = part.shape
                tensors.append(flat.view(-1, height, width, channels).permute(0, 3, 1, 2))
            else:
                tensors.append(flat.view(-1, *part.shape))
        if self.kind is Tensor:
            return tensors[0]
        plain = len(self.kind._fields) - 1  # type: ignore[attr-defined]
        return self.kind(*tensors[:plain], tuple(tensors[plain:]))


def _tensors(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [*answer[:-1], *answer[-1]]


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _hash_images(image: Tensor) -> list[bytes]:
    """A key for each image of a batch, of its bytes as they lie in memory."""
    ordered = image.permute(0, 2, 3, 1) if _is_channels_last(image) else image
    pixels = ordered.detach().contiguous().flatten(1).view(torch.uint8).cpu().numpy()
    return [hashlib.blake2b(own.data, digest_size=_KEY_BYTES).digest() for own in pixels]


def _hash_network(network: nn.Module) -> str:
    """SHA-256 of what a network is made of, of how it was set up, of its code and of its weights."""
    digest = hashlib.sha256(str(network).encode())
    tensors = network.state_dict() | dict(network.named_buffers())  # some are in no state dict
    for path, part in network.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                tensors[f"{path}.{name}"] = value
            elif name not in _OF_EVERY_MODULE:  # where an object lies in memory says nothing about it
                digest.update(f"{path}.{name} {re.sub('0x[0-9a-fA-F]+', '', repr(value))}".encode())
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    for content in sorted(hashlib.sha256(content).digest() for content in _code_of(network)):
        digest.update(content)
    return digest.hexdigest()


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _code_of(network: nn.Module) -> Iterator[bytes]:
    """Versions of the packages whose classes a network is made of, and the files of these classes with those beside."""
    names = {kind.__module__ for part in network.modules() for kind in type(part).__mro__} | {__name__}
    modules = [sys.modules[name] for name in names & sys.modules.keys()]
    for package in {module.__name__.partition(".")[0] for module in modules}:
        yield f"{package} {getattr(sys.modules.get(package), '__version__', None)}".encode()
    for path in {path for module in modules for path in _sources_of(module)}:
        yield path.read_bytes()


def _sources_of(module: ModuleType) -> list[Path]:
    """The file of a module, and of a package all that lie in the same folder; none of what is built in."""
    try:
        file = inspect.getsourcefile(module)
    except TypeError:
        return []
    if file is None:
        return []
    paths = Path(file).parent.glob("*.py") if module.__package__ else [Path(file)]
    return [path for path in paths if path.is_file()]
