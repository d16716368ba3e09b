"""Videos to frames and back, through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import io
import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images import from_uint8, to_uint8
from .atomic import atomic_path
from .pictures import MAX_TOTAL_PIXELS

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
H264_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # containers that can be written
CRF = 18  # H.264 constant rate factor; x264's documentation calls 17 to 18 visually lossless
MISSING_SHARE = 0.05  # fewer frames than the stated duration by more than this: cut off


def read_video_frames(path: str | os.PathLike[str]) -> Tensor:  # [F, H, W, 3]
    """All frames of a video, turned the way a player shows them, float32 sRGB in [0, 1].

    Raises:
        ValueError: Not a video, no video stream, damaged or cut off (with the number of frames
            that could be decoded), or more pixels than `MAX_TOTAL_PIXELS`.
    """
    return from_uint8(decode_video(path))


def decode_video(path: str | os.PathLike[str]) -> Tensor:  # [F, H, W, 3] uint8
    """Like `read_video_frames`, in bytes: a quarter of the memory."""
    av = _load_av()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    frames: list[np.ndarray] = []
    expected = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream in this file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            expected = _expected_frames(container, stream)
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(_damaged(path, len(frames), expected, "a damaged frame"))
                frames.append(_upright_pixels(frame))
                pixels = len(frames) * frame.width * frame.height
                if pixels > MAX_TOTAL_PIXELS:
                    raise ValueError(
                        f"{path}: {len(frames)} frames of {frame.width}x{frame.height} are "
                        f"{pixels} pixels, at most {MAX_TOTAL_PIXELS} are read; make the video "
                        "shorter or smaller"
                    )
    except av.FFmpegError as error:
        raise ValueError(_damaged(path, len(frames), expected, str(error.strerror))) from error
    if not frames or len(frames) < expected:
        raise ValueError(_damaged(path, len(frames), expected, "it ends early"))
    return torch.from_numpy(np.stack(frames))


def _load_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise RuntimeError("videos need PyAV; pip install av") from error
    return av


def _expected_frames(container: Any, stream: Any) -> int:
    """How many frames the file says it has; a lower bound where only its duration is known."""
    if stream.frames:
        return stream.frames
    if container.duration and stream.average_rate:
        stated = container.duration / 1e6 * float(stream.average_rate)
        return int(stated * (1 - MISSING_SHARE)) - 1
    return 0


def _damaged(path: Path, decoded: int, expected: int, reason: str) -> str:
    of = f" of {expected}" if expected else ""
    return (
        f"{path}: the video is damaged, cut off or of an unknown kind ({reason}): {decoded}{of} "
        "frames could be decoded; copy or export it again"
    )


def _upright_pixels(frame: Any) -> np.ndarray:  # [H, W, 3] uint8
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as in rot90
    return np.ascontiguousarray(np.rot90(pixels, turns))


def write_video(
    path: str | os.PathLike[str],
    frames: Tensor,  # [F, H, W, 3]
    fps: float = 24.0,
) -> None:
    """Write an H.264 video (yuv420p, CRF 18, BT.709) that every browser plays.

    Args:
        path: The file to write; its suffix chooses the container, .mp4 as a rule.
        frames: sRGB in [0, 1]; an odd width or height gets its last column or row twice, since
            the format halves the chroma. [F, H, W, 3]
        fps: Frames per second.
    """
    av = _load_av()
    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"{path}: expected frames [F, H, W, 3], got {list(frames.shape)}")
    if not fps > 0:
        raise ValueError(f"{path}: fps must be positive, got {fps}")
    height, width = frames.shape[1:3]
    if path.suffix.lower() not in H264_SUFFIXES:
        known = ", ".join(H264_SUFFIXES)
        raise ValueError(f"{path}: unknown video format {path.suffix!r}; known are {known}")
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    options = {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
    with atomic_path(path) as temporary, _OutputFile(temporary, "wb") as file:
        try:
            with av.open(file, "w", options=options) as container:
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
                stream.width, stream.height = width + width % 2, height + height % 2
                stream.pix_fmt = "yuv420p"
                # tell players what the conversion below did, or they guess from the size
                stream.codec_context.colorspace = 1  # BT.709
                stream.codec_context.color_primaries = 1
                stream.codec_context.color_trc = 1
                stream.codec_context.color_range = 1  # limited, 16 to 235
                for image in frames:
                    pixels = np.pad(to_uint8(image).cpu().numpy(), pad, mode="edge")
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            if file.failure is not None:  # FFmpeg tells of it in several ways
                raise file.failure from error
            raise ValueError(f"{path}: the video cannot be written: {error.strerror}") from error


class _OutputFile(io.FileIO):
    """A file for PyAV to write to: its own stay open, and on the disk, when the disk is full."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write everything, which the system may do in parts."""
        rest = memoryview(data)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
            raise
        return len(data)
