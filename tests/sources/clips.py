"""Tiny videos for the miniature releases."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_video(path: Path, number: int = 0, seconds: int = 2, rate: int = 4) -> None:
    """Write a video of 32 x 32 in MPEG-4, each frame in a colour that follows from the number and its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for place in range(seconds * rate):
            colour = (number * 53 % 256, place * 29 % 256, 120)
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), colour, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
