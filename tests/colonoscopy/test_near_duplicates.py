import io

import numpy as np
import PIL.Image
import pytest

from kdml_med.colonoscopy.near_duplicates import HASH_BITS, NEAR_BITS, find_near_duplicates, hash_view

ORDER = {"test": 0, "val": 1, "train": 2}


def picture(seed, size=(160, 120)):
    """Smooth blobs, as folds and light are."""
    small = np.random.default_rng(seed).uniform(40, 220, (18, 24, 3)).astype(np.uint8)
    return PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC)


def as_jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return PIL.Image.open(stream)


def bits(one, other):
    return int((hash_view(one) != hash_view(other)).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_same_view_has_nearly_the_same_hash_and_another_view_another(seed):
    image = picture(seed)
    brighter = image.point(lambda level: min(255, round(1.1 * level)))
    for same in (image.resize((96, 72)), as_jpeg(image, 60), brighter):
        assert bits(image, same) <= NEAR_BITS
    assert bits(image, picture(seed + 100)) > 1.5 * NEAR_BITS
    assert hash_view(image).shape == (HASH_BITS,)


def test_what_stands_in_the_corners_does_not_count():
    marked = picture(1)
    marked.paste((0, 160, 120), (0, 96, 30, 120))
    assert bits(picture(1), marked) == 0


def flipped(hashes, count):
    other = hashes.copy()
    other[:count] = ~other[:count]
    return other


def test_frames_are_left_out_of_the_later_split_and_only_where_what_they_resemble_stays():
    a, b, c = (np.random.default_rng(seed).uniform(size=HASH_BITS) > 0.5 for seed in range(3))
    hashes = {
        "test_a": a, "val_a": flipped(a, 10), "train_a": flipped(a, 20), "val_b": b, "train_b": flipped(b, 54),
        "train_c": c, "train_c_too": c, "val_d": flipped(b, 55),
    }  # fmt: skip
    parts = {name: name.split("_")[0] for name in hashes}
    found = find_near_duplicates(hashes, parts, ORDER)
    assert [(one.sample_id, one.part, one.like, one.like_part, one.bits) for one in found] == [
        ("train_a", "train", "test_a", "test", 20),
        ("train_b", "train", "val_d", "val", 1),
        ("val_a", "val", "test_a", "test", 10),
    ]


def test_a_frame_that_only_resembles_one_that_is_left_out_stays():
    a = np.random.default_rng(0).uniform(size=HASH_BITS) > 0.5
    hashes = {"test": a, "val": flipped(a, 50), "train": flipped(a, 100)}
    found = find_near_duplicates(hashes, {name: name for name in hashes}, ORDER)
    assert [one.sample_id for one in found] == ["val"]


def test_every_pair_is_judged_as_by_comparing_one_by_one():
    generator = np.random.default_rng(0)
    base = generator.uniform(size=(40, HASH_BITS)) > 0.5
    noise = generator.uniform(size=(600, HASH_BITS)) < generator.uniform(0.05, 0.4, (600, 1))
    views = base[generator.integers(40, size=600)] ^ noise
    hashes = {f"{number:03}": view for number, view in enumerate(views)}
    parts = {name: ("test", "val", "train")[int(name) % 3] for name in hashes}
    kept, expected = [], []
    for part in ORDER:
        own = [name for name in hashes if parts[name] == part]
        near = [n for n in own if any((hashes[n] != hashes[k]).sum() <= NEAR_BITS for k in kept)]
        expected += near
        kept += [name for name in own if name not in near]
    found = find_near_duplicates(hashes, parts, ORDER)
    assert [one.sample_id for one in found] == sorted(expected)
    assert all(one.bits == (hashes[one.sample_id] != hashes[one.like]).sum() for one in found)
    assert len(expected) > 50
