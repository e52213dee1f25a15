"""Frames of videos, decoded one after the other, with an honest end when the file is damaged."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path, PurePath
from typing import Literal, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image as Pillow

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.field import Image
from kdml_med.storage.files import publish, unfinished_path
from kdml_med.words import counted

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".ts")
_SPARE_FRAMES = 2  # containers count a frame or two that a decoder never gives out
_SPARE_S = 0.5
_USUAL_RATE = 25.0
_JITTER_FRAMES = 2  # times that go back by more begin a new segment
_FIRST_PACKETS = 64  # among which are the pictures that lack their beginning
_UPRIGHT_TURNS = 0.01  # quarter turns that are rounding
_TRACK_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)$")
_TS_SYNC, _TS_PACKETS = 0x47, {188: 0, 192: 4, 204: 0}  # bytes of a packet, and where its first byte to know is


class VideoCutShortError(FrameError):
    """Pictures are missing at the end or the start, or are damaged; the frames that could be decoded were handed out.

    Attributes:
        frames: how many could be decoded.
    """

    def __init__(self, message: str, frames: int) -> None:
        super().__init__(message)
        self.frames = frames


def is_video(source: str | PurePath) -> bool:
    """Whether a source is a video, by its name: images of a sequence are numbered as frames are."""
    return PurePath(source).suffix.lower() in VIDEO_SUFFIXES


def iterate_video(path: Path, fps: float) -> Generator[tuple[int, Image], None, int]:
    """Decode a video and give out frames at an even rate, turned as players show them.

    A frame is due whenever its time, counted from the first frame, reaches the next multiple of 1 / fps; so the same
    file always gives the same frames. Where times start again, as in files that were joined, they go on from the last
    one. The number counts all decoded frames from 0, as OpenCV does, so it does not depend on ``fps``; pictures that an
    edit list hides are no frames.

    Args:
        path: video file.
        fps: frames per second to give out; 0, or more than the video has, gives all of them.

    Yields:
        Number of the frame and its pixels, uint8, [height, width, 3], RGB.

    Returns:
        How many frames the video has; what ``yield from`` gives, not needed in a loop.

    Raises:
        FrameError: the file is no video, or empty, or holds several, or is to be shown mirrored or at an angle.
        VideoCutShortError: after the last frame that could be decoded, when the header promises more, the data are
            damaged, or the file begins or ends in the middle of something. A file without such a header (MPEG streams,
            Matroska without a duration of the picture) that ends between two pictures cannot be told from a short one.
    """
    try:
        container = open_video(path)
    except (av.error.FFmpegError, OSError) as error:
        raise FrameError(f"cannot be opened as a video: {error.strerror or error}") from error
    with container:
        return (yield from _decode(container, only_stream(container), path, fps))


def open_video(path: Path) -> InputContainer:
    """Open a video, with titles in any encoding: recorders write them in that of their country.

    Raises:
        FFmpegError: it is none, or damaged.
        OSError: it cannot be opened.
    """
    # Absolute, because "12:30.mp4" would be taken for an address.
    return av.open(str(path.absolute()), metadata_errors="replace")


def only_stream(container: InputContainer) -> VideoStream:
    """The video in a file, apart from a picture on its cover.

    Raises:
        FrameError: there is none, or there are several.
    """
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        raise FrameError("the file has no video in it")
    if len(streams) > 1:
        raise FrameError(f"the file has {len(streams)} videos in it, expected one; save the one that is meant alone")
    return streams[0]


def expected_frames(path: Path, fps: float) -> int:
    """About how many frames ``iterate_video`` gives out, by the header alone; 0 where it does not say.

    For progress bars: a header can be wrong, which only decoding shows.
    """
    try:
        with open_video(path) as container:
            stream = only_stream(container)
            rate = float(stream.average_rate or _USUAL_RATE)
            seconds = _promised_seconds(container, stream) or stream.frames / rate
    except (av.error.FFmpegError, OSError, FrameError):
        return 0
    return round(seconds * (min(fps, rate) if fps > 0 else rate))


class _Progress:
    """What was decoded so far of a video.

    Attributes:
        count: frames.
        whole: those among them that are not damaged.
        start: time of the first frame, seconds.
        seconds: from the first frame to the last, on over segments whose times start again.
        step: seconds between two frames.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.count, self.whole, self.start, self.seconds = 0, 0, 0.0, 0.0
        self.step = 1 / float(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
        self._origin = 0.0
        self._first_pts: int | None = None
        self._pts: list[int] = []

    def add_packet(self, packet: Packet[VideoStream]) -> None:
        """Note a packet before it is decoded."""
        if len(self._pts) < _FIRST_PACKETS and packet.size and packet.pts is not None and not packet.is_discard:
            self._pts.append(packet.pts)

    def add_frame(self, frame: av.VideoFrame) -> None:
        """Note a frame; its number is ``count`` - 1 then."""
        time = frame.time
        self.count, self.whole = self.count + 1, self.whole + (not frame.is_corrupt)
        if self.count == 1:
            self.start = self._origin = time or 0.0
            self._first_pts = frame.pts
            return
        if time is None or time - self._origin < self.seconds - _JITTER_FRAMES * self.step:
            time = self._origin + self.seconds + self.step if time is None else time
            self._origin = time - self.seconds - self.step
        self.seconds = time - self._origin

    def lost_at_start(self) -> int:
        """Pictures before the first whole one that could not be decoded."""
        undecoded = sum(self._first_pts is not None and pts < self._first_pts for pts in self._pts)
        return undecoded + self.count - self.whole


def _decode(
    container: InputContainer, stream: VideoStream, path: Path, fps: float
) -> Generator[tuple[int, Image], None, int]:
    stream.thread_type = "AUTO"
    done, due = _Progress(stream), 0
    try:
        for packet in container.demux(stream):
            done.add_packet(packet)
            for frame in packet.decode():
                if frame.is_corrupt and done.whole:
                    raise VideoCutShortError(
                        f"damaged or cut short at frame {done.count}; {_before(done.count)} used",
                        done.count,
                    )
                done.add_frame(frame)
                if frame.is_corrupt:
                    continue  # before the first whole one
                # Half a millisecond: containers round times to 1/1000 s and less.
                if fps <= 0 or done.seconds * fps + 5e-4 * fps >= due:
                    yield done.count - 1, _upright(frame)
                    due = int(done.seconds * fps + 5e-4 * fps) + 1
    except av.error.FFmpegError as error:
        raise VideoCutShortError(
            f"damaged after {counted(done.count, 'frame')} ({error.strerror}); what is before that is used", done.count
        ) from error
    missing = _missing_end(container, stream, done) or _torn_end(container, path)
    if missing is not None:
        raise VideoCutShortError(f"cut short: {missing}; these are used", done.count)
    if done.count == 0:
        raise FrameError("no frame of the video could be decoded")
    lost = done.lost_at_start()
    if lost:
        raise VideoCutShortError(
            f"its start is missing: {lost} pictures before the first whole one cannot be decoded; the {done.whole} "
            "frames from there are used",
            done.count,
        )
    return done.count


def _upright(frame: av.VideoFrame) -> Image:
    """Pixels as players show them: phones and some recorders store frames lying, with a note on how to turn them."""
    pixels: Image = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
    note = frame.side_data.get("DISPLAYMATRIX")
    if note is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(cast(bytes, note)), np.int32)[:5].astype(np.float64)
    turns = -math.atan2(b, a) / (math.pi / 2)
    if a * d - b * c <= 0 or abs(turns - round(turns)) > _UPRIGHT_TURNS:
        raise FrameError(
            "it is to be shown mirrored or at an angle, which leaves open what boxes refer to; save it upright"
        )
    return np.ascontiguousarray(np.rot90(pixels, round(turns)))


def _missing_end(container: InputContainer, stream: VideoStream, done: _Progress) -> str | None:
    """What the header promises beyond the last frame; None when nothing, or when it does not say.

    Frames that the header counts may be hidden by an edit list (MP4) or be empty, as where a recorder dropped a picture
    (AVI). So they are missing only when time is missing too.
    """
    duration = _promised_seconds(container, stream)
    spare = (_SPARE_FRAMES + 0.5) * done.step
    if not stream.frames:
        exact = "matroska" in container.format.name
        if exact and duration is not None:
            duration -= done.start  # it is the time of the end there
        if duration is None or done.seconds >= duration - (spare + done.step if exact else _SPARE_S):
            return None
        return f"{counted(done.count, 'frame')}, {done.seconds:.1f} of {duration:.1f} seconds"
    if "avi" in container.format.name:
        duration = stream.frames * done.step  # the other one is worked out from what is there
    reached = duration is not None and done.seconds + done.step >= duration - spare
    if reached or done.count >= stream.frames - _SPARE_FRAMES:
        return None
    return f"{counted(done.count, 'frame')} of {stream.frames}"


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Duration of the picture by the header, or by the first and last time in the file; None where none is known."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    for name, text in stream.metadata.items():
        if name.startswith("DURATION") and (stated := _TRACK_DURATION.match(text)):
            hours, minutes, seconds = map(float, stated.groups())
            return 3600 * hours + 60 * minutes + seconds
    if container.duration and len(container.streams) == 1:  # the sound may be longer than the picture
        return container.duration / av.time_base
    return None


def _torn_end(container: InputContainer, path: Path) -> str | None:
    """Whether a transport stream ends within one of its packets, which all have one size."""
    if container.format.name != "mpegts":
        return None
    with path.open("rb") as stream:
        head = stream.read(2 * max(_TS_PACKETS))
    for size, at in _TS_PACKETS.items():
        if len(head) > size + at and head[at] == head[size + at] == _TS_SYNC:
            return "the file ends within a packet, after the frames before it" if path.stat().st_size % size else None
    return None


def write_video(
    path: Path,
    frames: Iterable[Image],
    *,
    rate: Fraction | int,
    quality: int = 20,
    preset: str = "fast",
    note: str = "",
) -> int:
    """Write an MP4 file atomically, whose bytes depend on its frames only.

    Args:
        path: to write.
        frames: uint8, [rows, columns, 3], RGB, even sides; those of another size than the first are scaled to its.
        rate: frames per second.
        quality: constant rate factor of H.264; lower is better.
        preset: of x264; "veryfast" takes half the time of "fast" and 7 % more room.
        note: for the metadata of the file, see ``read_note``.

    Returns:
        How many frames were written; without any there is no file.
    """
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        return 0
    temporary = unfinished_path(path)
    codec: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rows, columns, _ = first.shape
    count = 0
    try:
        # mpeg4 is part of every FFmpeg. bitexact leaves library versions out of the file. One thread always makes the
        # same choices, but for x264's macroblock tree, whose SIMD code does not (35 different files in 160 writes with
        # it, one without, and one with it in plain C). Other SIMD code differs from one kind of processor to another.
        with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            options = {"qscale": "3"}
            if codec == "libx264":
                options = {"crf": str(quality), "preset": preset, "x264-params": "mbtree=0:cpu-independent=1"}
            container.metadata.update({"comment": note} if note else {})
            stream = container.add_stream(codec, rate=rate, options={**options, "flags": "+bitexact"})
            stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in chain([first], remaining):
                if frame.shape != first.shape:  # a video may change its size on the way
                    frame = np.asarray(Pillow.fromarray(frame).resize((columns, rows)))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
                count += 1
            container.mux(stream.encode())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_note(path: Path) -> str:
    """What ``write_video`` was given as a note; empty where the file is none of its own, or is not there."""
    try:
        with av.open(str(path)) as container:
            return str(container.metadata.get("comment", ""))
    except (av.error.FFmpegError, OSError):
        return ""


def _before(count: int) -> str:
    return "the frame before it is" if count == 1 else f"the {count:,} frames before it are"
