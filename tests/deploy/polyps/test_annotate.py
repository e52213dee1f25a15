from fractions import Fraction

import av
import numpy as np
import pytest

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.video import read_note
from kdml_med.deploy.polyps.annotate import (
    Detected,
    draw_detections,
    sampled_rate,
    source_size,
    write_annotated_video,
)
from tests.colonoscopy.pictures import save, save_video

GREEN = (0, 255, 150)
YELLOW = (255, 235, 0)


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 60) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < tolerance).all(axis=2)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [picture.to_ndarray(format="rgb24") for picture in container.decode(stream)], stream.average_rate


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("video") / "clip.avi", frames=30, rate=10)


def test_box_is_drawn_where_it_is_and_the_frame_stays_elsewhere():
    image = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_detections(image, [Detected((100, 200, 300, 400), 0.87)], "ensemble")
    rows, columns = np.nonzero(near(drawn, GREEN, 1))
    assert (columns.min(), columns.max(), rows.max()) == (100, 299, 399)
    line = drawn[390, 90:120]
    assert near(line[None], GREEN, 1)[0].tolist() == [10 <= x < 12 for x in range(30)]
    assert (drawn[210:390, 110:290] == 90).all()
    assert (drawn[:150, :480] == 90).all()
    assert (drawn[480:] > 200).any(), "the footer is written below the frame"


@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (481, 641), (1080, 1350)])
def test_sides_are_even_and_small_frames_are_enlarged(shape):
    drawn = draw_detections(np.zeros((*shape, 3), np.uint8), [], "a footer that is much too long " * 9)
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert drawn.shape[1] >= 480
    assert drawn.shape[0] > shape[0]


@pytest.mark.parametrize("box", [(-5, -5, 700, 900), (0, 0, 1, 1), (639, 479, 640, 480), (10.2, 10.2, 10.3, 10.3)])
def test_boxes_at_and_over_the_border_are_drawn(box):
    assert near(draw_detections(np.zeros((480, 640, 3), np.uint8), [Detected(box, 1.0)], ""), GREEN, 1).any()


def test_video_has_the_sampled_frames_and_boxes_only_where_they_were_found(clip, tmp_path):
    found = {4: [Detected((20, 10, 60, 50), 0.9)]}
    target = tmp_path / "new" / "clip.annotated.mp4"
    write_annotated_video(target, clip, 5, found, "ensemble")
    pictures, rate = decode(target)
    assert (len(pictures), rate) == (15, 5)
    assert [bool(near(picture, GREEN).sum() > 200) for picture in pictures] == [n == 2 for n in range(15)]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_same_frames_give_the_same_bytes_every_time(clip, tmp_path):
    # Often: an encoder whose choices hang on what was in memory before differs in one write of five.
    found = {4: [Detected((20, 10, 60, 50), 0.9)]}
    contents = set()
    for number in range(12):
        write_annotated_video(tmp_path / f"{number}.mp4", clip, 5, found, "ensemble")
        contents.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(contents) == 1


def test_a_video_is_drawn_again_only_where_something_else_is_to_be_seen(clip, tmp_path):
    target, told = tmp_path / "out.mp4", []
    boxes = {4: [Detected((20, 10, 60, 50), 0.9)]}

    def is_drawn(*args, **more) -> bool:
        told.clear()
        write_annotated_video(target, *args, **more, on_frame=lambda: told.append(1))
        return bool(told)

    assert is_drawn(clip, 5, boxes, "ensemble")
    assert read_note(target).startswith("Research only, not for diagnosis. ensemble.")
    whole = target.read_bytes()
    assert not is_drawn(clip, 5, boxes, "ensemble")
    assert is_drawn(clip, 5, boxes, "student_0")
    assert is_drawn(clip, 2, boxes, "student_0")
    assert is_drawn(clip, 2, {4: [Detected((20, 10, 60, 50), 0.8)]}, "student_0")
    assert is_drawn(clip, 2, boxes, "student_0", annotated={4: [(1.0, 2.0, 9.0, 9.0)]})
    other = save_video(tmp_path / "other.avi", frames=40)
    assert is_drawn(other, 5, boxes, "ensemble")
    assert is_drawn(clip, 5, boxes, "ensemble")
    assert target.read_bytes() == whole
    target.write_bytes(whole[: len(whole) // 2])  # cut off since
    assert is_drawn(clip, 5, boxes, "ensemble")
    assert target.read_bytes() == whole


def test_video_cut_short_is_drawn_up_to_there(clip, tmp_path):
    data = clip.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    write_annotated_video(tmp_path / "cut.mp4", tmp_path / "cut.avi", 0, {}, "")
    assert 5 < len(decode(tmp_path / "cut.mp4")[0]) < 25


def test_no_file_is_left_of_what_is_no_video_and_every_reader_says_so_alike(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"hello" * 100)
    for name in ("text.mp4", "gone.mp4"):
        for read in (
            lambda path: write_annotated_video(tmp_path / "out.mp4", path, 5, {}, ""),
            lambda path: sampled_rate(path, 5),
            source_size,
        ):
            with pytest.raises(FrameError, match="cannot be opened as a video"):
                read(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


@pytest.mark.parametrize(("fps", "rate"), [(0, 10), (5, 5), (2.5, Fraction(5, 2)), (25, 10)])
def test_rate_is_that_of_the_frames_given_out(clip, fps, rate):
    assert sampled_rate(clip, fps) == rate


def test_size_is_read_off_images_and_videos(clip, tmp_path):
    assert source_size(clip) == (96, 64)
    assert source_size(save(tmp_path / "a.png")) == (200, 160)
    assert source_size(save_video(tmp_path / "turned.mp4", frames=2, turn=90)) == (64, 96), "as it is shown"


def test_annotated_boxes_are_yellow_and_below_the_detected_ones(clip, tmp_path):
    image = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_detections(image, [Detected((100, 200, 300, 400), 0.9)], "", [(100, 200, 300, 400), (20, 20, 60, 60)])
    rows, columns = np.nonzero(near(drawn, YELLOW, 1))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 59, 20, 59)
    target, told = tmp_path / "clip.mp4", []
    truth = {4: [(20.0, 10.0, 60.0, 50.0)]}
    write_annotated_video(target, clip, 5, {}, "", annotated=truth, on_frame=lambda: told.append(1))
    pictures, _ = decode(target)
    assert [bool(near(picture, YELLOW, 90).sum() > 200) for picture in pictures] == [n == 2 for n in range(15)]
    assert len(told) == 15
