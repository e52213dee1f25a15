"""Frames that show nearly the same view, told by a perceptual hash.

Source:
    Hash of the low frequencies of a cosine transform against their median, as in Zauner 2010, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", section 3.2.1; here of 16 x 16 frequencies instead of 8 x 8, and
    of the middle of the frame: all frames of one endoscope share their dark corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
from scipy.fft import dctn

Hashes = npt.NDArray[np.bool_]

_FREQUENCIES = 16
HASH_BITS = _FREQUENCIES**2 - 1
"""The mean is left out: brightness is no view."""
NEAR_BITS = 54
"""Bits in which two frames may differ. The 11 pairs of Kvasir-SEG below it are views of one place each, by eye; the
next begin at 60, and most of those are not."""
_MARGIN = 0.2  # share of each side that is left out
_ROWS = 256  # compared at once


@dataclass(frozen=True)
class NearDuplicate:
    """A frame that is left out because another part of the splits has nearly the same.

    Attributes:
        sample_id: left out.
        part: its split or fold.
        like: sample_id that stays.
        like_part: the split or fold of that one.
        bits: in which their hashes differ.
    """

    sample_id: str
    part: str
    like: str
    like_part: str
    bits: int


def hash_view(image: PIL.Image.Image) -> Hashes:
    """Perceptual hash of the middle of a picture, [HASH_BITS]; nearly the same for another size or compression."""
    width, height = image.size
    box = (_MARGIN * width, _MARGIN * height, (1 - _MARGIN) * width, (1 - _MARGIN) * height)
    side = 4 * _FREQUENCIES
    small = image.convert("L").resize((side, side), PIL.Image.Resampling.BOX, box=box)
    strengths = dctn(np.asarray(small, np.float64), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    return np.asarray(strengths > np.median(strengths))


def find_near_duplicates(
    hashes: Mapping[str, Hashes], parts: Mapping[str, str], order: Mapping[str, int], *, limit: int = NEAR_BITS
) -> list[NearDuplicate]:
    """Frames to leave out so that no two parts of the splits have nearly the same view.

    A frame stays unless a frame of an earlier part that stays is near; so nothing is taken from the first part.

    Args:
        hashes: by sample_id.
        parts: split or fold of each sample_id.
        order: rank of each part; the first ones keep their frames.
        limit: bits in which two hashes may differ and still count as near.

    Returns:
        By sample_id.
    """
    kept_ids: list[str] = []
    kept = np.empty((0, HASH_BITS), np.float32)
    found: list[NearDuplicate] = []
    for part in sorted(set(parts.values()), key=order.__getitem__):
        own = sorted(name for name in hashes if parts[name] == part)
        staying = []
        for start in range(0, len(own), _ROWS):
            names = own[start : start + _ROWS]
            signs = _signs([hashes[name] for name in names])
            nearest = _nearest(signs, kept)
            for name, sign, (place, bits) in zip(names, signs, nearest, strict=True):
                if bits <= limit:
                    like = kept_ids[place]
                    found.append(NearDuplicate(name, part, like, parts[like], bits))
                else:
                    staying.append((name, sign))
        kept_ids += [name for name, _ in staying]
        kept = np.concatenate([kept, np.array([sign for _, sign in staying], np.float32).reshape(-1, HASH_BITS)])
    return sorted(found, key=lambda one: one.sample_id)


def _signs(hashes: list[Hashes]) -> npt.NDArray[np.float32]:
    return np.where(np.array(hashes), np.float32(1), np.float32(-1))


def _nearest(signs: npt.NDArray[np.float32], kept: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Place of the nearest of those that stay, and bits in which it differs, for each row."""
    if not len(kept):
        return [(-1, HASH_BITS + 1)] * len(signs)
    # Of ± 1 the product is the bits that agree minus those that differ, in float32 exactly.
    agreement = signs @ kept.T
    places = agreement.argmax(axis=1)
    bits = (HASH_BITS - agreement[np.arange(len(signs)), places]) / 2
    return [(int(place), int(bit)) for place, bit in zip(places, bits, strict=True)]
