import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose
from PIL import Image

from kdml_med.data import FrameDataset, NormalizeColourd, PlaceFrame, RandPlaceFrame, SampleLoader, TileDataset
from kdml_med.data.frames import move_boxes, move_pixels
from kdml_med.errors import InputError
from tests.data.folders import write_dataset
from tests.examples import examples
from tests.synthetic_frames import frame_pixels, write_frame_dataset

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(40, 200), st.integers(40, 200))
INPUTS = st.sampled_from([(64, 64), (64, 128), (192, 128)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_frame_dataset(tmp_path_factory.mktemp("frames"), frames=6)


def frame(height, width, box):
    """A black frame with one white rectangle, as a sample."""
    image = np.zeros((height, width, 3), np.uint8)
    if box is not None:
        image[box[1] : box[3], box[0] : box[2]] = 255
    boxes = np.zeros((0, 4), np.float32) if box is None else np.array([box], np.float32)
    return {"image": image, "label": boxes, "sample_id": "f"}


def draw_box(seed, height, width):
    """A box with sides of a third to two thirds of the frame, whole pixels."""
    generator = np.random.default_rng(seed)
    sides = generator.integers([width // 3, height // 3], [width * 2 // 3, height * 2 // 3])
    low = generator.integers(0, [width, height] - sides)
    return [*low.tolist(), *(low + sides).tolist()]


def bright_box(image):
    """Bounding box of what is more than half bright: [xmin, ymin, xmax, ymax]."""
    rows, columns = np.nonzero(image.mean(dim=0).numpy() > 0.5)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def placed(sample, size, seed, **kwargs):
    transform = RandPlaceFrame(size, **kwargs)
    transform.set_random_state(seed=seed)
    return transform(sample)


@settings(deadline=None)
@given(SIZES, INPUTS, SEEDS)
def test_a_frame_is_scaled_to_fit_and_its_boxes_with_it(stored, size, seed):
    box = draw_box(seed, *stored)
    sample = PlaceFrame(size)(frame(*stored, box))
    scale = min(size[0] / stored[0], size[1] / stored[1])
    assert sample["image"].shape == (3, *size)
    assert sample["image"].dtype == torch.float32
    assert sample["label"][0].tolist() == pytest.approx([scale * side for side in box], rel=1e-5)
    assert bright_box(sample["image"]) == pytest.approx(sample["label"][0].tolist(), abs=1.5)


def test_the_frame_stands_in_the_upper_left_corner_and_the_rest_is_black():
    # 48 rows of 64 columns into 128 x 64: one input pixel per stored pixel, which leaves the lower 80 rows.
    image = PlaceFrame((128, 64))(frame(48, 64, [0, 0, 64, 48]))["image"]
    assert (image[:, :48] == 1).all()
    assert (image[:, 48:] == 0).all()
    # And 24 x 64 into 64 x 64, with nothing left on the right.
    image = PlaceFrame(64)(frame(24, 64, [0, 0, 64, 24]))["image"]
    assert (image[:, :24] == 1).all()
    assert (image[:, 24:] == 0).all()


@settings(deadline=None)
@given(SIZES, INPUTS, SEEDS)
def test_the_scale_leads_boxes_back_to_the_stored_frame(stored, size, seed):
    box = draw_box(seed, *stored)
    sample = PlaceFrame(size)(frame(*stored, box))
    assert (sample["label"][0] / sample["scale"]).tolist() == pytest.approx(box, rel=1e-5)
    assert sample["frame_size"].tolist() == [stored[1], stored[0]]
    assert (sample["frame_size"] * sample["scale"] <= np.array([size[1], size[0]]) + 1e-3).all()


@settings(deadline=None, max_examples=examples(200))
@given(SIZES, INPUTS, SEEDS)
def test_boxes_move_with_the_pixels(stored, size, seed):
    sample = placed(frame(*stored, draw_box(seed, *stored)), size, seed)
    assert sample["image"].shape == (3, *size)
    for box in sample["label"].tolist():
        assert bright_box(sample["image"]) == pytest.approx(box, abs=1.5)


@settings(deadline=None)
@given(SIZES, INPUTS, SEEDS, st.floats(0.2, 0.9))
def test_boxes_are_cut_at_the_border_and_go_where_too_little_is_left(stored, size, seed, share):
    box = draw_box(seed, *stored)
    transform = RandPlaceFrame(size, min_visible=share, zoom=(1.0, 3.0), tries=1)
    transform.set_random_state(seed=seed)
    matrix = transform.matrix(transform.R.uniform(size=transform.draws), *stored)
    ends = np.array([matrix @ [*box[:2], 1], matrix @ [*box[2:], 1]])[:, :2]
    low, high = ends.min(axis=0), ends.max(axis=0)
    low_cut, high_cut = np.maximum(low, 0), np.minimum(high, [size[1], size[0]])
    left = np.maximum(high_cut - low_cut, 0).prod() / (high - low).prod()
    transform.set_random_state(seed=seed)
    boxes = transform(frame(*stored, box))["label"]
    assert boxes.dtype == torch.float32
    if left < share:
        assert boxes.shape == (0, 4)
    else:
        assert boxes.tolist() == [pytest.approx([*low_cut, *high_cut], abs=1e-3)]


def test_boxes_that_are_mostly_outside_go():
    # Zoomed ten times, a box in the corner and one in the middle are seldom both in view.
    sample = frame(100, 100, [0, 0, 10, 10])
    sample["label"] = np.array([[0, 0, 10, 10], [45, 45, 55, 55]], np.float32)
    counts = [len(placed(sample, 64, seed, zoom=(5.0, 5.0), tries=1)["label"]) for seed in range(60)]
    assert {0, 1} <= set(counts)
    assert 2 not in counts  # 45 px apart, that is 144 px of the input


def test_placements_are_drawn_again_while_they_lose_boxes():
    sample = frame(100, 100, [40, 40, 60, 60])
    once, often = (
        sum(len(placed(sample, 64, seed, zoom=(2.0, 2.0), tries=tries)["label"]) for seed in range(100))
        for tries in (1, 20)
    )
    assert once < often == 100


def corners(image):
    """Grey of the four corners, clockwise from the upper left one."""
    grey = image.mean(dim=0)
    return tuple(round(value.item(), 1) for value in (grey[2, 2], grey[2, -3], grey[-3, -3], grey[-3, 2]))


def test_all_quarter_turns_and_mirror_images_occur_and_keep_the_pixels():
    image = np.zeros((64, 64, 3), np.uint8)
    for value, (row, column) in zip((51, 102, 153, 204), ((0, 0), (0, 32), (32, 32), (32, 0)), strict=True):
        image[row : row + 32, column : column + 32] = value
    sample = {"image": image, "label": np.array([[0, 0, 32, 32]], np.float32)}  # the darkest quarter
    seen = set()
    for seed in range(80):
        result = placed(sample, 64, seed, zoom=(1.0, 1.0), stretch=1.0)
        arrangement = corners(result["image"])
        seen.add(arrangement)
        column, row = (0, 32)[arrangement.index(0.2) in (1, 2)], (0, 32)[arrangement.index(0.2) in (2, 3)]
        assert result["label"][0].tolist() == pytest.approx([column, row, column + 32, row + 32], abs=1e-3)
    turns = [(0.2, 0.4, 0.6, 0.8)[start:] + (0.2, 0.4, 0.6, 0.8)[:start] for start in range(4)]
    assert seen == {*turns, *(turn[::-1] for turn in turns)}


@settings(deadline=None)
@given(SIZES, SEEDS)
def test_zoom_and_stretch_stay_in_their_range(stored, seed):
    height, width = stored
    transform = RandPlaceFrame((64, 128), zoom=(0.8, 1.25), stretch=1.2)
    transform.set_random_state(seed=seed)
    linear = np.abs(transform.matrix(np.random.default_rng(seed).uniform(size=6), height, width)[:2, :2])
    turned = linear[0, 1] > linear[0, 0]
    along_x, along_y = linear.max(axis=1)
    fit = min(64 / width, 128 / height) if turned else min(64 / height, 128 / width)
    assert 0.8 - 1e-9 <= np.sqrt(along_x * along_y) / fit <= 1.25 + 1e-9
    assert 1 / 1.2 - 1e-9 <= along_x / along_y <= 1.2 + 1e-9
    assert np.count_nonzero(linear) == 2


@settings(deadline=None)
@given(SEEDS)
def test_pixels_under_a_plain_turn_are_numpys(seed):
    image = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    # A quarter turn clockwise, x' = 5 - y and y' = x; then mirrored, x' = 8 - x.
    turned = np.array([[0, -1, 5], [1, 0, 0], [0, 0, 1]], float)
    np.testing.assert_array_equal(move_pixels(image, turned, 8, 5), np.rot90(image, -1))
    mirrored = np.array([[-1, 0, 8], [0, 1, 0], [0, 0, 1]], float)
    np.testing.assert_array_equal(move_pixels(image, mirrored, 5, 8), image[:, ::-1])
    np.testing.assert_array_equal(move_pixels(image, np.eye(3), 5, 8), image)
    shifted = np.array([[1, 0, 2], [0, 1, -1], [0, 0, 1]], float)
    expected = np.zeros_like(image)
    expected[:-1, 2:] = image[1:, :-2]
    np.testing.assert_array_equal(move_pixels(image, shifted, 5, 8), expected)


@settings(deadline=None, max_examples=examples(50))
@given(SIZES, INPUTS, SEEDS)
def test_pixels_that_are_moved_are_pillows_to_the_rounding_of_each_axis(stored, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*stored, 3), dtype=np.uint8)
    transform = RandPlaceFrame(size)
    matrix = transform.matrix(np.random.default_rng(seed).uniform(size=6), *stored)
    found = move_pixels(image, matrix, *size).astype(int)
    # The same with views of NumPy and the resampling of a rectangle by Pillow.
    linear, offset = matrix[:2, :2], matrix[:2, 2]
    if linear[0, 0] == 0:
        image, linear = image.transpose(1, 0, 2), linear[:, ::-1]
    image = np.ascontiguousarray(image[:: 1 if linear[1, 1] > 0 else -1, :: 1 if linear[0, 0] > 0 else -1])
    sides, scale = np.array(image.shape[1::-1]), np.abs(np.diag(linear))
    low = offset + np.minimum(np.diag(linear) * sides, 0)
    first = np.round(np.maximum(low, 0)).astype(int)
    last = np.floor(np.minimum(low + scale * sides, size[::-1]) + 1e-6).astype(int)
    box = np.clip([(first - low) / scale, (last - low) / scale], 0, sides).ravel().tolist()
    shown = Image.fromarray(image).resize((last - first).tolist(), Image.Resampling.BILINEAR, box=box)
    expected = np.zeros((*size, 3), int)
    expected[first[1] : last[1], first[0] : last[0]] = shown
    # As far as half a pixel of the image they are those of an image that begins there.
    x, y = first + np.ceil(np.maximum(scale, 1) / 2).astype(int)
    assert not found[: first[1]].any()
    assert not found[:, : first[0]].any()
    assert np.abs(found - expected)[y:, x:].max() <= 2


def test_what_is_moved_out_of_the_input_leaves_it_black():
    away = np.array([[1, 0, 100], [0, 1, 0], [0, 0, 1]], float)
    assert not move_pixels(np.full((5, 8, 3), 255, np.uint8), away, 5, 8).any()


def test_noise_is_as_weak_in_training_as_afterwards():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    sample = {"image": noise, "label": np.zeros((0, 4), np.float32)}
    expected = PlaceFrame(64)(sample)["image"].std().item()
    trained = [placed(sample, 64, seed, zoom=(1.0, 1.0), stretch=1.0)["image"].std().item() for seed in range(4)]
    assert trained == pytest.approx([expected] * 4, rel=0.01)


@settings(deadline=None)
@given(SEEDS)
def test_moved_boxes_are_around_their_moved_corners(seed):
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 50, (4, 2))
    boxes = np.concatenate([low, low + generator.uniform(1, 50, (4, 2))], axis=1).astype(np.float32)
    matrix = np.eye(3)
    matrix[:2] = generator.uniform(-2, 2, (2, 3))
    matrix[:2, :2] *= [np.eye(2), 1 - np.eye(2)][seed % 2]  # axes stay axes
    moved = move_boxes(boxes, matrix)
    for (xmin, ymin, xmax, ymax), result in zip(boxes.tolist(), moved.tolist(), strict=True):
        points = [matrix @ [x, y, 1] for x in (xmin, xmax) for y in (ymin, ymax)]
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        assert result == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-4)


@pytest.mark.parametrize("transform", [PlaceFrame(64), RandPlaceFrame(64)])
def test_frames_without_boxes_and_the_input_itself(transform):
    sample = frame(40, 50, None)
    before = sample["image"].copy()
    result = transform(sample)
    assert result["label"].shape == (0, 4)
    assert result["label"].dtype == torch.float32
    assert result["sample_id"] == "f"
    assert sample["image"].shape == before.shape
    np.testing.assert_array_equal(sample["image"], before)
    assert "scale" not in sample


def test_the_same_seed_gives_the_same_placement():
    sample = frame(60, 80, [20, 20, 50, 40])
    first, again, other = (placed(sample, 64, seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["image"], other["image"])


def test_samples_carry_pixels_boxes_and_identifiers(folder):
    dataset = FrameDataset(folder, "train")
    assert len(dataset) == 12
    assert dataset.classes == ["negative", "polyp"]
    assert dataset.labels.tolist() == [0, 1, 1] * 4
    for position in range(6):
        sample = dataset[position]
        boxes = dataset.rows["boxes"][position]
        expected = np.array([list(box) for box in boxes], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(sample["label"], expected)
        assert sample["label"].dtype == np.float32
        assert len(expected) == position % 3
        np.testing.assert_array_equal(sample["image"], frame_pixels(expected, height=48, width=64, seed=position))
        assert (sample["sample_id"], sample["sequence_id"], sample["patient_id"]) == (f"P0/{position}", "P0-s", "P0")


def test_without_a_split_unlabelled_frames_have_no_boxes(tmp_path):
    dataset = FrameDataset(write_frame_dataset(tmp_path, labelled=False), transform=PlaceFrame(64))
    assert len(dataset) == 12
    assert set(dataset.labels) == {-1}
    assert all(dataset[position]["label"].shape == (0, 4) for position in range(3))


def augmented(folder, seed=0):
    transform = Compose([RandPlaceFrame((64, 128)), NormalizeColourd("image")])
    return FrameDataset(folder, "train", transform=transform, seed=seed)


def test_placement_depends_on_seed_epoch_and_sample_only(folder):
    dataset = augmented(folder)
    first = dataset[3, 4]
    dataset[3, 1], dataset[7, 4], dataset[4]
    for key in ("image", "label"):
        assert torch.equal(dataset[3, 4][key], first[key])
        assert torch.equal(augmented(folder)[3, 4][key], first[key])
    assert not torch.equal(dataset[4, 4]["image"], first["image"])
    assert not torch.equal(augmented(folder, seed=1)[3, 4]["image"], first["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_keep_the_boxes_of_each_image_in_a_list(folder, num_workers):
    dataset = FrameDataset(folder, "val", transform=PlaceFrame((64, 128)))
    batches = list(SampleLoader(dataset, batch_size=4, num_workers=num_workers))
    assert [len(batch["label"]) for batch in batches] == [4, 2]
    batch = batches[0]
    assert isinstance(batch["label"], list)
    assert [tuple(boxes.shape) for boxes in batch["label"]] == [(0, 4), (1, 4), (2, 4), (0, 4)]
    for position, boxes in enumerate(batch["label"]):
        assert torch.equal(boxes, dataset[position]["label"])
    assert batch["image"].shape == (4, 3, 64, 128)
    assert batch["scale"].tolist() == pytest.approx([64 / 48] * 4)
    assert batch["frame_size"].tolist() == [[64, 48]] * 4
    assert batch["sequence_id"] == ["P2-s"] * 4


def test_a_folder_of_the_other_kind_is_refused(tmp_path, folder):
    tiles = write_dataset(tmp_path, {"a": ("train", "MSS", 1)})
    with pytest.raises(InputError, match="is a dataset of tiles, this task needs frames"):
        FrameDataset(tiles, "train")
    with pytest.raises(InputError, match="is a dataset of frames, this task needs tiles"):
        TileDataset(folder, "train")


def test_a_broken_frame_is_named(tmp_path):
    folder = write_frame_dataset(tmp_path)
    (folder / "shards" / "P0.bin").write_bytes(bytes(100_000))
    with pytest.raises(InputError, match=r"frame 'P0/0': .*P0\.bin cannot be decoded"):
        FrameDataset(folder, "train")[0]


@pytest.mark.parametrize("settings", [{"zoom": (0, 1)}, {"zoom": (1.5, 0.7)}, {"stretch": 0.9}, {"tries": 0}], ids=str)
def test_placements_that_cannot_be_drawn_are_refused(settings):
    with pytest.raises(ValueError, match="expected a range above 0"):
        RandPlaceFrame(64, **settings)
