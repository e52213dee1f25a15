"""A video file whose bytes depend on its frames only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt

FRAMES_PER_SECOND = 10


def write_video(path: Path, frames: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write an MP4 file atomically.

    Args:
        path: to write.
        frames: uint8, [rows, columns, 3], RGB, all of one size with even sides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    codec: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rows, columns, _ = frames[0].shape
    # mpeg4 is part of every FFmpeg. bitexact leaves library versions out of the file, and one thread always makes the
    # same choices.
    with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": "18", "preset": "fast"} if codec == "libx264" else {"qscale": "3"}
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options={**options, "flags": "+bitexact"})
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)
