import pytest

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.video import VideoCutShortError, iterate_video
from tests.colonoscopy.pictures import number_of, save_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("video") / "clip.avi")


@pytest.mark.parametrize(("fps", "step"), [(0, 1), (25, 1), (100, 1), (5, 5), (1, 25)])
def test_frames_come_at_the_rate_with_their_own_numbers(clip, fps, step):
    got = [(number, number_of(picture)) for number, picture in iterate_video(clip, fps)]
    assert [number for number, _ in got] == list(range(0, 50, step))
    assert all(abs(number - shown) <= 1 for number, shown in got)


def test_rates_that_do_not_divide_stay_even(clip):
    numbers = [number for number, _ in iterate_video(clip, 10)]
    assert numbers == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43, 45, 48]


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
def test_whole_videos_end_without_complaint(tmp_path, suffix):
    assert len(list(iterate_video(save_video(tmp_path / f"clip.{suffix}", frames=30), 0))) == 30


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_cut_video_gives_what_can_be_decoded_and_then_says_so(tmp_path, suffix):
    data = save_video(tmp_path / f"clip.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    got = []

    def read():
        for number, picture in iterate_video(cut, 0):
            got.append(number)
            assert abs(number_of(picture) - number) <= 1

    with pytest.raises(VideoCutShortError) as caught:
        read()
    assert 10 < len(got) < 40
    assert got == list(range(len(got)))
    assert caught.value.frames == len(got)


def test_cut_video_with_its_index_in_front_says_so(tmp_path):
    data = save_video(tmp_path / "clip.mp4", options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoCutShortError) as caught:
        list(iterate_video(tmp_path / "cut.mp4", 0))
    assert 10 < caught.value.frames < 50


def test_files_that_are_no_video_are_refused(tmp_path):
    for name, data in (("empty.mp4", b""), ("text.mp4", b"hello" * 100)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FrameError, match="cannot be opened as a video"):
            list(iterate_video(tmp_path / name, 0))
    with pytest.raises(FrameError, match="cannot be opened"):
        list(iterate_video(tmp_path / "absent.mp4", 0))
    half = save_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(half[: len(half) // 2])  # its index is at the end
    with pytest.raises(FrameError):
        list(iterate_video(tmp_path / "half.mp4", 0))
