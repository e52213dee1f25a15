"""Frames of videos, decoded one after the other, with an honest end when the file is damaged."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image as Pillow

from kdml_med.colonoscopy.boxes import FrameError
from kdml_med.colonoscopy.field import Image
from kdml_med.storage.files import publish, unfinished_path

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".ts")
_SPARE_FRAMES = 2  # containers count a frame or two that a decoder never gives out
_SPARE_S = 0.5


class VideoCutShortError(FrameError):
    """The file ends, or is damaged, before the end that its header states; the frames before that were handed out.

    Attributes:
        frames: how many could be decoded.
    """

    def __init__(self, message: str, frames: int) -> None:
        super().__init__(message)
        self.frames = frames


def iterate_video(path: Path, fps: float) -> Generator[tuple[int, Image], None, int]:
    """Decode a video and give out frames at an even rate.

    A frame is due whenever its time, counted from the first frame, reaches the next multiple of 1 / fps; so the same
    file always gives the same frames. The number counts all decoded frames from 0, so it does not depend on ``fps``.

    Args:
        path: video file.
        fps: frames per second to give out; 0, or more than the video has, gives all of them.

    Yields:
        Number of the frame and its pixels, uint8, [height, width, 3], RGB.

    Returns:
        How many frames the video has; what ``yield from`` gives, not needed in a loop.

    Raises:
        FrameError: the file is no video, or empty.
        VideoCutShortError: after the last frame that could be decoded, when the header promises more or the data are
            damaged. A file without such a header (MPEG transport streams, Matroska with sound) cannot be told from a
            short one.
    """
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise FrameError(f"cannot be opened as a video: {error.strerror or error}") from error
    with container:
        if not container.streams.video:
            raise FrameError("the file has no video in it")
        return (yield from _decode(container, container.streams.video[0], fps))


def _decode(container: InputContainer, stream: VideoStream, fps: float) -> Generator[tuple[int, Image], None, int]:
    stream.thread_type = "AUTO"
    count, start, seconds, due = 0, 0.0, 0.0, 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise VideoCutShortError(f"damaged at frame {count}; the {count} frames before it are used", count)
            time = frame.time if frame.time is not None else count / float(stream.average_rate or 25)
            start = time if count == 0 else start
            seconds = time - start
            # Half a millisecond: containers round times to 1/1000 s and less.
            if fps <= 0 or seconds * fps + 5e-4 * fps >= due:
                yield count, np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
                due = int(seconds * fps + 5e-4 * fps) + 1
            count += 1
    except av.error.FFmpegError as error:
        raise VideoCutShortError(
            f"damaged after {count} frames ({error.strerror}); the frames before that are used", count
        ) from error
    missing = _missing_end(container, stream, count, seconds)
    if missing is not None:
        raise VideoCutShortError(f"cut short: {missing}; these are used", count)
    if count == 0:
        raise FrameError("no frame of the video could be decoded")
    return count


def _missing_end(container: InputContainer, stream: VideoStream, count: int, seconds: float) -> str | None:
    """What the header promises beyond the last frame; None when nothing, or when it does not say.

    Args:
        container: of the video.
        stream: of the video.
        count: frames decoded.
        seconds: from the first to the last of them.
    """
    if stream.frames:
        short = count < stream.frames - _SPARE_FRAMES
        return f"{count} frames of {stream.frames}" if short else None
    if stream.duration and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:  # the sound may be longer than the picture
        duration = container.duration / av.time_base
    else:
        return None
    return f"{count} frames, {seconds:.1f} of {duration:.1f} seconds" if seconds < duration - _SPARE_S else None


def write_video(path: Path, frames: Iterable[Image], *, rate: Fraction | int, quality: int = 20) -> int:
    """Write an MP4 file atomically, whose bytes depend on its frames only.

    Args:
        path: to write.
        frames: uint8, [rows, columns, 3], RGB, even sides; those of another size than the first are scaled to its.
        rate: frames per second.
        quality: constant rate factor of H.264; lower is better.

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
        # it, one without, and one with it in plain C).
        with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            options = {"qscale": "3"}
            if codec == "libx264":
                options = {"crf": str(quality), "preset": "fast", "x264-params": "mbtree=0"}
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
