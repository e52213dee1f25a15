import pytest
import torch
from monai.transforms import Compose, MapTransform, Randomizable

from kdml_med.data import FrameDataset, NormalizeColourd, SampleLoader
from tests.data.folders import write_dataset
from tests.data.test_tiles import PATIENTS, augmentation, augmented
from tests.synthetic_frames import write_frame_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"), PATIENTS)


class Darken(MapTransform, Randomizable):
    """A transform of one's own, which works on one sample at a time."""

    def __init__(self):
        super().__init__("image")

    def __call__(self, sample):
        return {**sample, "image": sample["image"] * self.R.uniform(0.5, 1.0)}


def batches(dataset, views, **settings):
    return list(SampleLoader(dataset, **({"batch_size": 4, "training": True, "views": views} | settings)))


def test_each_sample_comes_in_every_view_and_once_with_its_label(folder):
    plain, several = batches(augmented(folder), 1), batches(augmented(folder), 3)
    assert [batch["image"].shape for batch in several] == [(4, 3, 3, 16, 16), (4, 3, 3, 16, 16)]  # one is left over
    for one, many in zip(plain, several, strict=True):
        assert many["sample_id"] == one["sample_id"]
        assert many["patient_id"] == one["patient_id"]
        assert torch.equal(many["label"], one["label"])
        assert torch.equal(many["image"][:, 0], one["image"])


def test_views_of_a_sample_differ_and_do_not_depend_on_the_batch_or_on_other_views(folder):
    def by_sample(views, batch_size):
        return {
            name: image
            for batch in batches(augmented(folder), views, batch_size=batch_size)
            for name, image in zip(batch["sample_id"], batch["image"], strict=True)
        }

    two, three = by_sample(2, 3), by_sample(3, 9)
    assert two.keys() == three.keys()
    assert all(torch.equal(two[name], three[name][:2]) for name in two)
    assert sum(not torch.equal(*own) for own in two.values()) > len(two) / 2


@pytest.mark.parametrize("chain", [augmentation, lambda: Compose([augmentation(), Darken()]), Darken])
def test_views_are_the_same_with_reading_processes(folder, chain):
    dataset = augmented(folder)
    dataset.transform = chain()
    for here, there in zip(batches(dataset, 2), batches(dataset, 2, num_workers=1), strict=True):
        assert torch.equal(here["image"], there["image"])
        assert here["sample_id"] == there["sample_id"]
    assert dataset.views == 1  # of the loader only


def test_frames_do_not_come_in_several_views(tmp_path):
    folder = write_frame_dataset(tmp_path / "frames", frames=2)
    frames = FrameDataset(folder, "train", transform=NormalizeColourd("image"))
    with pytest.raises(ValueError, match="several views are for tiles"):
        SampleLoader(frames, batch_size=2, training=True, views=2)
