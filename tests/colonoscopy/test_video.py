import struct
from pathlib import Path

import av
import numpy as np
import pytest

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.video import VideoCutShortError, expected_frames, iterate_video
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


def read_all(path, fps=0):
    """Numbers given out, the pictures' own numbers, and what was said at the end."""
    numbers, shown, said = [], [], ""
    try:
        for number, picture in iterate_video(path, fps):
            numbers.append(number)
            shown.append(number_of(picture))
    except VideoCutShortError as error:
        said = str(error)
    return numbers, shown, said


def hide_start(path, hidden_s):
    """Cut a video the way trimming without encoding does: an edit list hides its first seconds."""
    data = bytearray(path.read_bytes())
    edits, header, media = (data.find(name) for name in (b"elst", b"mvhd", b"mdhd"))
    units, media_units = (struct.unpack(">I", data[at + 16 : at + 20])[0] for at in (header, media))
    whole = struct.unpack(">I", data[header + 20 : header + 24])[0]
    data[edits + 12 : edits + 20] = struct.pack(">Ii", int(whole - hidden_s * units), int(hidden_s * media_units))
    path.write_bytes(data)
    return path


def test_frames_that_an_edit_list_hides_are_no_frames_and_not_missed(tmp_path):
    path = hide_start(save_video(tmp_path / "clip.mp4", frames=40, rate=10), 2)
    numbers, shown, said = read_all(path)
    assert (numbers, said) == (list(range(20)), "")
    assert all(abs(number + 20 - own) <= 1 for number, own in zip(numbers, shown, strict=True))


def test_pictures_that_the_recorder_dropped_are_not_missed(tmp_path):
    dropped = range(3, 40, 5)
    path = save_video(tmp_path / "capture.avi", frames=40, rate=10, dropped=dropped)
    numbers, _, said = read_all(path)
    assert (numbers, said) == (list(range(32)), "")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "frame" in read_all(path)[2], "half of it is missing all the same"


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("fps", [0, 5])
def test_segments_whose_times_start_again_lose_nothing(tmp_path, suffix, fps):
    data = save_video(tmp_path / f"one.{suffix}", frames=25).read_bytes()
    (tmp_path / f"joined.{suffix}").write_bytes(data * 3)
    numbers, shown, said = read_all(tmp_path / f"joined.{suffix}", fps)
    assert (numbers, said) == (list(range(0, 75, 5 if fps else 1)), "")
    assert all(abs(number % 25 - own) <= 1 for number, own in zip(numbers, shown, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mpg"])
def test_a_video_whose_times_start_late_is_whole(tmp_path, suffix):
    numbers, _, said = read_all(save_video(tmp_path / f"late.{suffix}", frames=30, start=50))
    assert (numbers, said) == (list(range(30)), "")


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_a_title_in_another_encoding_is_no_matter(tmp_path, suffix):
    path = save_video(tmp_path / f"a.{suffix}", frames=5, title="Endoscopie Nimes")
    data = path.read_bytes()
    assert b"Nimes" in data
    path.write_bytes(data.replace(b"Nimes", "Nîmes".encode("latin-1")))
    assert read_all(path)[0] == list(range(5))


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_display_rotation_is_applied(tmp_path, turn):
    pictures = [picture for _, picture in iterate_video(save_video(tmp_path / "a.mp4", frames=3, turn=turn), 0)]
    lying = [picture for _, picture in iterate_video(save_video(tmp_path / "b.mp4", frames=3), 0)]
    np.testing.assert_array_equal(pictures, [np.rot90(picture, turn // 90) for picture in lying])


def test_a_video_that_is_to_be_shown_at_an_angle_is_refused(tmp_path):
    with pytest.raises(FrameError, match="at an angle"):
        list(iterate_video(save_video(tmp_path / "a.mp4", frames=3, turn=30), 0))


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv"])
@pytest.mark.parametrize("share", [0.47, 0.93])
def test_streams_that_end_within_a_picture_say_so(tmp_path, suffix, share):
    whole = save_video(tmp_path / f"a.{suffix}", codec="mpeg2video", b_frames=True)
    assert read_all(whole) == (list(range(50)), read_all(whole)[1], "")
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * share)])
    numbers, _, said = read_all(whole)
    assert "cut short" in said
    assert 50 * share - 5 < len(numbers) < 50 * share + 2


@pytest.mark.parametrize(("suffix", "packet"), [("ts", 188), ("mpg", 2048)])
def test_a_recording_whose_start_is_missing_gives_what_can_be_decoded_and_says_so(tmp_path, suffix, packet):
    path = save_video(tmp_path / f"a.{suffix}", codec="mpeg2video", b_frames=True)
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 // packet * packet :])
    numbers, shown, said = read_all(path)
    assert "its start is missing" in said
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 20
    assert shown[-1] - shown[0] == pytest.approx(len(numbers) - 1, abs=2), "no gap between them"


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    save_video(tmp_path / "12.mp4", 10).rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(list(iterate_video(Path("12:30.mp4"), 0))) == 10


@pytest.mark.parametrize("cover", [True, False])
def test_a_cover_is_no_video_and_two_videos_are_refused(tmp_path, cover):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25), container.add_stream("mjpeg", rate=25)]
        streams[1].pix_fmt = "yuvj420p"
        if cover:
            streams[1].disposition = av.stream.Disposition.attached_pic
        for stream in streams:
            stream.width, stream.height = 96, 64
        for stream in streams:
            for _ in range(1 if stream is streams[1] else 10):
                picture = np.zeros((64, 96, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    if cover:
        assert len(list(iterate_video(path, 0))) == 10
        return
    with pytest.raises(FrameError, match="2 videos"):
        list(iterate_video(path, 0))


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("fps", [0, 2, 5, 10, 50])
def test_the_number_of_frames_is_expected_by_the_header(tmp_path: Path, suffix: str, fps: float) -> None:
    path = save_video(tmp_path / f"clip{suffix}", frames=40, rate=10)
    assert abs(expected_frames(path, fps) - len(list(iterate_video(path, fps)))) <= 1


def test_nothing_is_expected_of_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"hello" * 100)
    assert expected_frames(tmp_path / "text.mp4", 5) == expected_frames(tmp_path / "gone.mp4", 5) == 0
