from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.colonoscopy.annotations import Annotations
from kdml_med.colonoscopy.boxes import FrameBoxes
from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import make_plan, shard_name
from kdml_med.colonoscopy.sources import Source


def sources(*names):
    return [Source(name, Path("/in") / name) for name in names]


def known(**sequences):
    frames = {(f"{name}.png", None): FrameBoxes(name, sequence=value) for name, value in sequences.items()}
    return Annotations(frames, columns=frozenset({"sequence"}))


@given(st.text(min_size=1, max_size=200))
def test_shard_names_are_plain_file_names(sequence):
    name = shard_name(sequence)
    assert 0 < len(name) <= 80
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith(".")


def test_sequences_with_similar_names_get_shards_of_their_own():
    plan = make_plan(sources("a.png", "b.png", "c.png"), known(a="p 1", b="p/1", c="P 1"), FrameOptions())
    names = [job.name for job in plan.jobs]
    assert len({name.lower() for name in names}) == 3
    assert "P_1" in names


def test_loose_frames_are_stored_500_to_a_shard():
    plan = make_plan(sources(*(f"{i}.png" for i in range(1201))), Annotations(), FrameOptions())
    assert [(job.name, len(job.items)) for job in plan.jobs] == [
        ("frames-0000", 500),
        ("frames-0001", 500),
        ("frames-0002", 201),
    ]
    assert plan.label_level == "frame"


class CountedText(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        CountedText.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_mixed_inputs_are_grouped_by_sequence_in_their_order_without_a_scan_for_each_sequence():
    names = [f"{number}.png" for number in range(300)]
    own = {name: f"s{number * 7 % 100}" for number, name in enumerate(names)}
    frames = {(name, None): FrameBoxes(name, sequence=CountedText(own[name])) for name in names}
    mixed = sources(*names, "clip.mp4", "0/loose.mp4")
    CountedText.compared = 0
    plan = make_plan(mixed, Annotations(frames, columns=frozenset({"sequence"})), FrameOptions())
    assert CountedText.compared < 20 * len(mixed)
    expected = {own[name]: [other for other in names if own[other] == own[name]] for name in names}
    expected |= {"clip.mp4": ["clip.mp4"], "0_loose.mp4": ["0/loose.mp4"]}
    assert [(job.name, [item.source.name for item in job.items]) for job in plan.jobs] == sorted(expected.items())


@pytest.mark.parametrize(
    ("names", "origin", "expected"),
    [
        (("a/1.png", "b/1.png"), "auto", ["a", "b"]),
        (("a/1.png", "a/2.png"), "auto", [None, None]),
        (("a/1.png", "a/2.png"), "folder", ["a", "a"]),
        (("1.png", "2.png"), "folder", ["in", "in"]),
        (("train/images/1.png", "valid/images/1.png", "test2/1.png"), "auto", [None, None, None]),
        (("train/images/1.png", "valid/images/1.png"), "folder", ["train/images", "valid/images"]),
        (("train/case1/1.png", "test/case2/1.png"), "auto", ["train/case1", "test/case2"]),
        (("adenoma/1.png", "hyperplastic/1.png", "Serrated/1.png", "normal/1.png"), "auto", [None] * 4),
        (("Polyps/NBI/1.png", "non-polyp/WLI/1.png", "train/sessile_serrated/1.png"), "auto", [None] * 3),
        (("positive/1.png", "negative/1.png"), "folder", ["positive", "negative"]),
        (("adenoma/case1/1.png", "normal/case2/1.png"), "auto", ["adenoma/case1", "normal/case2"]),
        (("polyp_1/1.png", "polyp_2/1.png"), "auto", ["polyp_1", "polyp_2"]),
        (("a/1.png", "b/1.png"), "none", [None, None]),
        (("a/clip.mp4", "b/1.png"), "none", ["a/clip.mp4", None]),
        (("a/clip.mp4", "b/1.png"), "auto", ["a/clip.mp4", None]),
    ],
)
def test_sequences_come_from_where_the_option_says(names, origin, expected):
    plan = make_plan(sources(*names), Annotations(), FrameOptions(sequence_from=origin))
    found = {item.source.name: item.sequence_id for job in plan.jobs for item in job.items}
    assert [found[name] for name in names] == expected


@pytest.mark.parametrize(
    ("names", "origin", "folders"),
    [
        (("s10/1.png", "s2/1.png", "clip.mp4"), "auto", ["s2", "s10"]),
        (("s10/1.png", "s2/1.png"), "folder", []),
        (("normal/1.png", "polyp/1.png"), "auto", []),
    ],
)
def test_folders_that_were_taken_for_sequences_without_being_asked_for_are_told(names, origin, folders):
    plan = make_plan(sources(*names), Annotations(), FrameOptions(sequence_from=origin))
    assert plan.folders == folders


def test_column_of_sequences_goes_before_folders_and_a_patient_holds_for_the_whole_sequence():
    frames = known(a="s", b="s", c="t").frames
    frames["a.png", None] = FrameBoxes("a", sequence="s", patient="P")
    plan = make_plan(
        sources("a.png", "b.png", "c.png"), Annotations(frames, columns=frozenset({"sequence"})), FrameOptions()
    )
    items = {item.source.name: item for job in plan.jobs for item in job.items}
    assert [(items[f"{name}.png"].sequence_id, items[f"{name}.png"].patient_id) for name in "abc"] == [
        ("s", "P"),
        ("s", "P"),
        ("t", None),
    ]
    assert [items[f"{name}.png"].frame_index for name in "abc"] == [0, 1, 0]
    assert plan.label_level == "sequence"
